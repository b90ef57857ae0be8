"""The file that the runtime reads: ``runtime.safetensors``, whose metadata has the description."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from kd_jax.core.errors import InputError
from kd_jax.core.files import write_tensors
from kd_jax.runtime import quantized
from kd_jax.runtime.contexts import CONTEXTS, Context
from kd_jax.runtime.text_map import TextMap

FILE = "runtime.safetensors"
VERSION = 1
PACKED = 2  # of files whose vectors are packed into fewer bits
Ids = Sequence[int] | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Hidden:
    """The scores of the MLP student: relu(context · user + user_bias + item · item_in) · out.

    user f32 [D, H], user_bias f32 [H], item f32 [D, H], out f32 [H, 1], out_bias f32 [1].
    """

    user: np.ndarray
    user_bias: np.ndarray
    item: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray

    def of_items(self, vectors: np.ndarray) -> np.ndarray:
        """The part of the hidden layer that depends on the item, f32 [I, H]; vectors: [I, D]."""
        return vectors @ self.item


@dataclasses.dataclass(frozen=True)
class Disliked:
    """The items that each user rated too low to be a choice, as a CSR array.

    indptr [U + 1], items int32 [M].
    """

    indptr: np.ndarray
    items: np.ndarray


@dataclasses.dataclass(frozen=True)
class Export:
    """A trained student as arrays.

    description: 'student', its name; 'model', its role; 'dataset', name and checksum. user_ids,
    item_ids: integers or strings. item_vectors f32 [I, D], item_bias f32 [I], user_vectors f32
    [U, D]. indptr [U + 1], items: the interactions of each user, oldest first, as a CSR array.
    context: the model of users that are known by their history alone. hidden: None where score =
    user vector · item vector + item bias. text_map: the model of items that are known by their text
    alone; None in files of earlier versions. disliked: None where there is no such item.
    """

    description: dict[str, Any]
    user_ids: Ids
    item_ids: Ids
    titles: Sequence[str]
    item_vectors: np.ndarray
    item_bias: np.ndarray
    user_vectors: np.ndarray
    indptr: np.ndarray
    items: np.ndarray
    context: Context
    hidden: Hidden | None = None
    text_map: TextMap | None = None
    disliked: Disliked | None = None


ARRAYS = ("item_vectors", "item_bias", "user_vectors", "indptr", "items")
TEXTS = ("user_ids", "item_ids", "titles")
OPTIONAL: dict[str, Any] = {"hidden": Hidden, "text_map": TextMap, "disliked": Disliked}


def check_bits(bits: int, where: str) -> None:
    """Raises InputError unless ``bits`` is 32 or one of ``quantized.BITS``; where: its field."""
    quantized.check_bits(bits, where, (32, *quantized.BITS))


def write(path: Path, export: Export, bits: int = 32) -> None:
    """Writes an export atomically.

    bits: of a number of the item vectors, 32 or one of ``quantized.BITS``; users have at least 8,
    and the rest is in float32. Raises InputError for a parameter that is not finite.
    """
    tensors = {name: getattr(export, name) for name in ARRAYS}
    for name in TEXTS:
        tensors |= _pack(name, getattr(export, name))
    kind = next(name for name, cls in CONTEXTS.items() if type(export.context) is cls)
    settings: dict[str, Any] = {"kind": kind}
    parts: list[tuple[str, Any]] = [("context", export.context)]
    for part in OPTIONAL:
        if getattr(export, part) is not None:
            parts.append((part, getattr(export, part)))
    for part, values in parts:
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            if isinstance(value, np.ndarray):
                tensors[f"{part}.{field.name}"] = value
            else:
                settings[field.name] = value
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(
                f"{path}: tensor {name} is not finite; lower the learning rate and train again"
            )
    version = VERSION if bits == 32 else PACKED
    description = export.description | {"version": version, "context": settings}
    if bits != 32:
        description["dim"] = int(export.item_vectors.shape[1])
        description["bits"] = {"item_vectors": bits, "user_vectors": quantized.user_bits(bits)}
        for name, wanted in description["bits"].items():
            packed = quantized.pack(tensors.pop(name), wanted, f"{path}: {name}")
            tensors |= quantized.tensors(packed, name)
    description["checksum"] = _checksum(tensors)
    write_tensors(path, tensors, {"description": json.dumps(description)})


def read(path: Path) -> Export:
    """Reads what ``write`` wrote.

    Raises InputError if the file is missing, damaged or of another version.
    """
    fix = "run the launch.py command that made this workdir again: it exports what is trained"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(metadata["description"])
        if description.pop("version") not in (VERSION, PACKED):
            raise InputError(f"{path} is of another version of kd_jax; {fix}")
        if description.pop("checksum") != _checksum(tensors):
            raise ValueError("its checksum differs")
        settings = description.pop("context")
        context = _dataclass(CONTEXTS[settings["kind"]], "context", tensors, settings)
        optional = {
            part: _dataclass(cls, part, tensors, {})
            for part, cls in OPTIONAL.items()
            if any(name.startswith(f"{part}.") for name in tensors)
        }
        dim = description.pop("dim", 0)
        for name, bits in description.pop("bits", {}).items():
            tensors[name] = quantized.from_tensors(tensors, name, bits, dim)
        texts = {name: _unpack(name, tensors) for name in TEXTS}
        arrays = {name: tensors[name] for name in ARRAYS}
        return Export(description, **texts, **arrays, context=context, **optional)
    except FileNotFoundError:
        place = "give the folder export/ of a workdir, or, if that has no such file"
        raise InputError(f"{path} is missing; {place}, {fix}") from None
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error}); {fix}") from None


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    """16 hex digits of BLAKE2b over the values, in the order of the names."""
    digest = hashlib.blake2b(digest_size=8)
    for _, value in sorted(tensors.items()):
        digest.update(np.asarray(value, order="C").data)
    return digest.hexdigest()


def _dataclass(cls: Any, part: str, tensors: dict[str, Any], settings: dict[str, Any]) -> Any:
    values = {}
    for field in dataclasses.fields(cls):
        key = f"{part}.{field.name}"
        values[field.name] = tensors[key] if key in tensors else settings[field.name]
    return cls(**values)


def _pack(name: str, values: Ids | Sequence[str]) -> dict[str, np.ndarray]:
    """Integers as one array; strings as UTF-8 bytes and the end of each."""
    if len(values) and not isinstance(values[0], str):
        try:
            return {name: np.array(values, np.int64)}
        except OverflowError:
            return {name: np.array(values, np.uint64)}
    encoded = [str(value).encode() for value in values]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {f"{name}.text": np.frombuffer(b"".join(encoded), np.uint8), f"{name}.ends": ends}


def _unpack(name: str, tensors: dict[str, np.ndarray]) -> Any:
    if name in tensors:
        return tensors[name].tolist()
    text, ends = tensors[f"{name}.text"].tobytes(), tensors[f"{name}.ends"].tolist()
    starts = [0, *ends[:-1]]
    return [text[start:end].decode() for start, end in zip(starts, ends, strict=False)]
