"""SASRec."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.types import Array, Batch
from kd_jax.models.layers import Block, CausalTransformer, GatedBlock, Packed, runtime_arrays
from kd_jax.models.students.base import Inputs, SequenceSpec, SequenceStudent, at_least_one
from kd_jax.runtime.contexts import GatedTransformer, Transformer

BLOCKS: dict[str, Callable[..., Block]] = {
    "plain": functools.partial(Block, widen=1, activation=jax.nn.relu),
    "ligr": functools.partial(GatedBlock, widen=4),
}


@dataclasses.dataclass(frozen=True)
class SASRecSpec(SequenceSpec):
    blocks: int = 2
    heads: int = 2
    # 'plain': attention and a ReLU; 'ligr': both gated, and a SwiGLU of four times the width
    block: str = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "blocks", "heads")
        if self.block not in BLOCKS:
            raise InputError(f"block={self.block!r} is unknown{nearest(self.block, BLOCKS)}")
        if self.dim % self.heads:
            raise InputError(
                f"dim={self.dim} is no multiple of heads={self.heads}; change one of them"
            )


class SASRec(SequenceStudent):
    """A causal Transformer over item embeddings, which are tied with the output.

    Source: Kang and McAuley, ICDM 2018, with the full softmax of Klenitskiy and Vasilev, RecSys
    2023, in place of the sampled binary loss. With ``block='ligr'`` its layers are those of
    eSASRec (Tikhonovich et al., RecSys 2025).
    """

    spec = SASRecSpec

    def __init__(self, spec: SASRecSpec, inputs: Inputs, *, rngs: nnx.Rngs):
        super().__init__(spec, inputs, rngs=rngs)
        self.transformer = CausalTransformer(
            *(spec.dim, spec.blocks, spec.heads, spec.history, spec.dropout),
            block=BLOCKS[spec.block],
            rngs=rngs,
        )

    def contexts(self, batch: Batch, vectors: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        return self._read(batch["history"], vectors, packed=Packed.of(batch), rngs=rngs)

    def context(self, batch: Batch, vectors: Array) -> Array:
        return self._read(batch["history"], vectors, last=True)[:, 0]

    def _read(self, history: Array, vectors: Array, **how: Any) -> Array:
        return self.transformer(
            vectors[jnp.maximum(history, 0)] * vectors.shape[1] ** 0.5, history, **how
        )

    def runtime_context(self) -> Transformer:
        gated = isinstance(self.transformer.blocks[0], GatedBlock)
        return (GatedTransformer if gated else Transformer)(**runtime_arrays(self.transformer))
