"""ListMLE."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float, PRNGKeyArray

from kd_jax.core.errors import InputError
from kd_jax.losses.base import CandidateLoss, Candidates
from kd_jax.losses.candidates import plackett_luce


@dataclasses.dataclass(frozen=True)
class ListMLE(CandidateLoss):
    """Negative log-likelihood of the teacher's order of its ``top`` items, in nats.

    The likelihood is that of Plackett and Luce, ``plackett_luce``. It says nothing of items behind
    the list: ``RRD`` adds drawn ones. Source: Xia et al., "Listwise Approach to Learning to Rank:
    Theory and Algorithm", ICML 2008, section 5 (the likelihood loss).
    """

    top: int = 20

    def __post_init__(self) -> None:
        if self.top < 2 or self.drawn:
            raise InputError(
                f"listmle: top={self.top} must be 2 or more, and drawn={self.drawn} is not read;"
                " leave it out"
            )

    def value(self, candidates: Candidates, key: PRNGKeyArray) -> Float[Array, " R"]:
        return plackett_luce(candidates.student, candidates.valid)
