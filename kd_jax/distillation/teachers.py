"""Teachers as the train step takes them: online in the step, or cached on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from kd_jax.core.scores import Factors, Listed, TeacherScores
from kd_jax.core.types import Array, Batch, PyTree
from kd_jax.data.examples.base import Examples
from kd_jax.devices import sharding
from kd_jax.devices.processes import agreed
from kd_jax.distillation.label_cache import read
from kd_jax.distillation.term import Objective, Term
from kd_jax.losses.base import SoftmaxLoss
from kd_jax.losses.candidates import top_items

TeacherFn = Callable[[PyTree, Batch], TeacherScores]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher as the train step takes it.

    arrays: its parameters, or cached labels. scores: (arrays, batch) -> its scores. bias: gives the
    biases of its items, f32 [I].
    """

    arrays: PyTree
    scores: TeacherFn
    bias: Callable[[], Array | np.ndarray]


def last_context(contexts: Array, example_kind: str) -> Array:
    return contexts if example_kind == "all" else contexts[:, -1:]


def online_teacher(
    graphdef: nnx.GraphDef, params: PyTree, constants: PyTree, *, example_kind: str
) -> Teacher:
    """The teacher's forward pass inside the student's step.

    example_kind: those of the student, 'last' or 'all'.
    """

    def scores(teacher: PyTree, batch: Batch) -> TeacherScores:
        model: Any = nnx.merge(graphdef, *teacher)
        if "item" in batch:
            return TeacherScores(model.logits(batch))
        vectors, bias = model.items()
        return TeacherScores(
            Factors(last_context(model.contexts(batch, vectors), example_kind), vectors, bias)
        )

    model: Any = nnx.merge(graphdef, params, constants)
    return Teacher((params, constants), scores, lambda: model.items()[1])


MIN_WIDTH = 256  # of contexts: below, a step gains little, and the logits take memory
# Arrays of labels with a row for each example, or for each position of windows.
PER_EXAMPLE = ("contexts", "logits", "list", "weights", "top")


def _cached_scores(labels: PyTree, batch: Batch) -> TeacherScores:
    return _soft(labels, _of_batch(labels, batch))


def _of_batch(labels: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    """The labels of a batch, [B, P, ...]; of a packed one, [B, L, ...]."""
    where = batch["row"]
    if "position" in labels:
        at = (where, batch["place"]) if "place" in batch else where
        where = labels["position"][at]
    return {name: labels[name][where] for name in PER_EXAMPLE if name in labels}


def _soft(shared: PyTree, rows: Mapping[str, Array]) -> TeacherScores:
    """The scores of cached labels for a batch.

    rows: the arrays of the batch's examples, [B, ...].
    """
    weights = rows.get("weights")
    if "list" in rows:
        chosen = rows["list"]
        return TeacherScores(
            Listed(*(shared[f"list_{x}"][chosen] for x in ("items", "logits"))),
            shared["list_weights"][chosen],
        )
    if "logits" in rows:
        return TeacherScores(rows["logits"], weights)
    return TeacherScores(
        Factors(rows["contexts"], shared["items"], shared["bias"], top=rows.get("top")), weights
    )


def read_by_host(teacher: Teacher, name: str, examples: Examples) -> tuple[Teacher, Examples]:
    """Keeps the rows of cached labels on the host, in the batches of the examples."""
    kept = (*PER_EXAMPLE, "position")
    rows = {key: np.asarray(teacher.arrays[key]) for key in kept if key in teacher.arrays}
    shared = {key: value for key, value in teacher.arrays.items() if key not in rows}
    key = f"labels of {name}"

    def look_up(_: Any, tables: dict[str, Any], chosen: Any) -> Batch:
        batch = examples.look_up(np, tables, chosen)
        return batch | {key: _of_batch(rows, batch)}

    def scores(shared: PyTree, batch: Batch) -> TeacherScores:
        return _soft(shared, batch[key])

    changed = dataclasses.replace(teacher, arrays=shared, scores=scores)
    return changed, dataclasses.replace(examples, look_up=look_up, on_device=False)


def precomputed(
    teachers: Mapping[str, Teacher], objective: Objective, budget: int
) -> dict[str, Teacher]:
    """The teachers, cached labels ``with_logits`` where they take at most ``budget`` bytes in all.

    Only where an example has one context, the products of a step would be large, and no loss of the
    objective reads the factors. For meshes that do not split the items.
    """
    found = dict(teachers)
    for name, teacher in teachers.items():
        arrays = teacher.arrays
        readers = [term for term in objective if term.reads_teacher and term.teacher == name]
        if not isinstance(arrays, dict) or not all(_reads_logits(term) for term in readers):
            continue
        if "contexts" not in arrays or "position" in arrays:  # lists, classes, windows
            continue
        size = 4 * len(arrays["contexts"]) * len(arrays["items"])
        if arrays["contexts"].shape[-1] >= MIN_WIDTH and agreed(size <= budget):
            found[name], budget = with_logits(teacher), budget - size
    return found


def _reads_logits(term: Term) -> bool:
    """Whether a term reads a teacher's logits of all items, and nothing else of it."""
    if not isinstance(term.loss, SoftmaxLoss) or term.sampled:
        return False
    return not term.loss.standardised and term.loss.apart <= 0


def fit_to_device(
    teachers: Mapping[str, Teacher], examples: Examples, budget: int
) -> tuple[dict[str, Teacher], Examples]:
    """Keeps cached labels beyond ``budget`` bytes on the host.

    Returns the teachers, and the examples to train from: their batches hold the rows of the labels
    on the host.
    """
    fit: dict[str, Teacher] = {}
    for name, teacher in teachers.items():
        arrays = teacher.arrays if isinstance(teacher.arrays, dict) else {}
        size = sum(arrays[key].nbytes for key in PER_EXAMPLE if key in arrays)
        if agreed(size > budget):
            fit[name], examples = read_by_host(teacher, name, examples)
        else:
            fit[name], budget = teacher, budget - size
    return fit, examples


def cached_teacher(*folders: Path) -> Teacher:
    """The labels in ``folders`` as one teacher, with the mean of their logits.

    The mean is exact: the contexts, scaled by 1 / number of folders, and the item vectors of all
    folders are concatenated along their last axis. Raises InputError as ``read`` does.
    """
    parts, scale = [read(folder) for folder in folders], np.float32(1 / len(folders))
    if len(parts) == 1:
        (arrays,) = parts
    elif "logits" in parts[0]:
        arrays = {"logits": np.sum([part["logits"] * scale for part in parts], 0)}
    else:
        arrays = {
            "contexts": np.concatenate([part["contexts"] * scale for part in parts], -1),
            "items": np.concatenate([part["items"] for part in parts], -1),
            "bias": np.sum([part["bias"] * scale for part in parts], 0),
            **({"position": parts[0]["position"]} if "position" in parts[0] else {}),
        }
    return Teacher(arrays, _cached_scores, lambda: arrays["bias"])


def debiased(teacher: Teacher, share: float) -> Teacher:
    """The teacher without a ``share`` of its item biases: its logits less share · bias.

    An item bias is the part of a score that all contexts share, mostly popularity. ``Teacher.bias``
    is unchanged. For teachers whose scores factorise. Source: the logit adjustment of Menon et al.,
    "Long-tail Learning via Logit Adjustment", ICLR 2021, with the learned bias in place of the log
    of the frequency.
    """
    if isinstance(teacher.arrays, dict):  # cached labels
        arrays = teacher.arrays | {"bias": teacher.arrays["bias"] * np.float32(1 - share)}
        return dataclasses.replace(teacher, arrays=arrays)

    def scores(arrays: PyTree, batch: Batch) -> TeacherScores:
        found = teacher.scores(arrays, batch)
        assert isinstance(found.scores, Factors)
        return found._replace(scores=found.scores._replace(bias=found.scores.bias * (1 - share)))

    return dataclasses.replace(teacher, scores=scores)


def shared_by_target(teachers: Mapping[str, Teacher]) -> dict[str, Teacher]:
    """Cached labels of the same examples, each with its share of the weights of all of them.

    Where a weight is the probability of the position's target (``labellers.target_probability``),
    the share is the probability that this teacher, of a mixture of all in equal parts, gave the
    target. Source: Jacobs et al., "Adaptive Mixtures of Local Experts", Neural Computation 1991.
    """
    total = np.sum([teacher.arrays["weights"] for teacher in teachers.values()], 0)
    return {
        name: dataclasses.replace(
            teacher, arrays=teacher.arrays | {"weights": teacher.arrays["weights"] / total}
        )
        for name, teacher in teachers.items()
    }


def with_top_items(teacher: Teacher, k: int, batch_size: int = 512) -> Teacher:
    """Cached labels with the ``k`` items of highest score of every context, int32 [..., k].

    They are found once, so that a loss over a sample of the catalogue, or over candidates, reads no
    more of it than those and the sample.
    """
    top = _of_contexts(teacher, lambda factors: top_items(factors, k), batch_size)
    return dataclasses.replace(teacher, arrays=teacher.arrays | {"top": top})


def with_logits(teacher: Teacher) -> Teacher:
    """Cached labels as the logits of all items, f32 [..., I], in place of their factors.

    They are computed once, where a step would compute those of its batch again in every epoch.
    """
    factors = ("contexts", "items", "bias", "top")
    arrays = {name: value for name, value in teacher.arrays.items() if name not in factors}
    logits = _of_contexts(teacher, Factors.dense)
    return dataclasses.replace(teacher, arrays=arrays | {"logits": logits})


def _of_contexts(
    teacher: Teacher, function: Callable[[Factors], Array], batch_size: int = 512
) -> np.ndarray:
    """``function`` of the scores of every context of cached labels."""
    mesh = sharding.local_mesh()
    contexts, *catalogue = (
        np.asarray(teacher.arrays[name]) for name in ("contexts", "items", "bias")
    )
    items, bias = sharding.put_whole(catalogue, mesh)
    compiled = jax.jit(lambda *factors: function(Factors(*factors)))
    batch_size += -batch_size % mesh.size
    one = jax.eval_shape(compiled, contexts[:1], items, bias)
    found = np.empty((len(contexts), *one.shape[1:]), one.dtype)
    for start in range(0, len(contexts), batch_size):
        # Filled up with the last row: one shape, one program.
        rows = np.minimum(np.arange(start, start + batch_size), len(contexts) - 1)
        found[rows] = compiled(sharding.put_rows(contexts[rows], mesh), items, bias)
    return found
