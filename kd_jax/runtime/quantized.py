"""Vectors in 16, 8, 4 or 1 bit per number, with one or two float16 numbers per row, in NumPy.

A row x of D finite numbers is stored as codes and a scale s, of which a reader makes y:

| bits | code | scale s | decoded y | bytes of a row |
|---|---|---|---|---|
| 16 | x as float16 | | code | 2 D |
| 8 | round(x / s), -127 … 127 | max abs x / 127 | s · code | D + 2 |
| 4 | round(x / s) + 8, 1 … 15 | max abs x / 7 | s · (code - 8) | ⌈D / 2⌉ + 2 |
| 1 | 1 where x ≥ 0 | mean abs x | s · (2 code - 1) | ⌈D / 8⌉ + 2 |

With 1 bit, s is the least-squares scale of the signs: Rastegari et al., "XNOR-Net: ImageNet
Classification Using Binary Convolutional Neural Networks", ECCV 2016, equation 6. The others are
symmetric uniform quantisation with a scale per vector, as in Wu et al., "Integer Quantization for
Deep Learning Inference: Principles and Empirical Evaluation", 2020, section 3.1.

Codes of 4 and 1 bit are packed from the most significant bits of a byte on, and the last byte of a
row is filled with zeros. The scale is rounded to float16 before the codes are made from it, so its
rounding does not add to the error of 8 and 4 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kd_jax.core.errors import InputError

BITS = (16, 8, 4, 1)
LEVELS = {8: 127, 4: 7}  # the greatest code on either side of 0
_HALF = np.finfo(np.float16)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows of ``dim`` numbers in ``bits`` bits each.

    codes: float16 [N, D], int8 [N, D], uint8 [N, ⌈D / 2⌉] or uint8 [N, ⌈D / 8⌉]. scales: float16
    [N]; [0] with 16 bits.
    """

    bits: int
    dim: int
    codes: np.ndarray
    scales: np.ndarray

    @property
    def nbytes(self) -> int:
        """The bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes


def check_bits(bits: int, where: str, known: Sequence[int] = BITS) -> None:
    """Raises InputError unless ``bits`` is among the ``known``; where: the field it is from."""
    if isinstance(bits, bool) or bits not in known:
        raise InputError(f"{where}={bits!r} is unknown; known: {', '.join(map(str, known))}")


def pack(vectors: np.ndarray, bits: int, what: str = "vectors") -> Packed:
    """The rows of f32 [N, D] as codes and scales.

    what: their name, for errors. Raises InputError for numbers that are not finite, and for numbers
    or scales beyond the range of float16, 65,504.
    """
    check_bits(bits, "bits")
    vectors = np.asarray(vectors, np.float32)
    if bits == 16:
        return Packed(bits, vectors.shape[1], half(vectors, what), np.zeros(0, np.float16))
    if not np.isfinite(vectors).all():
        raise _not_finite(what)
    size = np.abs(vectors)
    if bits == 1:
        scales = half(size.mean(axis=1, dtype=np.float64), what)
        return Packed(bits, vectors.shape[1], np.packbits(vectors >= 0, axis=1), scales)
    scales = half(size.max(axis=1, initial=0.0) / np.float64(LEVELS[bits]), what)
    # A scale below the smallest float16 becomes 0: the whole row is then decoded as zeros.
    divisors = np.where(scales > 0, scales, np.inf).astype(np.float32)[:, None]
    codes = np.clip(np.rint(vectors / divisors), -LEVELS[bits], LEVELS[bits]).astype(np.int8)
    if bits == 8:
        return Packed(bits, vectors.shape[1], codes, scales)
    nibbles = np.pad((codes + 8).astype(np.uint8), ((0, 0), (0, codes.shape[1] % 2)))
    return Packed(bits, vectors.shape[1], nibbles[:, ::2] << 4 | nibbles[:, 1::2], scales)


def unpack(packed: Packed) -> np.ndarray:
    """The rows that ``packed`` stands for, f32 [N, D]."""
    codes, dim = packed.codes, packed.dim
    if packed.bits == 16:
        return codes.astype(np.float32)
    if packed.bits == 1:
        whole = 2 * np.unpackbits(codes, axis=1, count=dim).astype(np.float32) - 1
    elif packed.bits == 4:
        pairs = np.stack([codes >> 4, codes & 15], axis=2).reshape(len(codes), 2 * codes.shape[1])
        whole = pairs[:, :dim].astype(np.float32) - 8
    else:
        whole = codes.astype(np.float32)
    return whole * packed.scales.astype(np.float32)[:, None]


def user_bits(bits: int) -> int:
    """The bits of users beside items of ``bits``: at least 8.

    Signs on both sides of the product cost 20 times the quality of signs of the items alone
    (docs/compression.md).
    """
    return max(8, bits)


def tensors(packed: Packed, name: str) -> dict[str, np.ndarray]:
    """Codes and scales by the names that they have in a file; no scales with 16 bits."""
    found = {f"{name}_codes": packed.codes}
    return found if packed.bits == 16 else found | {f"{name}_scales": packed.scales}


def from_tensors(found: Mapping[str, np.ndarray], name: str, bits: int, dim: int) -> np.ndarray:
    """The rows f32 [N, D] whose codes and scales are in ``found``; KeyError if they are not."""
    scales = np.zeros(0, np.float16) if bits == 16 else found[f"{name}_scales"]
    return unpack(Packed(bits, dim, found[f"{name}_codes"], scales))


def half(values: np.ndarray, what: str) -> np.ndarray:
    """``values`` as float16.

    Raises InputError for numbers that are not finite or beyond the range of float16, 65,504.
    """
    if not np.isfinite(values).all():
        raise _not_finite(what)
    # Half a step above the greatest float16 is rounded to infinity.
    if values.size and np.abs(values).max() >= float(_HALF.max) + 16:
        raise InputError(
            f"{what}: {np.abs(values).max():g} is beyond the range of float16, ±65504; use 32-bit"
            " vectors, or train with a lower learning rate"
        )
    return values.astype(np.float16)


def _not_finite(what: str) -> InputError:
    return InputError(f"{what} are not finite; lower the learning rate and train again")
