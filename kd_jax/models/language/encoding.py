"""Encodes texts to vectors: each distinct text once, several in a row, cached."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic
from kd_jax.data.text import TokenTable, digest
from kd_jax.devices.processes import agreed, barrier, leader
from kd_jax.models.language.attention import same_text
from kd_jax.models.language.batching import Runs, gather_rows, plan_batches
from kd_jax.models.language.encoder import TextEncoder

EARLIER = "earlier"  # folder in the cache: what an older run has encoded


def fingerprint(encoder: TextEncoder) -> str:
    """A hash of everything on which the encoder's vectors depend: its weights and settings."""
    names = ("pooling", "normalize", "dtype", "settings")
    parts: list[str | bytes] = [
        type(encoder).__name__,
        *(str(getattr(encoder, name)) for name in names),
    ]
    if encoder.head or encoder.skipped:
        parts.append(str(([repr(part.config()) for part in encoder.head], encoder.skipped)))
    for path, leaf in sorted(nnx.to_flat_state(nnx.state(encoder)), key=lambda item: str(item[0])):
        value = np.asarray(leaf[...])
        parts += [str((path, value.dtype, value.shape)), np.ascontiguousarray(value).tobytes()]
    return digest(parts)


def encode(
    encoder: TextEncoder,
    table: TokenTable,
    *,
    states: np.ndarray | None = None,
    batch_tokens: int | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    shared: bool = False,
) -> Float[np.ndarray, "N D"]:
    """The encoder's f32 vector of every text; equal texts are computed once.

    Texts share rows of one length, or of two where some are long, and attend to themselves alone,
    so that little padding is computed and one program is compiled; else see ``reads_packed``.
    states: of ``frozen_states``, or None. batch_tokens: tokens that one device computes at once;
    the default for a CPU keeps the activations of a batch in its cache. cache: a folder that keeps
    results by the hash of texts and weights; texts whose vectors are in the folder ``EARLIER``
    inside it are not computed. progress: called with (texts done, all texts). shared: every process
    calls this with the same texts; each computes its batches, and all get the vectors of all, with
    the bits that one process computes where all have as many devices. Raises InputError for vectors
    that are not finite. Sources: Krell et al., "Efficient Sequence Packing without
    Cross-contamination", 2021 (rows of several texts); Reimers and Gurevych, "Sentence-BERT", EMNLP
    2019, section 7 (sorting by length).
    """
    path, weights = None, ""
    if cache is not None:
        weights = fingerprint(encoder)
        path = cache / f"vectors-{_digest(weights, table)}.npy"
        if _known(path, shared):
            if not shared or leader():
                _save_texts(path, weights, table)
            return np.load(path, allow_pickle=False)
    distinct, inverse = _distinct(table)
    vectors = np.zeros((len(distinct), encoder.dim), np.float32)
    copies = np.bincount(inverse)
    new = np.arange(len(distinct))
    if cache is not None and table.first is None:
        new = _fill(vectors, cache / EARLIER, weights, table, distinct)
    done = len(table) - int(copies[new].sum())
    packed = encoder.reads_packed and table.first is None  # a row holds one pair
    plan = plan_batches(table.lengths[distinct[new]], batch_tokens, shared, packed)
    for batch, _, result in Runs(encoder, table, distinct[new], _forward, states)(plan.own):
        vectors[new[batch.rows]] = result[: len(batch.texts)][batch.texts >= 0]
        done += int(copies[new[batch.rows]].sum()) * plan.parts  # as many by each of the others
        if progress is not None:
            progress(min(done, len(table)), len(table))
    if plan.parts > 1:
        gather_rows(vectors, [new[rows] for rows in plan.rows_by_part()])
    broken = int(np.sum(~np.isfinite(vectors).all(1)))
    if broken:
        raise InputError(
            f"the language model's vectors of {broken} of {len(distinct)} texts are not finite: its"
            " weights are damaged; copy or download teacher.lm.weights again"
        )
    vectors = vectors[inverse]
    if path is not None and (not shared or leader()):
        _save(path, vectors)
        _save_texts(path, weights, table)
    return vectors


def _known(path: Path, shared: bool) -> bool:
    """Whether ``path`` is there; one answer of all processes if the work is shared."""
    return agreed(path.is_file()) if shared else path.is_file()


def _save_texts(path: Path, weights: str, table: TokenTable) -> None:
    """Writes beside the vectors in ``path`` of which texts they are, so that others find them.

    Not for pairs of texts.
    """
    path = path.with_suffix(".npz")
    if table.first is None and not path.is_file():
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=table.ids, indptr=table.indptr, weights=np.array(weights))


def _digest(weights: str, table: TokenTable) -> str:
    pairs = () if table.first is None else (table.first.tobytes(),)
    return digest((weights, table.ids.tobytes(), table.indptr.tobytes(), *pairs))


def _fill(
    vectors: np.ndarray, folder: Path, weights: str, table: TokenTable, distinct: np.ndarray
) -> np.ndarray:
    """Copies known vectors of the texts ``distinct`` from ``folder``; returns the other places.

    weights: the fingerprint of the encoder, whose vectors alone are known.
    """
    missing = {_key(table, row): place for place, row in enumerate(distinct)}
    for path in sorted(folder.glob("vectors-*.npz")):
        with np.load(path, allow_pickle=False) as saved:
            if str(saved["weights"]) != weights or not path.with_suffix(".npy").is_file():
                continue
            there = TokenTable(saved["ids"], saved["indptr"], table.pad_id)
        known = np.load(path.with_suffix(".npy"), allow_pickle=False, mmap_mode="r")
        for row in range(len(there)):
            place = missing.pop(_key(there, row), None)
            if place is not None:
                vectors[place] = known[row]
    return np.array(sorted(missing.values()), np.int64)


def _key(table: TokenTable, row: int) -> bytes:
    return table.ids[table.indptr[row] : table.indptr[row + 1]].tobytes()


def frozen_states(encoder: TextEncoder, table: TokenTable, cache: Path) -> np.ndarray:
    """The hidden states of every token after the encoder's frozen layers, [T, D] as ``table.ids``.

    They are computed once and kept in ``cache``, by the hash of texts and weights, as a file that
    is mapped to memory. Several processes share the work, so all must call this.
    """
    texts = table.ids.tobytes(), table.indptr.tobytes()
    parts = (f"cut {encoder.frozen_layers}", fingerprint(encoder), *texts)
    path = cache / f"states-{digest(parts)}.npy"
    if not _known(path, shared=True):
        states = np.zeros((len(table.ids), encoder.width), np.dtype(encoder.dtype))
        bits = states.view(np.uint16) if states.dtype.itemsize == 2 else states
        plan = plan_batches(table.lengths, None, True, encoder.reads_packed)
        for _, tokens, result in Runs(encoder, table, np.arange(len(table)), _states)(plan.own):
            real = tokens.segment > 0
            states[tokens.places[real]] = result[real]
        if plan.parts > 1:
            gather_rows(bits, [_tokens_of(table, rows) for rows in plan.rows_by_part()])
        if leader():
            _save(path, bits)
        barrier("states")
    found = np.load(path, allow_pickle=False, mmap_mode="r")
    return found.view(np.dtype(encoder.dtype)) if found.dtype == np.uint16 else found


def _tokens_of(table: TokenTable, rows: np.ndarray) -> np.ndarray:
    """The places in ``table.ids`` of the tokens of some texts, one text after the other."""
    first, lengths = table.indptr[rows], table.lengths[rows]
    shift = np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
    return np.arange(len(shift)) + shift


def _save(path: Path, values: np.ndarray) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, values, allow_pickle=False)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(
    graphdef: nnx.GraphDef,
    texts: int,
    state: Any,
    ids: jax.Array,
    segment: jax.Array,
    states: Any,
) -> jax.Array:
    model: Any = nnx.merge(graphdef, state)
    return model.packed(ids, segment, texts, states)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _states(
    graphdef: nnx.GraphDef, _: int, state: Any, ids: jax.Array, segment: jax.Array, __: None
) -> jax.Array:
    model: Any = nnx.merge(graphdef, state)
    return model.states(ids, same_text(segment) if model.reads_packed else segment)


def _distinct(table: TokenTable) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each distinct text, and for every row the index of its text among these."""
    data = table.ids.tobytes()
    width = table.ids.itemsize
    seen: dict[bytes, int] = {}
    first: list[int] = []
    inverse = np.empty(len(table), np.int64)
    for row in range(len(table)):
        key = data[table.indptr[row] * width : table.indptr[row + 1] * width]
        if table.first is not None:  # the same tokens, divided elsewhere, are another pair
            key = int(table.first[row]).to_bytes(8, "little") + key
        inverse[row] = seen.setdefault(key, len(first))
        if inverse[row] == len(first):
            first.append(row)
    return np.asarray(first, np.int64), inverse


@dataclasses.dataclass(frozen=True)
class Texts:
    """The vectors of a list of texts, f32 [N, F], with the tokens if the language model is trained.

    ids, mask: int32 [N, T]. states: [tokens, F], the hidden states after the frozen layers, if they
    are kept (``frozen_states``); those of text n start at ``starts[n]``.
    """

    vectors: np.ndarray
    ids: np.ndarray | None = None
    mask: np.ndarray | None = None
    states: np.ndarray | None = None
    starts: np.ndarray | None = None

    @functools.cached_property
    def principal(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mean vector [F], and the covariance's eigenvalues [F], ascending, and vectors [F, F].

        All teachers that read these texts need them, of every seed and whenever one is built.
        """
        mean = self.vectors.mean(0)
        centred = self.vectors - mean
        return mean, *np.linalg.eigh(centred.T @ centred / len(centred))
