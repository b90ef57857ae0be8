"""Encodes texts to vectors: each distinct text once, in batches of similar length, cached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic
from kd_jax.data.text import TokenTable, digest
from kd_jax.devices import sharding
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
) -> Float[np.ndarray, "N D"]:
    """The encoder's f32 vector of every text; equal texts are computed once.

    Texts are sorted by length and divided into a few (rows, length) shapes, so that little padding
    is computed and few programs are compiled. states: of ``frozen_states``, or None. batch_tokens:
    tokens that one device computes at once; the default for a CPU keeps the activations of a batch
    in its cache. cache: a folder that keeps results by the hash of texts and weights; texts whose
    vectors are in the folder ``EARLIER`` inside it are not computed. progress: called with (texts
    done, all texts). Raises InputError for vectors that are not finite. Source
    of the sorting: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, section 7 (smart batching).
    """
    path, weights = None, ""
    if cache is not None:
        weights = fingerprint(encoder)
        path = cache / f"vectors-{_digest(weights, table)}.npy"
        if path.is_file():
            _save_texts(path, weights, table)
            return np.load(path, allow_pickle=False)
    distinct, inverse = _distinct(table)
    vectors = np.zeros((len(distinct), encoder.dim), np.float32)
    copies = np.bincount(inverse)
    new = np.arange(len(distinct))
    if cache is not None:
        new = _fill(vectors, cache / EARLIER, weights, table, distinct)
    done = len(table) - int(copies[new].sum())
    for rows, _, result in _batches(encoder, table, distinct[new], _forward, states, batch_tokens):
        rows = new[rows]
        vectors[rows] = result
        done += int(copies[rows].sum())
        if progress is not None:
            progress(done, len(table))
    broken = int(np.sum(~np.isfinite(vectors).all(1)))
    if broken:
        raise InputError(
            f"the language model's vectors of {broken} of {len(distinct)} texts are not finite: its"
            " weights are damaged; copy or download teacher.lm.weights again"
        )
    vectors = vectors[inverse]
    if path is not None:
        _save(path, vectors)
        _save_texts(path, weights, table)
    return vectors


def _save_texts(path: Path, weights: str, table: TokenTable) -> None:
    """Writes beside the vectors in ``path`` of which texts they are, so that others find them."""
    path = path.with_suffix(".npz")
    if not path.is_file():
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=table.ids, indptr=table.indptr, weights=np.array(weights))


def _digest(weights: str, table: TokenTable) -> str:
    return digest((weights, table.ids.tobytes(), table.indptr.tobytes()))


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
    is mapped to memory.
    """
    texts = table.ids.tobytes(), table.indptr.tobytes()
    parts = (f"cut {encoder.frozen_layers}", fingerprint(encoder), *texts)
    path = cache / f"states-{digest(parts)}.npy"
    if not path.is_file():
        states = np.zeros((len(table.ids), encoder.width), np.dtype(encoder.dtype))
        for rows, mask, result in _batches(encoder, table, np.arange(len(table)), _states):
            states[table.token_indices(rows, mask.shape[1])[mask]] = result[mask]
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
    """Calls ``run`` on the distinct texts, sorted by length, on all devices of this process.

    Yields (indices into ``distinct`` [R], mask [R, L], result [R, ...]).
    """
    mesh = sharding.local_mesh()
    if batch_tokens is None:
        batch_tokens = 1024 if jax.default_backend() == "cpu" else 65536
    batch_tokens *= mesh.size
    lengths = table.lengths[distinct]
    graphdef, state = nnx.split(encoder)
    state = sharding.put_whole(state, mesh)
    order = np.argsort(lengths, kind="stable")
    pending: list[tuple[np.ndarray, np.ndarray, jax.Array]] = []
    for start, stop, batch, length in batch_shapes(lengths[order], batch_tokens):
        batch += -batch % mesh.size
        for first in range(start, stop, batch):
            rows = order[first : min(first + batch, stop)]
            # The last batch repeats its first text, so that its shape, and with it the compiled
            # program, is the same.
            filled = distinct[np.concatenate([rows, np.repeat(rows[:1], batch - len(rows))])]
            ids, mask = table.padded(filled, length)
            given = None if states is None else states[table.token_indices(filled, length)]
            result = run(graphdef, state, *sharding.put_rows((ids, mask, given), mesh))
            pending.append((rows, mask[: len(rows)] > 0, result))
            if len(pending) > 1:
                rows, mask, result = pending.pop(0)
                yield rows, mask, np.asarray(result)[: len(rows)]
    for rows, mask, result in pending:
        yield rows, mask, np.asarray(result)[: len(rows)]


@partial(jax.jit, static_argnums=0)
def _forward(
    graphdef: nnx.GraphDef, state: Any, ids: jax.Array, mask: jax.Array, states: Any
) -> jax.Array:
    model: Any = nnx.merge(graphdef, state)
    return model(ids, mask, states=states)


@partial(jax.jit, static_argnums=0)
def _states(
    graphdef: nnx.GraphDef, state: Any, ids: jax.Array, mask: jax.Array, _: None
) -> jax.Array:
    model: Any = nnx.merge(graphdef, state)
    return model.states(ids, mask)


def _distinct(table: TokenTable) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each distinct text, and for every row the index of its text among these."""
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


def batch_shapes(
    lengths: Int[np.ndarray, " N"], batch_tokens: int, compile_tokens: int = 4000
) -> list[tuple[int, int, int, int]]:
    """The cheapest shapes of batches for sorted ``lengths``, as (start, stop, rows, length).

    A shape costs ``compile_tokens`` (the tokens that could be encoded while its program compiles),
    and a text costs the length of its shape. The minimum is found by dynamic programming over the
    distinct lengths.
    """
    widths, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate([[0], counts.cumsum()])
    best = np.zeros(len(widths) + 1)
    cut = np.zeros(len(widths) + 1, np.int64)
    for stop in range(1, len(widths) + 1):
        cost = best[:stop] + compile_tokens + widths[stop - 1] * (ends[stop] - ends[:stop])
        cut[stop] = cost.argmin()
        best[stop] = cost.min()
    shapes = []
    stop = len(widths)
    while stop > 0:
        start = int(cut[stop])
        width = int(widths[stop - 1])
        texts = int(ends[stop] - ends[start])
        batches = -(-texts // max(1, batch_tokens // width))
        shapes.append((int(ends[start]), int(ends[stop]), -(-texts // batches), width))
        stop = start
    return shapes[::-1]


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
