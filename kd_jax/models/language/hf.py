"""Loads and saves language models as Hugging Face folders, and loads them from GGUF files.

No pickle is loaded and no remote code is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import write_json, write_tensors
from kd_jax.models.language import (
    bert,
    distilbert,
    gemma,
    gguf,
    gpt2,
    llama,
    modernbert,
    mpnet,
    nomic,
)
from kd_jax.models.language.dense import Dense, UnitLength, load_dense
from kd_jax.models.language.encoder import Architecture, NativeEncoder, TextEncoder, merged
from kd_jax.models.language.hf_flax import FAMILIES as FLAX
from kd_jax.models.language.hf_flax import HFFlaxEncoder
from kd_jax.models.language.sentence import (
    FLAGS,
    MODULES,
    PROMPTS,
    choose,
    read_folder,
)
from kd_jax.models.language.tokenizer import load_tokenizer
from kd_jax.models.language.weights import (
    load_tensors,
    open_weights,
    read_config,
    resolve_weights,
    saved_name,
)

BACKENDS = ("native", "hf_flax")
FAMILIES = (bert, distilbert, mpnet, nomic, modernbert, gpt2, llama, gemma)
# By model_type.
ARCHITECTURES: dict[str, Architecture] = {
    kind: architecture for family in FAMILIES for kind, architecture in family.ARCHITECTURES.items()
}


def load_model(folder: Path, dtype: Any = jnp.float32) -> Any:
    """The native model with the weights of a Hugging Face folder or a GGUF file.

    folder: has config.json and model.safetensors, or shards of it. Raises InputError for an
    unsupported architecture, a file that cannot be read, and tensors that do not fit the config.
    """
    folder = Path(folder)
    written = read_config(folder)
    kind = written.get("model_type")
    source = folder if gguf.is_gguf(folder) else folder / "config.json"
    if not kind:
        raise InputError(f"{source} has no model_type; give a folder in the format of the hub")
    if kind not in ARCHITECTURES:
        fix = "choose other weights"
        if kind in FLAX and folder.is_dir():
            fix = f"set teacher.lm.backend='hf_flax' (needs transformers 4) or {fix}"
        raise InputError(
            f"{source}: model_type {kind!r} is not supported by the native backend "
            f"(supported: {', '.join(ARCHITECTURES)}); {fix}"
        )
    architecture = ARCHITECTURES[str(kind)]
    try:
        config = architecture.config(written)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    files = architecture.view(open_weights(folder))
    saved = files.names(architecture.prefix)
    model = nnx.eval_shape(lambda: architecture.build(config, saved, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    flat = list(nnx.to_flat_state(state))
    shapes = {architecture.name(path): leaf.shape for path, leaf in flat}
    values = load_tensors(files, shapes, architecture.prefix)
    loaded = [(path, leaf.replace(values[architecture.name(path)])) for path, leaf in flat]
    return nnx.merge(graphdef, nnx.from_flat_state(loaded))


def _saved_tensors(encoder: TextEncoder, kind: str) -> tuple[str, dict[str, np.ndarray]]:
    """transformers' prefix of this model_type, and weights by the names of ``load_tensors``."""
    if not isinstance(encoder, NativeEncoder):
        assert isinstance(encoder, HFFlaxEncoder)
        return encoder.prefix, encoder.tensors()
    architecture = ARCHITECTURES[kind]
    flat = nnx.to_flat_state(nnx.state(merged(encoder.model)))
    return architecture.prefix, {
        architecture.name(path): np.asarray(leaf[...]) for path, leaf in flat
    }


def save_encoder(encoder: TextEncoder, tokenizer: Any, source: Path, folder: Path) -> None:
    """Writes an encoder as a folder for transformers and sentence-transformers.

    The folder has config, weights, tokenizer and pooling; adapters are merged into the weights.
    source: the folder or file that the encoder was loaded from; its tensors that the encoder does
    not have (a pooler) are copied. Raises InputError for a folder that is not empty.
    """
    source = read_folder("", source).weights
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give a new folder, or delete this one first")
    config, saved = read_config(source), open_weights(source)
    kind = str(config["model_type"])
    prefix, values = _saved_tensors(encoder, kind)
    if isinstance(encoder, NativeEncoder):
        config, saved = ARCHITECTURES[kind].written(config), ARCHITECTURES[kind].view(saved)
    names = saved.names(prefix)
    tensors = {name: np.asarray(saved[name], np.float32) for name in saved.shapes}
    if config.get("tie_word_embeddings", True):
        tensors.pop("lm_head.weight", None)  # tied to the word embedding, which may be trained
    for name, value in values.items():
        old, transposed = saved_name(name, names)
        assert old is not None
        tensors[names[old]] = value.T if transposed else value
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    # transformers from 4.56 on writes ``dtype`` and reads it first.
    dtypes = [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]
    write_json(folder / "config.json", config | dict.fromkeys(dtypes, "float32"))
    tokenizer.save_pretrained(folder)
    _save_modules(encoder, folder)


def _save_modules(encoder: TextEncoder, folder: Path) -> None:
    """Writes the configuration of sentence-transformers: modules, prompt, the longest text."""
    package = "sentence_transformers.models"
    ends = [UnitLength()] if encoder.normalize else []
    kinds = ["Dense" if isinstance(part, Dense) else "Normalize" for part in (*encoder.head, *ends)]
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    parts += [(f"{number}_{kind}", kind) for number, kind in enumerate(kinds, 2)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"{package}.{kind}"}
        for index, (path, kind) in enumerate(parts)
    ]
    write_json(folder / MODULES, modules)
    used = encoder.pooling.split("+")
    pooling: dict[str, Any] = {field: mode in used for field, mode in FLAGS.items()}
    if used != [mode for mode in FLAGS.values() if mode in used]:  # another order: version 5.4 on
        pooling["pooling_mode"] = ["lasttoken" if mode == "last" else mode for mode in used]
    size = {"word_embedding_dimension": encoder.width, "include_prompt": not encoder.skipped}
    write_json(folder / "1_Pooling/config.json", size | pooling)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": encoder.max_length, "do_lower_case": encoder.lower_case},
    )
    if encoder.prompt:
        prompts = {"prompts": {"default": encoder.prompt}, "default_prompt_name": "default"}
        write_json(folder / PROMPTS, prompts)
    for (path, _), part in zip(parts[2:], (*encoder.head, *ends), strict=True):
        (folder / path).mkdir(exist_ok=True)
        if isinstance(part, Dense):
            write_json(folder / path / "config.json", part.config())
            tensors = {name: np.asarray(value) for name, value in part.tensors().items()}
            write_tensors(folder / path / "model.safetensors", tensors, {"format": "pt"})


def load_head(folder: Path) -> jnp.ndarray | None:
    """``lm_head.weight``, f32 [V, D], for next-token logits; None if the word embedding is tied."""
    files = open_weights(Path(folder))
    tied = read_config(Path(folder)).get("tie_word_embeddings", False)
    if tied or "lm_head.weight" not in files.shapes:
        return None
    return files["lm_head.weight"].astype("float32")


def load_encoder(
    name: str | Path,
    *,
    backend: str = "native",
    pooling: str | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
    max_length: int | None = None,
) -> tuple[TextEncoder, Any]:
    """A pretrained text encoder and its tokenizer.

    name: see ``resolve_weights``. backend: 'native' (this package) or 'hf_flax' (transformers' Flax
    classes). pooling, normalize: see ``pooling.pool``. prompt: see ``sentence.choose``. max_length:
    tokens of the longest text to encode, limited to the model's own maximum. None: as in the
    folder. dtype: of the activations; weights are f32. remat: whether layers are computed again in
    the backward pass, at a third more time, so that only their inputs are kept. Raises InputError
    as ``load_model``, for an unknown backend, and for modules that cannot be applied.
    """
    folder = resolve_weights(name)
    found = read_folder(name, folder)
    reading, notes = choose(
        found, pooling=pooling, normalize=normalize, max_tokens=max_length, prompt=prompt
    )
    how: dict[str, Any] = {"pooling": reading.pooling, "normalize": reading.normalize}
    most = reading.max_tokens
    assert most is not None  # ``choose`` leaves nothing open
    if backend == "native":
        model = load_model(reading.weights, dtype)
        model.remat = remat
        encoder: TextEncoder = NativeEncoder(model, **how)
        vocab_size = model.config.vocab_size
        encoder.max_length = min(encoder.max_length, most)
    elif backend == "hf_flax":
        if remat:
            raise InputError(
                "teacher.lm.remat=True needs teacher.lm.backend='native'; hf_flax keeps all"
                " activations"
            )
        encoder = HFFlaxEncoder(reading.weights, dtype=dtype, max_length=most, **how)
        vocab_size = encoder.vocab_size
    else:
        raise InputError(f"teacher.lm.backend={backend!r} is unknown{nearest(backend, BACKENDS)}")
    for part in reading.head:
        encoder.head.append(load_dense(Path(part), encoder.dim) if part else UnitLength())
    encoder.prompt, encoder.lower_case = reading.prompt or "", reading.lower_case
    encoder.notes = notes
    tokenizer = load_tokenizer(reading.weights, vocab_size)
    if encoder.prompt and not reading.include_prompt:
        encoder.skipped = _prompt_length(tokenizer, encoder.read([""])[0])
    return encoder, tokenizer


def _prompt_length(tokenizer: Any, prompt: str) -> int:
    """The tokens of a prompt alone, without a special token at the end (sentence-transformers)."""
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1:] != [] and ids[-1] in tokenizer.all_special_ids)
