"""Dense modules of sentence-transformers: frozen linear maps from text vectors to text vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json
from kd_jax.models.language import gguf
from kd_jax.models.language.encoder import gelu
from kd_jax.models.language.pooling import unit_length
from kd_jax.models.language.weights import load_tensors, open_weights
from kd_jax.models.scorer import Frozen

# By the name of the class in torch.nn.
TORCH_ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "GELU": gelu,
    "SiLU": jax.nn.silu,
    "Sigmoid": jax.nn.sigmoid,
    "Softplus": jax.nn.softplus,
    "ELU": jax.nn.elu,
    "LeakyReLU": jax.nn.leaky_relu,
    "Mish": jax.nn.mish,
}
INPUT = "sentence_embedding"


class UnitLength(nnx.Module):
    """A Normalize module that other modules follow."""

    def __call__(self, x: Float[Array, "B F"]) -> Float[Array, "B F"]:
        return unit_length(x)

    def config(self) -> dict[str, Any]:
        """Its ``config.json`` has no fields."""
        return {}


class Dense(nnx.Module):
    """activation(W x + b), plus x or R x where ``use_residual`` is set; never trained.

    activation: a key of ``TORCH_ACTIVATIONS``. weights: kernel [F, G], bias [G] and the residual's
    kernel [F, G], by name.
    """

    def __init__(self, activation: str, weights: dict[str, Any], *, residual: bool):
        self.activation = activation
        self.kernel = Frozen(weights["linear.kernel"])
        self.bias = Frozen(weights["linear.bias"]) if "linear.bias" in weights else None
        own = "residual.kernel" in weights
        self.residual_kernel = Frozen(weights["residual.kernel"]) if own else None
        self.residual = residual

    @property
    def dim(self) -> int:
        """The width of its vectors."""
        return int(self.kernel.shape[1])

    def __call__(self, x: Float[Array, "B F"]) -> Float[Array, "B G"]:
        y = x @ self.kernel[...]
        if self.bias is not None:
            y = y + self.bias[...][None]
        y = TORCH_ACTIVATIONS[self.activation](y)
        if not self.residual:
            return y
        return y + (x if self.residual_kernel is None else x @ self.residual_kernel[...])

    def tensors(self) -> dict[str, Any]:
        """The weights by their saved names."""
        found = {"linear.weight": self.kernel[...].T}
        if self.bias is not None:
            found["linear.bias"] = self.bias[...]
        if self.residual_kernel is not None:
            found["residual.weight"] = self.residual_kernel[...].T
        return found

    def config(self) -> dict[str, Any]:
        """The fields of its ``config.json``."""
        package = "linear" if self.activation == "Identity" else "activation"
        written = {
            "in_features": int(self.kernel.shape[0]),
            "out_features": self.dim,
            "bias": self.bias is not None,
            "activation_function": f"torch.nn.modules.{package}.{self.activation}",
        }
        return written | ({"use_residual": True} if self.residual else {})


def load_dense(folder: Path, width: int) -> Dense:
    """The Dense module in ``folder``; width: of the vectors before it.

    FILE.gguf/NAME is a linear map of a GGUF file, by the name of its tensor. Raises InputError for
    another width, an activation that is not known, and damaged files.
    """
    if gguf.is_gguf(folder.parent):
        kernel = jnp.asarray(gguf.read(folder.parent).value(f"{folder.name}.weight").T)
        if kernel.shape[0] != width:
            raise InputError(
                f"{folder.parent}: {folder.name} has {kernel.shape[0]} inputs, but the vectors"
                f" before it have {width} numbers; leave teacher.lm.pooling open"
            )
        return Dense("Identity", {"linear.kernel": kernel}, residual=False)
    path = folder / "config.json"
    written = read_json(path, "copy the folder again")
    if not isinstance(written, dict) or not {"in_features", "out_features"} <= written.keys():
        raise InputError(f"{path} has no in_features and out_features; copy the folder again")
    for field in ("module_input_name", "module_output_name"):
        if written.get(field) not in (None, INPUT):
            raise InputError(
                f"{path}: {field} {written[field]!r} is not supported (supported: {INPUT!r});"
                " choose other weights"
            )
    sizes = int(written["in_features"]), int(written["out_features"])
    if sizes[0] != width:
        raise InputError(
            f"{path}: in_features {sizes[0]}, but the vectors before it have {width} numbers; leave"
            " teacher.lm.pooling open, so that the folder's own is used"
        )
    name = str(written.get("activation_function", "torch.nn.Tanh"))
    activation = name.rpartition(".")[2]
    if not name.startswith("torch.nn.") or activation not in TORCH_ACTIVATIONS:
        raise InputError(
            f"{path}: activation_function {name!r} is not supported (supported, of torch.nn:"
            f" {', '.join(TORCH_ACTIVATIONS)}); choose other weights"
        )
    residual = bool(written.get("use_residual", False))
    shapes: dict[str, tuple[int, ...]] = {"linear.kernel": sizes}
    if written.get("bias", True):
        shapes["linear.bias"] = sizes[1:]
    if residual and sizes[0] != sizes[1]:
        shapes["residual.kernel"] = sizes
    return Dense(activation, load_tensors(open_weights(folder), shapes, ""), residual=residual)
