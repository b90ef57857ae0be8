"""Text in: item and history templates, token tables, and every distinct text's vector, computed once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
from flax import nnx
from jaxtyping import Float, Int

from kd_jax import sharding
from kd_jax.errors import InputError, nearest
from kd_jax.files import atomic
from kd_jax.models.encoder import SECOND, TextEncoder


def item_texts(items: pl.DataFrame, columns: Sequence[str], template: str = "") -> list[str]:
    """One text per item. Missing and empty values are skipped, list columns are joined by ', '.

    template: a format string with column names, 'A film called {title}, {genres}'; '' joins the columns with '. '.
    Raises InputError for an unknown column and for an item that ends up without any text.
    """
    for column in columns:
        if column not in items.columns:
            raise InputError(f"text column {column!r} is not in the items{nearest(column, items.columns)}")
    values = [[_plain(value) for value in items[column].to_list()] for column in columns]
    texts = []
    for row, cells in enumerate(zip(*values, strict=True)):
        if not template:
            text = ". ".join(cell for cell in cells if cell)
        else:
            text = _fill(template, dict(zip(columns, cells, strict=True)))
        if not any(cells) or not text:
            name = items["item"][row] if "item" in items.columns else row
            where = f"what teacher.template={template!r} names" if any(cells) else ", ".join(columns)
            raise InputError(
                f"item {name!r} has no text in {where}; give it a title, drop the item, or use "
                + ("another template" if any(cells) else "teacher.item_features='id'")
            )
        texts.append(text)
    return texts


def check_template(template: str, columns: Sequence[str]) -> None:
    """Raises InputError if ``template`` names what is none of the ``columns``, or is no template."""
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
        raise InputError(f"teacher.template={template!r} cannot be filled ({error}){nearest(error, cells)}") from None


def history_text(titles: Sequence[str], max_items: int) -> str:
    """A history (oldest first) as one text: the newest ``max_items`` titles, newest last."""
    return "; ".join(titles[-max_items:]) if max_items > 0 else ""


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
    """Token ids of N texts, without padding: text n is ``ids[indptr[n] : indptr[n + 1]]``.

    first: of pairs, how many of the tokens belong to the first text."""

    ids: Int[np.ndarray, " T"]
    indptr: Int[np.ndarray, " N_1"]
    pad_id: int
    first: Int[np.ndarray, " N"] | None = None

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def positions(self, rows: Int[np.ndarray, " R"], width: int) -> Int[np.ndarray, "R L"]:
        """Where the rows' tokens lie in ``ids``, int64 [R, width]; behind a text's end, somewhere."""
        return np.minimum(self.indptr[rows][:, None] + np.arange(width)[None], max(len(self.ids) - 1, 0))

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        return np.diff(self.indptr)

    def padded(
        self, rows: Int[np.ndarray, " R"] | None = None, length: int | None = None
    ) -> tuple[Int[np.ndarray, "R L"], Int[np.ndarray, "R L"]]:
        """Token ids, padded on the right, and mask (1 a token, ``SECOND`` one of a pair's second text), both int32; of
        ``rows`` only, if given."""
        rows = np.arange(len(self)) if rows is None else rows
        lengths = self.lengths[rows]
        width = int(lengths.max(initial=1)) if length is None else length
        mask = np.arange(width)[None] < lengths[:, None]
        found = self.ids[self.positions(rows, width)] if len(self.ids) else self.pad_id
        ids = np.where(mask, found, self.pad_id)
        if self.first is not None:
            mask = np.where(mask & (np.arange(width)[None] >= self.first[rows][:, None]), SECOND, mask)
        return ids.astype(np.int32), mask.astype(np.int32)


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int, cache: Path | None = None) -> TokenTable:
    """Texts -> tokens, cut to ``max_length``. ``cache``: a folder that keeps tables by content hash."""
    path = None
    if cache is not None:
        rules = tokenizer.backend_tokenizer.to_str() if getattr(tokenizer, "is_fast", False) else repr(tokenizer)
        path = cache / f"tokens-{_digest([rules, str(max_length), *texts])}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as saved:
                return TokenTable(saved["ids"], saved["indptr"], int(saved["pad_id"]))
    rows = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)["input_ids"] if texts else []
    # Decoders' tokenizers make nothing of an empty text; one padding token, read as a word, stands for it.
    rows = [row or [tokenizer.pad_token_id] for row in rows]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter((token for row in rows for token in row), np.int32, int(lengths.sum()))
    table = TokenTable(ids, np.concatenate([[0], lengths.cumsum()]).astype(np.int64), int(tokenizer.pad_token_id))
    if path is not None:
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=table.ids, indptr=table.indptr, pad_id=table.pad_id)
    return table


def _digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 of the parts, each with its length, so that moving text between parts changes it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def fingerprint(encoder: TextEncoder) -> str:
    """Hash of an encoder's weights and of how it computes: changes whenever a vector could change."""
    names = ("pooling", "normalize", "dtype", "settings")
    parts: list[str | bytes] = [type(encoder).__name__, *(str(getattr(encoder, name)) for name in names)]
    for path, leaf in sorted(nnx.to_flat_state(nnx.state(encoder)), key=lambda item: str(item[0])):
        value = np.asarray(leaf[...])
        parts += [str((path, value.dtype, value.shape)), np.ascontiguousarray(value).tobytes()]
    return _digest(parts)


def encode(
    encoder: TextEncoder,
    table: TokenTable,
    *,
    states: np.ndarray | None = None,
    batch_tokens: int | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "N D"]:
    """The encoder's f32 vector of every text; equal texts are computed once. states: see ``frozen_states``.

    Texts are sorted by length and cut into a few (rows, length) shapes, so that little padding is computed and few
    programs are compiled. batch_tokens: computed at once on a device; on CPU the default keeps a batch's activations in
    the cache. cache: a folder that keeps results, by content of texts and weights. progress: called with (texts done,
    in all).
    Raises InputError for a vector that is not finite.
    Source of the sorting: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, section 7 (smart batching).
    """
    path = None
    if cache is not None:
        path = cache / f"vectors-{_digest([fingerprint(encoder), table.ids.tobytes(), table.indptr.tobytes()])}.npy"
        if path.is_file():
            return np.load(path, allow_pickle=False)
    distinct, inverse = _distinct(table)
    vectors = np.zeros((len(distinct), encoder.dim), np.float32)
    copies, done = np.bincount(inverse), 0
    for rows, _, result in _batches(encoder, table, distinct, _forward, states, batch_tokens):
        vectors[rows] = result
        done += int(copies[rows].sum())
        if progress is not None:
            progress(done, len(table))
    broken = int(np.sum(~np.isfinite(vectors).all(1)))
    if broken:
        raise InputError(
            f"the language model's vectors of {broken} of {len(distinct)} texts are not finite: its weights are "
            "damaged; copy or download teacher.weights again"
        )
    vectors = vectors[inverse]
    if path is not None:
        _save(path, vectors)
    return vectors


def frozen_states(encoder: TextEncoder, table: TokenTable, cache: Path) -> np.ndarray:
    """Hidden states of every token behind the encoder's frozen layers (``TextEncoder.cut``), [T, D] as ``table.ids``.

    Computed once: they stay in ``cache`` by content of texts and of the weights. They lie in a file mapped to memory.
    """
    texts = table.ids.tobytes(), table.indptr.tobytes()
    path = cache / f"states-{_digest((f'cut {encoder.cut}', fingerprint(encoder), *texts))}.npy"
    if not path.is_file():
        states = np.zeros((len(table.ids), encoder.dim), np.dtype(encoder.dtype))
        for rows, mask, result in _batches(encoder, table, np.arange(len(table)), _states):
            states[table.positions(rows, mask.shape[1])[mask]] = result[mask]
        _save(path, states.view(np.uint16) if states.dtype.itemsize == 2 else states)
    found = np.load(path, allow_pickle=False, mmap_mode="r")
    return found.view(np.dtype(encoder.dtype)) if found.dtype == np.uint16 else found


def _save(path: Path, values: np.ndarray) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def _batches(
    encoder: TextEncoder,
    table: TokenTable,
    distinct: np.ndarray,
    run: Callable[..., jax.Array],
    states: np.ndarray | None = None,
    batch_tokens: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(positions in ``distinct``, mask [R, L], result [R, ...]) of ``run`` over the distinct texts, by length, on all
    devices of this process."""
    mesh = sharding.local_mesh()
    batch_tokens = mesh.size * (batch_tokens or (1024 if jax.default_backend() == "cpu" else 65536))
    lengths = table.lengths[distinct]
    graphdef, state = nnx.split(encoder)
    state = sharding.put_whole(state, mesh)
    order = np.argsort(lengths, kind="stable")
    pending: list[tuple[np.ndarray, np.ndarray, jax.Array]] = []
    for start, stop, batch, length in plan(lengths[order], batch_tokens):
        batch += -batch % mesh.size
        for first in range(start, stop, batch):
            rows = order[first : min(first + batch, stop)]
            # The last batch repeats its first text: the shape, and so the compiled program, stays the same.
            filled = distinct[np.concatenate([rows, np.repeat(rows[:1], batch - len(rows))])]
            ids, mask = table.padded(filled, length)
            given = None if states is None else states[table.positions(filled, length)]
            result = run(graphdef, state, *sharding.put_rows((ids, mask, given), mesh))
            pending.append((rows, mask[: len(rows)] > 0, result))
            if len(pending) > 1:
                rows, mask, result = pending.pop(0)
                yield rows, mask, np.asarray(result)[: len(rows)]
    for rows, mask, result in pending:
        yield rows, mask, np.asarray(result)[: len(rows)]


@partial(jax.jit, static_argnums=0)
def _forward(graphdef: nnx.GraphDef, state: Any, ids: jax.Array, mask: jax.Array, states: Any) -> jax.Array:
    model: Any = nnx.merge(graphdef, state)
    return model(ids, mask, states=states)


@partial(jax.jit, static_argnums=0)
def _states(graphdef: nnx.GraphDef, state: Any, ids: jax.Array, mask: jax.Array, _: None) -> jax.Array:
    model: Any = nnx.merge(graphdef, state)
    return model.states(ids, mask)


def _distinct(table: TokenTable) -> tuple[np.ndarray, np.ndarray]:
    """Rows that hold each distinct text first, and for every row the position of its text among them."""
    data = table.ids.tobytes()
    width = table.ids.itemsize
    seen: dict[bytes, int] = {}
    first: list[int] = []
    inverse = np.empty(len(table), np.int64)
    for row in range(len(table)):
        key = data[table.indptr[row] * width : table.indptr[row + 1] * width]
        inverse[row] = seen.setdefault(key, len(first))
        if inverse[row] == len(first):
            first.append(row)
    return np.asarray(first, np.int64), inverse


def plan(
    lengths: Int[np.ndarray, " N"], batch_tokens: int, compile_tokens: int = 4000
) -> list[tuple[int, int, int, int]]:
    """Shapes to encode sorted ``lengths`` in: (start, stop, rows, length), as few computed tokens as can be had.

    Every shape costs ``compile_tokens`` (what could be encoded while its program compiles), every text the length of
    its shape; the cheapest cut into shapes is found by dynamic programming over the distinct lengths.
    """
    widths, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate([[0], counts.cumsum()])
    best, cut = np.zeros(len(widths) + 1), np.zeros(len(widths) + 1, np.int64)
    for stop in range(1, len(widths) + 1):
        cost = best[:stop] + compile_tokens + widths[stop - 1] * (ends[stop] - ends[:stop])
        cut[stop] = cost.argmin()
        best[stop] = cost.min()
    shapes = []
    stop = len(widths)
    while stop > 0:
        start, width = int(cut[stop]), int(widths[stop - 1])
        texts = int(ends[stop] - ends[start])
        batches = -(-texts // max(1, batch_tokens // width))
        shapes.append((int(ends[start]), int(ends[stop]), -(-texts // batches), width))
        stop = start
    return shapes[::-1]
