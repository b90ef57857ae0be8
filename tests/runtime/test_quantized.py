"""Packed vectors: bytes of an independent oracle, bounds in closed form, odd widths, bad input."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from helpers.toy import refused
from kd_jax.runtime import quantized
from kd_jax.runtime.quantized import BITS, pack, unpack

WIDTHS = (1, 2, 3, 7, 8, 9, 64)
UNIT = 2.0**-11  # float16 rounds by at most half of its last of 11 bits


def rows_of(width, count=50, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)).astype(np.float32) * rng.uniform(0.1, 5, (count, 1))


def half(value: float) -> float:
    """``value`` as float16, by the C library of Python and not by NumPy."""
    return struct.unpack("e", struct.pack("e", value))[0]


def oracle(row: list[float], bits: int) -> tuple[bytes, list[float]]:
    """The bytes of the codes and the decoded numbers of one row, a number at a time."""
    if bits == 16:
        return b"".join(struct.pack("<e", x) for x in row), [half(x) for x in row]
    if bits == 1:
        scale = half(sum(abs(x) for x in row) / len(row))
        text = "".join("1" if x >= 0 else "0" for x in row)
        decoded = [scale if x >= 0 else -scale for x in row]
    else:
        top = 2 ** (bits - 1) - 1
        scale = half(max(abs(x) for x in row) / top)
        codes = [max(-top, min(top, round(x / scale))) if scale else 0 for x in row]
        decoded = [scale * code for code in codes]
        if bits == 8:
            return struct.pack(f"{len(row)}b", *codes), decoded
        text = "".join(f"{code + 8:04b}" for code in codes)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big"), decoded


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", WIDTHS)
def test_codes_and_numbers_are_those_of_an_oracle(width, bits):
    rows = np.float32(rows_of(width))
    packed = pack(rows, bits)
    for row, code, decoded in zip(rows, packed.codes, unpack(packed), strict=True):
        data, numbers = oracle(row.tolist(), bits)
        assert code.tobytes() == data
        np.testing.assert_array_equal(decoded, np.float32(numbers))
    whole = {16: 2 * width, 8: width + 2, 4: -(-width // 2) + 2, 1: -(-width // 8) + 2}
    assert packed.nbytes == len(rows) * whole[bits]


@pytest.mark.parametrize("bits", BITS)
def test_what_was_decoded_is_packed_to_the_same(bits):
    packed = pack(rows_of(9), bits)
    again = pack(unpack(packed), bits)
    np.testing.assert_array_equal(again.codes, packed.codes)
    np.testing.assert_array_equal(again.scales, packed.scales)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_dot_product_errs_by_half_a_scale_per_number_at_most(bits):
    """|u·v - u'·v'| ≤ |u - u'|·|v| + |u'|·|v - v'|, and |x - x'| ≤ scale / 2 for each number."""
    users, items = np.float64(rows_of(64, 30, 1)), np.float64(rows_of(64, 40, 2))
    packed_users, packed_items = pack(users, bits), pack(items, bits)
    near_users, near_items = np.float64(unpack(packed_users)), np.float64(unpack(packed_items))
    error = np.abs(near_users @ near_items.T - users @ items.T)
    of_user, of_item = (np.float64(p.scales) / 2 for p in (packed_users, packed_items))
    first = of_user[:, None] * np.abs(items).sum(1)
    second = np.abs(near_users).sum(1)[:, None] * of_item
    assert (error <= (first + second) * (1 + 1e-6)).all()
    assert error.max() > 0


def test_sixteen_bits_err_by_two_to_the_minus_eleven():
    rows = np.float32(rows_of(64))
    assert (np.abs(unpack(pack(rows, 16)) - rows) <= UNIT * np.abs(rows)).all()


def test_one_bit_has_the_error_of_the_best_scale():
    """‖x - s·sign x‖² = ‖x‖² - D s² at s = mean |x|, and no other scale has a smaller one."""
    rows = np.float64(rows_of(64))
    packed = pack(rows, 1)
    size = np.abs(rows).mean(1)
    error = ((rows - unpack(packed)) ** 2).sum(1)
    least = (rows**2).sum(1) - 64 * size**2
    # A scale that is off by e adds D e², and float16 is off by 2^-11 at most.
    assert (error - least <= 64 * (UNIT * size) ** 2 + 1e-5).all() and (error >= least - 1e-5).all()
    np.testing.assert_allclose(packed.scales, size, rtol=UNIT)


@pytest.mark.parametrize("bits", BITS)
def test_rows_of_zeros_and_of_tiny_numbers(bits):
    """A scale below the smallest float16 makes zeros, without a warning and without a NaN."""
    rows = np.zeros((3, 5), np.float32)
    rows[1] = 1e-12
    rows[2, 3] = 2.0
    decoded = unpack(pack(rows, bits))
    np.testing.assert_array_equal(decoded[:2], 0)
    assert decoded[2, 3] == pytest.approx(2.0 if bits != 1 else 0.4, rel=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_one_row_and_no_row(bits):
    row = np.array([[0.5, -1.0, 0.25]], np.float32)
    assert unpack(pack(row, bits)).shape == (1, 3)
    assert unpack(pack(row[:0], bits)).shape == (0, 3)


@pytest.mark.parametrize("bits", BITS)
def test_numbers_that_cannot_be_packed_are_refused(bits):
    rows = rows_of(5)
    for bad in (np.nan, np.inf, -np.inf):
        rows[3, 2] = bad
        refused(lambda: pack(rows, bits, "item vectors"), "item vectors are not finite")
    rows[3] = 1e8
    refused(lambda: pack(rows, bits, "item vectors"), "beyond the range of float16")


@pytest.mark.parametrize("bits", [0, 2, 32, -1, True])
def test_an_unknown_number_of_bits_is_refused(bits):
    refused(lambda: quantized.check_bits(bits, "export.compressed.bits"), "known: 16, 8, 4, 1")


def test_the_greatest_float16_is_kept_and_the_next_is_refused():
    assert quantized.half(np.float32([65504, 65519]), "x").tolist() == [65504, 65504]
    refused(lambda: quantized.half(np.float32([65520]), "x"), "beyond the range of float16")
