"""What single sections of a configuration mean, and what a command may change in them."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.core.errors import InputError, nearest
from kd_jax.models.language.model import LanguageModel
from kd_jax.training.recipe import Recipe

TUNED = ("teacher", "student", "distill", "train")  # sections of which ``tuned`` may set fields
SHARED = tuple(
    f"distill.{x}" for x in ("labels", "teachers", "sources", "rank_decay", "max_unmatched")
)


def settings_of(config: ConfigDict, model: str) -> ConfigDict:
    """The configuration with what was tuned for ``model`` on top."""
    c = ConfigDict(config.to_dict())
    known = [f"{section}.{name}" for section in TUNED for name in c[section]]
    for entry in config.tuned[model]:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise InputError(
                f"tuned.{model}: {entry!r} is no pair; give (('train.learning_rate', 0.01), …)"
            )
        field, value = entry
        if field not in known:
            raise InputError(f"tuned.{model}: no field {field!r}{nearest(field, known)}")
        if field in SHARED:
            raise InputError(
                f"tuned.{model}: {field} is the same for all models; set it with --config.{field}"
            )
        _put(c, field, value, f"tuned.{model}")
    if model == "control_teacher":
        c.teacher.update(
            form="bi",
            item_features="id",
            context="items",
            train="head",
            softmax="full",
            hard_negatives=0,
        )
    return c


def selects(config: ConfigDict) -> str:
    """The validation metric that selects."""
    return config.eval.select or {"rate": "auc"}.get(config.task, "ndcg@10")


def changed(config: ConfigDict, changes: Sequence[str], fields: Sequence[str] = ()) -> ConfigDict:
    """The config with 'teacher.steps=200', … (Python literals) set. fields: of ``teacher`` that may
    be; () = all.

    Raises InputError for anything else.
    """
    config = ConfigDict(config.to_dict())
    for change in changes:
        field, _, value = change.partition("=")
        section, _, name = field.partition(".")
        known = [name for name in config.teacher if name in fields or not fields]
        if section != "teacher" or name not in known or not value:
            raise InputError(
                f"--set {change}: give"
                f" teacher.<field>=<value>{nearest(field, [f'teacher.{name}' for name in known])}"
            )
        new: Any = value
        with contextlib.suppress(ValueError, SyntaxError):  # a word stands for itself
            new = ast.literal_eval(value)
        _put(config, field, new, f"--set {change}")
    return config


def _put(config: ConfigDict, field: str, value: Any, where: str) -> None:
    """Raises InputError for a value of another type than the field has."""
    section, _, name = field.partition(".")
    old = config[section][name]
    if isinstance(old, (list, tuple)):
        value = type(old)(value) if isinstance(value, (list, tuple)) else type(old)([value])
    try:
        if value is None:
            raise TypeError
        config[section][name] = value
    except TypeError:
        raise InputError(
            f"{where}: {field} is {old!r} now; give another {type(old).__name__}"
        ) from None


def reads_text(teacher: ConfigDict) -> bool:
    """Whether a teacher with these settings (section ``teacher``) has a language model."""
    return teacher.form == "cross" or "text" in (*teacher.item_features.split("+"), teacher.context)


def trains_text(teacher: ConfigDict) -> bool:
    """Whether that language model is trained, in part or in full."""
    return reads_text(teacher) and teacher.train != "head"


def recipe(section: ConfigDict) -> Recipe:
    """How a model is trained, of the section ``teacher`` or ``train``."""
    return Recipe(
        **{f.name: section[f.name] for f in dataclasses.fields(Recipe) if f.name in section}
    )


def language_model(teacher: ConfigDict, cache: Path) -> LanguageModel:
    """The language model of the section ``teacher``."""
    names = (
        "backend", "pooling", "normalize", "max_tokens", "train", "top_n", "lora_rank", "dtype", "remat"
    )  # fmt: skip
    return LanguageModel(
        teacher.weights,
        lora_targets=tuple(teacher.lora_targets),
        cache=cache,
        **{name: teacher[name] for name in names},
    )
