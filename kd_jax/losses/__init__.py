"""Losses: one class each, one line in ``LOSSES``; the engines compute all of them."""

from kd_jax.losses.base import Loss
from kd_jax.losses.feature import SquaredDistance
from kd_jax.losses.item_matching import ItemMatching
from kd_jax.losses.reverse_kl import ReverseKL
from kd_jax.losses.rrd import RRD
from kd_jax.losses.softmax import KL, CrossEntropy, JensenShannon, SoftCrossEntropy

LOSSES: dict[str, type[Loss]] = {
    "ce": CrossEntropy,
    "soft_ce": SoftCrossEntropy,
    "kl": KL,
    "js": JensenShannon,
    "squared_distance": SquaredDistance,
    "reverse_kl": ReverseKL,
    "rrd": RRD,
    "item_matching": ItemMatching,
}
