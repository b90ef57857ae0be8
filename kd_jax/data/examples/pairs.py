"""Pairs for a language model that reads both texts together: what a user did, and an item."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD, Batch
from kd_jax.data.examples.base import Examples, drawn
from kd_jax.data.text import TokenTable

STEP = 32  # batches are padded to a multiple of so many tokens: a few programs, little padding
FEWEST = 8  # tokens that a pair must have room for


class PairTokens:
    """(history, item) -> tokens of the pair 'user text | item text', as the tokenizer joins two
    texts.

    The user text is the history with the newest last and a word on every rating, 'Heat (1995),
    liked; Argo (2012), disliked;' (``verdicts``). Only titles are ever tokenized, each once per
    class: a pair is put together from their tokens, so that no text is written or kept per
    interaction. A pair that is longer than ``max_length`` loses tokens from the old end of the
    history; an item text that fills it alone is cut at its end, and then there is no history.

    Raises InputError where ``max_length`` leaves no room for two texts, or the tokenizer has no way
    to part them.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], num_classes: int, max_length: int):
        space = " " if _counts_spaces(tokenizer) else ""
        words = verdicts(num_classes)
        entries = [f"{space}{text}{word};" for word in words for text in texts]
        frame = _frame(tokenizer)
        self.frame_length = sum(map(len, frame))
        if max_length < self.frame_length + FEWEST:
            raise InputError(
                f"teacher.lm.max_tokens={max_length} leaves no room for a user's text and an item's;"
                f" give at least {self.frame_length + FEWEST}"
                " with teacher.model.form='cross', better 64"
                " or more"
            )
        rows = tokenizer([*entries, *texts], add_special_tokens=False, verbose=False)[
            "input_ids"
        ] + list(frame)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        self.ids = np.fromiter(
            (token for row in rows for token in row), np.int32, int(lengths.sum())
        )
        self.starts, self.lengths = lengths.cumsum() - lengths, lengths
        self.num_items, self.item_rows, self.frame_rows = len(texts), len(entries), len(rows) - 3
        self.max_length, self.pad_id = max_length, int(tokenizer.pad_token_id)

    def table(self, batch: Batch) -> TokenTable:
        """The pairs of a batch of N rows: ``history`` and ``history_class`` [N, L] (the latter of
        'rate' alone) with one ``item`` each [N].
        """
        starts, lengths, _ = self._parts(batch)
        sizes = lengths.sum(1)
        indptr = np.concatenate([[0], sizes.cumsum()])
        flat = lengths.ravel()
        within = np.arange(indptr[-1]) - np.repeat(flat.cumsum() - flat, flat)
        ids = self.ids[np.repeat(starts.ravel(), flat) + within]
        return TokenTable(ids, indptr, self.pad_id, first=lengths[:, :-2].sum(1))

    def told(self, batch: Batch) -> str:
        """How many pairs are too long, for the log."""
        over = self._parts(batch)[2]
        return (
            f"{int(np.sum(over > 0)):,} of {len(over):,} are longer than {self.max_length} tokens"
            " (the lesser of teacher.lm.max_tokens and what the language model reads) and lose"
            f" {int(over.sum()):,} tokens at the old end of the history"
        )

    def sizes(self, batch: Batch) -> np.ndarray:
        """Tokens of each pair, [N]."""
        return self._parts(batch)[1].sum(1)

    def _parts(
        self, batch: Batch
    ) -> tuple[Int[np.ndarray, "N P"], Int[np.ndarray, "N P"], Int[np.ndarray, " N"]]:
        """Where the parts of each pair start in ``ids`` and how long they are: opening, a part per
        history item, what stands between the texts, item, close; and how many tokens of the history
        do not fit.
        """
        history, items = batch["history"], batch["item"]
        entries = np.maximum(history, 0)
        if "history_class" in batch:
            entries = entries + self.num_items * np.maximum(batch["history_class"], 0)
        lengths = np.where(history == PAD, 0, self.lengths[entries])
        item = self.item_rows + items
        room = self.max_length - self.frame_length
        item_length = np.minimum(self.lengths[item], room)
        over = np.maximum(lengths.sum(1) + item_length - room, 0)
        before = lengths.cumsum(1) - lengths
        left_out = np.clip(over[:, None] - before, 0, lengths)
        opening, between, close = (np.full((len(items), 1), self.frame_rows + n) for n in range(3))
        starts = [self.starts[entries] + left_out, self.starts[item][:, None]]
        taken = [lengths - left_out, item_length[:, None]]
        all_starts = [
            self.starts[opening],
            starts[0],
            self.starts[between],
            starts[1],
            self.starts[close],
        ]
        all_lengths = [
            self.lengths[opening],
            taken[0],
            self.lengths[between],
            taken[1],
            self.lengths[close],
        ]
        return np.concatenate(all_starts, 1), np.concatenate(all_lengths, 1), over


def verdicts(num_classes: int) -> tuple[str, ...]:
    """What follows a title of the history, by rating class; nothing where there are no classes."""
    if not num_classes:
        return ("",)
    if num_classes == 2:
        return ", disliked", ", liked"
    return tuple(f", rated {n + 1} of {num_classes}" for n in range(num_classes))


def _counts_spaces(tokenizer: Any) -> bool:
    """Whether a word in a text and one that opens it differ (byte-level BPE), so that titles need a
    space before.
    """
    alone, inside = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", " a"))
    return len(alone) == len(inside) and alone != inside


def _frame(tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Special tokens before, between and after the two texts of a pair; where the tokenizer puts
    nothing between (decoders), a separator token, a line break or the end-of-text token.
    """
    sample = "a"
    plain = tokenizer(sample, add_special_tokens=False)["input_ids"]
    whole = tokenizer(sample, sample)["input_ids"]
    places = [n for n in range(len(whole)) if whole[n : n + len(plain)] == plain]
    opening = whole[: places[0]] if places else []
    close = whole[places[-1] + len(plain) :] if places else []
    between = whole[places[0] + len(plain) : places[-1]] if len(places) > 1 else []
    if not between:
        line = tokenizer("\n", add_special_tokens=False)["input_ids"]
        tokens = [[tokenizer.sep_token_id], line, [tokenizer.eos_token_id]]
        between = next((part for part in tokens if part and part[0] is not None), [])
    if not between:
        raise InputError(
            "teacher.model.form='cross': the tokenizer of teacher.lm.weights has no token to part"
            " two texts by"
        )
    return opening, between, close


def with_pairs(
    examples: Examples, pairs: PairTokens, negatives: int = 0, share: np.ndarray | None = None
) -> Examples:
    """Adds ``pair_ids`` and ``pair_mask`` int32 [B, L] to batches, for a language model in
    training.

    The rows of a batch are drawn among pairs of about the same length, every example as often as
    any other. With ``negatives`` they are [B, 1 + negatives, L]: the example's item, and items
    drawn in proportion to ``share`` [I].
    """
    ends = None if share is None else share.cumsum()
    sizes = pairs.sizes(examples.gather(np.arange(examples.size)))
    widths = _rounded(sizes, pairs.max_length)
    alike = [np.flatnonzero(widths == width) for width in np.unique(widths)]
    chance = np.array([len(rows) / examples.size for rows in alike])

    def draw(rng: np.random.Generator, size: int) -> np.ndarray:
        rows = alike[rng.choice(len(alike), p=chance)]
        return rng.choice(rows, size, replace=len(rows) < size)

    def look_up(_: Any, tables: dict[str, Any], rows: Any) -> Batch:
        batch = examples.look_up(np, tables, rows)
        shape: tuple[int, ...] = (len(rows),)
        read = batch
        if ends is not None:
            shape = (len(rows), 1 + negatives)
            others = drawn(ends, (len(rows), negatives), rows)
            others = np.where(others == batch["item"][:, None], (others + 1) % len(ends), others)
            items = np.concatenate([batch["item"][:, None], others], axis=1).ravel()
            read = {"history": np.repeat(batch["history"], shape[1], axis=0), "item": items}
        table = pairs.table(read)
        ids, mask = table.padded(length=int(_rounded(table.lengths, pairs.max_length).max()))
        return batch | {"pair_ids": ids.reshape(*shape, -1), "pair_mask": mask.reshape(*shape, -1)}

    return dataclasses.replace(
        examples, look_up=look_up, draw=draw, on_device=False, one_shape=False
    )


def _rounded(sizes: np.ndarray, most: int) -> np.ndarray:
    return np.minimum(-(-sizes // STEP) * STEP, most)
