"""A language model with its tokenizer: texts in, vectors out; frozen and cached, or trained in part
or in full.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import fingerprint, read_json, write_json
from kd_jax.core.types import Params, PyTree
from kd_jax.data import text
from kd_jax.models.language import encoding, hf
from kd_jax.models.language.encoder import TextEncoder
from kd_jax.models.language.encoding import Texts
from kd_jax.models.language.weights import resolve_weights
from kd_jax.models.scorer import Frozen, split

TRAINED = ("head", "top_n", "lora", "full")
DTYPES = ("float32", "bfloat16")
MAX_STATES = 2 * 2**30  # bytes of hidden states that are kept, on disk and on the device
LEARNED_FROM = "kd_jax.json"  # beside saved weights
Progress = Callable[[int, int], None]


class LanguageModel:
    """Texts -> vectors, each distinct text once; what was encoded stays in ``cache`` by content
    hash.

    train: 'head' (frozen), 'top_n' (the last ``top_n`` layers learn), 'lora' (adapters of
    ``lora_rank`` beside the linear maps called ``lora_targets``) or 'full'. dtype: of the
    activations. remat: see ``hf.load_encoder``. Raises InputError as ``models/hf.py``.
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
        lora_rank: int,
        lora_targets: Sequence[str],
        dtype: str,
        remat: bool,
        cache: Path,
    ):
        if train not in TRAINED:
            raise InputError(f"teacher.lm.train={train!r} is unknown{nearest(train, TRAINED)}")
        if max_tokens < 3:
            raise InputError(
                f"teacher.lm.max_tokens={max_tokens} leaves no room for words; give at least 3"
            )
        if dtype not in DTYPES:
            raise InputError(f"teacher.lm.dtype={dtype!r} is unknown{nearest(dtype, DTYPES)}")
        self.folder = resolve_weights(weights)
        self.encoder, self.tokenizer = hf.load_encoder(
            self.folder,
            backend=backend,
            pooling=pooling,
            normalize=normalize,
            dtype=jnp.dtype(dtype),
            remat=remat,
            max_length=max_tokens,
        )
        self.live, self.cache = train != "head", cache
        if train == "top_n":
            if not 0 < top_n <= self.encoder.num_layers:
                raise InputError(
                    f"teacher.lm.top_n={top_n}: {weights} has {self.encoder.num_layers} layers; give"
                    " 1 to as many, or teacher.lm.train='full' to train the embeddings too"
                )
            self.encoder.freeze_below(self.encoder.num_layers - top_n)
        elif train == "lora":
            self.encoder.add_lora(lora_rank, lora_targets)
        self._tables: dict[
            str, tuple[text.TokenTable, np.ndarray | None]
        ] = {}  # by tower: tokens, frozen states

    def texts(self, name: str, texts: Sequence[str], progress: Progress | None = None) -> Texts:
        """Vectors (and tokens, if the model is trained) of ``texts``. name: of the tower they are
        for.
        """
        table, states = self.tokens(name, texts)
        vectors = encoding.encode(self.encoder, table, cache=self.cache, progress=progress)
        if not self.live:
            return Texts(vectors)
        starts = None if states is None else table.indptr[:-1].astype(np.int32)
        return Texts(vectors, *table.padded(), states, starts)

    def _states(self, table: text.TokenTable) -> np.ndarray | None:
        """The frozen layers' hidden states of every token, if there are such layers and the states
        fit.
        """
        size = len(table.ids) * self.encoder.dim * np.dtype(self.encoder.dtype).itemsize
        if not self.live or not self.encoder.cut or size > MAX_STATES:
            return None
        return encoding.frozen_states(self.encoder, table, self.cache)

    def tokens(self, name: str, texts: Sequence[str]) -> tuple[text.TokenTable, np.ndarray | None]:
        """The tokens of ``texts``, and the frozen layers' states of them, if those are kept. name:
        as above.
        """
        table = text.tokenize(self.tokenizer, texts, self.encoder.max_length, self.cache)
        self._tables[name] = table, self._states(table)
        return self._tables[name]

    def lengths(self, name: str) -> np.ndarray:
        """Tokens of each text of the tower ``name``, int [N]."""
        return self._tables[name][0].lengths

    @functools.cached_property
    def checksum(self) -> str:
        """Of the weights as they were loaded and of the tokenizer's rules."""
        rules = getattr(self.tokenizer, "backend_tokenizer", None)
        return fingerprint(
            [encoding.fingerprint(self.encoder), rules.to_str() if rules else repr(self.tokenizer)]
        )

    @property
    def frozen_params(self) -> int:
        """Weights of the layers that are not trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.encoder, Frozen)))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors f32 [N, F] computed now, nothing read from or written to the cache."""
        return encoding.encode(
            self.encoder, text.tokenize(self.tokenizer, texts, self.encoder.max_length)
        )

    def refresh(self, graphdef: nnx.GraphDef, params: Params, constants: PyTree) -> PyTree:
        """``constants`` of a teacher with every text's vector computed anew from the language model
        in ``params``.
        """
        model: Any = nnx.merge(graphdef, params, constants)
        for name, (table, states) in self._tables.items():
            tower = getattr(model, name)
            tower.vectors = Frozen(
                jnp.asarray(encoding.encode(tower.encoder, table, states=states))
            )
        return split(model)[2]

    @functools.cached_property
    def learned_from(self) -> list[str]:
        """Checksums of the data sets that a kd_jax has trained these weights on."""
        note = self.folder / LEARNED_FROM
        return list(read_json(note, "save the language model again")) if note.is_file() else []

    def save(
        self, folder: Path, graphdef: nnx.GraphDef, params: Params, constants: PyTree, data: str
    ) -> None:
        """The language model of a trained teacher as a folder; see ``hf.save_encoder``. data:
        checksum of what the teacher was trained on, which the folder remembers.
        """
        model: Any = nnx.merge(graphdef, params, constants)
        encoder = next(part for _, part in nnx.iter_modules(model) if isinstance(part, TextEncoder))
        hf.save_encoder(encoder, self.tokenizer, self.folder, folder)
        write_json(folder / LEARNED_FROM, sorted({*self.learned_from, data}))
