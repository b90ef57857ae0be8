"""A language model with its tokenizer, frozen or trained, that maps texts to vectors."""

from __future__ import annotations

import copy
import dataclasses
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
from kd_jax.devices.processes import leader_first
from kd_jax.models.language import encoding, hf
from kd_jax.models.language.encoder import TextEncoder
from kd_jax.models.language.encoding import Texts
from kd_jax.models.language.pooling import check_pooling
from kd_jax.models.language.weights import resolve_weights
from kd_jax.models.scorer import Frozen, split

TRAINED = ("head", "top_n", "lora", "full")
DTYPES = ("float32", "bfloat16")
MAX_STATES = 2 * 2**30  # bytes of hidden states that are kept, on disk and on the device
LEARNED_FROM = "kd_jax.json"  # file beside saved weights
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class LanguageModelSpec:
    """The fields of the section ``teacher.lm`` that define a language model.

    weights: see ``resolve_weights``. backend, remat: see ``hf.load_encoder``. pooling, normalize,
    max_tokens (of a text), prompt: see ``sentence.choose``; None: as in the folder. train: 'head'
    (the language model is frozen), 'top_n' (the last ``top_n`` layers are trained), 'lora'
    (adapters of ``lora_rank`` on the linear maps called ``lora_targets``) or 'full'. dtype: of the
    activations, 'float32' or 'bfloat16'.
    """

    weights: str
    backend: str
    pooling: str | None
    normalize: bool | None
    max_tokens: int | None
    prompt: str | None
    train: str
    top_n: int
    lora_rank: int
    lora_targets: tuple[str, ...]
    dtype: str
    remat: bool

    def __post_init__(self) -> None:
        if self.train not in TRAINED:
            raise InputError(
                f"teacher.lm.train={self.train!r} is unknown{nearest(self.train, TRAINED)}"
            )
        if self.pooling is not None:
            check_pooling(self.pooling)
        if self.max_tokens is not None and self.max_tokens < 3:
            raise InputError(
                f"teacher.lm.max_tokens={self.max_tokens} leaves no room for words; give at least 3"
            )
        if self.dtype not in DTYPES:
            raise InputError(
                f"teacher.lm.dtype={self.dtype!r} is unknown{nearest(self.dtype, DTYPES)}"
            )


class LanguageModel:
    """Encodes texts to vectors, each distinct text once.

    cache: a folder that keeps tokens and vectors by the hash of their content. Raises InputError as
    ``hf.load_encoder``, and for an unsupported choice of trained layers.
    """

    def __init__(self, spec: LanguageModelSpec, cache: Path):
        self.folder = resolve_weights(spec.weights)
        self.encoder, self.tokenizer = hf.load_encoder(
            spec.weights,
            backend=spec.backend,
            dtype=jnp.dtype(spec.dtype),
            remat=spec.remat,
            pooling=spec.pooling,
            normalize=spec.normalize,
            max_length=spec.max_tokens,
            prompt=spec.prompt,
        )
        # What a call sets, such as truncation, becomes a part of the rules; the checksum is that of
        # the tokenizer as it was loaded.
        rules = getattr(self.tokenizer, "backend_tokenizer", None)
        self._rules = rules.to_str() if rules else repr(self.tokenizer)
        self.live = spec.train != "head"
        self.cache = cache
        if spec.train == "top_n":
            layers = self.encoder.num_layers
            if not 0 < spec.top_n <= layers:
                raise InputError(
                    f"teacher.lm.top_n={spec.top_n}: {spec.weights} has {layers} layers; give 1 to"
                    " as many, or teacher.lm.train='full' to train the embeddings too"
                )
            self.encoder.freeze_below(layers - spec.top_n)
        elif spec.train == "lora":
            self.encoder.add_lora(spec.lora_rank, spec.lora_targets)
        # By tower: tokens, and the hidden states after the frozen layers if they are kept.
        self._tables: dict[str, tuple[text.TokenTable, np.ndarray | None]] = {}

    def with_cache(self, cache: Path) -> LanguageModel:
        """The same weights and tokenizer, with other caches."""
        found = copy.copy(self)
        found.cache, found._tables = cache, {}
        return found

    def texts(self, name: str, texts: Sequence[str], progress: Progress | None = None) -> Texts:
        """The vectors of ``texts``, with tokens if the model is trained; name: of the tower.

        Several processes share the work: all must call this, with the same texts.
        """
        table, states = self.tokens(name, texts)
        vectors = encoding.encode(
            self.encoder, table, cache=self.cache, progress=progress, shared=True
        )
        if not self.live:
            return Texts(vectors)
        starts = None if states is None else table.indptr[:-1].astype(np.int32)
        return Texts(vectors, *table.padded(), states, starts)

    def table(self, texts: Sequence[str], cache: Path | None = None) -> text.TokenTable:
        """The tokens of ``texts``, after the prompt; cache: see ``text.tokenize``."""
        read = self.encoder.read(texts)
        return text.tokenize(self.tokenizer, read, self.encoder.max_length, cache)

    def problems(self, texts: Sequence[str]) -> str:
        """What the tokens of ``texts`` do not show, see ``text.token_problems``."""
        read, most = self.encoder.read(texts), self.encoder.max_length
        table = text.tokenize(self.tokenizer, read, most, self.cache)
        (prompt,) = self.encoder.read([""])
        aside = len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else 0
        return text.token_problems(read, table, self.tokenizer, most, aside)

    def _states(self, table: text.TokenTable) -> np.ndarray | None:
        """The hidden states of every token after the frozen layers, if there are any that fit."""
        size = len(table.ids) * self.encoder.width * np.dtype(self.encoder.dtype).itemsize
        if not self.live or not self.encoder.frozen_layers or size > MAX_STATES:
            return None
        return encoding.frozen_states(self.encoder, table, self.cache)

    def tokens(self, name: str, texts: Sequence[str]) -> tuple[text.TokenTable, np.ndarray | None]:
        """The tokens of ``texts``, and their states after the frozen layers, if those are kept.

        name: of the tower.
        """
        table = leader_first(lambda: self.table(texts, self.cache))
        self._tables[name] = table, self._states(table)
        return self._tables[name]

    def lengths(self, name: str) -> np.ndarray:
        """The number of tokens of each text of the tower ``name``, int [N]."""
        return self._tables[name][0].lengths

    @functools.cached_property
    def checksum(self) -> str:
        """A hash of the weights, as they were loaded, and of how texts become tokens."""
        lm = self.encoder
        return fingerprint(
            [
                encoding.fingerprint(lm),
                self._rules,
                [lm.max_length, lm.prompt, lm.lower_case],
            ]
        )

    @property
    def frozen_params(self) -> int:
        """The number of frozen weights."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.encoder, Frozen)))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of ``texts``, f32 [N, F], computed without the cache."""
        table = self.table(texts)
        return encoding.encode(self.encoder, table)

    def refresh(self, graphdef: nnx.GraphDef, params: Params, constants: PyTree) -> PyTree:
        """``constants`` of a teacher, with the vectors of the language model in ``params``."""
        model: Any = nnx.merge(graphdef, params, constants)
        for name, (table, states) in self._tables.items():
            tower = getattr(model, name)
            vectors = encoding.encode(tower.encoder, table, states=states, shared=True)
            tower.vectors = Frozen(jnp.asarray(vectors))
        return split(model)[2]

    @functools.cached_property
    def learned_from(self) -> list[str]:
        """Checksums of the data sets on which kd_jax has trained these weights."""
        note = self.folder / LEARNED_FROM
        return list(read_json(note, "save the language model again")) if note.is_file() else []

    def save(
        self, folder: Path, graphdef: nnx.GraphDef, params: Params, constants: PyTree, data: str
    ) -> None:
        """Saves the language model of a trained teacher as a folder (``hf.save_encoder``).

        data: the checksum of the data set on which the teacher was trained, written beside it.
        """
        model: Any = nnx.merge(graphdef, params, constants)
        encoder = next(part for _, part in nnx.iter_modules(model) if isinstance(part, TextEncoder))
        hf.save_encoder(encoder, self.tokenizer, self.folder, folder)
        write_json(folder / LEARNED_FROM, sorted({*self.learned_from, data}))
