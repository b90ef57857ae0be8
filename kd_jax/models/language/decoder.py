"""The common parts of causal language models: layer stack and next-token logits.

Source: Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from kd_jax.models.language.attention import until
from kd_jax.models.language.encoder import freeze_bottom, hidden_states


class DecoderOutput(NamedTuple):
    """The outputs of ``Decoder``.

    last_hidden_state: [B, L, D]. hidden_states: [B, L, D] after the embeddings and after every
    layer, the last one after the final norm.
    """

    last_hidden_state: Array
    hidden_states: tuple[Array, ...]


class Decoder(nnx.Module):
    """Embeddings, a stack of layers, a final norm; parameters in f32, activations in ``dtype``.

    Subclasses set ``words``, ``layers`` and ``norm``, list the names of all embeddings in
    ``embeddings``, and implement ``embed`` and ``shared``. A layer is called with the hidden
    states, the value of ``shared``, and ``rngs``. stop_gradient_below, remat: as in ``Bert``.
    """

    embeddings: tuple[str, ...] = ("words",)
    words: nnx.Embed
    layers: nnx.List
    norm: Any

    def __init__(self, config: Any, dtype: Any):
        self.config = config
        self.dtype = dtype
        self.stop_gradient_below = 0
        self.remat = False
        self.dim = config.hidden_size
        self.num_layers = config.num_hidden_layers
        self.max_length = config.max_position_embeddings

    def embed(
        self, input_ids: Int[Array, "B L"], positions: Int[Array, "B L"], rngs: nnx.Rngs | None
    ) -> Float[Array, "B L D"]:
        """The hidden states before the first layer."""
        raise NotImplementedError

    def shared(self, attention_mask: Array | None, positions: Int[Array, "B L"]) -> Any:
        """The inputs of all layers besides the hidden states, such as masks and rotations."""
        raise NotImplementedError

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        attention_mask: Int[Array, "B *L L"] | Bool[Array, "B *L L"] | None = None,
        position_ids: Int[Array, "B L"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
        states: Float[Array, "B L D"] | None = None,
    ) -> DecoderOutput:
        """Runs the decoder; the hidden states at padding have no meaning.

        attention_mask: see ``keys_of``. position_ids: None counts from 0 at the first token that is
        no padding, of every text. rngs: for dropout; None: no dropout. states: the hidden states
        after layer ``stop_gradient_below``, where they are known; the layers below are then
        skipped.
        """
        input_ids = jnp.asarray(input_ids)
        if attention_mask is not None:
            attention_mask = jnp.asarray(attention_mask)
        if position_ids is None:
            tokens = jnp.ones_like(input_ids)
            if attention_mask is not None and attention_mask.ndim == 3:
                count = until(attention_mask).sum(2)
            else:
                if attention_mask is not None:
                    tokens = (attention_mask > 0).astype(jnp.int32)
                count = jnp.cumsum(tokens, axis=1)
            position_ids = jnp.maximum(count - 1, 0)
        shared = self.shared(attention_mask, position_ids)
        found = hidden_states(
            self,
            lambda: self.embed(input_ids, position_ids, rngs),
            states,
            shared,
            rngs,
            last=self.norm,
        )
        return DecoderOutput(found[-1], found)

    def freeze_below(self, layer: int) -> None:
        """See ``freeze_bottom``; the final norm is frozen with the last layer."""
        tables = [getattr(self, name) for name in self.embeddings]
        freeze_bottom(self, layer, [*tables, self.norm] if layer == self.num_layers else tables)

    def next_token_logits(
        self,
        input_ids: Int[Array, "B L"],
        attention_mask: Array | None = None,
        head: Float[Array, "V D"] | None = None,
    ) -> Float[Array, "B V"]:
        """f32 logits of the token after each text.

        head: ``lm_head.weight``; None where the word embedding takes its place.
        """
        hidden = self(input_ids, attention_mask).last_hidden_state
        length = hidden.shape[1]
        last = jnp.full((hidden.shape[0],), length - 1)
        if attention_mask is not None:
            last = length - 1 - (jnp.asarray(attention_mask)[:, ::-1] > 0).argmax(1)
        hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
        return hidden @ (self.words.embedding[...] if head is None else head).T
