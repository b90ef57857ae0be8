"""The objective: a weighted sum of terms, computed by the engine that fits each.

A term that compares with a teacher needs the scores of that teacher, and nothing else distinguishes
fine-tuning a teacher, training a plain student and distilling one. Teachers are an input of the
train step and never optimised by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from kd_jax.core.scores import Factors, Listed, TeacherScores
from kd_jax.core.tiling import NEGATIVE
from kd_jax.core.types import PAD, Batch, Params
from kd_jax.distillation.term import Objective, Term
from kd_jax.losses import candidates, dense, sampled, standardised_kl, streamed
from kd_jax.losses.base import TARGETS, CandidateLoss, SoftmaxLoss, VectorLoss
from kd_jax.losses.candidates import CandidateItems
from kd_jax.losses.sampled import Draws
from kd_jax.losses.softmax import CrossEntropy
from kd_jax.losses.terms import Engine, Inputs, Rows, SoftmaxTerm

Teachers = Mapping[str, TeacherScores]
Scores = Factors | Array


class StepInputs(NamedTuple):
    """The inputs of an objective besides the scores of the student.

    teachers: the scores of each teacher for this batch. warm: bool [C], the classes with a training
    interaction, or None. progress: scalar in [0, 1]. draws: the negatives of an objective over a
    sample of the catalogue. items: by term, the items with the scores or vectors that it compares,
    see ``chosen_items``. key: for losses that draw, among their candidates or groups.
    """

    batch: Batch
    teachers: Teachers = {}
    warm: Array | None = None
    progress: Array | float = 0.0
    draws: Draws | None = None
    items: Mapping[str, CandidateItems] = {}
    key: PRNGKeyArray | None = None


def chosen_items(
    objective: Objective, teachers: Teachers, num_items: int, key: PRNGKeyArray
) -> dict[str, CandidateItems]:
    """By term, the items that its loss compares at this step; all rows share one draw."""
    found: dict[str, CandidateItems] = {}
    for place, term in enumerate(objective):
        own = jax.random.fold_in(key, place)
        if isinstance(term.loss, CandidateLoss):
            scores = teachers[term.teacher].scores
            assert isinstance(scores, Factors | Listed)
            found[term.name] = candidates.choose(term.loss, scores, num_items, own)
        elif isinstance(term.loss, VectorLoss) and term.loss.of_items and term.loss.drawn:
            drawn = jax.random.randint(own, (term.loss.drawn,), 0, num_items, jnp.int32)
            found[term.name] = CandidateItems(jnp.zeros((0, 0), jnp.int32), drawn)
    return found


def auxiliary_params(
    objective: Objective, student: Any, teachers: Mapping[str, Any], key: PRNGKeyArray
) -> dict[str, Params]:
    """The initial auxiliary parameters by term; terms without any are absent.

    student, teachers: scores of a batch, or their shapes. Raises InputError where a loss cannot
    compare vectors of these widths.
    """
    found: dict[str, Params] = {}
    for place, term in enumerate(objective):
        params: Params = {}
        if term.head:
            params["head"] = jnp.eye(student.contexts.shape[-1])
        if isinstance(term.loss, VectorLoss):
            teacher = teachers[term.teacher].scores
            sides = [x.vectors if term.loss.of_items else x.contexts for x in (student, teacher)]
            own = jax.random.fold_in(key, place)
            params |= term.loss.auxiliary(sides[0].shape[-1], sides[1].shape[-1], own)
        if params:
            found[term.name] = params
    return found


def mean_loss(
    objective: Objective,
    scores: Scores,
    inputs: StepInputs,
    auxiliary: Mapping[str, Params] | None = None,
    engine: Engine | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Weighted mean over positions of the objective, and of each of its terms, by name.

    scores: [B, P, C], or the factors of scores of the catalogue: no [B, P, I] array of them is made
    then. A position counts in a term by the batch's weight times the teacher's, over the sum of the
    batch's alone: one to which the teacher gives weight 0 adds nothing and raises no other.
    auxiliary: by term, see ``auxiliary_params``. engine: see ``streamed.mean_losses``.
    """
    work = _Work(objective, scores, inputs, auxiliary or {}, engine)
    totals: list[Array] = []
    means: dict[str, Array] = {}
    of_softmax = [
        term for term in objective if isinstance(term.loss, SoftmaxLoss) and not term.shown
    ]
    if of_softmax:
        totals, means = work.softmax_terms(of_softmax)
    for term in objective:
        if term.shown:
            means[term.name] = work.shown_mean(term)
        elif isinstance(term.loss, CandidateLoss):
            means[term.name] = work.candidate_mean(term, term.loss)
        elif isinstance(term.loss, VectorLoss):
            means[term.name] = work.vector_mean(term, term.loss)
        else:
            continue
        totals.append(work.coefficients[term.name] * means[term.name])
    return sum(totals[1:], totals[0]), {term.name: means[term.name] for term in objective}


class _Work:
    """The terms of one step: what they share, and a method for each family."""

    def __init__(
        self,
        objective: Objective,
        scores: Scores,
        inputs: StepInputs,
        auxiliary: Mapping[str, Params],
        engine: Engine | None,
    ):
        batch = inputs.batch
        progress = jnp.asarray(inputs.progress, jnp.float32)
        self.objective, self.scores, self.inputs = objective, scores, inputs
        self.auxiliary, self.engine = auxiliary, engine
        self.progress = progress
        self.weights = batch["weights"] / jnp.maximum(jnp.sum(batch["weights"]), 1e-9)
        self.coefficients = {term.name: term.weight.at(progress) for term in objective}

    def position_weights(self, term: Term) -> Array:
        """The weight of each position, f32 [B, P]."""
        if not term.reads_teacher:
            return self.weights
        soft = self.inputs.teachers[term.teacher]
        return self.weights if soft.weights is None else self.weights * soft.weights

    def warm(self, term: Term) -> Array | None:
        return self.inputs.warm if term.warm else None

    def student(self, term: Term) -> Scores:
        """The student's scores, through the term's own head where it has one."""
        if not term.head or not isinstance(self.scores, Factors):
            return self.scores
        head = self.auxiliary[term.name]["head"]
        return self.scores._replace(contexts=self.scores.contexts @ head)

    def temperature(self, term: Term) -> float | Array:
        fixed = term.temperature.constant
        return term.temperature.start if fixed else term.temperature.at(self.progress)

    # losses over a softmax

    def softmax_terms(self, terms: Sequence[Term]) -> tuple[list[Array], dict[str, Array]]:
        """Weighted losses, which sum to that of all ``terms``, and the mean of each."""
        if isinstance(self.scores, Factors):
            return self._of_factors(terms)
        means = {
            term.name: jnp.sum(self._per_position(term) * self.position_weights(term))
            for term in terms
        }
        coefficients = jnp.stack([self.coefficients[term.name] for term in terms])
        return [jnp.sum(coefficients * jnp.stack(list(means.values())))], means

    def _per_position(self, term: Term) -> Array:
        """Unweighted loss of each predicted position from whole logits, f32 [B, P]."""
        logits, loss, where = self.scores, term.loss, self.warm(term)
        assert isinstance(loss, SoftmaxLoss) and not isinstance(logits, Factors)
        if not loss.reads_teacher:
            batch = self.inputs.batch
            targets = batch["targets"], batch["target_weights"]
            return dense.per_row(loss, logits, targets, where=where)
        scores, temperature = self.inputs.teachers[term.teacher].scores, self.temperature(term)
        if isinstance(scores, Listed):
            p, entropy = dense.listed(*scores, temperature, where)
            found = dense.per_row(
                CrossEntropy(), logits / temperature, (scores.items, p), where=where
            )
            assert loss.entropy_coefficient is not None
            return temperature**2 * (found + loss.entropy_coefficient * entropy)
        if isinstance(scores, Factors):
            # Where tables are split, a teacher's may have rows at their end that are no items.
            scores = scores.dense()[..., : logits.shape[-1]]
        if loss.standardised:
            logits, scores = (standardised_kl.of_logits(x, where) for x in (logits, scores))
        return dense.per_row(loss, logits, scores, temperature, where, self._named(term))

    def _named(self, term: Term) -> Array | None:
        """The items that a loss treats apart, int32 [B, P, M]; None if it treats all alike."""
        assert isinstance(term.loss, SoftmaxLoss)
        if term.loss.apart == TARGETS:
            return self.inputs.batch["targets"]
        if not term.loss.apart:
            return None
        scores = self.inputs.teachers[term.teacher].scores
        assert isinstance(scores, Factors)
        return candidates.best_items(scores, term.loss.apart)

    def _of_factors(self, terms: Sequence[Term]) -> tuple[list[Array], dict[str, Array]]:
        """The weighted loss of each group of terms, and the mean loss of each term by name.

        All terms of one teacher form a group, which is computed in one pass; the clicks are in the
        group of the first teacher without weights. Every further teacher or head, every loss of
        standardised logits, and every term of a list computes the student's logits once more.
        """
        teachers = self.inputs.teachers
        first = next(
            (
                term.teacher
                for term in terms
                if term.reads_teacher
                and not _other_logits(term)
                and teachers[term.teacher].weights is None
                and not isinstance(teachers[term.teacher].scores, Listed)
            ),
            None,
        )
        groups: dict[Any, list[Term]] = {}
        totals: list[Array] = []
        means: dict[str, Array] = {}
        for term in terms:
            key = term.teacher if term.reads_teacher else first
            groups.setdefault((key, term.name if _other_logits(term) else ""), []).append(term)
        for (name, _), members in groups.items():
            if name is not None and isinstance(teachers[name].scores, Listed):
                for term in members:
                    total, means[term.name] = self._of_list(term)
                    totals.append(total)
                continue
            teacher = None
            if name is not None:
                scores = teachers[name].scores
                assert not isinstance(scores, Listed)
                teacher = _flat_factors(scores) if isinstance(scores, Factors) else _flat(scores)
            batch = self.inputs.batch
            counted = self.position_weights(members[0]).reshape(-1)  # the same for all of them
            k = max(term.loss.apart for term in members if isinstance(term.loss, SoftmaxLoss))
            top = None
            if k > 0:  # the items that one loss treats apart are the first of those of another
                assert isinstance(teacher, Factors)
                top = candidates.best_items(teacher, k)
            rows = Rows(_flat(batch["targets"]), _flat(batch["target_weights"]), counted, top)
            total, found = self._visit(members, rows, teacher)
            totals.append(total)
            means |= {term.name: found[place] for place, term in enumerate(members)}
        return totals, means

    def _visit(
        self, terms: Sequence[Term], rows: Rows, teacher: Factors | Array | None
    ) -> tuple[Array, Array]:
        """(the weighted sum, the means [N]) of terms that read the same rows and teacher."""
        student = self.student(terms[0])
        assert isinstance(student, Factors)
        has_warm = self.inputs.warm is not None
        chosen, temperatures = [], None
        if not all(term.temperature.constant for term in terms):
            temperatures = jnp.stack([term.temperature.at(self.progress) for term in terms])
        for place, term in enumerate(terms):
            assert isinstance(term.loss, SoftmaxLoss)
            scheduled = -1 if term.temperature.constant else place
            start = term.temperature.start
            chosen.append(SoftmaxTerm(term.loss, start, term.warm and has_warm, scheduled))
        coefficients = jnp.stack([self.coefficients[term.name] for term in terms])
        student = _flat_factors(student)
        if isinstance(terms[0].loss, SoftmaxLoss) and terms[0].loss.standardised:
            assert isinstance(teacher, Factors)
            count, where = len(student.bias), self.warm(terms[0])
            student, teacher = (
                standardised_kl.of_factors(x, count, where) for x in (student, teacher)
            )
        given = Inputs(rows, coefficients, teacher, self.inputs.warm, temperatures)
        return self._run(tuple(chosen), student, given)

    def _run(
        self, terms: tuple[SoftmaxTerm, ...], student: Factors, given: Inputs
    ) -> tuple[Array, Array]:
        if self.inputs.draws is not None:
            return sampled.mean_losses(terms, student, given, self.inputs.draws)
        if isinstance(given.teacher, Factors):
            given = given._replace(teacher=given.teacher._replace(top=None))
        return streamed.mean_losses(terms, student, given, self.engine)

    def _of_list(self, term: Term) -> tuple[Array, Array]:
        """(the weighted mean, the mean) of a term with a teacher that lists a few items.

        The loss is a cross-entropy with the teacher's distribution as targets.
        """
        scores, student = self.inputs.teachers[term.teacher].scores, self.student(term)
        assert isinstance(scores, Listed) and isinstance(student, Factors)
        loss, temperature = term.loss, self.temperature(term)
        assert isinstance(loss, SoftmaxLoss) and loss.entropy_coefficient is not None
        items, logits = _flat(scores.items), _flat(scores.logits)
        where = self.warm(term)
        p, entropy = dense.listed(items, logits, temperature, where)
        counted = self.position_weights(term).reshape(-1)
        cooled = student._replace(
            contexts=student.contexts / temperature, bias=student.bias / temperature
        )
        square, weight = temperature**2, self.coefficients[term.name]
        chosen = (SoftmaxTerm(CrossEntropy(), 1.0, where is not None),)
        given = Inputs(
            Rows(items, p, counted), (square * weight)[None], None, self.inputs.warm, None
        )
        total, (mean,) = self._run(chosen, _flat_factors(cooled), given)
        constant = loss.entropy_coefficient * square * jnp.sum(counted * entropy)
        return total + weight * constant, square * mean + constant

    # losses of what was shown, of candidates, and of vectors

    def shown_mean(self, term: Term) -> Array:
        """The mean of a loss of the clicks whose softmax is over the shown items alone."""
        shown = _flat(self.inputs.batch["shown"])
        clicks = self.inputs.batch["shown_clicks"].reshape(-1, 1)
        there = shown != PAD
        scores = candidates.scores_of(self.student(term), jnp.maximum(shown, 0))
        places = jnp.broadcast_to(jnp.arange(shown.shape[1])[None], shown.shape)
        share = (places < clicks) / jnp.maximum(clicks, 1)  # the clicked items come first
        assert isinstance(term.loss, SoftmaxLoss)
        found = dense.per_row(term.loss, jnp.where(there, scores, NEGATIVE), (places, share))
        return jnp.sum(found * self.position_weights(term).reshape(-1))

    def candidate_mean(self, term: Term, loss: CandidateLoss) -> Array:
        teacher = self.inputs.teachers[term.teacher].scores
        assert isinstance(teacher, Factors | Listed) and self.inputs.key is not None
        student = self.student(term)
        own = candidates.own_items(loss, student)
        items = self.inputs.items[term.name]
        given = candidates.compared(items, student, teacher, self.warm(term), own)
        key = jax.random.fold_in(self.inputs.key, self.objective.index(term))
        return jnp.sum(loss.value(given, key) * self.position_weights(term).reshape(-1))

    def vector_mean(self, term: Term, loss: VectorLoss) -> Array:
        student, teacher = self.scores, self.inputs.teachers[term.teacher].scores
        assert isinstance(student, Factors) and isinstance(teacher, Factors)
        auxiliary, key = self.auxiliary.get(term.name, {}), self.inputs.key
        if key is not None:
            key = jax.random.fold_in(key, self.objective.index(term))
        if not loss.of_items:
            share = self.position_weights(term).reshape(-1)
            contexts = _flat(student.contexts), _flat(teacher.contexts)
            found = loss.value(*contexts, auxiliary, share, key)
            return jnp.sum(found * share)
        vectors, warm = (student.vectors, teacher.vectors), self.warm(term)
        if loss.drawn:
            rows = self.inputs.items[term.name].drawn
            vectors = (student.vectors[rows], teacher.vectors[rows])
            warm = None if warm is None else warm[rows]
        count = len(vectors[0])  # a teacher's may have more rows on a mesh
        share = jnp.ones(count) if warm is None else warm.astype(jnp.float32)
        total = jnp.maximum(jnp.sum(share), 1.0)
        soft = jax.lax.stop_gradient(vectors[1][:count])
        found = loss.value(vectors[0], soft, auxiliary, share / total, key)
        return jnp.sum(found * share) / total


def _other_logits(term: Term) -> bool:
    """Whether a term of a softmax reads other logits of the student than most."""
    return term.head or (isinstance(term.loss, SoftmaxLoss) and term.loss.standardised)


def _flat(x: Array) -> Array:
    """[B, P, N] -> [B * P, N]."""
    return x.reshape(-1, x.shape[-1])


def _flat_factors(factors: Factors) -> Factors:
    return factors._replace(
        contexts=_flat(factors.contexts),
        excluded=None if factors.excluded is None else _flat(factors.excluded),
        top=None if factors.top is None else _flat(factors.top),
    )
