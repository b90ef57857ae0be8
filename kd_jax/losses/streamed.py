"""Losses over a whole catalogue from factorised scores, without an array of all rows times all
items.

A row's logits are context · item + bias. Training reads them only to sum over them, so they are
made a tile at a time and thrown away; what is left is per row (normalisers, losses) and per
parameter (gradients). Two ways to cut:

- *rows*: a few rows against all items. Every logit is made once, its loss and its gradient in the
  same visit, because the objective is a weighted mean whose weights are known beforehand: no FLOP
  more than the plain version.
- *items*: all rows against a few items. Normalisers first, then the same logits again for the
  gradients: one matrix product more for the student and one for the teacher, and O(rows x chunk)
  memory however large the catalogue.

`plan` takes rows as long as ``MIN_ROWS`` of them fit, from which on the matrix products run at full
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
from jaxtyping import Array, Bool, Float, Int

from kd_jax.core.scores import Factors, factor_logits
from kd_jax.core.tiling import NEGATIVE, Axes, fold, pad_rows, set_at, tile_shape, tile_size, within


@dataclasses.dataclass(frozen=True)
class Loss:
    """One loss over the catalogue (``kd_jax/losses.py``). name: 'ce', 'soft_ce' or 'kl'; warm: over
    warm items only.
    """

    name: str
    temperature: float = 1.0
    warm: bool = False


class Rows(NamedTuple):
    """What a loss reads beside the scores, all with leading axis R. weights: f32 [R], to sum to 1
    over all rows.
    """

    targets: Int[Array, "R M"]
    target_weights: Float[Array, "R M"]
    weights: Float[Array, " R"]


Inputs = tuple[Rows, Array, "Factors | None", "Array | None"]  # rows, coefficients, teacher, warm
Engine = Callable[[tuple[Loss, ...], bool, Factors, Inputs], Any]


def mean_losses(
    losses: tuple[Loss, ...],
    coefficients: Float[Array, " N"],
    student: Factors,
    rows: Rows,
    teacher: Factors | None = None,
    warm: Bool[Array, " I"] | None = None,
    run: Engine | None = None,
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """The weighted mean over rows of each loss [N], and their sum weighted by ``coefficients``.

    Differentiable in the student's contexts, vectors and bias, through the sum alone: the means are
    for the log. Equal to the functions of ``losses.py`` on dense logits up to f32 rounding;
    products of bf16 factors are summed in f32. run: how to run it (``sharding.catalogue_run`` for a
    mesh); by default on one device.
    """
    return _mean(losses, run or single, student, (rows, coefficients, teacher, warm))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean(
    losses: tuple[Loss, ...], run: Engine, student: Factors, inputs: Inputs
) -> tuple[Array, Array]:
    return run(losses, False, student, inputs)[0]


def _mean_forward(
    losses: tuple[Loss, ...], run: Engine, student: Factors, inputs: Inputs
) -> tuple[Any, Any]:
    return run(losses, True, student, inputs)


def _mean_backward(
    losses: tuple[Loss, ...], run: Engine, gradients: Any, cotangent: tuple[Array, Array]
) -> Any:
    contexts, vectors, bias = (
        gradient * cotangent[0].astype(gradient.dtype) for gradient in gradients
    )
    return Factors(contexts, vectors, bias, None), None


_mean.defvjp(_mean_forward, _mean_backward)


def single(losses: tuple[Loss, ...], gradients: bool, student: Factors, inputs: Inputs) -> Any:
    """``local`` on the one device there is."""
    return local(losses, gradients, student, inputs, Axes())


def local(
    losses: tuple[Loss, ...],
    gradients: bool,
    student: Factors,
    inputs: Inputs,
    axes: Axes,
    tile: int = 0,
) -> Any:
    """((sum, means), gradients of the sum in contexts, vectors and bias) over the rows and items
    that are here.
    """
    rows, coefficients, teacher, warm = inputs
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
        pair = _Pair(losses, student_part, teacher_part, here, warm, offset, axes)
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
    start = (jnp.zeros(len(losses)), zeros if gradients else None)
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

    losses: tuple[Loss, ...]
    student: Factors
    teacher: Factors | None
    rows: Rows
    warm: Array | None
    offset: Array | int  # of the first item that is here
    axes: Axes

    @property
    def soft(self) -> list[tuple[float, bool]]:
        """(temperature, warm) of the losses that read a teacher, each once."""
        return sorted({(loss.temperature, loss.warm) for loss in self.losses if loss.name != "ce"})

    @property
    def normalised(self) -> list[tuple[float, bool]]:
        """(temperature, warm) of every student softmax, each once."""
        return sorted(
            {(1.0 if loss.name == "ce" else loss.temperature, loss.warm) for loss in self.losses}
        )

    @property
    def hard(self) -> list[bool]:
        return sorted({loss.warm for loss in self.losses if loss.name == "ce"})

    def chunk(self, factors: Factors, start: Array | int, size: int) -> Array:
        """Logits f32 [R, size] of the items from ``start`` on."""
        if size == len(factors.bias):  # made once for statistics and gradients
            return self.whole_student if factors is self.student else self.whole_teacher
        vectors, bias = (
            lax.dynamic_slice_in_dim(x, start, size) for x in (factors.vectors, factors.bias)
        )
        return factor_logits(factors._replace(vectors=vectors, bias=bias), self.offset + start)

    @functools.cached_property
    def whole_student(self) -> Array:
        return factor_logits(self.student, self.offset)

    @functools.cached_property
    def whole_teacher(self) -> Array:
        assert self.teacher is not None
        return factor_logits(self.teacher, self.offset)

    @functools.cached_property
    def kept(self) -> dict[Any, tuple[Array, Array]]:
        """Of a chunk that holds all items, on a CPU, where an exponential costs more than to keep
        it: (kind, key) -> exp(logits - their maximum), which ``statistics`` leaves to
        ``gradients``, and that maximum.
        """
        return {}

    def probabilities(
        self, kind: str, key: tuple[float, bool], logits: Array, start: Array | int, norm: Array
    ) -> Array:
        """Softmax f32 [R, size] of a chunk whose normalisers are known."""
        if (kind, key) in self.kept:
            share, top = self.kept[kind, key]
            return share * jnp.exp(top - norm)[:, None]
        return jnp.exp(self.masked(logits, start, *key) - norm[:, None])

    def masked(self, logits: Array, start: Array | int, temperature: float, warm: bool) -> Array:
        scaled = logits / temperature if temperature != 1.0 else logits
        if not warm or self.warm is None:
            return scaled
        return jnp.where(
            lax.dynamic_slice_in_dim(self.warm, start, logits.shape[1])[None], scaled, NEGATIVE
        )

    def counted(self, start: Array | int, size: int, warm: bool) -> tuple[Array, Array]:
        """Targets' positions in a chunk, [R, M], and their weights, 0 where one is elsewhere or
        does not count.
        """
        index = within(self.rows.targets, self.offset + start, size)
        weights = jnp.where(index < size, self.rows.target_weights, 0.0)
        if warm and self.warm is not None:
            here = lax.dynamic_slice_in_dim(self.warm, start, size)
            weights = jnp.where(here[jnp.minimum(index, size - 1)], weights, 0.0)
        return index, weights

    def statistics(self, width: int) -> dict[Any, Any]:
        """Per row: log-normalisers of student and teacher, expected logits under the teacher, and
        targets' logits.
        """
        empty, count = jnp.zeros(len(self.rows.weights)), len(self.student.bias)
        keep = jax.default_backend() == "cpu"
        start: dict[Any, Any] = {("s", key): (empty + NEGATIVE, empty) for key in self.normalised}
        start |= {("t", key): (empty + NEGATIVE, empty, empty, empty) for key in self.soft}
        start |= {("hit", warm): (empty, empty) for warm in self.hard}

        def step(found: dict[Any, Any], begin: Array | int, size: int) -> dict[Any, Any]:
            logits = self.chunk(self.student, begin, size)
            soft = self.chunk(self.teacher, begin, size) if self.teacher is not None else None
            new: dict[Any, Any] = {}
            for key in self.normalised:
                values = self.masked(logits, begin, *key)
                top, total = found["s", key]
                higher = jnp.maximum(top, values.max(1))
                share = jnp.exp(values - higher[:, None])
                new["s", key] = (higher, total * jnp.exp(top - higher) + share.sum(1))
                if keep and size == count:
                    self.kept["s", key] = share, higher
            for key in self.soft:
                assert soft is not None
                values = self.masked(soft, begin, *key)
                top, *sums = found["t", key]
                higher = jnp.maximum(top, values.max(1))
                share = jnp.exp(values - higher[:, None])
                added = (
                    share.sum(1),
                    (share * values).sum(1),
                    (share * self.masked(logits, begin, *key)).sum(1),
                )
                new["t", key] = (
                    higher,
                    *(s * jnp.exp(top - higher) + a for s, a in zip(sums, added, strict=True)),
                )
                if keep and size == count:
                    self.kept["t", key] = share, higher
            for warm in self.hard:
                index, weights = self.counted(begin, size, warm)
                picked = jnp.take_along_axis(logits, jnp.minimum(index, size - 1), axis=1)
                total, weight = found["hit", warm]
                new["hit", warm] = (total + jnp.sum(weights * picked, 1), weight + weights.sum(1))
            return new

        found = fold(step, start, count, width)
        for kind, key in found:
            if kind == "hit":
                found[kind, key] = self.axes.sum_items(found[kind, key])
            else:
                top, *sums = found[kind, key]
                higher = self.axes.max_items(top)
                sums = self.axes.sum_items([value * jnp.exp(top - higher) for value in sums])
                normaliser = higher + jnp.log(sums[0])
                # A softmax without any item has loss 0 and gradient 0; its normaliser would be
                # NEGATIVE + log(count).
                found[kind, key] = (
                    normaliser,
                    *(value / sums[0] for value in sums[1:]),
                    higher > NEGATIVE / 2,
                )
        return found

    def means(self, statistics: dict[Any, Any]) -> Array:
        """Weighted sum over the rows of each loss, [N]."""
        values = []
        for loss in self.losses:
            key = (loss.temperature, loss.warm)
            if loss.name == "ce":
                normaliser, some = statistics["s", (1.0, loss.warm)]
                hit, weight = statistics["hit", loss.warm]
                per_row = weight * normaliser - hit
            else:
                normaliser, some = statistics["s", key]
                entropy_part, mean_teacher, mean_student, _ = statistics["t", key]
                per_row = normaliser - mean_student
                if loss.name == "kl":
                    per_row = per_row + mean_teacher - entropy_part
                per_row = loss.temperature**2 * per_row
            values.append(jnp.sum(jnp.where(some, per_row, 0.0) * self.rows.weights))
        return jnp.stack(values)

    def gradients(
        self, coefficients: Array, statistics: dict[Any, Any], tables: Any, width: int
    ) -> tuple[Array, Any]:
        """d(sum)/d(contexts), f32 [R, D], and ``tables`` (vectors [I, D], or [D, I] in one chunk;
        biases) with the gradients of these rows added.
        """
        weights = [coefficients[i] * self.rows.weights for i in range(len(self.losses))]
        kind = self.student.contexts.dtype

        def step(carry: Any, begin: Array | int, size: int) -> Any:
            contexts, vectors, bias = carry
            logits = self.chunk(self.student, begin, size)
            soft = self.chunk(self.teacher, begin, size) if self.teacher is not None else None
            slope = jnp.zeros(())
            for loss, weight in zip(self.losses, weights, strict=True):
                key = (1.0 if loss.name == "ce" else loss.temperature, loss.warm)
                normaliser, some = statistics["s", key]
                weight = jnp.where(some, weight, 0.0) * loss.temperature
                student = self.probabilities("s", key, logits, begin, normaliser)
                if loss.name == "ce":
                    slope = (
                        slope
                        + (weight / loss.temperature * statistics["hit", loss.warm][1])[:, None]
                        * student
                    )
                else:
                    assert soft is not None
                    teacher = self.probabilities("t", key, soft, begin, statistics["t", key][0])
                    slope = slope + weight[:, None] * (student - teacher)
            for loss, weight in zip(self.losses, weights, strict=True):
                if loss.name == "ce":
                    index, share = self.counted(begin, size, loss.warm)
                    grid = jnp.arange(len(index))[:, None]
                    slope = slope.at[grid, index].add(-weight[:, None] * share, mode="drop")
            if self.student.excluded is not None:  # their logits are constants
                slope = set_at(slope, self.student.excluded, self.offset + begin, 0.0)
            slope = slope.astype(kind)
            table = lax.dynamic_slice_in_dim(self.student.vectors, begin, size)
            contexts = contexts + jnp.dot(slope, table, preferred_element_type=jnp.float32)
            new = jnp.dot(self.student.contexts.T, slope, preferred_element_type=jnp.float32)
            if size < len(self.student.bias):
                new = new.T
            return (
                contexts,
                _add(vectors, new, begin),
                _add(bias, slope.sum(0, dtype=jnp.float32), begin),
            )

        contexts = jnp.zeros(self.student.contexts.shape, jnp.float32)
        contexts, *tables = fold(step, (contexts, *tables), len(self.student.bias), width)
        return contexts, tuple(tables)


def _add(table: Array, rows: Array, start: Array | int) -> Array:
    if len(rows) == len(table):
        return table + rows
    return lax.dynamic_update_slice_in_dim(
        table, lax.dynamic_slice_in_dim(table, start, len(rows)) + rows, start, axis=0
    )
