"""LoRA folders of peft: an adapter beside a base model, merged into its weights.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, equation 3; the
scale with ``use_rslora`` is that of Kalajdzievski, "A Rank Stabilization Scaling Factor for
Fine-Tuning with LoRA", 2023.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json, read_tensors

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
START = "base_model.model."
ENDS = (".lora_A.weight", ".lora_B.weight")
MERGE = "merge it with peft (merge_and_unload) and save the whole model"
# Fields under which peft computes something else.
PLAIN = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "alora_invocation_tokens": (None,),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None, {}),
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in place of whole weights.

    Raises InputError if it holds both.
    """
    if not (folder / CONFIG).is_file():
        return False
    whole = [path.name for path in sorted(folder.glob("model*.safetensors*"))]
    if whole and (folder / TENSORS).is_file():
        raise InputError(
            f"{folder} holds {TENSORS} and {whole[0]}; keep the adapter or the whole weights, in a"
            " folder of their own"
        )
    return not whole


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The fields of ``adapter_config.json``; raises InputError where they are no plain LoRA."""
    path = folder / CONFIG
    config = read_json(path, "copy the folder again")
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no fields; copy the folder again")
    if config.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type {config.get('peft_type')!r} is not LORA; {MERGE}")
    for field, usual in PLAIN.items():
        if config.get(field) not in usual:
            raise InputError(f"{path}: {field}={config[field]!r} is not supported; {MERGE}")
    return config


def base_folder(folder: Path, resolve: Callable[[str], Path]) -> Path:
    """The base model of an adapter.

    ``base_model_name_or_path`` is a folder, seen from here or from the adapter, or a name for
    ``resolve``. Raises InputError if it is not at hand.
    """
    path = folder / CONFIG
    name = read_adapter_config(folder).get("base_model_name_or_path")
    fix = "set base_model_name_or_path there to the folder of the base model"
    if not name:
        raise InputError(f"{path} names no base model; {fix}")
    for place in (Path(str(name)).expanduser(), folder / str(name)):
        if any((place / file).is_file() for file in ("config.json", CONFIG)):
            if place.resolve() == folder.resolve():
                raise InputError(f"{path} names its own folder as the base model; {fix}")
            return place
    try:
        return resolve(str(name))
    except InputError:
        raise InputError(
            f"{path}: the base model {name!r} is not at hand, neither as a folder nor in the"
            f" Hugging Face cache; {fix}, or {MERGE}"
        ) from None


class AdaptedWeights:
    """The tensors of a base model with an adapter's products added, W + s B A, in f32.

    base: the weights that the adapter was trained for. Raises InputError for an adapter that does
    not fit.
    """

    def __init__(self, folder: Path, base: Any):
        self.folder = folder
        self.base = base
        self.parts = (f"{TENSORS} with {base.parts[0]}", base.parts[1])
        self.shapes: Mapping[str, tuple[int, ...]] = base.shapes
        self.config = read_adapter_config(folder)
        pickled = folder / "adapter_model.bin"
        if pickled.is_file() and not (folder / TENSORS).is_file():
            raise InputError(
                f"{folder} holds {pickled.name} but no {TENSORS}; only safetensors are loaded (a"
                " pickle can run code): save the adapter with a newer peft"
            )
        self.factors: dict[str, list[np.ndarray]] = {}
        self.scales: dict[str, float] = {}
        self._read(read_tensors(folder / TENSORS, "copy the folder again"))

    def _read(self, tensors: dict[str, np.ndarray]) -> None:
        path = self.folder / TENSORS
        others = [name for name in tensors if not name.endswith(ENDS)]
        if others:
            raise InputError(f"{path}: {others[0]} is no part of a plain LoRA; {MERGE}")
        modules = sorted({name[: -len(ENDS[0])] for name in tensors})
        for module in modules:
            inner = module.removeprefix(START)
            pair = [tensors.get(f"{module}{end}") for end in ENDS]
            a, b = pair
            name = self._of_base(inner)
            if a is None or b is None or name is None:
                what = "has no tensor in the base model" if name is None else "has only one factor"
                raise InputError(
                    f"{path}: {inner} {what}; take the base model that the adapter was trained for"
                )
            a, b = (np.asarray(factor, np.float32) for factor in (a, b))
            shape = (b.shape[0], a.shape[1])
            if self.config.get("fan_in_fan_out"):
                shape, a, b = shape[::-1], b.T, a.T
            if a.shape[0] != b.shape[1] or shape != tuple(self.shapes[name]):
                raise InputError(
                    f"{path}: {inner} changes a matrix {list(shape)}, {name} of the base model is"
                    f" {list(self.shapes[name])}; take the base model that the adapter was trained"
                    " for"
                )
            self.factors[name] = [b, a]
            self.scales[name] = self._scale(inner, a.shape[0])

    def _of_base(self, module: str) -> str | None:
        """The base's weight of a module; one of the two may have a prefix more."""
        wanted = f"{module}.weight"
        if wanted in self.shapes:
            return wanted
        found = [
            name
            for name in self.shapes
            if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")
        ]
        return found[0] if len(found) == 1 else None

    def _scale(self, module: str, rank: int) -> float:
        alpha = float(self.config.get("lora_alpha") or 8)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
                break
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def __getitem__(self, name: str) -> jnp.ndarray:
        value = self.base[name]
        if name not in self.factors:
            return value
        b, a = self.factors[name]
        return jnp.asarray(np.asarray(value, np.float32) + self.scales[name] * (b @ a))

    def names(self, prefix: str) -> dict[str, str]:
        """As ``names`` of the base."""
        return self.base.names(prefix)
