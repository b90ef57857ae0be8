"""Losses of the relations between item vectors, for which the widths may differ."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_jax.core.errors import InputError
from kd_jax.core.types import Params
from kd_jax.losses.base import VectorLoss

TINY = 1e-12  # a squared length up to this is 0 and has gradient 0


@dataclasses.dataclass(frozen=True)
class RKD(VectorLoss):
    """Relational distillation: distances and angles between ``drawn`` item vectors.

    It is distance · D + angle · A. D is the mean of huber(d_s - d_t) over pairs of items, where d
    is the distance of the two vectors divided by the mean distance. A is the mean of
    huber(a_s - a_t) over triplets, where a is the cosine of the angle at the middle item. Source:
    Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 5 to 9. The cost grows
    with the cube of ``drawn``, or with its square at angle=0.
    """

    drawn: int = 128
    distance: float = 1.0
    angle: float = 2.0

    def __post_init__(self) -> None:
        if self.drawn < 3 or not min(self.distance, self.angle) >= 0:
            raise InputError(
                f"rkd: drawn={self.drawn} must be 3 or more, and distance={self.distance} and"
                f" angle={self.angle} 0 or more"
            )
        if not self.distance + self.angle > 0:
            raise InputError("rkd: distance=0 and angle=0 leave nothing to compare; raise one")

    def value(
        self,
        student: Float[Array, "N Ds"],
        teacher: Float[Array, "N Dt"],
        auxiliary: Params,
        share: Float[Array, " N"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, " N"]:
        both = [_differences(vectors) for vectors in (student, teacher)]
        others, pairs = _pairs(share)
        found = jnp.zeros(len(share))
        if self.distance:
            scaled = []
            for _, distances in both:
                mean = jnp.sum(share[:, None] * others * distances) / pairs
                scaled.append(distances / jnp.maximum(mean, TINY))
            found += self.distance * jnp.sum(others * _huber(scaled[0] - scaled[1]), 1) / pairs
        if self.angle:
            cosines = []
            for differences, distances in both:
                units = differences * _inverse(distances**2)[..., None]
                cosines.append(jnp.einsum("jid,jkd->jik", units, units))
            weights = others[:, :, None] * others[:, None, :] * (1 - jnp.eye(len(share)))[None]
            triplets = 1 - 3 * jnp.sum(share**2) + 2 * jnp.sum(share**3)
            summed = jnp.sum(weights * _huber(cosines[0] - cosines[1]), (1, 2))
            found += self.angle * summed / jnp.maximum(triplets, 1e-9)
        return found


@dataclasses.dataclass(frozen=True)
class FTD(VectorLoss):
    """Full topology distillation: the cosines between ``drawn`` item vectors.

    It is the mean of (cos_s - cos_t)² over pairs of different items; the source sums over the users
    and items of a batch. Source: Kang et al., "Topology Distillation for Recommender System", KDD
    2021.
    """

    drawn: int = 256

    def __post_init__(self) -> None:
        if self.drawn < 2:
            raise InputError(f"ftd: drawn={self.drawn} must be 2 or more")

    def value(
        self,
        student: Float[Array, "N Ds"],
        teacher: Float[Array, "N Dt"],
        auxiliary: Params,
        share: Float[Array, " N"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, " N"]:
        gap = _cosines(student) - _cosines(teacher)
        others, pairs = _pairs(share)
        return jnp.sum(others * gap**2, 1) / pairs


@dataclasses.dataclass(frozen=True)
class HTD(VectorLoss):
    """Hierarchical topology distillation: cosines within and between ``groups`` of item vectors.

    A linear map of the teacher's vector, an auxiliary parameter, gives the probabilities of the
    groups; an item belongs to the most probable one. The loss is

        alpha · (mean (cos_s - cos_t)² over pairs of different items of one group
        + mean (cos_s - cos_t)² over pairs of a group's mean vector and an item)
        + (1 - alpha) · mean (sum_k z_k f_k(s) - t)²

    where s and t are an item's vectors, f_k maps from the student's width to the teacher's (a
    hidden layer of the mean width, with a ReLU; auxiliary parameters), and z is drawn anew at every
    step from the probabilities by a Gumbel softmax of temperature ``gumbel``. So groups learn to be
    sets of items that one map can reconstruct. All means are over ``drawn`` items.

    Source: Kang et al., "Topology Distillation for Recommender System", KDD 2021. There users and
    items of a batch are compared, and sums taken; in their code pairs of a negative cosine in the
    teacher do not count, and no gradient flows through the mean vectors.
    """

    drawn: int = 256
    groups: int = 30
    alpha: float = 0.5
    gumbel: float = 0.1

    def __post_init__(self) -> None:
        if self.drawn < 2 or self.groups < 1:
            raise InputError(
                f"htd: drawn={self.drawn} must be 2 or more, and groups={self.groups} 1 or more"
            )
        if not 0 <= self.alpha <= 1 or not self.gumbel > 0:
            raise InputError(
                f"htd: alpha={self.alpha} must be from 0 to 1, and gumbel={self.gumbel} more than 0"
            )

    def auxiliary(self, student_dim: int, teacher_dim: int, key: PRNGKeyArray) -> Params:
        hidden = (student_dim + teacher_dim) // 2
        keys = jax.random.split(key, 3)
        up, down = (self.groups, student_dim, hidden), (self.groups, hidden, teacher_dim)
        return {
            "group": jax.random.normal(keys[0], (teacher_dim, self.groups)) * teacher_dim**-0.5,
            "group_bias": jnp.zeros(self.groups),
            "up": jax.random.normal(keys[1], up) * student_dim**-0.5,
            "up_bias": jnp.zeros((self.groups, hidden)),
            "down": jax.random.normal(keys[2], down) * hidden**-0.5,
            "down_bias": jnp.zeros((self.groups, teacher_dim)),
        }

    def value(
        self,
        student: Float[Array, "N Ds"],
        teacher: Float[Array, "N Dt"],
        auxiliary: Params,
        share: Float[Array, " N"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, " N"]:
        assert key is not None
        student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
        logits = teacher @ auxiliary["group"] + auxiliary["group_bias"][None]
        noise = jax.random.gumbel(key, logits.shape)
        drawn = jax.nn.softmax((jax.nn.log_softmax(logits) + noise) / self.gumbel)
        hidden = jnp.einsum("nd,kdh->nkh", student, auxiliary["up"]) + auxiliary["up_bias"][None]
        mapped = jnp.einsum("nkh,khd->nkd", jax.nn.relu(hidden), auxiliary["down"])
        mapped += auxiliary["down_bias"][None]
        rebuilt = jnp.mean((jnp.einsum("nk,nkd->nd", drawn, mapped) - teacher) ** 2, -1)
        members = jax.nn.one_hot(jnp.argmax(logits, -1), self.groups)
        together = share[None] * (1 - jnp.eye(len(share))) * (members @ members.T)
        within = jnp.sum(together * (_cosines(student) - _cosines(teacher)) ** 2, 1)
        within /= jnp.maximum(jnp.sum(share[:, None] * together), 1e-9)
        size = share @ members
        means = members.T * share[None] / jnp.maximum(size, 1e-9)[:, None]
        to_group = [_units(x) @ _units(means @ x).T for x in (student, teacher)]  # [N, K]
        between = jnp.sum((size > 0)[None] * (to_group[0] - to_group[1]) ** 2, 1)
        between /= jnp.maximum(jnp.sum(size > 0), 1)
        return self.alpha * (within + between) + (1 - self.alpha) * rebuilt


def _pairs(share: Float[Array, " N"]) -> tuple[Float[Array, "N N"], Float[Array, ""]]:
    """The shares of all others for each vector, and the sum of the weights of all pairs."""
    return share[None] * (1 - jnp.eye(len(share))), jnp.maximum(1 - jnp.sum(share**2), 1e-9)


def _cosines(vectors: Float[Array, "N D"]) -> Float[Array, "N N"]:
    units = _units(vectors)
    return units @ units.T


def _units(vectors: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Each vector over its length, in f32."""
    wide = vectors.astype(jnp.float32)
    return wide * _inverse(jnp.sum(wide**2, -1, keepdims=True))


def _inverse(square: Array) -> Array:
    """1 / sqrt(square), and 0 with gradient 0 for a length of 0."""
    some = square > TINY
    return jnp.where(some, 1 / jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


def _differences(
    vectors: Float[Array, "N D"],
) -> tuple[Float[Array, "N N D"], Float[Array, "N N"]]:
    """x_i - x_j of all pairs, and their lengths."""
    wide = vectors.astype(jnp.float32)
    found = wide[:, None] - wide[None]
    square = jnp.sum(found**2, -1)
    some = square > TINY
    return found, jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


def _huber(gap: Array) -> Array:
    size = jnp.abs(gap)
    return jnp.where(size <= 1, 0.5 * gap**2, size - 0.5)
