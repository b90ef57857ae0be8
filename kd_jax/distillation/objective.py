"""The objective and the one train step.

An objective is a weighted sum of terms. A term that compares with a teacher needs that teacher's
scores, and nothing else distinguishes the three uses of the step: teacher fine-tuning and the plain
student have a hard cross-entropy term only, the distilled student adds terms that read teachers.
Teachers are an input of the step, never optimised by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from kd_jax.core.scores import Factors, Listed, TeacherScores
from kd_jax.core.types import Array, Batch
from kd_jax.distillation.term import Objective, Term
from kd_jax.losses import sampled, softmax
from kd_jax.losses.sampled import Draws
from kd_jax.losses.streamed import Engine, Loss, Rows, mean_losses

Teachers = Mapping[str, TeacherScores]


def mean_loss(
    objective: Objective,
    scores: Factors | Array,
    batch: Batch,
    teachers: Teachers | None,
    warm: Array | None,
    progress: Array,
    run: Engine | None = None,
    draws: Draws | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Weighted mean over positions of the objective, and of each of its terms.

    scores: [B, P, C], or the factors of scores of the catalogue: no [B, P, I] array is made then.
    teachers: what each one that a term reads says about the batch. A position counts in its terms
    by the batch's weight times the teacher's, over the sum of the batch's alone: one that the
    teacher gives 0 adds nothing and lifts no other. warm: bool [C] or None. progress: scalar in [0,
    1]. run: see ``catalogue.mean_losses``. draws: the negatives of an objective over a sample of
    the catalogue.
    """
    teachers = teachers or {}
    weights = batch["weights"] / jnp.maximum(jnp.sum(batch["weights"]), 1e-9)
    coefficients = jnp.stack([term.weight_at(progress) for term in objective])

    def trusted(name: str) -> Array:
        soft = teachers.get(name)
        return weights if soft is None or soft.weights is None else weights * soft.weights

    if isinstance(scores, Factors):
        total, means = _from_factors(
            objective, coefficients, scores, batch, teachers, trusted, warm, run, draws
        )
    else:
        means = jnp.stack(
            [
                jnp.sum(
                    term.per_position(scores, batch, teachers.get(term.teacher), warm)
                    * trusted(_reads(term))
                )
                for term in objective
            ]
        )
        total = jnp.sum(coefficients * means)
    return total, {term.label: mean for term, mean in zip(objective, means, strict=True)}


def _reads(term: Term) -> str:
    """The teacher whose trust counts; none for clicks."""
    return term.teacher if term.needs_teacher else ""


def _from_factors(
    objective: Objective,
    coefficients: Array,
    scores: Factors,
    batch: Batch,
    teachers: Teachers,
    trusted: Callable[[str], Array],
    warm: Array | None,
    run: Engine | None,
    draws: Draws | None,
) -> tuple[Array, Array]:
    """``mean_loss`` from the student's factors: (the sum, the means [N]).

    All terms of one teacher are found together, the clicks with those of the first that is trusted
    alike everywhere. Every further teacher, and every term of a list, makes the student's logits
    once more.
    """
    student = _flat_factors(scores)

    def visit(
        losses_: tuple[Loss, ...], scale: Array, student: Factors, rows: Rows, teacher: Any = None
    ) -> Any:
        if draws is None:
            return mean_losses(losses_, scale, student, rows, teacher, warm, run)
        return sampled.mean_losses(losses_, scale, student, rows, draws, teacher, warm)

    alike = (
        name
        for name, soft in teachers.items()
        if isinstance(soft.scores, Factors) and soft.weights is None
    )
    first = next(alike, "")
    groups: dict[str, list[int]] = {}
    for i, term in enumerate(objective):
        groups.setdefault(term.teacher if term.needs_teacher else first, []).append(i)
    totals, means = [], [jnp.zeros(())] * len(objective)
    for name, members in groups.items():
        soft, counted = teachers.get(name), trusted(name).reshape(-1)
        if soft is not None and isinstance(soft.scores, Listed):
            items, logits = map(_flat, soft.scores)
            for i in members:
                term = objective[i]
                on_warm, square = term.warm and warm is not None, float(term.temperature) ** 2
                p, entropy = softmax.listed(
                    items, logits, term.temperature, warm if on_warm else None
                )
                cooled = student._replace(
                    contexts=student.contexts / term.temperature,
                    bias=student.bias / term.temperature,
                )
                total, (mean,) = visit(
                    (Loss("ce", 1.0, on_warm),),
                    square * coefficients[i, None],
                    cooled,
                    Rows(items, p, counted),
                )
                constant = square * jnp.sum(counted * entropy) if term.name == "kl" else 0.0
                totals.append(total - coefficients[i] * constant)
                means[i] = square * mean - constant
            continue
        teacher = None if soft is None else soft.scores
        assert teacher is None or isinstance(teacher, Factors)
        rows = Rows(_flat(batch["targets"]), _flat(batch["target_weights"]), counted)
        terms = [objective[i] for i in members]
        losses_ = tuple(
            Loss(t.name, float(t.temperature), t.warm and warm is not None) for t in terms
        )
        scale = coefficients if len(members) == len(objective) else coefficients[jnp.array(members)]
        total, found = visit(losses_, scale, student, rows, teacher and _flat_factors(teacher))
        totals.append(total)
        for i, mean in zip(members, found, strict=True):
            means[i] = mean
    return sum(totals[1:], totals[0]), jnp.stack(means)


def _flat(x: Array) -> Array:
    """[B, P, N] -> [B * P, N]."""
    return x.reshape(-1, x.shape[-1])


def _flat_factors(factors: Factors) -> Factors:
    excluded, top = (
        None if items is None else _flat(items) for items in (factors.excluded, factors.top)
    )
    return factors._replace(contexts=_flat(factors.contexts), excluded=excluded, top=top)
