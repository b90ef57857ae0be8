"""Tests which Flax families of transformers work as a teacher with the backend 'hf_flax'.

    python benchmarks/hf_flax_families.py [family …]

Needs torch beside transformers 4, and takes a minute on 2 cores. For every family with a Flax
class, a tiny random folder that the PyTorch class saved is loaded as a teacher would load it. Its
hidden states are compared with PyTorch's (no padding, right, left; real tokens only), and its
gradient is checked for NaN. Prints the table of docs/teachers.md.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from benchmarks.parity_fixtures import DISTILBERT, SMALL, build, outputs
from kd_jax.core.errors import InputError
from kd_jax.models.language.hf import ARCHITECTURES
from kd_jax.models.language.hf_flax import HFFlaxEncoder, _flax_classes

GPT = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 20}
NARROW = SMALL | {"embedding_size": 8}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 4}
# Families that read text alone -> what makes them small.
SIZES: dict[str, dict[str, Any]] = {
    "albert": NARROW,
    "bert": SMALL,
    "big_bird": SMALL,
    "bloom": {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "distilbert": DISTILBERT,
    "electra": NARROW,
    "gemma": GROUPED,
    "gpt-sw3": GPT,
    "gpt2": GPT,
    "gpt_neo": {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": 20,
    }
    | {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gptj": GPT | {"rotary_dim": 4},
    "llama": GROUPED,
    "mistral": GROUPED | {"max_position_embeddings": 131072, "sliding_window": None},
    "opt": SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "roberta": SMALL,
    "roberta-prelayernorm": SMALL,
    "roformer": SMALL,
    "xglm": (
        {"vocab_size": 40, "d_model": 16, "num_layers": 2, "attention_heads": 4, "ffn_dim": 24}
        | {"max_position_embeddings": 20}
    ),
    "xlm-roberta": SMALL,
}
TOLERANCE = 1e-5


def difference(encoder: HFFlaxEncoder, tensors: dict[str, np.ndarray]) -> dict[str, float]:
    """Padding -> greatest difference of the last hidden state from PyTorch's, over real tokens."""
    found = {}
    for padding in ("none", "right", "left"):
        ids = tensors[f"ids.{padding}"]
        mask = tensors[f"mask.{padding}"]
        hidden = encoder.hidden(jnp.asarray(ids), jnp.asarray(mask), None)
        found[padding] = float(abs(np.asarray(hidden) - tensors[f"last.{padding}"])[mask > 0].max())
    return found


def finite_gradient(encoder: HFFlaxEncoder, tensors: dict[str, np.ndarray]) -> bool:
    graphdef, params, *rest = nnx.split(encoder, nnx.Param, ...)
    ids = jnp.asarray(tensors["ids.right"])
    mask = jnp.asarray(tensors["mask.right"])
    grads = jax.jit(
        jax.grad(lambda params: (nnx.merge(graphdef, params, *rest)(ids, mask) ** 3).sum())
    )(params)
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


def verdict(family: str) -> str:
    """One line: works, or why not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if family not in SIZES:
            (folder / "config.json").write_text(f'{{"model_type": "{family}"}}')
            try:
                HFFlaxEncoder(folder)
            except InputError as error:
                return f"refused: {str(error).partition('config.json: ')[2].partition(';')[0]}"
            return "loads, though it is not supported"
        model = build(family, SIZES[family])
        model.save_pretrained(folder, safe_serialization=True)
        tensors = outputs(model)
        try:
            encoder = HFFlaxEncoder(folder, max_length=12)
        except InputError as error:
            return f"refused: {error}".replace(str(folder), "folder")
        differences = difference(encoder, tensors)
        finite = finite_gradient(encoder, tensors)
        # Folders of models with a head have a prefix before every name.
        weights = load_file(folder / "model.safetensors")
        prefixed = {f"{model.base_model_prefix}.{name}": value for name, value in weights.items()}
        save_file(prefixed, folder / "model.safetensors")
        HFFlaxEncoder(folder, max_length=12)
    wrong = [
        f"{padding} padding {value:.0e}"
        for padding, value in differences.items()
        if not value < TOLERANCE
    ]
    return (
        ("works" if not wrong else f"differs from PyTorch: {', '.join(wrong)}")
        + (f"; {max(differences.values()):.0e}" if not wrong else "")
        + ("" if finite else "; gradient not finite")
    )


def main(families: list[str]) -> None:
    warnings.simplefilter("ignore")
    print("| family | hf_flax | native |\n|---|---|---|")
    for family in families or _flax_classes()[1]:
        try:
            line = verdict(family)
        except Exception as error:
            line = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        print(f"| {family} | {line} | {'yes' if family in ARCHITECTURES else ''} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
