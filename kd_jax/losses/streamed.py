"""Softmax losses over a whole catalogue, without an array of all rows times all items.

A row's logits are context · item + bias. Training reads them only to sum over them, so they are
made a tile at a time and thrown away; what is left is per row (normalisers, losses) and per
parameter (gradients). Two ways to cut:

- *rows*: a few rows against all items. Every logit is made once, its loss and its gradient in the
  same visit, because the objective is a weighted mean whose weights are known beforehand: no FLOP
  more than the plain version.
- *items*: all rows against a few items. Normalisers first, then the same logits again for the
  gradients: one matrix product more for the student and one for the teacher, and O(rows x chunk)
  memory however large the catalogue.

``tile_shape`` takes rows as long as ``MIN_ROWS`` of them fit, from which on the matrix products run at full
speed. The running normaliser is that of Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018; gradients made in the forward pass are known from fused linear cross-entropies (Hsu
et al., "Liger Kernel", 2024).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from kd_jax.core.scores import Factors, factor_logits
from kd_jax.core.tiling import NEGATIVE, Axes, fold, pad_rows, set_at, tile_shape, tile_size, within
from kd_jax.losses.base import Expectation, RowStatistics, SoftmaxLoss, Tile


class Softmax(NamedTuple):
    """A softmax: its temperature, and whether over warm items only. scheduled: index into the
    temperatures that change over training; -1 for a fixed one.
    """

    temperature: float
    warm: bool
    scheduled: int = -1


@dataclasses.dataclass(frozen=True)
class SoftmaxTerm:
    """A softmax loss at a temperature, over all items or the warm ones.

    scheduled: the index of its temperature among those given with the inputs, where that changes
    over training; ``temperature`` is not read then.
    """

    loss: SoftmaxLoss
    temperature: float = 1.0
    warm: bool = False
    scheduled: int = -1

    @property
    def softmax(self) -> Softmax:
        if not self.loss.reads_teacher:
            return Softmax(1.0, self.warm)
        return Softmax(self.temperature, self.warm, self.scheduled)


class Rows(NamedTuple):
    """What a loss reads beside the scores, all with leading axis R. weights: f32 [R], to sum to 1
    over all rows.
    """

    targets: Int[Array, "R M"]
    target_weights: Float[Array, "R M"]
    weights: Float[Array, " R"]


class Inputs(NamedTuple):
    """What an engine reads beside the student. coefficients: f32 [N], weights of the terms. warm:
    bool [I]. temperatures: f32 [N] where one changes over training.
    """

    rows: Rows
    coefficients: Array
    teacher: Factors | None = None
    warm: Array | None = None
    temperatures: Array | None = None


Engine = Callable[[tuple[SoftmaxTerm, ...], bool, Factors, Inputs], Any]


def mean_losses(
    terms: tuple[SoftmaxTerm, ...],
    student: Factors,
    inputs: Inputs,
    engine: Engine | None = None,
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """The weighted mean over rows of each loss [N], and their sum weighted by the coefficients.

    Differentiable in the student's contexts, vectors and bias, through the sum alone: the means are
    for the log. Equal to ``dense.per_row`` of dense logits up to f32 rounding; products of bf16
    factors are summed in f32. engine: ``sharded.engine_for(mesh)``; by default one device.
    """
    return _mean(terms, engine or single, student, inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean(
    terms: tuple[SoftmaxTerm, ...], engine: Engine, student: Factors, inputs: Inputs
) -> tuple[Array, Array]:
    return engine(terms, False, student, inputs)[0]


def _mean_forward(
    terms: tuple[SoftmaxTerm, ...], engine: Engine, student: Factors, inputs: Inputs
) -> tuple[Any, Any]:
    return engine(terms, True, student, inputs)


def _mean_backward(
    terms: tuple[SoftmaxTerm, ...], engine: Engine, gradients: Any, cotangent: tuple[Array, Array]
) -> Any:
    contexts, vectors, bias = (
        gradient * cotangent[0].astype(gradient.dtype) for gradient in gradients
    )
    return Factors(contexts, vectors, bias, None), None


_mean.defvjp(_mean_forward, _mean_backward)


def single(
    terms: tuple[SoftmaxTerm, ...], gradients: bool, student: Factors, inputs: Inputs
) -> Any:
    """``local`` on the one device there is."""
    return local(terms, gradients, student, inputs, Axes())


def local(
    terms: tuple[SoftmaxTerm, ...],
    gradients: bool,
    student: Factors,
    inputs: Inputs,
    axes: Axes,
    tile: int = 0,
) -> Any:
    """((sum, means), gradients of the sum in contexts, vectors and bias) over the rows and items
    that are here.
    """
    rows, coefficients, teacher, warm, temperatures = inputs
    count = len(student.bias)
    height, width = tile_shape(len(rows.weights), count, tile or tile_size())
    offset = axes.offset(count)
    # Rows against all items add to the table's gradient [D, I], the faster product; chunks of items
    # to [I, D].
    turned = width == count
    zeros = (
        jnp.zeros(student.vectors.shape[:: -1 if turned else 1], jnp.float32),
        jnp.zeros(count, jnp.float32),
    )

    def visit(carry: Any, part: Any) -> tuple[Any, Any]:
        """One tile of rows: its losses, and its share of the gradients."""
        means, tables = carry
        student_rows, teacher_rows, here = part
        student_part = student._replace(contexts=student_rows[0], excluded=student_rows[1])
        teacher_part = teacher and teacher._replace(
            contexts=teacher_rows[0], excluded=teacher_rows[1]
        )
        pair = _Pair(terms, student_part, teacher_part, here, warm, temperatures, offset, axes)
        statistics = pair.statistics(width)
        means = means + pair.means(statistics)
        if not gradients:
            return (means, tables), None
        contexts, tables = pair.gradients(coefficients, statistics, tables, width)
        return (means, tables), contexts

    parts = (
        (student.contexts, student.excluded),
        (teacher.contexts, teacher.excluded) if teacher is not None else None,
        rows,
    )
    start = (jnp.zeros(len(terms)), zeros if gradients else None)
    size = len(rows.weights)
    if height == size:
        (means, tables), contexts = visit(start, parts)
    else:
        tiles = -(-size // height)
        cut = jax.tree.map(
            lambda x: pad_rows(x, tiles * height).reshape(tiles, height, *x.shape[1:]), parts
        )
        (means, tables), contexts = lax.scan(visit, start, cut)
        if gradients:
            contexts = contexts.reshape(tiles * height, -1)[:size]
    means = axes.sum_rows(means)
    total = jnp.sum(coefficients * means)
    if not gradients:
        return (total, means), None
    vectors, bias = axes.sum_rows(tables)
    given = (axes.sum_items(contexts), vectors.T if turned else vectors, bias)
    like = (student.contexts, student.vectors, student.bias)
    return (total, means), tuple(g.astype(x.dtype) for g, x in zip(given, like, strict=True))


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Student and teacher on the same rows: statistics of their logits, and gradients, a chunk of
    items at a time.
    """

    terms: tuple[SoftmaxTerm, ...]
    student: Factors
    teacher: Factors | None
    rows: Rows
    warm: Array | None
    temperatures: Array | None
    offset: Array | int  # of the first item that is here
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
    def whole_student(self) -> Array:
        return factor_logits(self.student, self.offset)

    @functools.cached_property
    def whole_teacher(self) -> Array:
        assert self.teacher is not None
        return factor_logits(self.teacher, self.offset)

    def logits(self, start: Array | int, size: int) -> tuple[Array, Array | None]:
        """Student and teacher logits of a chunk."""
        student = self.chunk(self.student, start, size)
        return student, None if self.teacher is None else self.chunk(self.teacher, start, size)

    @functools.cached_property
    def kept(self) -> dict[Any, tuple[Array, Array]]:
        """Of a chunk that holds all items, on a CPU, where an exponential costs more than to keep
        it: (model, softmax) -> exp(logits - their maximum), which ``statistics`` leaves to
        ``gradients``, and that maximum.
        """
        return {}

    def probabilities(
        self, model: str, softmax: Softmax, logits: Array, start: Array | int, log_z: Array
    ) -> Array:
        """Softmax f32 [R, size] of a chunk whose normalisers are known."""
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
        if not softmax.warm or self.warm is None:
            return scaled
        warm = lax.dynamic_slice_in_dim(self.warm, start, logits.shape[1])
        return jnp.where(warm[None], scaled, NEGATIVE)

    def targets(self, start: Array | int, size: int, warm: bool) -> tuple[Array, Array]:
        """Positions of the targets in a chunk, [R, M], and their weights, 0 where one is elsewhere
        or does not count.
        """
        index = within(self.rows.targets, self.offset + start, size)
        weights = jnp.where(index < size, self.rows.target_weights, 0.0)
        if warm and self.warm is not None:
            here = lax.dynamic_slice_in_dim(self.warm, start, size)
            weights = jnp.where(here[jnp.minimum(index, size - 1)], weights, 0.0)
        return index, weights

    def statistics(self, width: int) -> list[tuple[RowStatistics, Array]]:
        """Of each term the statistics of the rows, and bool [R]: whether any item takes part."""
        empty = jnp.zeros(len(self.rows.weights))
        compared = self.compared
        start: dict[Any, Any] = {("s", key): [empty + NEGATIVE, empty] for key in self.softmaxes}
        start |= {("t", key): [empty + NEGATIVE, empty] for key in compared}
        for key, needed in compared.items():
            for expectation in needed:
                start["t" if expectation.under_teacher else "s", key].append(empty)
        start |= {("hit", warm): [empty, empty] for warm in self.hard}
        found = fold(self._visit, start, len(self.student.bias), width)
        for kind, key in found:
            if kind == "hit":
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
        return RowStatistics(log_z, teacher_log_z, expected), some

    def _with_sums(
        self, statistics: list[tuple[RowStatistics, Array]], width: int
    ) -> list[tuple[RowStatistics, Array]]:
        """The statistics with the sums that need the normalisers, in one more visit where a loss
        has such.
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
        """d(sum)/d(contexts), f32 [R, D], and ``tables`` (vectors [I, D], or [D, I] in one chunk;
        biases) with the gradients of these rows added.
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
        if self.student.excluded is not None:  # their logits are constants
            slope = set_at(slope, self.student.excluded, self.offset + begin, 0.0)
        return slope


def _add(table: Array, rows: Array, start: Array | int) -> Array:
    if len(rows) == len(table):
        return table + rows
    return lax.dynamic_update_slice_in_dim(
        table, lax.dynamic_slice_in_dim(table, start, len(rows)) + rows, start, axis=0
    )
