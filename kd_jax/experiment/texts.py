"""Texts of items and pairs, encoded by a language model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from kd_jax.core.logging import Log
from kd_jax.data import text
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.pairs import PairTokens
from kd_jax.data.examples.rating import rate_examples
from kd_jax.data.splits import TEST, TRAIN, VALID
from kd_jax.data.text import TokenTable
from kd_jax.evaluation.tasks import Rate
from kd_jax.experiment.config import language_model
from kd_jax.models.language import encoding
from kd_jax.models.language.encoding import Texts
from kd_jax.models.language.model import LanguageModel


class TextReader:
    """The language model of a section ``teacher.lm``, and the texts of a data set that it encodes.

    Everything is created on first use and cached.
    """

    def __init__(self, section: ConfigDict, dataset: Dataset, cache: Path, log: Log):
        self.section, self.dataset, self.cache, self.log = section, dataset, cache, log
        self._encoded: dict[str, Texts] = {}  # by tower
        self._noted: set[str] = set()
        self._pair_tokens: dict[int, PairTokens] = {}  # by number of classes
        self._pair_vectors: dict[int, np.ndarray] = {}  # by length of the history

    @functools.cached_property
    def language_model(self) -> LanguageModel:
        found = language_model(self.section, self.cache)
        for note in found.encoder.notes:
            self.log.note(note)
        if set(found.learned_from) - {self.dataset.checksum}:
            self.log.note(
                f"warning: {found.folder} was trained on other data, or another split of these; if"
                " what it learned from is in valid or test here, what is measured is too good"
            )
        return found

    @functools.cached_property
    def items(self) -> list[str]:
        """The text of every item; raises InputError for an item without text."""
        items = self.dataset.items
        return text.item_texts(
            items.with_columns(item=self.dataset.item_ids), items.columns, self.section.template
        )

    def encoded(self, tower: str, texts: Sequence[str]) -> Texts:
        """The vectors of ``texts``, for the tower with this name."""
        if tower not in self._encoded:
            with self.log.stage(f"encode {tower}", total=len(texts)) as bar:
                self._encoded[tower] = self.language_model.texts(
                    tower, texts, lambda done, _: bar.update(done)
                )
            self.note_problems(texts)
        return self._encoded[tower]

    def note_problems(self, texts: Sequence[str]) -> str:
        """Notes what the tokens of ``texts`` do not show, once, and returns it."""
        note = self.language_model.problems(texts)
        if note and note not in self._noted:
            self._noted.add(note)
            self.log.note(note)
        return note

    def encoded_items(self) -> Texts:
        """The vectors of the items' texts."""
        return self.encoded("text", self.items)

    def pair_tokens(self, num_classes: int) -> PairTokens:
        """Tokens of (history, item) pairs, as a cross-encoder reads them."""
        if num_classes not in self._pair_tokens:
            lm = self.language_model
            if lm.encoder.prompt:
                self.log.note(
                    f"the prompt {lm.encoder.prompt!r} is put before single texts, not before pairs"
                )
            self.note_problems(self.items)
            self._pair_tokens[num_classes] = PairTokens(
                lm.tokenizer, self.items, num_classes, lm.encoder.max_length
            )
        return self._pair_tokens[num_classes]

    def rated_pairs(
        self, task: Rate, history: int, splits: Sequence[int]
    ) -> tuple[np.ndarray, TokenTable]:
        """The rated interactions of ``splits``, and their pairs of history and item.

        Returns (indices of the interactions, tokens of the pairs). The history of a pair is what
        its user did before the interaction.
        """
        found = [
            rate_examples(self.dataset, task.classes, split, history=history) for split in splits
        ]
        batches = [examples.gather(np.arange(examples.size)) for examples in found]
        batch = {
            key: np.concatenate([part[key] for part in batches])
            for key in ("history", "history_class", "item")
        }
        names = [name for code, name in enumerate(("train", "valid", "test")) if code in splits]
        tokens = self.pair_tokens(task.num_classes)
        self.log.note(f"pairs of {', '.join(names)}: {tokens.truncation_summary(batch)}")
        return np.concatenate([part["interaction"] for part in batches]), tokens.table(batch)

    def pair_vectors(self, task: Rate, history: int) -> np.ndarray:
        """A frozen language model's vectors of all rated pairs, f32 [N, F] by interaction."""
        if history not in self._pair_vectors:
            lm = self.language_model
            rows, table = self.rated_pairs(task, history, (TRAIN, VALID, TEST))
            vectors = np.full((len(self.dataset.item), lm.encoder.dim), np.nan, np.float32)
            with self.log.stage("encode pairs", total=len(rows)) as bar:
                vectors[rows] = encoding.encode(
                    lm.encoder,
                    table,
                    cache=lm.cache,
                    progress=lambda done, _: bar.update(done),
                    shared=True,
                )
            self._pair_vectors[history] = vectors
        return self._pair_vectors[history]
