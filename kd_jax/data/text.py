"""Texts of items and histories, and their tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import atomic

SAME = 0.05  # share of texts with the tokens of another, from which on that is noted
SECOND = 2  # in a mask: a token of the second text of a pair


def item_texts(items: pl.DataFrame, columns: Sequence[str], template: str = "") -> list[str]:
    """One text per item.

    Empty values are skipped; the values of a list column are joined by ', '. template: a format
    string with column names, such as 'A film called {title}, {genres}'; '' joins the columns with
    '. '. Raises InputError for an unknown column and for an item without any text.
    """
    for column in columns:
        if column not in items.columns:
            raise InputError(
                f"text column {column!r} is not in the items{nearest(column, items.columns)}"
            )
    values = [[_plain(value) for value in items[column].to_list()] for column in columns]
    texts = []
    for row, cells in enumerate(zip(*values, strict=True)):
        if not template:
            text = ". ".join(cell for cell in cells if cell)
        else:
            text = _fill(template, dict(zip(columns, cells, strict=True)))
        if not any(cells) or not text:
            name = items["item"][row] if "item" in items.columns else row
            where = ", ".join(columns)
            other = "teacher.model.item_features='id'"
            if any(cells):
                where = f"the columns of teacher.lm.template={template!r}"
                other = "another template"
            raise InputError(
                f"item {name!r} has no text in {where}; give it a title, drop the item, or use"
                f" {other}"
            )
        texts.append(text)
    return texts


def check_template(template: str, columns: Sequence[str]) -> None:
    """Raises InputError if ``template`` is no format string over ``columns``."""
    _fill(template, dict.fromkeys(columns, ""))


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple, pl.Series)):
        return ", ".join(part for part in map(_plain, value) if part)
    return " ".join(str(value).split())


def _fill(template: str, cells: dict[str, str]) -> str:
    try:
        return " ".join(template.format(**cells).split())
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"teacher.lm.template={template!r} cannot be filled ({error}){nearest(error, cells)}"
        ) from None


def history_text(titles: Sequence[str], max_items: int) -> str:
    """A history (oldest first) as one text: the newest ``max_items`` titles, newest last."""
    return "; ".join(titles[-max_items:]) if max_items > 0 else ""


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
    """Token ids of N texts, without padding: text n is ``ids[indptr[n] : indptr[n + 1]]``.

    pad_id: the token id used as padding. first: for pairs of texts, the number of tokens of each
    row that belong to the first text; else None.
    """

    ids: Int[np.ndarray, " T"]
    indptr: Int[np.ndarray, " N_1"]
    pad_id: int
    first: Int[np.ndarray, " N"] | None = None

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def token_indices(self, rows: Int[np.ndarray, " R"], width: int) -> Int[np.ndarray, "R L"]:
        """Indices into ``ids`` of the rows' tokens, int64 [R, width].

        Beyond the end of a text the indices are in bounds but of no meaning.
        """
        indices = self.indptr[rows][:, None] + np.arange(width)[None]
        return np.minimum(indices, max(len(self.ids) - 1, 0))

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        """The number of tokens of each text."""
        return np.diff(self.indptr)

    def padded(
        self, rows: Int[np.ndarray, " R"] | None = None, length: int | None = None
    ) -> tuple[Int[np.ndarray, "R L"], Int[np.ndarray, "R L"]]:
        """Token ids, padded on the right, and mask, both int32 [R, L].

        rows: the texts; None: all. length: L; None: that of the longest text. The mask is 0 at
        padding, 1 at a token, and ``SECOND`` at a token of the second text of a pair.
        """
        rows = np.arange(len(self)) if rows is None else rows
        lengths = self.lengths[rows]
        width = int(lengths.max(initial=1)) if length is None else length
        mask = np.arange(width)[None] < lengths[:, None]
        found = self.ids[self.token_indices(rows, width)] if len(self.ids) else self.pad_id
        ids = np.where(mask, found, self.pad_id)
        if self.first is not None:
            second = np.arange(width)[None] >= self.first[rows][:, None]
            mask = np.where(mask & second, SECOND, mask)
        return ids.astype(np.int32), mask.astype(np.int32)


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_length: int, cache: Path | None = None
) -> TokenTable:
    """The tokens of ``texts``, truncated to ``max_length``.

    cache: a folder that keeps token tables by the hash of their content; None: no cache.
    """
    path = None
    if cache is not None:
        path = cache / f"tokens-{digest([_rules(tokenizer), str(max_length), *texts])}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as saved:
                return TokenTable(saved["ids"], saved["indptr"], int(saved["pad_id"]))
    rows = (
        tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)["input_ids"]
        if texts
        else []
    )
    # Tokenizers of decoders return no token for an empty text; it becomes one padding token, which
    # the mask marks as a token.
    rows = [row or [tokenizer.pad_token_id] for row in rows]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter((token for row in rows for token in row), np.int32, int(lengths.sum()))
    table = TokenTable(
        ids, np.concatenate([[0], lengths.cumsum()]).astype(np.int64), int(tokenizer.pad_token_id)
    )
    if path is not None:
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=table.ids, indptr=table.indptr, pad_id=table.pad_id)
    return table


def _rules(tokenizer: Any) -> str:
    """The rules of a tokenizer, without truncation and padding, which every call sets."""
    if not getattr(tokenizer, "is_fast", False):
        return repr(tokenizer)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps(rules | {"truncation": None, "padding": None}, sort_keys=True)


def token_problems(
    texts: Sequence[str], table: TokenTable, tokenizer: Any, max_length: int, aside: int = 0
) -> str:
    """What the tokens do not show of the texts, in one line for the log; '' where nothing is wrong.

    Counted are distinct texts with the same tokens as another one, those of which more than half of
    the tokens are the unknown one (special tokens aside), and those that are cut. table: of
    ``texts``, cut to ``max_length`` tokens. aside: the tokens of a prompt in each text, all known.
    """
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    rows = np.fromiter(first.values(), np.int64, len(first))
    data, width = table.ids.tobytes(), table.ids.itemsize
    starts, ends = table.indptr[rows] * width, table.indptr[rows + 1] * width
    keys = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    copies = Counter(keys)
    same = sum(copies[key] > 1 for key in keys)
    special = set(tokenizer.all_special_ids)
    unknown_id = tokenizer.unk_token_id
    roles = ("bos", "eos", "sep", "pad", "cls")
    if unknown_id in {getattr(tokenizer, f"{role}_token_id") for role in roles}:
        unknown_id = None  # of a byte-level tokenizer, which knows every text
    others = ~np.isin(table.ids, list(special - {unknown_id}))
    unknown = table.ids == (-1 if unknown_id is None else unknown_id)
    counts = [np.concatenate([[0], np.cumsum(found)]) for found in (unknown, others)]
    unknowns, known = (
        count[table.indptr[rows + 1]] - count[table.indptr[rows]] for count in counts
    )
    same = same if same >= SAME * len(first) else 0
    strange = int(np.sum(2 * unknowns > known - aside))
    full = [list(first)[n] for n in np.flatnonzero(table.lengths[rows] >= max_length)]
    long = tokenizer(full, verbose=False)["input_ids"] if full else []
    cut = sum(len(row) > max_length for row in long)
    counted = [
        (same, "have the same tokens as another, so that their vectors are equal"),
        (strange, "are mostly unknown tokens"),
        (cut, f"are longer than {max_length} tokens and are cut"),
    ]
    problems = [f"{count:,} {what}" for count, what in counted if count]
    fixes = ["choose teacher.lm.weights that know their script"] * bool(strange)
    fixes += ["set teacher.lm.max_tokens higher, up to what the model reads"] * bool(cut)
    fixes += ["set teacher.model.item_features='text+id'"] * bool(same or strange)
    if not problems:
        return ""
    return f"of {len(first):,} distinct texts {', '.join(problems)}: {', or '.join(fixes)}"


def digest(parts: Iterable[str | bytes]) -> str:
    """The first 32 hex digits of SHA-256 over the parts.

    Each part is hashed with its length, so that moving text between parts changes the digest.
    """
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()[:32]
