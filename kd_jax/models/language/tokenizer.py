"""Loads the tokenizer of a folder or a GGUF file.

``tokenizer.json`` holds all rules and is read itself. A class of transformers would build some of
them anew: version 4 refuses classes and fields that version 5 writes, and version 5 builds known
classes from vocabulary and merges, without the splits of the file.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json
from kd_jax.models.language import adapter, gguf
from kd_jax.models.language.gguf_tokenizer import read_tokenizer
from kd_jax.models.language.weights import read_config, resolve_weights

RULES = "tokenizer.json"
FILES = (
    *(RULES, "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "tokenizer_config.json"),
)
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
TOKENS = tuple(f"{role}_token" for role in ROLES)
# Other fields of tokenizer_config.json that matter here.
KEPT = ("model_max_length", "truncation_side", "padding_side", "model_input_names")


def load_tokenizer(folder: Path, vocab_size: int | None = None) -> Any:
    """The tokenizer in a folder or a GGUF file; only local files are read.

    Without a padding token, the end-of-text token is used. vocab_size: embeddings of the model.
    Raises InputError if there is no tokenizer, or if it has ids from ``vocab_size`` on.
    """
    folder = Path(folder)
    tokenizer = read_tokenizer(folder) if gguf.is_gguf(folder) else _of_folder(folder)
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
            f"{folder}: the tokenizer has ids up to {known - 1} but the configuration has"
            f" vocab_size {vocab_size}; take tokenizer and weights from the same model"
        )
    return tokenizer


def _of_folder(folder: Path) -> Any:
    if adapter.is_adapter(folder) and not any((folder / name).is_file() for name in FILES):
        return load_tokenizer(adapter.base_folder(folder, resolve_weights))
    if not (folder / RULES).is_file():
        return _by_class(folder)
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        rules = Tokenizer.from_file(str(folder / RULES))
    except Exception as error:  # the library raises plain Exception
        raise InputError(
            f"{folder / RULES} cannot be read ({str(error).splitlines()[0]}); copy the file again,"
            " or install a newer version of the tokenizers package"
        ) from None
    settings = _settings(folder)
    special = _special_tokens(rules, settings)
    _add_bos_and_eos(rules, settings, special)
    extra = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    if isinstance(extra, Mapping):  # names of further roles
        extra = list(extra.values())
    kept = {name: settings[name] for name in KEPT if settings.get(name) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=rules,
        additional_special_tokens=[_content(token) for token in extra],
        **special,
        **kept,
    )


def _by_class(folder: Path) -> Any:
    """The tokenizer of a folder without ``tokenizer.json``, by its class in transformers."""
    from transformers import AutoTokenizer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # transformers raises various types for missing or damaged files
        reason = ""
        if any((folder / name).is_file() for name in FILES):
            lines = str(error).strip().splitlines()
            reason = f" ({lines[0] if lines else type(error).__name__})"
        raise InputError(
            f"{folder}: no tokenizer could be loaded{reason}; the folder needs tokenizer.json or"
            " vocab.txt"
        ) from None


def _settings(folder: Path) -> dict[str, Any]:
    """What is known beside the rules: of the class, then of the folder's files, newest last."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        written = read_json(path, "copy the folder again") if path.is_file() else {}
        if not isinstance(written, dict):
            raise InputError(f"{path} holds no fields; copy the folder again")
        settings |= {field: value for field, value in written.items() if value is not None}
    return _class_defaults(folder, settings.get("tokenizer_class")) | settings


def _class_defaults(folder: Path, name: Any) -> dict[str, Any]:
    """The special tokens and inputs that a class of transformers has where no file names them."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    found = _class(name) if name else None
    named = found is not None
    if found is None:
        try:
            kind = read_config(folder).get("model_type", "")
        except InputError:
            return {}
        names = TOKENIZER_MAPPING_NAMES.get(str(kind)) or ()
        found = next(filter(None, map(_class, [names] if isinstance(names, str) else names)), None)
    if found is None:
        return {}
    inputs = {"model_input_names": list(found.model_input_names)}
    if name and not named:  # a general class, which has no tokens of its own
        return inputs
    parameters = inspect.signature(found.__init__).parameters
    defaults = {token: parameters[token].default for token in TOKENS if token in parameters}
    return inputs | {token: text for token, text in defaults.items() if isinstance(text, str)}


def _class(name: str | None) -> Any:
    """The fast class with this name, or None."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    stem = str(name).removesuffix("Fast")
    if not name or stem in ("PreTrainedTokenizer", "TokenizersBackend"):
        return None
    return tokenizer_class_from_name(f"{stem}Fast") or tokenizer_class_from_name(stem)


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def _special_tokens(rules: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The token of each role, as far as it is in the vocabulary."""
    from tokenizers import AddedToken

    found: dict[str, Any] = {}
    for name in TOKENS:
        value = settings.get(name)
        if value is None or rules.token_to_id(_content(value)) is None:
            continue
        flags = ("lstrip", "rstrip", "normalized", "single_word")
        given = {
            flag: value[flag] for flag in flags if isinstance(value, Mapping) and flag in value
        }
        found[name] = AddedToken(value["content"], **given) if given else _content(value)
    written = json.loads(rules.to_str())
    unknown = written["model"].get("unk_token")
    if isinstance(unknown, str) and rules.token_to_id(unknown) is not None:
        found.setdefault("unk_token", unknown)
    if rules.padding and rules.token_to_id(rules.padding["pad_token"]) is not None:
        found.setdefault("pad_token", rules.padding["pad_token"])
    return found


def _add_bos_and_eos(rules: Any, settings: Mapping[str, Any], special: Mapping[str, Any]) -> None:
    """Adds the tokens that tokenizer_config.json asks for, where ``rules`` do otherwise."""
    from tokenizers import processors

    before, after = _frame(rules)
    ends, adds, wanted = {"bos": before, "eos": after}, {}, {}
    for role, end in ends.items():
        token = special.get(f"{role}_token")
        index = None if token is None else rules.token_to_id(str(token))
        adds[role] = index is not None and end == [index]
        asked = settings.get(f"add_{role}_token")
        wanted[role] = adds[role] if asked is None or index is None else bool(asked)
    if adds == wanted or any(end and not adds[role] for role, end in ends.items()):
        return
    bos, eos = ([str(special[f"{role}_token"])] if wanted[role] else [] for role in ends)
    single = [*bos, "$A", *eos]
    pair = [f"{part}:0" for part in single] + [f"{part}:1" for part in (*bos, "$B", *eos)]
    used = [(token, rules.token_to_id(token)) for token in {*bos, *eos}]
    rules.post_processor = processors.TemplateProcessing(
        single=[f"{part}:0" for part in single], pair=pair, special_tokens=used
    )


def _frame(rules: Any) -> tuple[list[int], list[int]]:
    """The special tokens that ``rules`` put before and after a text."""
    plain, whole = (rules.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    for place in range(len(whole) - len(plain) + 1):
        if plain and whole[place : place + len(plain)] == plain:
            return whole[:place], whole[place + len(plain) :]
    return [], []
