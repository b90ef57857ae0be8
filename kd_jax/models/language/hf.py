"""Hugging Face folders and GGUF files: finding, reading, saving. Never a pickle, never remote
code.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import atomic, write_json
from kd_jax.models.language import bert, distilbert, gguf, gpt2, llama, mpnet
from kd_jax.models.language.encoder import Architecture, NativeEncoder, TextEncoder, merged
from kd_jax.models.language.hf_flax import FAMILIES as FLAX
from kd_jax.models.language.hf_flax import HFFlaxEncoder
from kd_jax.models.language.weights import (
    load_tensors,
    open_weights,
    read_config,
    resolve_weights,
    saved_name,
)

BACKENDS = ("native", "hf_flax")


# model_type -> how it is built; one module per family.
FAMILIES = (bert, distilbert, mpnet, gpt2, llama)
ARCHITECTURES: dict[str, Architecture] = {
    kind: architecture for family in FAMILIES for kind, architecture in family.ARCHITECTURES.items()
}


def load_model(folder: Path, dtype: Any = jnp.float32) -> Any:
    """The native model with the weights of an HF folder (config.json, model.safetensors or shards)
    or a GGUF file.

    Raises InputError: another architecture, a config or file that cannot be read, tensors that do
    not fit.
    """
    folder = Path(folder)
    written = read_config(folder)
    kind, source = (
        written.get("model_type"),
        folder if gguf.is_gguf(folder) else folder / "config.json",
    )
    if not kind:
        raise InputError(
            f"{source} has no model_type; give a folder as the Hugging Face hub has them"
        )
    if kind not in ARCHITECTURES:
        cure = (
            "set teacher.lm.backend='hf_flax', which reads it, or "
            if kind in FLAX and folder.is_dir()
            else ""
        )
        raise InputError(
            f"{source}: model_type {kind!r} is not supported by the native backend "
            f"(supported: {', '.join(ARCHITECTURES)}); {cure}choose other weights"
        )
    architecture = ARCHITECTURES[str(kind)]
    try:
        config = architecture.config(written)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    checkpoint = open_weights(folder)
    saved = checkpoint.names(architecture.prefix)
    model = nnx.eval_shape(lambda: architecture.build(config, saved, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    flat = list(nnx.to_flat_state(state))
    wanted = {architecture.name(path): leaf.shape for path, leaf in flat}
    values = load_tensors(checkpoint, wanted, architecture.prefix)
    return nnx.merge(
        graphdef,
        nnx.from_flat_state(
            [(path, leaf.replace(values[architecture.name(path)])) for path, leaf in flat]
        ),
    )


def _saved_tensors(encoder: TextEncoder, kind: str) -> tuple[str, dict[str, np.ndarray]]:
    """transformers' prefix for this model_type, and the weights under the names of
    ``load_tensors``.
    """
    if not isinstance(encoder, NativeEncoder):
        assert isinstance(encoder, HFFlaxEncoder)
        return encoder.prefix, encoder.tensors()
    architecture = ARCHITECTURES[kind]
    flat = nnx.to_flat_state(nnx.state(merged(encoder.model)))
    return architecture.prefix, {
        architecture.name(path): np.asarray(leaf[...]) for path, leaf in flat
    }


def save_encoder(encoder: TextEncoder, tokenizer: Any, source: Path, folder: Path) -> None:
    """Write an encoder as a folder for transformers and sentence-transformers: config, weights,
    tokenizer, pooling.

    Adapters are merged. Tensors of ``source``, the folder or file it was loaded from, that it has
    no use for (a pooler) stay as they were. Raises InputError for a folder that is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give a new folder, or delete this one first")
    config = read_config(source)
    prefix, values = _saved_tensors(encoder, str(config["model_type"]))
    saved = open_weights(source)
    names = saved.names(prefix)
    tensors = {name: np.asarray(saved[name], np.float32) for name in saved.shapes}
    if config.get("tie_word_embeddings", True):
        tensors.pop("lm_head.weight", None)  # it is the word embedding, which may have been trained
    for name, value in values.items():
        old, transposed = saved_name(name, names)
        assert old is not None
        tensors[names[old]] = np.ascontiguousarray(value.T if transposed else value)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", config | {"torch_dtype": "float32"})
    tokenizer.save_pretrained(folder)
    _save_modules(encoder, folder)


def _save_modules(encoder: TextEncoder, folder: Path) -> None:
    """What sentence-transformers reads: the modules in their order, the pooling, the longest
    text.
    """
    package = "sentence_transformers.models"
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")] + [
        ("2_Normalize", "Normalize")
    ] * encoder.normalize
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"{package}.{kind}"}
        for index, (path, kind) in enumerate(parts)
    ]
    write_json(folder / "modules.json", modules)
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}
    pooling = {f"pooling_mode_{name}": mode == encoder.pooling for mode, name in modes.items()}
    write_json(
        folder / "1_Pooling/config.json", {"word_embedding_dimension": encoder.dim} | pooling
    )
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": encoder.max_length, "do_lower_case": False},
    )
    if encoder.normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)


def load_head(folder: Path) -> jnp.ndarray | None:
    """``lm_head.weight`` f32 [V, D], for next-token scores; None where the word embedding takes its
    place.
    """
    checkpoint = open_weights(Path(folder))
    tied = read_config(Path(folder)).get("tie_word_embeddings", False)
    return (
        None
        if tied or "lm_head.weight" not in checkpoint.shapes
        else checkpoint["lm_head.weight"].astype("float32")
    )


def load_tokenizer(folder: Path, vocab_size: int | None = None) -> Any:
    """The tokenizer of a folder or a GGUF file, local files only; the end-of-text token pads where
    there is no padding token.

    Raises InputError if there is none, or if it gives ids that the model has no embedding for
    (``vocab_size``).
    """
    folder = Path(folder)
    tokenizer = gguf.read_tokenizer(folder) if gguf.is_gguf(folder) else _folder_tokenizer(folder)
    if tokenizer.pad_token is None:
        substitute = tokenizer.eos_token or tokenizer.unk_token
        if substitute is None:
            raise InputError(
                f"{folder}: the tokenizer cannot pad; set pad_token in tokenizer_config.json"
            )
        tokenizer.pad_token = substitute
    known = max(tokenizer.get_vocab().values(), default=-1) + 1
    if vocab_size is not None and known > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer gives ids up to {known - 1} but the configuration says"
            f" vocab_size {vocab_size}; take tokenizer and weights from the same model"
        )
    return tokenizer


def _folder_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except (
        Exception
    ) as error:  # transformers raises a different type for each missing or damaged file
        there = (folder / "tokenizer.json").exists() or (folder / "vocab.txt").exists()
        reason = f" ({(str(error).strip().splitlines() or [type(error).__name__])[0]})" * there
        raise InputError(
            f"{folder}: no tokenizer could be loaded{reason}; the folder needs tokenizer.json or"
            " vocab.txt"
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

    name: what ``resolve_weights`` takes. backend: 'native' (this package's) or 'hf_flax'
    (transformers' Flax classes). dtype: of the activations; weights are f32. remat: layers are
    computed again in the backward pass, at a third more time, so that only their inputs are kept.
    max_length: the longest text in tokens that will be encoded; shortened to what the model can
    read.
    """
    folder = resolve_weights(name)
    if backend == "native":
        model = load_model(folder, dtype)
        model.remat = remat
        encoder: TextEncoder = NativeEncoder(model, pooling=pooling, normalize=normalize)
        vocab_size = model.config.vocab_size
        encoder.max_length = min(encoder.max_length, max_length)
    elif backend == "hf_flax":
        if remat:
            raise InputError(
                "teacher.lm.remat=True needs teacher.lm.backend='native'; hf_flax keeps all"
                " activations"
            )
        encoder = HFFlaxEncoder(
            folder, pooling=pooling, normalize=normalize, dtype=dtype, max_length=max_length
        )
        vocab_size = encoder.vocab_size
    else:
        raise InputError(f"teacher.lm.backend={backend!r} is unknown{nearest(backend, BACKENDS)}")
    return encoder, load_tokenizer(folder, vocab_size)
