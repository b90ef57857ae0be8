"""Creates the fixtures of sentence-transformers folders, with the vectors that it computes.

    python benchmarks/sentence_fixtures.py NAME  # needs only torch and sentence-transformers

writes, with the installed version, tests/models/fixtures/sentence/NAME/: ``base`` with a tiny
random BERT and its tokenizer, and a folder for each of CASES with the files that are not in base
and ``vectors.safetensors``: f32 [4, D] of TEXTS. NAME is 'v3' or 'v6', or a path for a trial.

    python benchmarks/sentence_fixtures.py embedders

writes a folder for each of EMBEDDERS, in the form of an embedding model made from a decoder, with
the vectors of TEXTS with each of its prompts, and without one as ``none``. It needs transformers 5:
version 4 writes half the window of EmbeddingGemma, of which it takes half again when it reads it.
"""

from __future__ import annotations

import filecmp
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "tests" / "models" / "fixtures" / "sentence"
TEXTS = [
    "The red house",
    "a BLUE sea of green",
    "house",
    "the house of the red sea and the blue sea of the green house and a red and a blue house",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "red", "blue", "green", "sea", "house", "of"]
WORDS += ["a", "and", "The", "passage", ":", "##s", "h", "s"]
PROMPTS = {"prompts": {"query": "a ", "document": "passage: "}, "default_prompt_name": "document"}
# Case -> (Transformer's arguments, pooling, modules after it, SentenceTransformer's arguments).
# A Dense is (in, out, activation, further arguments).
CASES: dict[str, tuple[dict[str, Any], list[str], list[Any], dict[str, Any]]] = {
    "cls": ({}, ["cls"], ["Normalize"], {}),
    "dense": ({}, ["mean"], [(16, 8, "Tanh", {}), "Normalize"], PROMPTS),
    "chain": (
        {},
        ["cls", "max", "mean"],
        [(48, 8, "Identity", {"bias": False}), "Normalize", (8, 6, "GELU", {})],
        {},
    ),
    "weighted": ({}, ["weightedmean"], [], PROMPTS),
    "last": ({"do_lower_case": True}, ["lasttoken"], [], {}),
    "root": ({"max_seq_length": None}, ["mean_sqrt_len_tokens"], ["Normalize"], {}),
    "residual": (
        {},
        ["mean"],
        [(16, 16, "ReLU", {"use_residual": True}), (16, 5, "SiLU", {"use_residual": True})],
        {},
    ),
}
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}

# Embedder -> (its line in parity_fixtures.FAMILIES, pooling, modules after it, prompts).
EMBEDDERS: dict[str, tuple[str, str, list[Any], dict[str, str]]] = {
    "embeddinggemma": (
        "embeddinggemma",
        "mean",
        [(16, 24, "Identity", {"bias": False}), (24, 16, "Identity", {"bias": False}), "Normalize"],
        {"query": "the sea | a: ", "document": "house: red | of: "},
    ),
    "qwen3": ("qwen3", "lasttoken", ["Normalize"], {"query": "red house\nsea:", "document": ""}),
}


def write_base(folder: Path) -> None:
    """A BERT with all parameters random, and a WordPiece tokenizer that keeps upper case."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=14, **special
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
    config = BertConfig(
        vocab_size=len(WORDS), num_hidden_layers=2, max_position_embeddings=20, **sizes
    )
    model = BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def write_embedder(family: str, folder: Path) -> None:
    """A decoder with all parameters random, and a tokenizer in the form of its family.

    EmbeddingGemma's has a token before and one after each text; Qwen3's has one after it, pads on
    the left and works on bytes.
    """
    import parity_fixtures
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    gemma = family == "embeddinggemma"
    space = "▁" if gemma else "Ġ"
    letters = sorted({*"".join(TEXTS), *"|:"} - {" "})
    tokens = ["<pad>", "<eos>", "<bos>", space, "Ċ", *letters, "se", "sea", f"{space}sea", "re"]
    merges = [("s", "e"), ("se", "a"), (space, "sea"), ("r", "e")]
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, merges))
    ends = {"special_tokens": [("<bos>", 2), ("<eos>", 1)]}
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", space)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.post_processor = TemplateProcessing("<bos> $A <eos>", **ends)
    else:
        tokenizer.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\s*[\r\n]+|\s+|."), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        after = TemplateProcessing("$A <eos>", **ends)
        tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=False), after])
    side = "right" if gemma else "left"
    special = {f"{role}_token": f"<{role}>" for role in (["bos"] if gemma else []) + ["pad", "eos"]}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=40, padding_side=side, **special
    ).save_pretrained(folder)
    kind, fields = parity_fixtures.FAMILIES[family]
    fields = fields | {"max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 1}
    parity_fixtures.build(kind, fields).save_pretrained(folder)


def assemble(
    base: Path, how: dict[str, Any], pooling: dict[str, Any], after: list[Any], arguments: Any
) -> Any:
    """A SentenceTransformer of these modules, with all parameters of Dense random."""
    import torch
    from sentence_transformers import SentenceTransformer, models

    modules: list[Any] = [models.Transformer(str(base), **how), models.Pooling(16, **pooling)]
    torch.manual_seed(1)
    for part in after:
        if part == "Normalize":
            modules.append(models.Normalize())
        else:
            size, out, name, further = part
            modules.append(
                models.Dense(size, out, activation_function=getattr(torch.nn, name)(), **further)
            )
    return SentenceTransformer(modules=modules, device="cpu", **arguments)


def build(base: Path, case: str) -> Any:
    """The SentenceTransformer of a case."""
    how, pooling, after, arguments = CASES[case]
    chosen = {flag: mode in pooling for mode, flag in FLAGS.items()}
    chosen["include_prompt"] = case != "weighted"
    return assemble(base, {"max_seq_length": 16} | how, chosen, after, arguments)


def write_embedders() -> None:
    """Writes a folder for each of EMBEDDERS."""
    from safetensors.numpy import save_file

    for name, (family, pooling, after, prompts) in EMBEDDERS.items():
        out = FIXTURES / "embedders" / name
        shutil.rmtree(out, ignore_errors=True)
        with tempfile.TemporaryDirectory() as base:
            write_embedder(family, Path(base))
            how = {"pooling_mode": pooling}
            model = assemble(Path(base), {}, how, after, {"prompts": prompts})
            model.save(str(out))
        (out / "README.md").unlink()
        vectors = {
            prompt or "none": model.encode(TEXTS, batch_size=4, prompt=text)
            for prompt, text in {"": "", **prompts}.items()
        }
        save_file(vectors, out / "vectors.safetensors")
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        print(f"{out}: {size:,} bytes")


def main(name: str) -> None:
    from safetensors.numpy import save_file

    if name == "embedders":
        write_embedders()
        return

    out = Path(name) if "/" in name else FIXTURES / name
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary) / "start"
        write_base(start)
        for case in CASES:
            folder = Path(temporary) / case
            try:
                model = build(start, case)
            except TypeError as error:
                print(f"{case}: not in this version ({error})")
                continue
            model.save(str(folder))
            vectors = model.encode(TEXTS, batch_size=2)
            for readme in folder.rglob("README.md"):
                readme.unlink()
            if case == "cls":
                shutil.copytree(folder, out / "base", ignore=shutil.ignore_patterns("[1-9]_*"))
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder)
                common = out / "base" / inside
                if path.is_dir():
                    (out / case / inside).mkdir(parents=True, exist_ok=True)
                elif not common.is_file() or not filecmp.cmp(path, common, shallow=False):
                    shutil.copy(path, out / case / inside)
            save_file({"vectors": vectors}, out / case / "vectors.safetensors")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
