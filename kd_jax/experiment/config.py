"""What single sections of a configuration mean, and what a command may change in them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.core.errors import InputError, nearest
from kd_jax.distillation.term import ITEMS, SCHEDULES, TERMS, Term
from kd_jax.experiment.renamed import new_name
from kd_jax.experiment.sections import TERM, completed, merged, put, schedule
from kd_jax.models.language.model import LanguageModel
from kd_jax.training.recipe import Recipe


def settings_of(config: ConfigDict, role: str) -> ConfigDict:
    """The configuration with what was tuned for ``role`` on top."""
    c = merged(config, config.tuned[role], f"tuned.{role}")
    if role == "control_teacher":
        c.teacher.lm.train = "head"
        c.teacher.model.update(
            form="bi",
            item_features="id",
            context="items",
            softmax="full",
            hard_negatives=0,
        )
    return c


def selects(config: ConfigDict) -> str:
    """The validation metric that selects."""
    return config.eval.select or {"rate": "auc"}.get(config.task, "ndcg@10")


def changed(config: ConfigDict, changes: Sequence[str], fields: Sequence[str] = ()) -> ConfigDict:
    """The config with 'teacher.optimizer.steps=200', … (Python literals) set. fields: of
    ``teacher``, such as 'optimizer.steps', that may be; () = all.

    Raises InputError for anything else.
    """
    config = ConfigDict(config.to_dict())
    for change in changes:
        field, _, value = change.partition("=")
        if new := new_name(field):
            raise InputError(f"--set {change}: {new}")
        known = [f"teacher.{name}" for name in fields]
        if not field.startswith("teacher.") or (fields and field not in known) or not value:
            raise InputError(
                f"--set {change}: give teacher.<section>.<field>=<value>"
                + (nearest(field, known) if known else "")
            )
        put(config, field, value, f"--set {change}", text=True)
    return config


def student_section(config: ConfigDict) -> ConfigDict:
    """The section of the student that ``student.name`` chooses. Raises InputError where there is
    none.
    """
    name = config.student.name
    found = config.student.get(name)
    if not isinstance(found, ConfigDict):
        raise InputError(f"student.name={name!r} has no section student.{name}; add it to configs/")
    return found


def term_of(
    name: str, section: Mapping[str, Any], field: str, *, negatives: int = 0, top: int = 0
) -> Term:
    """The term ``name`` of its section, the config field ``field``.

    negatives, top: of a term over a sample of the catalogue. Raises InputError for a section that
    is no term.
    """
    for key in section:
        if key not in TERM:
            raise InputError(f"{field}: no field {key!r}{nearest(key, TERM)}")
    c = completed(TERM, section)
    for key, known in (("loss", TERMS), ("items", ITEMS)):
        if c[key] not in known:
            raise InputError(f"{field}.{key}={c[key]!r} is unknown{nearest(c[key], known)}")
    weight, falls = _weight(c.weight, f"{field}.weight")
    return Term(
        c.loss,
        weight,
        _temperature(c.temperature, f"{field}.temperature"),
        falls,
        c["items"],  # ConfigDict.items is its method
        negatives,
        top,
        c.teacher,
    )


def _schedule(value: Any, field: str, least: str) -> tuple[float, float, str]:
    """(start, end, schedule) of a weight or a temperature. least: what its numbers must be."""
    section = schedule(value)
    for key in section:
        if key not in ("start", "end", "schedule"):
            raise InputError(
                f"{field}: no field {key!r}{nearest(key, ('start', 'end', 'schedule'))}"
            )
    if section.schedule not in SCHEDULES:
        known = nearest(section.schedule, SCHEDULES)
        raise InputError(f"{field}.schedule={section.schedule!r} is unknown{known}")
    for key in ("start", "end"):
        number = section[key]
        name = f"{field}.{key}" if isinstance(value, (Mapping, ConfigDict)) else field
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            raise InputError(f"{name}={number!r} must be a number{least}")
    return section.start, section.end, section.schedule


def _weight(value: Any, field: str) -> tuple[float, str]:
    start, end, kind = _schedule(value, field, " from 0 up")
    if start < 0 or end < 0:
        raise InputError(f"{field}={min(start, end)!r} must be a number from 0 up")
    if start == end or kind == "constant":
        return start, "constant"
    if end:
        raise InputError(f"{field}.end={end!r}: a weight falls to 0; give 0 or the start, {start}")
    return start, kind


def _temperature(value: Any, field: str) -> float:
    start, end, kind = _schedule(value, field, " above 0")
    if start <= 0 or end <= 0:
        raise InputError(f"{field}={min(start, end)!r} must be a number above 0")
    if start != end and kind != "constant":
        raise InputError(f"{field}.end={end!r}: a temperature stays as it is; give {start}")
    return start


def reads_text(teacher: ConfigDict) -> bool:
    """Whether a teacher with these settings (section ``teacher``) has a language model."""
    c = teacher.model
    return c.form == "cross" or "text" in (*c.item_features.split("+"), c.context)


def trains_text(teacher: ConfigDict) -> bool:
    """Whether that language model is trained, in part or in full."""
    return reads_text(teacher) and teacher.lm.train != "head"


def recipe(section: ConfigDict) -> Recipe:
    """How a model is trained, of the section ``teacher.optimizer`` or ``student.optimizer``."""
    return Recipe(
        **{f.name: section[f.name] for f in dataclasses.fields(Recipe) if f.name in section}
    )


def language_model(section: ConfigDict, cache: Path) -> LanguageModel:
    """The language model of the section ``teacher.lm``."""
    names = (
        "backend", "pooling", "normalize", "max_tokens", "train", "top_n", "lora_rank", "dtype", "remat"
    )  # fmt: skip
    return LanguageModel(
        section.weights,
        lora_targets=tuple(section.lora_targets),
        cache=cache,
        **{name: section[name] for name in names},
    )
