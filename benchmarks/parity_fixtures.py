"""Creates the fixtures of the parity tests with transformers' PyTorch classes.

    python benchmarks/parity_fixtures.py [family …]  # needs only torch and transformers

writes a tiny random model to tests/models/fixtures/<family>/: config.json and model.safetensors in
the format of the hub, and parity.safetensors with inputs (``ids.<padding>``, ``mask.<padding>``:
int32 [B, L]), the hidden states that PyTorch computes from them (``hidden.<padding>.<layer>``: f32
[B, L, D]; layer 0 is the embeddings) and ``last.<padding>``, which may have a further norm. The
padding is 'none' (called without a mask), 'right' or 'left'. A family is one line of FAMILIES.

    python benchmarks/parity_fixtures.py FOLDER  # of real weights, with their tokenizer

writes tests/models/fixtures/<name of the folder>.safetensors instead: ids and mask of three texts,
padded on the right, ``first.<layer>``: f32 [3, 64], the start of the first token's hidden state,
and ``mean``: f32 [3, D] over the tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parents[1] / "tests" / "models" / "fixtures"
LENGTHS = [9, 5, 1]  # tokens of the three texts
LIMIT = 60_000  # bytes that a family may take in the repository

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
DISTILBERT: dict[str, Any] = {
    "vocab_size": 40,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 24,
}
DISTILBERT |= {"max_position_embeddings": 20}
DECODER = SMALL | {"bos_token_id": 1, "eos_token_id": 2}
GROUPED = DECODER | {"num_key_value_heads": 2}
# A context so short that, with rope_theta 100, all three kinds of waves occur: left, stretched, and
# in between.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}
# A layer with a window shorter than the text and another base of rotations; scores that are divided
# by the root of 12, not of the heads' 8.
GEMMA = DECODER | {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 12,
    "rope_theta": 1000.0,
    "rope_local_base_freq": 50.0,
}
# Global attention in the first and last layer, one token to either side in between. The default ids
# of special tokens are beyond this vocabulary.
MODERNBERT: dict[str, Any] = SMALL | {
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "global_attn_every_n_layers": 2,
    "local_attention": 3,
    "global_rope_theta": 1000.0,
    "local_rope_theta": 50.0,
    **dict.fromkeys(["eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"], 2),
    "pad_token_id": 0,
}
# Family -> (transformers' model_type, fields of the configuration).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "distilbert": ("distilbert", DISTILBERT),
    "mpnet": ("mpnet", SMALL),
    "roberta": ("roberta", SMALL | {"type_vocab_size": 1}),
    "embeddinggemma": ("gemma3_text", {**GEMMA, "use_bidirectional_attention": True}),
    "modernbert": ("modernbert", MODERNBERT),
    "nomic_bert": (  # needs transformers 5
        "nomic_bert",
        {**SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    ),
    # Decoders: two query heads share a key, heads are wider than hidden_size / heads where the
    # family allows it.
    "gemma3": (
        "gemma3_text",
        {**GEMMA, "attention_bias": True, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    ),
    "gpt2": ("gpt2", {**DECODER, "n_inner": 24}),
    "llama": ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "rope_theta": 500.0}),
    "llama_llama3": (
        "llama",
        {**GROUPED, "head_dim": 8, "rope_theta": 100.0, "rope_scaling": LLAMA3},
    ),
    "llama_linear": ("llama", {**GROUPED, "rope_scaling": {"type": "linear", "factor": 3.0}}),
    "mistral": ("mistral", {**GROUPED, "head_dim": 8, "sliding_window": 4}),
    "qwen2": (
        "qwen2",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 8, "attention_bias": True, "rope_theta": 1e6}),
}
TEXTS = [
    "Heat (1995). Crime, Drama",
    "Toy Story",
    (
        "A long line of animals followed the fox through the wood and up to a house on the hill"
        " that nobody lived in."
    ),
]


def build(kind: str, fields: dict[str, Any], seed: int = 0) -> Any:
    """A PyTorch model with all parameters random.

    The usual initial values of biases and norms would hide errors.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(seed)
    model = AutoModel.from_config(
        AutoConfig.for_model(kind, **fields), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs(vocab_size: int, pad_id: int | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Token ids and masks, int32 [B, L], by padding.

    No token has the id of padding, which is ``pad_id``, or 0.
    """
    pad = pad_id or 0
    length = max(LENGTHS)
    ids = np.random.default_rng(0).integers(pad + 1, vocab_size, (len(LENGTHS), length), np.int32)
    columns = np.arange(length)[None]
    lengths = np.array(LENGTHS)[:, None]
    masks = {"none": columns >= 0, "right": columns < lengths, "left": columns >= length - lengths}
    rows = {name: np.broadcast_to(mask, ids.shape) for name, mask in masks.items()}
    return {
        name: (np.where(mask, ids, pad).astype(np.int32), mask.astype(np.int32))
        for name, mask in rows.items()
    }


def outputs(model: Any) -> dict[str, np.ndarray]:
    """The tensors of parity.safetensors: inputs and the hidden states of every layer."""
    import torch

    tensors: dict[str, np.ndarray] = {}
    for padding, (ids, mask) in inputs(model.config.vocab_size, model.config.pad_token_id).items():
        masked = {} if padding == "none" else {"attention_mask": torch.from_numpy(mask)}
        if model.config.model_type == "gpt2":  # by default it counts padding on the left as text
            masked["position_ids"] = torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0))
        with torch.no_grad():
            output = model(torch.from_numpy(ids).long(), output_hidden_states=True, **masked)
        tensors |= {
            f"ids.{padding}": ids,
            f"mask.{padding}": mask,
            f"last.{padding}": output.last_hidden_state.numpy(),
        }
        # transformers' ModernBERT leaves the final norm out of the hidden states.
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        tensors |= {
            f"hidden.{padding}.{layer}": state.numpy() for layer, state in enumerate(states)
        }
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def write(family: str, folder: Path) -> int:
    """Writes the folder of a family; returns its size in bytes."""
    from safetensors.numpy import save_file

    kind, fields = FAMILIES[family]
    model = build(kind, fields)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if "use_bidirectional_attention" in fields:
        # transformers 4 writes half of the window, of which a model that reads it takes half again.
        path = folder / "config.json"
        written = json.loads(path.read_text()) | {"sliding_window": fields["sliding_window"]}
        path.write_text(json.dumps(written, indent=2) + "\n")
    save_file(outputs(model), folder / "parity.safetensors")
    return sum(path.stat().st_size for path in folder.iterdir())


def write_real(folder: Path, path: Path) -> None:
    """Writes a part of what PyTorch computes with a folder of real weights."""
    import torch
    from safetensors.numpy import save_file
    from transformers import AutoModel, AutoTokenizer

    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()(
            **batch, output_hidden_states=True
        )
    mask = batch["attention_mask"].numpy().astype(np.int32)
    tensors = {"ids": batch["input_ids"].numpy().astype(np.int32), "mask": mask}
    tensors |= {
        f"first.{layer}": state[:, 0, :64].numpy()
        for layer, state in enumerate(output.hidden_states)
    }
    last = output.last_hidden_state.numpy().astype(np.float64)
    tensors["mean"] = ((last * mask[..., None]).sum(1) / mask.sum(1)[:, None]).astype(np.float32)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)


def main(families: list[str]) -> None:
    for family in families or FAMILIES:
        if family not in FAMILIES:
            write_real(Path(family), FIXTURES / f"{Path(family).name}.safetensors")
            continue
        size = write(family, FIXTURES / family)
        print(f"{family:12} {size:7,} bytes")
        assert size < LIMIT, f"{family} takes {size:,} bytes; make it smaller than {LIMIT:,}"


if __name__ == "__main__":
    main(sys.argv[1:])
