"""Pairs of a user's history and an item as tokens, for a language model that reads both at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD, Batch
from kd_jax.data.examples.base import Examples, draw_items
from kd_jax.data.text import TokenTable

STEP = 32  # tokens; batches are padded to a multiple: few compiled programs, little padding
FEWEST = 8  # tokens of text for which a pair must have room


class PairTokens:
    """Tokens of pairs 'user text | item text', joined as the tokenizer joins two texts.

    The user text is the history, newest last, with words for every rating (``rating_words``):
    'Heat (1995), liked; Argo (2012), disliked;'. Only titles are tokenized, each once per class,
    and a pair is composed of their tokens, so that no text is stored per interaction. A pair that
    is longer than ``max_length`` loses tokens from the old end of the history. An item text that
    fills ``max_length`` alone is truncated, and its pairs have no history.

    texts: of the items. num_classes: rating classes; 0 for the task 'rank'. Raises InputError where
    ``max_length`` has no room for two texts, or the tokenizer has no token to separate them.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], num_classes: int, max_length: int):
        space = " " if _needs_space(tokenizer) else ""
        words = rating_words(num_classes)
        entries = [f"{space}{text}{word};" for word in words for text in texts]
        frame = _frame(tokenizer)
        self.frame_length = sum(map(len, frame))
        if max_length < self.frame_length + FEWEST:
            raise InputError(
                f"teacher.lm.max_tokens={max_length} has no room for a user's text and an item's;"
                f" with teacher.model.form='cross' give at least {self.frame_length + FEWEST},"
                " better 64 or more"
            )
        tokens = tokenizer([*entries, *texts], add_special_tokens=False, verbose=False)
        rows = tokens["input_ids"] + list(frame)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        self.ids = np.fromiter(
            (token for row in rows for token in row), np.int32, int(lengths.sum())
        )
        self.starts = lengths.cumsum() - lengths
        self.lengths = lengths
        self.num_items = len(texts)
        self.item_rows = len(entries)
        self.frame_rows = len(rows) - 3
        self.max_length = max_length
        self.pad_id = int(tokenizer.pad_token_id)

    def table(self, batch: Batch) -> TokenTable:
        """The tokens of N pairs.

        batch: ``history`` [N, L], ``item`` [N] and, for the task 'rate', ``history_class`` [N, L].
        """
        starts, lengths, _ = self._parts(batch)
        sizes = lengths.sum(1)
        indptr = np.concatenate([[0], sizes.cumsum()])
        flat = lengths.ravel()
        within = np.arange(indptr[-1]) - np.repeat(flat.cumsum() - flat, flat)
        ids = self.ids[np.repeat(starts.ravel(), flat) + within]
        return TokenTable(ids, indptr, self.pad_id, first=lengths[:, :-2].sum(1))

    def truncation_summary(self, batch: Batch) -> str:
        """How many pairs of a batch are truncated, for the log."""
        over = self._parts(batch)[2]
        return (
            f"{int(np.sum(over > 0)):,} of {len(over):,} are longer than {self.max_length} tokens"
            " (the lesser of teacher.lm.max_tokens and what the language model reads) and lose"
            f" {int(over.sum()):,} tokens at the old end of the history"
        )

    def sizes(self, batch: Batch) -> np.ndarray:
        """The number of tokens of each pair, [N]."""
        return self._parts(batch)[1].sum(1)

    def _parts(
        self, batch: Batch
    ) -> tuple[Int[np.ndarray, "N P"], Int[np.ndarray, "N P"], Int[np.ndarray, " N"]]:
        """Starts (indices into ``ids``) and lengths of the parts of each pair, and tokens cut off.

        The P parts are the opening tokens, one part per history item, the tokens between the texts,
        the item, and the closing tokens. The third array has the tokens of the history that do not
        fit.
        """
        history = batch["history"]
        items = batch["item"]
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
        all_starts = [
            self.starts[opening],
            self.starts[entries] + left_out,
            self.starts[between],
            self.starts[item][:, None],
            self.starts[close],
        ]
        all_lengths = [
            self.lengths[opening],
            lengths - left_out,
            self.lengths[between],
            item_length[:, None],
            self.lengths[close],
        ]
        return np.concatenate(all_starts, 1), np.concatenate(all_lengths, 1), over


def rating_words(num_classes: int) -> tuple[str, ...]:
    """The words after a title of the history, by rating class; empty for 0 classes."""
    if not num_classes:
        return ("",)
    if num_classes == 2:
        return ", disliked", ", liked"
    return tuple(f", rated {n + 1} of {num_classes}" for n in range(num_classes))


def _needs_space(tokenizer: Any) -> bool:
    """Whether titles need a leading space to have the tokens that they have inside a text.

    True for byte-level BPE, where the first word of a text has other tokens than a later one.
    """
    alone, inside = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", " a"))
    return len(alone) == len(inside) and alone != inside


def _frame(tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """The special tokens before, between and after the two texts of a pair.

    Where the tokenizer has none between the texts (decoders), a separator token, a line break or
    the end-of-text token is used.
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
            "teacher.model.form='cross': the tokenizer of teacher.lm.weights has no token"
            " to separate two texts"
        )
    return opening, between, close


def with_pairs(
    examples: Examples, pairs: PairTokens, negatives: int = 0, share: np.ndarray | None = None
) -> Examples:
    """``examples`` with ``pair_ids`` and ``pair_mask`` int32 [B, L] in their batches.

    The rows of a batch are drawn among pairs of similar length, every example with the same
    probability. With ``share`` [I] the arrays are [B, 1 + negatives, L]: the example's item, and
    items drawn in proportion to ``share``.
    """
    cumulative = None if share is None else share.cumsum()
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
        if cumulative is not None:
            shape = (len(rows), 1 + negatives)
            others = draw_items(cumulative, (len(rows), negatives), rows)
            same = others == batch["item"][:, None]
            others = np.where(same, (others + 1) % len(cumulative), others)
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
