"""Losses: one class each, one line in ``LOSSES``; the engines compute all of them."""

from kd_jax.losses.base import Loss
from kd_jax.losses.dcd import DCD
from kd_jax.losses.dllm2rec import DLLM2Rec
from kd_jax.losses.jensen_shannon import GeneralisedJS, JensenShannon
from kd_jax.losses.listmle import ListMLE
from kd_jax.losses.matching import ContextMatching, ItemMatching, SquaredDistance
from kd_jax.losses.named import DecoupledKL, TopKL
from kd_jax.losses.on_policy_kl import OnPolicyKL
from kd_jax.losses.rce import RCE
from kd_jax.losses.rd import RD
from kd_jax.losses.relational import FTD, HTD, RKD
from kd_jax.losses.reverse_kl import ReverseKL
from kd_jax.losses.rrd import RRD
from kd_jax.losses.softmax import KL, CrossEntropy, SoftCrossEntropy
from kd_jax.losses.standardised_kl import StandardisedKL

LOSSES: dict[str, type[Loss]] = {
    "ce": CrossEntropy,
    "soft_ce": SoftCrossEntropy,
    "kl": KL,
    "js": JensenShannon,
    "generalised_js": GeneralisedJS,
    "reverse_kl": ReverseKL,
    "standardised_kl": StandardisedKL,
    "dkd": DecoupledKL,
    "topk_kl": TopKL,
    "rd": RD,
    "rrd": RRD,
    "listmle": ListMLE,
    "dcd": DCD,
    "rce": RCE,
    "dllm2rec": DLLM2Rec,
    "on_policy_kl": OnPolicyKL,
    "squared_distance": SquaredDistance,
    "context_matching": ContextMatching,
    "item_matching": ItemMatching,
    "rkd": RKD,
    "ftd": FTD,
    "htd": HTD,
}
