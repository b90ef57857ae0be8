"""The text encoder interface, and the parts that all language models share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kd_jax.core.errors import InputError, nearest
from kd_jax.data.text import SECOND
from kd_jax.models.language.attention import same_text
from kd_jax.models.language.pooling import check_pooling, pool, unit_length
from kd_jax.models.scorer import Frozen


def gelu(x: Array) -> Array:
    """The exact GELU, by erf.

    ``jax.nn.gelu`` uses erfc, which takes ten times as long on a CPU; |difference| < 1e-6.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def freeze(module: nnx.Module) -> None:
    """Turns every ``nnx.Param`` of the module into ``Frozen``, in place."""
    for _, part in nnx.iter_modules(module):
        for name, value in list(vars(part).items()):
            if isinstance(value, nnx.Param):
                setattr(part, name, Frozen(value[...]))


def call_layer(layer: Any, remat: bool, *inputs: Any) -> Any:
    """``layer(*inputs)``; remat: compute its activations again in the backward pass.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    return nnx.remat(type(layer).__call__)(layer, *inputs) if remat else layer(*inputs)


def hidden_states(
    model: Any,
    embed: Callable[[], Array],
    states: Array | None,
    *inputs: Any,
    last: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "B L D"], ...]:
    """The hidden states after the embeddings and after each of ``model.layers``.

    A layer is called with the hidden states before it and ``inputs``. states: the hidden states
    after layer ``model.stop_gradient_below``, where they are known; the layers below and ``embed``
    are then skipped. last: applied after the last layer, such as a final norm.
    """
    if states is None:
        x = embed()
        first = 0
    else:
        x = states.astype(model.dtype)
        first = model.stop_gradient_below
    found = [x]
    for number, layer in enumerate(model.layers[first:], first + 1):
        x = call_layer(layer, model.remat, x, *inputs)
        if number == model.num_layers and last is not None:
            x = last(x)
        if number == model.stop_gradient_below:
            x = jax.lax.stop_gradient(x)
        found.append(x)
    return tuple(found)


def freeze_bottom(model: Any, layer: int, embeddings: Iterable[nnx.Module]) -> None:
    """Freezes ``embeddings`` and the layers 0 … layer-1; with 0 nothing is frozen.

    Frozen parts get no gradient and have ``Frozen`` in place of ``nnx.Param``. Raises InputError
    for a layer out of range.
    """
    if not 0 <= layer <= model.num_layers:
        raise InputError(
            f"cannot freeze below layer {layer}: the model has {model.num_layers} layers"
        )
    model.stop_gradient_below = layer
    if layer > 0:
        for module in (*embeddings, *list(model.layers)[:layer]):
            freeze(module)


class TextEncoder(nnx.Module):
    """A language model that maps token ids [B, L] and a mask [B, L] to f32 vectors [B, D].

    The mask is 0 at padding, 1 at a token, and ``SECOND`` at a token of the second text of a pair;
    a model without token types treats all tokens alike. Subclasses implement ``hidden`` and
    ``freeze_below``. width: of the hidden states. max_length: the largest L. settings: a string
    that identifies everything besides weights, pooling and dtype on which the vectors depend, for
    the keys of caches. head: modules between pooling and normalisation, called with [B, F]; a
    module without ``dim`` keeps the width. prompt, lower_case: what happens to a text before it is
    tokenized, see ``read``. skipped: tokens of the prompt, at the start of a text, that are not
    pooled; a pair has no prompt. notes: lines for the log. reads_packed: whether ``hidden`` and
    ``states`` take a mask [B, L, L], so that a row can have several texts; else a row has one, and
    a batch texts of similar length.
    """

    reads_packed = False

    width: int
    num_layers: int
    max_length: int
    dtype: Any
    settings: str
    prompt: str = ""
    lower_case: bool = False
    skipped: int = 0
    notes: tuple[str, ...] = ()

    def __init__(self, *, pooling: str = "mean", normalize: bool = False):
        check_pooling(pooling)
        self.pooling = pooling
        self.normalize = normalize
        self.head: Any = nnx.List([])

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        widths = [part.dim for part in self.head if hasattr(part, "dim")]
        return widths[-1] if widths else self.width * len(self.pooling.split("+"))

    def read(self, texts: Iterable[str]) -> list[str]:
        """The texts as they are tokenized: after the prompt, in lower case where that is meant."""
        full = [self.prompt + text for text in texts]
        return [text.lower() for text in full] if self.lower_case else full

    def hidden(
        self,
        input_ids: Array,
        attention_mask: Array,
        rngs: nnx.Rngs | None,
        states: Array | None = None,
    ) -> Float[Array, "B L D"]:
        """The last hidden states; states: those after the frozen layers, if known."""
        raise NotImplementedError

    @property
    def frozen_layers(self) -> int:
        """The number of layers at the bottom that are frozen while others are trained."""
        return 0

    def states(self, input_ids: Array, attention_mask: Array) -> Float[Array, "B L D"]:
        """The hidden states after the frozen layers, an optional input of ``__call__``."""
        raise NotImplementedError

    def freeze_below(self, layer: int) -> None:
        """Freezes the layers below ``layer``; ``num_layers`` freezes the whole model."""
        raise NotImplementedError

    def add_lora(self, rank: int, targets: Collection[str]) -> None:
        """Freezes all weights and adds trained adapters to the linear maps called ``targets``.

        Raises InputError where it is not supported, and as the function ``add_lora``.
        """
        raise InputError(
            "teacher.lm.train='lora' needs teacher.lm.backend='native'; hf_flax trains all"
            " layers or none"
        )

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        attention_mask: Array,
        *,
        rngs: nnx.Rngs | None = None,
        states: Float[Array, "B L D"] | None = None,
    ) -> Float[Array, "B D"]:
        """One vector per text; rngs: for dropout, states: see ``states``.

        Raises ValueError for texts longer than ``max_length``.
        """
        if input_ids.shape[1] > self.max_length:
            raise ValueError(
                f"texts of {input_ids.shape[1]} tokens, but the encoder reads at most"
                f" {self.max_length}"
            )
        hidden = self.hidden(input_ids, attention_mask, rngs, states)
        return self._vectors(hidden, attention_mask)

    def packed(
        self,
        input_ids: Int[Array, "B L"],
        segment: Int[Array, "B L"],
        texts: int,
        states: Float[Array, "B L D"] | None = None,
    ) -> Float[Array, "B S D"]:
        """The vectors of up to ``texts`` = S texts in each row.

        segment: the number of a token's text in its row, from 1, and 0 at padding. With S = 1 it is
        the mask of a text, or of a pair of texts. S is 1 where ``reads_packed`` is False. states:
        see ``states``.
        """
        if texts == 1:
            return self(input_ids, segment, states=states)[:, None]
        hidden = self.hidden(input_ids, same_text(segment), None, states)
        own = segment[None] == jnp.arange(1, texts + 1)[:, None, None]
        vectors = jax.vmap(lambda mask: self._vectors(hidden, mask.astype(jnp.int32)))(own)
        return vectors.swapaxes(0, 1)

    def _vectors(self, hidden: Array, attention_mask: Array) -> Float[Array, "B D"]:
        skipped = None
        if self.skipped:
            skipped = jnp.where((attention_mask == SECOND).any(1), 0, self.skipped)
        mask = attention_mask > 0
        if not self.head:
            return pool(hidden, mask, self.pooling, self.normalize, skipped)
        vectors = pool(hidden, mask, self.pooling, skipped=skipped)
        for part in self.head:
            vectors = part(vectors)
        return unit_length(vectors) if self.normalize else vectors

    @property
    def num_params(self) -> int:
        """The number of weights of the language model, frozen or not."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self)))


class NativeEncoder(TextEncoder):
    """A language model of this package as a text encoder.

    model: a module with ``config``, ``dtype``, ``dim``, ``num_layers``, ``max_length`` and
    ``freeze_below`` that maps ids, mask and ``rngs`` to an output with ``last_hidden_state``
    [B, L, D].
    """

    reads_packed = True

    def __init__(self, model: Any, *, pooling: str = "mean", normalize: bool = False):
        super().__init__(pooling=pooling, normalize=normalize)
        if hasattr(model, "pooler"):
            model.pooler = None  # unused: vectors are pooled from the hidden states
        self.model = model
        self.width = model.dim
        self.num_layers = model.num_layers
        self.max_length = model.max_length
        self.dtype = model.dtype
        self.settings = repr(model.config)

    def hidden(
        self,
        input_ids: Array,
        attention_mask: Array,
        rngs: nnx.Rngs | None,
        states: Array | None = None,
    ) -> Float[Array, "B L D"]:
        return self._run(input_ids, attention_mask, rngs=rngs, states=states).last_hidden_state

    def _run(self, input_ids: Array, attention_mask: Array, **how: Any) -> Any:
        # RoBERTa has one token type only, which cannot distinguish the texts.
        if attention_mask.ndim == 2 and getattr(self.model.config, "type_vocab_size", 1) > 1:
            how["token_type_ids"] = (attention_mask == SECOND).astype(jnp.int32)
        return self.model(input_ids, (attention_mask > 0).astype(jnp.int32), **how)

    @property
    def frozen_layers(self) -> int:
        return self.model.stop_gradient_below

    def states(self, input_ids: Array, attention_mask: Array) -> Float[Array, "B L D"]:
        return self._run(input_ids, attention_mask).hidden_states[self.frozen_layers]

    def freeze_below(self, layer: int) -> None:
        self.model.freeze_below(layer)

    def add_lora(self, rank: int, targets: Collection[str]) -> None:
        add_lora(self.model, rank, targets)


def add_lora(model: nnx.Module, rank: int, targets: Collection[str]) -> None:
    """Adds low-rank adapters to the linear maps called ``targets`` and freezes the rest, in place.

    W x becomes W x + B A x, where B starts at zero, so that the outputs are unchanged at first.
    Raises InputError for a name that no linear map has, and for a rank below 1. Source: Hu et al.,
    "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, equation 3, with alpha = rank:
    the scale is left to the learning rate.
    """
    linear = [
        (module, name, part)
        for _, module in nnx.iter_modules(model)
        for name, part in vars(module).items()
        if isinstance(part, nnx.Linear)
    ]
    names = sorted({name for _, name, _ in linear})
    if rank < 1:
        raise InputError(f"teacher.lm.lora_rank={rank} must be at least 1")
    for target in targets:
        if target not in names:
            raise InputError(
                f"teacher.lm.lora_targets: no linear map {target!r}{nearest(target, names)}"
            )
    freeze(model)
    rngs = nnx.Rngs(0)
    for module, name, part in linear:
        if name in targets:
            dtype = part.dtype or jnp.float32
            sizes = part.in_features, rank, part.out_features
            setattr(module, name, nnx.LoRA(*sizes, base_module=part, dtype=dtype, rngs=rngs))


def merged(model: Any) -> Any:
    """A copy of the model with the adapters of ``add_lora`` added to the weights."""
    model = nnx.clone(model)
    for _, module in list(nnx.iter_modules(model)):
        for name, part in list(vars(module).items()):
            if isinstance(part, nnx.LoRA):
                base: Any = part.base_module
                base.kernel[...] = base.kernel[...] + part.lora_a[...] @ part.lora_b[...]
                setattr(module, name, base)
    return model


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The functions that create models of one ``model_type`` and name their tensors.

    prefix: transformers' base_model_prefix; names of saved tensors may start with it. config: from
    the fields of ``config.json`` to the model's config; raises InputError for unsupported values.
    build: (config, names of the saved tensors without prefix, dtype=, rngs=) -> the model. name:
    from the path of a parameter, such as ('layers', 0, 'up', 'kernel'), to its saved name without
    prefix; a name that ends in 'kernel' is saved as 'weight', transposed (``load_tensors``). view,
    written: tensors and fields of ``config.json`` of older folders under their names of today.
    """

    prefix: str
    config: Callable[[Mapping[str, Any]], Any]
    build: Callable[..., Any]
    name: Callable[[tuple[Any, ...]], str]
    view: Callable[[Any], Any] = lambda tensors: tensors
    written: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


def parameter_map(
    around: Mapping[str, str], layers: str, inside: Mapping[str, str]
) -> Callable[..., str]:
    """An ``Architecture.name`` from the saved names of modules.

    around: of the modules outside the layers. layers: of the list of layers. inside: of the modules
    inside a layer.
    """

    def name(path: tuple[Any, ...]) -> str:
        if path[0] == "layers":
            return f"{layers}.{path[1]}.{inside[path[2]]}.{path[3]}"
        return f"{around[path[0]]}.{path[1]}"

    return name
