"""Context vectors of histories, in NumPy: the models that turn what a user chose into a vector.

A context is a frozen dataclass. Its arrays are tensors of the export and its other fields are
entries of the description. It is called with histories, int32 [B, L], oldest first, padded on the
left with PAD, and the item vectors f32 [I, D]; it returns f32 [B, D]. ``length`` is the number of
newest items that it reads; ``linear``, whether it is a ``HistoryMap``, beside trained user vectors.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, Protocol

import numpy as np

from kd_jax.core.padding import PAD

EPSILON = 1e-6  # of layer normalisation, as in flax.nnx.LayerNorm


class Context(Protocol):
    """A function of histories [B, L] and item vectors [I, D] that returns contexts f32 [B, D]."""

    @property
    def length(self) -> int: ...

    @property
    def linear(self) -> bool: ...

    def __call__(self, history: np.ndarray, vectors: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class HistoryMap:
    """A linear map from the recency-weighted mean of a history's item vectors to a user vector.

    A history's item of age a (0 for the newest) has the weight exp(-a / decay), and the mean is the
    weighted sum over (sum of weights + shrink), so that a short history stays nearer to the average
    user. The context is mean · weight + intercept. An empty history has the intercept: the vector
    that fits users best without any item. ``fit`` is in ``serving/history_map.py``.

    weight: f32 [D, D]. intercept: f32 [D].
    """

    weight: np.ndarray
    intercept: np.ndarray
    decay: float
    shrink: float

    linear: ClassVar[bool] = True

    @property
    def length(self) -> int:
        return math.ceil(16 * self.decay)  # older items have weights below 1.2e-7

    def shares(self, history: np.ndarray) -> np.ndarray:
        """The weight of each position in the mean, f32 [B, L], 0 at the padding."""
        age = np.arange(history.shape[1] - 1, -1, -1, dtype=np.float32)
        weights = np.where(history == PAD, 0, np.exp(-age / np.float32(self.decay)))
        return weights / np.maximum(weights.sum(1, keepdims=True) + self.shrink, 1e-30)

    def mean(self, history: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """The recency-weighted means, f32 [B, D]."""
        rows = vectors[np.maximum(history, 0)]
        return np.einsum("bl,bld->bd", self.shares(history).astype(np.float32), rows)

    def __call__(self, history: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return self.mean(history, vectors) @ self.weight + self.intercept


@dataclasses.dataclass(frozen=True)
class MeanTower:
    """The user tower of the two-tower student: a residual MLP over the mean of a history's vectors.

    Arrays are those of ``models/students/two_tower.py``: context = mean · linear + linear_bias +
    gelu(mean · up + up_bias) · down + down_bias.
    """

    linear_kernel: np.ndarray
    linear_bias: np.ndarray
    up_kernel: np.ndarray
    up_bias: np.ndarray
    down_kernel: np.ndarray
    down_bias: np.ndarray
    length: int

    linear: ClassVar[bool] = False

    def __call__(self, history: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        known = (history != PAD).astype(np.float32)
        total = np.einsum("bl,bld->bd", known, vectors[np.maximum(history, 0)])
        mean = total / np.maximum(known.sum(1, keepdims=True), 1)
        hidden = _gelu(mean @ self.up_kernel + self.up_bias)
        return (
            mean @ self.linear_kernel
            + self.linear_bias
            + hidden @ self.down_kernel
            + self.down_bias
        )


@dataclasses.dataclass(frozen=True)
class Transformer:
    """The causal Transformer of SASRec, read at the last position (``models/layers.py``).

    With N blocks: position f32 [length, D]; norm (scale, bias) f32 [2, D]; norms f32 [N, 2, 2, D],
    of the attention and of the MLP; qkv f32 [N, D, 3D] and out f32 [N, D, D], up f32 [N, D, H] and
    down f32 [N, H, D], each with its bias. The activation is a ReLU.
    """

    position: np.ndarray
    norm: np.ndarray
    norms: np.ndarray
    qkv_kernel: np.ndarray
    qkv_bias: np.ndarray
    out_kernel: np.ndarray
    out_bias: np.ndarray
    up_kernel: np.ndarray
    up_bias: np.ndarray
    down_kernel: np.ndarray
    down_bias: np.ndarray
    heads: int

    linear: ClassVar[bool] = False

    @property
    def length(self) -> int:
        return len(self.position)

    def __call__(self, history: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        history = history[:, -self.length :]
        batch, length = history.shape
        dim = self.position.shape[1]
        valid = history != PAD
        x = self._read(vectors[np.maximum(history, 0)]) + self.position[-length:]
        x *= valid[..., None]
        causal = np.tril(np.ones((length, length), bool))
        # A padded query attends to itself, so that no softmax row is empty.
        mask = (causal & valid[:, None, :]) | np.eye(length, dtype=bool)
        for n in range(len(self.qkv_kernel)):
            last = n == len(self.qkv_kernel) - 1
            x = self._block(n, x, mask[:, None], last).reshape(batch, -1, dim)
        return _layer_norm(x[:, -1], self.norm)

    def _read(self, vectors: np.ndarray) -> np.ndarray:
        """The input of the Transformer, of the vectors of a history's items."""
        return vectors * np.float32(vectors.shape[-1] ** 0.5)

    def _activation(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    def _block(self, n: int, x: np.ndarray, mask: np.ndarray, last: bool) -> np.ndarray:
        """Block ``n`` over x [B, L, D]; the output of the last position only, or of all."""
        batch, length, dim = x.shape
        qkv = _layer_norm(x, self.norms[n, 0]) @ self.qkv_kernel[n] + self.qkv_bias[n]
        qkv = qkv.reshape(batch, length, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        q, k, v = qkv  # [B, heads, L, D / heads]
        if last:
            x, q, mask = x[:, -1:], q[:, :, -1:], mask[:, :, -1:]
        logits = q @ k.swapaxes(2, 3) / np.float32((dim / self.heads) ** 0.5)
        logits = np.where(mask, logits, -np.inf)
        weights = np.exp(logits - logits.max(3, keepdims=True))
        weights /= weights.sum(3, keepdims=True)
        attended = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = self._plus(n, x, attended @ self.out_kernel[n] + self.out_bias[n], "attention")
        hidden = self._hidden(n, _layer_norm(x, self.norms[n, 1]))
        return self._plus(n, x, hidden @ self.down_kernel[n] + self.down_bias[n], "mlp")

    def _plus(self, n: int, x: np.ndarray, change: np.ndarray, part: str) -> np.ndarray:
        return x + change

    def _hidden(self, n: int, x: np.ndarray) -> np.ndarray:
        return self._activation(x @ self.up_kernel[n] + self.up_bias[n])


@dataclasses.dataclass(frozen=True)
class GatedTransformer(Transformer):
    """The causal Transformer of SASRec with gated blocks (``GatedBlock`` of ``models/layers.py``).

    As ``Transformer``, and side f32 [N, D, H], of the SwiGLU; the gates of the attention and of the
    MLP f32 [N, D, D]; each with its bias.
    """

    side_kernel: np.ndarray
    side_bias: np.ndarray
    attention_gate_kernel: np.ndarray
    attention_gate_bias: np.ndarray
    mlp_gate_kernel: np.ndarray
    mlp_gate_bias: np.ndarray

    def _activation(self, x: np.ndarray) -> np.ndarray:
        return x * _sigmoid(x)

    def _plus(self, n: int, x: np.ndarray, change: np.ndarray, part: str) -> np.ndarray:
        kernel, bias = getattr(self, f"{part}_gate_kernel"), getattr(self, f"{part}_gate_bias")
        return x + _sigmoid(x @ kernel[n] + bias[n]) * change

    def _hidden(self, n: int, x: np.ndarray) -> np.ndarray:
        return super()._hidden(n, x) * (x @ self.side_kernel[n] + self.side_bias[n])


@dataclasses.dataclass(frozen=True)
class TeacherTransformer(Transformer):
    """The causal Transformer of a teacher (``models/teachers/bi_encoder.py``), as ``Transformer``.

    It reads the first D numbers of an item vector, times ``scale``; the others are features of the
    item's popularity. output: f32 [D, D'], the map from what the Transformer computes to a context
    of the width D' of an item vector. The activation is a GELU.
    """

    scale: float
    output: np.ndarray

    def __call__(self, history: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return super().__call__(history, vectors) @ self.output

    def _read(self, vectors: np.ndarray) -> np.ndarray:
        return vectors[..., : len(self.output)] * np.float32(self.scale)

    def _activation(self, x: np.ndarray) -> np.ndarray:
        return _gelu(x)


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """The state of GRU4Rec after a history (``models/students/gru4rec.py``), mapped to a context.

    With a state of H numbers: given f32 [D, 3H], its bias, and state f32 [H, 3H], of the reset
    gate, the update gate and the new state; out f32 [H, D], with its bias.
    """

    given_kernel: np.ndarray
    given_bias: np.ndarray
    state_kernel: np.ndarray
    out_kernel: np.ndarray
    out_bias: np.ndarray
    length: int

    linear: ClassVar[bool] = False

    def __call__(self, history: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        history = history[:, -self.length :]
        x = vectors[np.maximum(history, 0)] * np.float32(vectors.shape[1] ** 0.5)
        known = history != PAD
        given = x @ self.given_kernel + self.given_bias
        state = np.zeros((len(history), len(self.state_kernel)), np.float32)
        for at in range(history.shape[1]):
            reset, update, new = np.split(given[:, at], 3, axis=1)
            by_state = np.split(state @ self.state_kernel, 3, axis=1)
            update = _sigmoid(update + by_state[1])
            new = np.tanh(new + _sigmoid(reset + by_state[0]) * by_state[2])
            state = ((1 - update) * new + update * state) * known[:, at, None]
        return state @ self.out_kernel + self.out_bias


def _layer_norm(x: np.ndarray, scale_and_bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    scale, bias = scale_and_bias
    return centred / np.sqrt(variance + np.float32(EPSILON)) * scale + bias


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2  # no exponential that could overflow


def _gelu(x: np.ndarray) -> np.ndarray:
    """The tanh approximation, which ``jax.nn.gelu`` computes by default."""
    cubic = x + np.float32(0.044715) * (x * x * x)  # a power takes many times as long
    return x / 2 * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * cubic))


@dataclasses.dataclass(frozen=True)
class Program:
    """Any other model that reads histories: a serialised program of ``jax.export``; needs JAX.

    program: uint8 [N], a function of histories int32 [B, length] and item vectors f32 [I, D] with
    symbolic B. Batches are padded to powers of two, so that few shapes are compiled.
    """

    program: np.ndarray
    length: int

    linear: ClassVar[bool] = False

    @functools.cached_property
    def _call(self) -> Any:
        import jax  # the only context that needs it

        return jax.jit(jax.export.deserialize(bytearray(self.program.tobytes())).call)

    def __call__(self, history: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        rows = 1 << max(0, len(history) - 1).bit_length()
        padded = np.full((rows, self.length), PAD, np.int32)
        newest = history[:, -self.length :]
        padded[: len(history), -newest.shape[1] :] = newest
        return np.asarray(self._call(padded, vectors))[: len(history)]


CONTEXTS: dict[str, type] = {
    "history_map": HistoryMap,
    "mean_tower": MeanTower,
    "transformer": Transformer,
    "gated_transformer": GatedTransformer,
    "teacher_transformer": TeacherTransformer,
    "recurrent": Recurrent,
    "program": Program,
}
