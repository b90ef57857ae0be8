"""Item vectors of texts, in NumPy: the model of items that are known by their text alone."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

# Chinese and Japanese put no spaces between words: there every character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


@dataclasses.dataclass(frozen=True)
class TextMap:
    """A linear map from a text's words and pairs of neighbouring words to an item's row.

    A feature that occurs n times has the value (1 + log n) · idf, and the values of a text are
    divided by their root sum of squares. The row, vector and bias, is values · weight + intercept.
    A text without any known feature has the intercept, the row of an average item. ``fit`` is in
    ``serving/text_map.py``.

    keys: uint64 [F], ascending, the hash of each feature (``keys_of``). idf: f32 [F]. weight: f32
    [F, D + 1] and intercept: f32 [D + 1], whose last column is the bias.
    """

    keys: np.ndarray
    idf: np.ndarray
    weight: np.ndarray
    intercept: np.ndarray

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The item vectors f32 [N, D] and item biases f32 [N] of texts."""
        rows = np.empty((len(texts), len(self.intercept)), np.float32)
        for row, text in zip(rows, texts, strict=True):
            places, values = self._values(keys_of(text))
            row[:] = values @ self.weight[places] + self.intercept
        return rows[:, :-1], rows[:, -1]

    def _values(self, counts: Counter[int]) -> tuple[np.ndarray, np.ndarray]:
        """The known features of a text, as indices into ``keys``, and their values f32."""
        keys = np.fromiter(counts, np.uint64, len(counts))
        places = np.searchsorted(self.keys, keys)
        known = places < len(self.keys)
        known[known] = self.keys[places[known]] == keys[known]
        places = places[known]
        numbers = np.fromiter(counts.values(), np.float32, len(counts))[known]
        values = (1 + np.log(numbers)) * self.idf[places]
        norm = np.sqrt(np.sum(values * values))
        return places, values / np.maximum(norm, np.float32(1e-30))


def keys_of(text: str) -> Counter[int]:
    """How often each word and each pair of neighbouring words occurs, by its hash.

    Words are runs of letters, digits and underscores, case-folded (Unicode NFKC). The hash is
    BLAKE2b of 64 bits, so it is the same on every machine.
    """
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    pairs = (f"{first} {second}" for first, second in zip(words, words[1:], strict=False))
    return Counter(
        {
            int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"): count
            for name, count in Counter([*words, *pairs]).items()
        }
    )
