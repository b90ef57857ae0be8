"""User and item vectors in 16, 8, 4 or 1 bit per number: score = user · item + bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kd_jax.core.files import write_json, write_tensors
from kd_jax.runtime import quantized
from kd_jax.serving.exporters.bundle import Bundle

VECTORS, IDS = "compressed.safetensors", "compressed_ids.json"


def check(bits: int) -> None:
    """Raises InputError for an unknown number of bits."""
    quantized.check_bits(bits, "export.compressed.bits")


def write(bundle: Bundle, folder: Path, bits: int = 8) -> tuple[Path, ...]:
    """Writes ``compressed.safetensors`` and ``compressed_ids.json``; returns the files written.

    The tensors are item_codes, item_scales and item_bias f16 [I], user_codes and user_scales, as in
    ``runtime.quantized.Packed`` (no scales with 16 bits); the metadata has 'item_bits',
    'user_bits' and 'dim'. The other file has the ids of the rows, 'items' and 'users'. Nothing is
    written for a model with scores that do not factorise.

    bits: of a number of the item vectors, 16, 8, 4 or 1; users have at least 8. Raises InputError
    for vectors that are not finite or beyond float16.
    """
    found, dataset = bundle.vectors, bundle.dataset
    if found is None:
        return ()
    vectors, ids = folder / VECTORS, folder / IDS
    tensors = {"item_bias": quantized.half(found.bias, f"{vectors}: item_bias")}
    metadata = {"dim": str(np.shape(found.items)[1])}
    parts = (("item", found.items, bits), ("user", found.contexts, quantized.user_bits(bits)))
    for name, rows, wanted in parts:
        packed = quantized.pack(rows, wanted, f"{vectors}: {name} vectors")
        tensors |= quantized.tensors(packed, name)
        metadata[f"{name}_bits"] = str(wanted)
    write_tensors(vectors, tensors, metadata)
    write_json(ids, {"items": dataset.item_ids.to_list(), "users": dataset.user_ids.to_list()})
    return vectors, ids
