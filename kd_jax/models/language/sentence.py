"""How a folder of weights means its texts to be read: the modules of sentence-transformers.

``modules.json`` lists a Transformer, a Pooling, and Dense and Normalize modules after it. The names
of the files and of their fields changed between versions 0 and 6; all are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json
from kd_jax.models.language import adapter, gguf
from kd_jax.models.language.pooling import POOLINGS
from kd_jax.models.language.weights import resolve_weights

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
MAX_TOKENS = 64  # of a text, by default
UNIT = ""  # in ``Reading.head``: scale to length 1; other entries are folders of Dense modules
COPY = "copy the folder again"
# sentence-transformers' names of the poolings -> ours. In files before version 5.4 each is a field
# of its own, and they are concatenated in this order.
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
GGUF_POOLINGS = {1: "mean", 2: "cls", 3: "last"}


@dataclasses.dataclass(frozen=True)
class Reading:
    """How texts become vectors; None: not known.

    weights: the folder or file of the language model itself. pooling, normalize: see
    ``pooling.pool``; several poolings are joined by '+'. max_tokens: of a text. prompt: put before
    every text. include_prompt: whether its tokens are pooled. lower_case: whether texts are lowered
    first. head: what follows the pooling, ``UNIT`` or a Dense module as for ``dense.load_dense``; a
    last ``UNIT`` is ``normalize``. prompts: (name, text) of all prompts of the folder.
    """

    weights: Path
    pooling: str | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    prompt: str | None = None
    include_prompt: bool = True
    lower_case: bool = False
    head: tuple[str, ...] = ()
    prompts: tuple[tuple[str, str], ...] = ()


def read_folder(name: str | Path, folder: Path) -> Reading:
    """The settings in ``folder``; name: by which it was found.

    Raises InputError for a module that cannot be applied, and for damaged files.
    """
    if str(name) in OWN:
        return dataclasses.replace(OWN[str(name)], weights=folder)
    if gguf.is_gguf(folder):
        return _gguf(folder)
    path = folder / MODULES
    if not path.is_file():
        return _base(folder) if adapter.is_adapter(folder) else Reading(folder)
    listed = read_json(path, COPY)
    if not isinstance(listed, list) or not all(
        isinstance(entry, dict) and {"path", "type"} <= entry.keys() for entry in listed
    ):
        raise InputError(f"{path} is no list of modules with path and type; {COPY}")
    kinds = [_kind(path, entry) for entry in listed]
    folders = [_inside(folder, path, str(entry["path"])) for entry in listed]
    if kinds[:1] != ["Transformer"] or "Pooling" not in kinds:
        raise InputError(
            f"{path}: the modules are {', '.join(kinds) or 'none'}, but only a Transformer with a"
            " Pooling after it can be read; choose other weights, or delete modules.json to read"
            " the Transformer alone"
        )
    pooling = kinds.index("Pooling")
    if kinds[1:pooling] or "Pooling" in kinds[pooling + 1 :] or "Transformer" in kinds[1:]:
        raise InputError(
            f"{path}: the order {', '.join(kinds)} is not supported (Transformer, Pooling, then"
            " Dense and Normalize); choose other weights"
        )
    after = zip(kinds[pooling + 1 :], folders[pooling + 1 :], strict=True)
    head = [str(part) if kind == "Dense" else UNIT for kind, part in after if kind != "Dropout"]
    normalize = bool(head) and head[-1] == UNIT
    while head and head[-1] == UNIT:
        head.pop()
    mode, include = _pooling(folders[pooling])
    return Reading(
        folders[0],
        pooling=mode,
        normalize=normalize,
        include_prompt=include,
        head=tuple(head),
        **_transformer(folders[0]),
        **_prompts(folder),
    )


# The default weights of configs/common.py are read as they were when they were measured
# (docs/results.md); their folder has normalize=True and 256 tokens.
OWN = dict.fromkeys(
    ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
    Reading(Path(), pooling="mean", normalize=False, max_tokens=MAX_TOKENS),
)


def choose(
    found: Reading,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
) -> tuple[Reading, tuple[str, ...]]:
    """``found`` with the given settings in place of its own, and lines that say what differs.

    The defaults are mean pooling, any length, ``MAX_TOKENS`` and no prompt. prompt: a text,
    or the name of one of the folder's prompts.
    """
    wanted = {"pooling": pooling, "normalize": normalize, "max_tokens": max_tokens}
    wanted["prompt"] = None if prompt is None else dict(found.prompts).get(prompt, prompt)
    usual = {"pooling": "mean", "normalize": False, "max_tokens": MAX_TOKENS, "prompt": ""}
    values: dict[str, Any] = {}
    differs = []
    for name, value in wanted.items():
        theirs = getattr(found, name)
        values[name] = next(one for one in (value, theirs, usual[name]) if one is not None)
        if value is not None and theirs is not None and value != theirs:
            differs.append(f"teacher.lm.{name}={value!r} (its files have {theirs!r})")
    notes = []
    if differs:
        notes.append(f"the configuration differs from {found.weights}: {', '.join(differs)}")
    given = [name for name, text in found.prompts if text]
    if given and values["prompt"] == "" and prompt is None:
        notes.append(
            f"{found.weights} has the prompts {', '.join(given)} and no default; none is put before"
            f" the texts (teacher.lm.prompt={given[0]} would use one)"
        )
    return dataclasses.replace(found, **values), tuple(notes)


def _base(folder: Path) -> Reading:
    """What the base model of an adapter has; the adapter was trained for its modules."""
    name = str(adapter.read_adapter_config(folder).get("base_model_name_or_path"))
    found = read_folder(name, adapter.base_folder(folder, resolve_weights))
    return dataclasses.replace(found, weights=folder)


def _gguf(path: Path) -> Reading:
    """What a GGUF file has: the pooling, and EmbeddingGemma's Dense modules."""
    reader = gguf.read(path)
    dense = [str(path / name) for name in gguf.DENSE if f"{name}.weight" in reader.tensors]
    pooling = GGUF_POOLINGS.get(reader.field("pooling_type"))
    return Reading(path, pooling=pooling, head=tuple(dense))


def _kind(path: Path, entry: Mapping[str, Any]) -> str:
    """The class of a module, whose path in the package differs between versions."""
    kind = str(entry["type"])
    name = kind.rpartition(".")[2]
    known = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
    if kind.partition(".")[0] != "sentence_transformers" or name not in known:
        raise InputError(
            f"{path}: the module {kind} cannot be applied (supported: {', '.join(known)});"
            " choose other weights, or delete modules.json to read the Transformer alone"
        )
    return name


def _inside(folder: Path, path: Path, name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{path}: the module path {name!r} leaves the folder; {COPY}")
    return folder / name


def _settings(path: Path) -> dict[str, Any]:
    written = read_json(path, COPY)
    if not isinstance(written, dict):
        raise InputError(f"{path} holds no fields; {COPY}")
    return written


def _pooling(folder: Path) -> tuple[str, bool]:
    """The pooling, and whether a prompt is pooled."""
    path = folder / "config.json"
    written = _settings(path)
    flags = [mode for field, mode in FLAGS.items() if written.get(field, False)]
    modes = written.get("pooling_mode", flags or ["mean"])
    modes = [modes] if isinstance(modes, str) else list(modes)
    modes = ["last" if mode == "lasttoken" else str(mode) for mode in modes]
    for mode in modes:
        if mode not in POOLINGS:
            raise InputError(
                f"{path}: pooling {mode!r} is not supported (supported: {', '.join(POOLINGS)});"
                " set teacher.lm.pooling, after deleting the field, or choose other weights"
            )
    return "+".join(modes), bool(written.get("include_prompt", True))


def _transformer(folder: Path) -> dict[str, Any]:
    """The longest text, and whether texts are lowered first."""
    path = next(iter(sorted(folder.glob("sentence_*_config.json"))), None)
    written = {} if path is None else _settings(path)
    text = (written.get("modality_config") or {}).get("text") or {}
    found = {
        "transformer_task": written.get("transformer_task"),
        "module_output_name": written.get("module_output_name"),
        "method": text.get("method"),
        "method_output_name": text.get("method_output_name"),
    }
    usual = {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "method": "forward",
        "method_output_name": "last_hidden_state",
    }
    for field, value in found.items():
        if value not in (None, usual[field]):
            raise InputError(
                f"{path}: {field} {value!r} is not supported (supported: {usual[field]!r});"
                " choose other weights"
            )
    most = written.get("max_seq_length")
    tokenizer = folder / "tokenizer_config.json"
    if most is None and tokenizer.is_file():  # as from version 5.4 on
        most = _settings(tokenizer).get("model_max_length")
    # transformers writes 1e30 where there is no limit.
    known = isinstance(most, (int, float)) and 0 < most < 1e9
    return {
        "max_tokens": int(most or 0) if known else None,
        "lower_case": bool(written.get("do_lower_case", False)),
    }


def _prompts(folder: Path) -> dict[str, Any]:
    """The prompts, and the text of the default one."""
    path = folder / PROMPTS
    written = _settings(path) if path.is_file() else {}
    prompts = {str(name): str(text or "") for name, text in (written.get("prompts") or {}).items()}
    default = written.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise InputError(
            f"{path}: default_prompt_name {default!r} is none of the prompts"
            f" {', '.join(prompts) or '(there are none)'}; correct or delete the field"
        )
    return {
        "prompt": None if default is None else prompts[default],
        "prompts": tuple(prompts.items()),
    }
