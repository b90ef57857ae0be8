"""Student and teacher on the same rows: statistics and gradients a chunk of items at a time."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kd_jax.core.scores import Factors, factor_logits
from kd_jax.core.tiling import NEGATIVE, Axes, fold, set_at, within
from kd_jax.losses.base import Expectation, RowStatistics, Tile
from kd_jax.losses.terms import Rows, Softmax, SoftmaxTerm


@dataclasses.dataclass(frozen=True)
class StudentTeacher:
    """The logits of student and teacher for the same rows: their statistics and gradients.

    They are computed a chunk of items at a time.
    """

    terms: tuple[SoftmaxTerm, ...]
    student: Factors
    teacher: Factors | Array | None  # logits [R, I] are used as they are
    rows: Rows
    warm: Array | None
    temperatures: Array | None
    offset: Array | int  # index of the first item on this device
    axes: Axes

    @property
    def hard(self) -> list[bool]:
        """``warm`` of the terms that read targets, each once."""
        return sorted({term.warm for term in self.terms if not term.loss.reads_teacher})

    @property
    def softmaxes(self) -> list[Softmax]:
        """The student softmaxes, each once."""
        return sorted({term.softmax for term in self.terms})

    @property
    def compared(self) -> dict[Softmax, tuple[Expectation, ...]]:
        """The softmaxes that a teacher is compared under, with all expectations that are needed."""
        found: dict[Softmax, dict[Expectation, None]] = {}
        for term in self.terms:
            if term.loss.reads_teacher:
                needed = found.setdefault(term.softmax, {})
                needed.update(dict.fromkeys(term.loss.expectations))
        return {softmax: tuple(found[softmax]) for softmax in sorted(found)}

    def chunk(self, factors: Factors, start: Array | int, size: int) -> Array:
        """Logits f32 [R, size] of the items from ``start`` on."""
        if size == len(factors.bias):  # made once for statistics and gradients
            return self.whole_student if factors is self.student else self.whole_teacher
        vectors = lax.dynamic_slice_in_dim(factors.vectors, start, size)
        bias = lax.dynamic_slice_in_dim(factors.bias, start, size)
        return factor_logits(factors._replace(vectors=vectors, bias=bias), self.offset + start)

    @functools.cached_property
    def apart(self) -> dict[int, Array]:
        """``SoftmaxLoss.apart`` -> these items of each row, int32 [R, M].

        ``statistics`` finds them before its loop over chunks: XLA does not move that out of a loop.
        """
        counts = sorted({softmax.apart for softmax in self.softmaxes} - {0})
        return {count: self.rows.apart(count) for count in counts}

    @functools.cached_property
    def whole_student(self) -> Array:
        return factor_logits(self.student, self.offset)

    @functools.cached_property
    def whole_teacher(self) -> Array:
        assert isinstance(self.teacher, Factors)
        return factor_logits(self.teacher, self.offset)

    def logits(self, start: Array | int, size: int) -> tuple[Array, Array | None]:
        """Student and teacher logits of a chunk."""
        student = self.chunk(self.student, start, size)
        if self.teacher is None:
            return student, None
        if isinstance(self.teacher, Factors):
            return student, self.chunk(self.teacher, start, size)
        return student, lax.dynamic_slice_in_dim(self.teacher, start, size, 1)

    @functools.cached_property
    def kept(self) -> dict[Any, tuple[Array, Array]]:
        """(model, softmax) -> (exp(logits - maximum), maximum), kept by ``statistics``.

        They are for ``gradients``. They are kept only for a chunk that holds all items, and on a
        CPU, where computing an exponential costs more than storing it.
        """
        return {}

    def probabilities(
        self, model: str, softmax: Softmax, logits: Array, start: Array | int, log_z: Array
    ) -> Array:
        """Softmax f32 [R, size] of a chunk, given the normalisers of the rows."""
        if (model, softmax) in self.kept:
            share, top = self.kept[model, softmax]
            return share * jnp.exp(top - log_z)[:, None]
        return jnp.exp(self.scaled(logits, start, softmax) - log_z[:, None])

    def temperature(self, softmax: Softmax) -> Array | float:
        if softmax.scheduled < 0:
            return softmax.temperature
        assert self.temperatures is not None
        return self.temperatures[softmax.scheduled]

    def scaled(self, logits: Array, start: Array | int, softmax: Softmax) -> Array:
        """Logits divided by the temperature; those of items that do not take part are masked."""
        temperature = self.temperature(softmax)
        fixed = softmax.scheduled < 0 and temperature == 1.0
        scaled = logits if fixed else logits / temperature
        if softmax.warm and self.warm is not None:
            warm = lax.dynamic_slice_in_dim(self.warm, start, logits.shape[1])
            scaled = jnp.where(warm[None], scaled, NEGATIVE)
        if not softmax.apart:
            return scaled
        return set_at(scaled, self.apart[softmax.apart], self.offset + start, NEGATIVE)

    def named(self, softmax: Softmax, begin: Array | int, size: int) -> tuple[Array, Array]:
        """The positions in a chunk of the items apart, [R, M], and whether they take part."""
        index = within(self.apart[softmax.apart], self.offset + begin, size)
        inside = index < size
        if softmax.warm and self.warm is not None:
            here = lax.dynamic_slice_in_dim(self.warm, begin, size)
            inside &= here[jnp.minimum(index, size - 1)]
        return index, inside

    def targets(self, start: Array | int, size: int, warm: bool) -> tuple[Array, Array]:
        """The positions of the targets in a chunk, [R, M], and their weights.

        The weight is 0 for a target that is outside the chunk or does not count.
        """
        index = within(self.rows.targets, self.offset + start, size)
        weights = jnp.where(index < size, self.rows.target_weights, 0.0)
        if warm and self.warm is not None:
            here = lax.dynamic_slice_in_dim(self.warm, start, size)
            weights = jnp.where(here[jnp.minimum(index, size - 1)], weights, 0.0)
        return index, weights

    def statistics(self, width: int) -> list[tuple[RowStatistics, Array]]:
        """The statistics of the rows for each term, and bool [R]: whether any item takes part."""
        empty = jnp.zeros(len(self.rows.weights))
        compared = self.compared
        start: dict[Any, Any] = {("s", key): [empty + NEGATIVE, empty] for key in self.softmaxes}
        start |= {("t", key): [empty + NEGATIVE, empty] for key in compared}
        for key, needed in compared.items():
            for expectation in needed:
                start["t" if expectation.under_teacher else "s", key].append(empty)
        start |= {("hit", warm): [empty, empty] for warm in self.hard}
        for key in self.softmaxes:
            if key.apart:
                none = jnp.zeros(self.apart[key.apart].shape)
                start["named", key] = [none, none, none]
        found = fold(self._visit, start, len(self.student.bias), width)
        for kind, key in found:
            if kind in ("hit", "named"):
                found[kind, key] = self.axes.sum_items(found[kind, key])
                continue
            top, *sums = found[kind, key]
            higher = self.axes.max_items(top)
            sums = self.axes.sum_items([value * jnp.exp(top - higher) for value in sums])
            log_z = higher + jnp.log(sums[0])
            means = [value / sums[0] for value in sums[1:]]
            # A softmax without any item has loss 0 and gradient 0; its normaliser would be NEGATIVE
            # + log(count).
            found[kind, key] = (log_z, means, higher > NEGATIVE / 2)
        return self._with_sums([self._of_term(term, found) for term in self.terms], width)

    def _visit(self, found: dict[Any, Any], begin: Array | int, size: int) -> dict[Any, Any]:
        """The running maxima and sums with one more chunk."""
        logits, soft = self.logits(begin, size)
        compared = self.compared
        keep = jax.default_backend() == "cpu" and size == len(self.student.bias)
        new: dict[Any, Any] = {}

        def add(model: str, softmax: Softmax, values: Array, summed: list[Array]) -> None:
            top, *sums = found[model, softmax]
            higher = jnp.maximum(top, values.max(1))
            share = jnp.exp(values - higher[:, None])
            added = [share.sum(1), *((share * of).sum(1) for of in summed)]
            sums = [s * jnp.exp(top - higher) + a for s, a in zip(sums, added, strict=True)]
            new[model, softmax] = [higher, *sums]
            if keep:
                self.kept[model, softmax] = share, higher

        for softmax in self.softmaxes:
            values = self.scaled(logits, begin, softmax)
            summed: dict[str, list[Array]] = {"s": [], "t": []}
            if softmax in compared:
                assert soft is not None
                teacher = self.scaled(soft, begin, softmax)
                for expectation in compared[softmax]:
                    model = "t" if expectation.under_teacher else "s"
                    summed[model].append(expectation.of(values, teacher))
                add("t", softmax, teacher, summed["t"])
            add("s", softmax, values, summed["s"])
        for warm in self.hard:
            index, weights = self.targets(begin, size, warm)
            picked = jnp.take_along_axis(logits, jnp.minimum(index, size - 1), axis=1)
            total, weight = found["hit", warm]
            new["hit", warm] = [total + jnp.sum(weights * picked, 1), weight + weights.sum(1)]
        for softmax in self.softmaxes:
            if softmax.apart:
                assert soft is not None
                index, inside = self.named(softmax, begin, size)
                parts = [
                    jnp.take_along_axis(x, jnp.minimum(index, size - 1), axis=1)
                    / self.temperature(softmax)
                    for x in (logits, soft)
                ]
                new["named", softmax] = [
                    old + jnp.where(inside, part, 0.0)
                    for old, part in zip(
                        found["named", softmax], [*parts, jnp.ones(index.shape)], strict=True
                    )
                ]
        return new

    def _of_term(self, term: SoftmaxTerm, found: dict[Any, Any]) -> tuple[RowStatistics, Array]:
        log_z, under_student, some = found["s", term.softmax]
        if not term.loss.reads_teacher:
            hit, weight = found["hit", term.warm]
            return RowStatistics(log_z, target_logit=hit, target_weight=weight), some
        teacher_log_z, under_teacher, _ = found["t", term.softmax]
        values: dict[Expectation, Array] = {}
        queues = {True: iter(under_teacher), False: iter(under_student)}
        for expectation in self.compared[term.softmax]:
            values[expectation] = next(queues[expectation.under_teacher])
        expected = tuple(values[expectation] for expectation in term.loss.expectations)
        rows = RowStatistics(log_z, teacher_log_z, expected)
        if term.softmax.apart:
            student, teacher, taken = found["named", term.softmax]
            rows = rows._replace(
                student_named=jnp.where(taken > 0, student, NEGATIVE),
                teacher_named=jnp.where(taken > 0, teacher, NEGATIVE),
            )
        return rows, some

    def _with_sums(
        self, statistics: list[tuple[RowStatistics, Array]], width: int
    ) -> list[tuple[RowStatistics, Array]]:
        """The statistics, completed with the sums that need the normalisers.

        This takes one more pass over the items, if any loss has ``log_prob_sums``.
        """
        asking = [i for i, term in enumerate(self.terms) if term.loss.log_prob_sums]
        if not asking:
            return statistics
        empty = jnp.zeros(len(self.rows.weights))

        def step(sums: list[list[Array]], begin: Array | int, size: int) -> list[list[Array]]:
            logits, soft = self.logits(begin, size)
            assert soft is not None
            new = []
            for i, old in zip(asking, sums, strict=True):
                softmax, rows = self.terms[i].softmax, statistics[i][0]
                assert rows.teacher_log_z is not None
                student = self.scaled(logits, begin, softmax) - rows.student_log_z[:, None]
                teacher = self.scaled(soft, begin, softmax) - rows.teacher_log_z[:, None]
                parts = [of(student, teacher).sum(1) for of in self.terms[i].loss.log_prob_sums]
                new.append([a + b for a, b in zip(old, parts, strict=True)])
            return new

        start = [[empty for _ in self.terms[i].loss.log_prob_sums] for i in asking]
        sums = self.axes.sum_items(fold(step, start, len(self.student.bias), width))
        statistics = list(statistics)
        for i, values in zip(asking, sums, strict=True):
            rows, some = statistics[i]
            statistics[i] = (rows._replace(sums=tuple(values)), some)
        return statistics

    def means(self, statistics: list[tuple[RowStatistics, Array]]) -> Array:
        """Weighted sum over the rows of each loss, [N]."""
        values = []
        for term, (rows, some) in zip(self.terms, statistics, strict=True):
            per_row = self.temperature(term.softmax) ** 2 * term.loss.value(rows)
            values.append(jnp.sum(jnp.where(some, per_row, 0.0) * self.rows.weights))
        return jnp.stack(values)

    def gradients(
        self,
        coefficients: Array,
        statistics: list[tuple[RowStatistics, Array]],
        tables: Any,
        width: int,
    ) -> tuple[Array, Any]:
        """d(sum)/d(contexts), f32 [R, D], and ``tables`` with the gradients of these rows added.

        tables: gradients of the vectors, [I, D], or [D, I] with one chunk; and of the biases.
        """
        kind = self.student.contexts.dtype

        def step(carry: Any, begin: Array | int, size: int) -> Any:
            contexts, vectors, bias = carry
            slope = self._slope(coefficients, statistics, begin, size).astype(kind)
            table = lax.dynamic_slice_in_dim(self.student.vectors, begin, size)
            contexts = contexts + jnp.dot(slope, table, preferred_element_type=jnp.float32)
            new = jnp.dot(self.student.contexts.T, slope, preferred_element_type=jnp.float32)
            if size < len(self.student.bias):
                new = new.T
            bias = _add(bias, slope.sum(0, dtype=jnp.float32), begin)
            return contexts, _add(vectors, new, begin), bias

        contexts = jnp.zeros(self.student.contexts.shape, jnp.float32)
        contexts, *tables = fold(step, (contexts, *tables), len(self.student.bias), width)
        return contexts, tuple(tables)

    def _slope(
        self,
        coefficients: Array,
        statistics: list[tuple[RowStatistics, Array]],
        begin: Array | int,
        size: int,
    ) -> Array:
        """d(sum)/d(student logits), f32 [R, size] of a chunk."""
        logits, soft = self.logits(begin, size)
        weights = [coefficients[i] * self.rows.weights for i in range(len(self.terms))]
        slope = jnp.zeros(())
        for term, weight, (rows, some) in zip(self.terms, weights, statistics, strict=True):
            weight = jnp.where(some, weight, 0.0) * self.temperature(term.softmax)
            values = self.scaled(logits, begin, term.softmax)
            log_z = rows.student_log_z
            tile = Tile(values, self.probabilities("s", term.softmax, logits, begin, log_z))
            if term.loss.reads_teacher:
                assert soft is not None and rows.teacher_log_z is not None
                other = self.scaled(soft, begin, term.softmax)
                log_z = rows.teacher_log_z
                shares = self.probabilities("t", term.softmax, soft, begin, log_z)
                tile = tile._replace(teacher_logits=other, teacher=shares)
            else:
                assert rows.target_weight is not None
                weight = weight * rows.target_weight
            slope = slope + weight[:, None] * term.loss.slope(tile, rows)
        for term, weight in zip(self.terms, weights, strict=True):
            if not term.loss.reads_teacher:
                index, share = self.targets(begin, size, term.warm)
                grid = jnp.arange(len(index))[:, None]
                slope = slope.at[grid, index].add(-weight[:, None] * share, mode="drop")
        for term, weight, (rows, some) in zip(self.terms, weights, statistics, strict=True):
            if term.softmax.apart:
                weight = jnp.where(some, weight, 0.0) * self.temperature(term.softmax)
                index, _ = self.named(term.softmax, begin, size)
                grid = jnp.arange(len(index))[:, None]
                share = term.loss.named_slope(rows)
                slope = slope.at[grid, index].add(weight[:, None] * share, mode="drop")
        if self.student.excluded is not None:  # their logits are constants
            slope = set_at(slope, self.student.excluded, self.offset + begin, 0.0)
        return slope


def _add(table: Array, rows: Array, start: Array | int) -> Array:
    if len(rows) == len(table):
        return table + rows
    return lax.dynamic_update_slice_in_dim(
        table, lax.dynamic_slice_in_dim(table, start, len(rows)) + rows, start, axis=0
    )
