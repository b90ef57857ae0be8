"""A language model with its tokenizer: texts in, vectors out; frozen and cached, or trained in part or in full."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.data import text
from kd_jax.errors import InputError, nearest
from kd_jax.files import fingerprint
from kd_jax.models import hf
from kd_jax.models.layers import Frozen, split
from kd_jax.models.teacher import Texts
from kd_jax.types import Params, PyTree

TRAINED = ("head", "top_n", "full")
Progress = Callable[[int, int], None]


class LanguageModel:
    """Texts -> vectors, each distinct text once; what was encoded stays in ``cache`` by content hash.

    train: 'head' (frozen), 'top_n' (the last ``top_n`` layers learn) or 'full'. Raises InputError as ``models/hf.py``.
    """

    def __init__(
        self,
        weights: str,
        *,
        backend: str,
        pooling: str,
        normalize: bool,
        max_tokens: int,
        train: str,
        top_n: int,
        cache: Path,
    ):
        if train not in TRAINED:
            raise InputError(f"teacher.train={train!r} is unknown{nearest(train, TRAINED)}")
        if max_tokens < 3:
            raise InputError(f"teacher.max_tokens={max_tokens} leaves no room for words; give at least 3")
        self.encoder, self.tokenizer = hf.load_encoder(
            weights, backend=backend, pooling=pooling, normalize=normalize, max_length=max_tokens
        )
        self.live, self.cache = train != "head", cache
        if train == "top_n":
            self.encoder.freeze_below(max(0, self.encoder.num_layers - top_n))
        self._tables: dict[str, text.TokenTable] = {}

    def texts(self, name: str, texts: Sequence[str], progress: Progress | None = None) -> Texts:
        """Vectors (and tokens, if the model is trained) of ``texts``. name: of the tower they are for."""
        table = text.tokenize(self.tokenizer, texts, self.encoder.max_length, self.cache)
        vectors = text.encode(self.encoder, table, cache=self.cache, progress=progress)
        if not self.live:
            return Texts(vectors)
        self._tables[name] = table
        return Texts(vectors, *table.padded())

    @functools.cached_property
    def checksum(self) -> str:
        """Of the weights as they were loaded and of the tokenizer's rules."""
        rules = getattr(self.tokenizer, "backend_tokenizer", None)
        return fingerprint([text.fingerprint(self.encoder), rules.to_str() if rules else repr(self.tokenizer)])

    @property
    def frozen_params(self) -> int:
        """Weights of the layers that are not trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.encoder, Frozen)))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors f32 [N, F] computed now, nothing read from or written to the cache."""
        return text.encode(self.encoder, text.tokenize(self.tokenizer, texts, self.encoder.max_length))

    def refresh(self, graphdef: nnx.GraphDef, params: Params, constants: PyTree) -> PyTree:
        """``constants`` of a teacher with every text's vector computed anew from the language model in ``params``."""
        model: Any = nnx.merge(graphdef, params, constants)
        for name, table in self._tables.items():
            tower = getattr(model, name)
            tower.vectors = Frozen(jnp.asarray(text.encode(tower.encoder, table)))
        return split(model)[2]
