"""Creates the fixtures of LoRA folders, with the hidden states that peft computes from them.

    python benchmarks/lora_fixtures.py  # needs only torch, transformers and peft

writes tests/models/fixtures/lora/<case>/ with the installed peft: an adapter of the tiny model in
tests/models/fixtures/<family>, all of its parameters random, and hidden.safetensors: ``ids`` int32
[1, L] and ``last``, the last hidden states f32 [1, L, D].
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parents[1] / "tests" / "models" / "fixtures"
# Case -> (family, whether the adapter is of a model with a head, arguments of LoraConfig).
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "gpt2": ("gpt2", True, {"r": 2, "lora_alpha": 5, "target_modules": ["c_attn", "c_proj"]}),
    "llama": (
        "llama",
        True,
        {
            "r": 2,
            "lora_alpha": 4,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"down_proj": 3},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 1},
        },
    ),
    "roberta": ("roberta", False, {"r": 2, "target_modules": ["query", "output.dense"]}),
}


def main() -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.numpy import save_file
    from transformers import AutoModel, AutoModelForCausalLM

    for case, (family, head, how) in CASES.items():
        torch.manual_seed(0)
        kind = AutoModelForCausalLM if head else AutoModel
        model = get_peft_model(kind.from_pretrained(FIXTURES / family), LoraConfig(**how)).eval()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.3 * torch.randn_like(parameter)
        ids = torch.arange(2, 11)[None]
        with torch.no_grad():
            output = model(input_ids=ids, output_hidden_states=True)
        folder = FIXTURES / "lora" / case
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        path = folder / "adapter_config.json"
        written = json.loads(path.read_text()) | {"base_model_name_or_path": f"../../{family}"}
        path.write_text(json.dumps(written, indent=1) + "\n")
        last = output.hidden_states[-1].numpy()
        tensors = {"ids": ids.numpy().astype(np.int32), "last": last}
        save_file(tensors, folder / "hidden.safetensors")


if __name__ == "__main__":
    main()
