"""Sets fields of a configuration by name; named sections (terms, sources) may be new."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from kd_jax.core import fields
from kd_jax.core.errors import InputError, nearest
from kd_jax.experiment.roles import Kind

TERM: dict[str, Any] = dict(
    loss="", weight=1.0, temperature=1.0, items="all", teacher="", head=False
)
SOURCE = {"path": "", "confidence": ""}
NAMED: dict[str, dict[str, Any]] = {
    "distill.terms": TERM,
    "distill.sources": SOURCE,
}  # sections of sections with free names
CLICKS = ("teacher.clicks", "student.clicks")
SCHEDULED = ("weight", "temperature")  # fields of a term: a number, or a section
TUNABLE = (*(kind.value for kind in Kind), "distill")  # sections of which ``tuned`` may set fields
SHARED = tuple(
    f"distill.{x}" for x in ("labels", "teachers", "sources", "rank_decay", "max_unmatched")
)


def completed(fields: Mapping[str, Any], section: Mapping[str, Any]) -> ConfigDict:
    """``section`` completed with the defaults in ``fields``.

    Integers are converted to floats where the default is a float.
    """
    found = dict(fields)
    for name, value in section.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        found[name] = float(value) if whole and isinstance(fields.get(name), float) else value
    return ConfigDict(found)


def completed_term(section: Mapping[str, Any]) -> ConfigDict:
    """A term completed with the defaults of its fields and of its loss's hyper-parameters."""
    from kd_jax.losses import LOSSES  # see _declared

    kind = LOSSES.get(section.get("loss", ""))
    hyper = {} if kind is None else {f.name: f.default for f in dataclasses.fields(kind)}
    return completed(TERM | hyper, section)


def schedule(value: Any) -> ConfigDict:
    """A weight or temperature as a schedule section.

    A number is constant, and a section without an end keeps its start.
    """
    if not isinstance(value, (Mapping, ConfigDict)):
        return ConfigDict({"start": value, "end": value, "schedule": "linear"})
    start = value.get("start", 1.0)
    return completed({"start": start, "end": value.get("end", start), "schedule": "linear"}, value)


def put(config: ConfigDict, field: str, value: Any, where: str, *, text: bool = False) -> Any:
    """Sets one field; returns the value that was set.

    text: ``value`` is text from a command line. Names of terms and of sources may be new, and a
    number becomes a schedule when its first schedule field is set. Raises InputError, starting with
    ``where``, for an unknown field, with the nearest known one, and for a value of another type
    than the field has.
    """
    *parents, name = field.split(".")
    section = config
    for depth, part in enumerate(parents):
        section = _enter(section, ".".join(parents[:depth]), part, field, where)
    if name not in section:
        raise InputError(f"{where}: no field {field!r}{nearest(name, section)}")
    old = section[name]
    scheduled = name in SCHEDULED and _is_term(".".join(parents))
    if isinstance(old, ConfigDict):
        if not scheduled:
            known = ", ".join(f"{field}.{x}" for x in old) or f"{field}.<name>"
            raise InputError(f"{where}: {field} is a section; set its fields: {known}")
        old = 1.0
    try:
        new = _typed(_literal(value, old) if text else value, old)
    except TypeError:
        raise InputError(
            f"{where}: {field} is {old!r} now; give another {type(old).__name__}"
        ) from None
    with section.ignore_type():
        section[name] = new
    return new


def _enter(section: ConfigDict, inside: str, part: str, field: str, where: str) -> ConfigDict:
    """The section ``part`` of ``inside``, completed, and created if it may have a new name."""
    path = f"{inside}.{part}" if inside else part
    if inside in NAMED:
        old = section.get(part, {})
        terms = inside == "distill.terms"
        section[part] = completed_term(old) if terms else completed(NAMED[inside], old)
    elif part not in section:
        known = _declared(inside)
        if part not in known:
            raise InputError(f"{where}: no field {field!r}{nearest(part, {**section, **known})}")
        section[part] = fields.defaults(known[part])
    elif path in CLICKS:
        section[part] = completed_term(section[part])
    elif part in SCHEDULED and _is_term(inside):
        with section.ignore_type():
            section[part] = schedule(section[part])
    if not isinstance(section[part], ConfigDict):
        raise InputError(f"{where}: no field {field!r}; {path} is a value, not a section")
    return section[part]


def _declared(section: str) -> Mapping[str, Callable[..., Any]]:
    """Name -> function or class that declares the fields of that subsection of ``section``.

    The sections are those of students, readers and export formats. The modules are imported only
    when a field needs them: importing JAX takes seconds, and a wrong command line with fields of
    configs/common.py alone is refused at once.
    """
    if section == Kind.STUDENT.value:
        from kd_jax.models.students import STUDENTS

        return {name: student.spec for name, student in STUDENTS.items()}
    if section == "data":
        from kd_jax.data.readers import READERS

        return READERS
    if section == "export":
        from kd_jax.serving.exporters import EXPORTERS

        return EXPORTERS
    return {}


def _is_term(path: str) -> bool:
    return path in CLICKS or path.rpartition(".")[0] == "distill.terms"


def _literal(text: str, old: Any) -> Any:
    """The value of ``text`` for a field with the value ``old``; a plain word is a string."""
    if isinstance(old, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    with contextlib.suppress(ValueError, SyntaxError):
        found = ast.literal_eval(text)
        return found if isinstance(found, str) or not isinstance(old, str) else text
    return text


def _typed(value: Any, old: Any) -> Any:
    """``value`` as the type of ``old``; raises TypeError for a value of another type."""
    if isinstance(old, (list, tuple)):
        return type(old)(value if isinstance(value, (list, tuple)) else [value])
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(old):
        raise TypeError
    return value


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field in nested sections."""
    for name, value in tree.items():
        if isinstance(value, (Mapping, ConfigDict)):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def merged(config: ConfigDict, trees: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """A copy of ``config`` with the fields in ``trees`` replaced, one after the other.

    trees: where the values are from, as errors name it -> a part of the sections, nested. A term
    that is None is removed.
    """
    c = ConfigDict(config.to_dict())
    for where, tree in trees.items():
        for field, value in leaves(tree):
            check_tunable(c, field, where)
            parent, _, name = field.rpartition(".")
            if value is None and parent == "distill.terms" and name in c.distill.terms:
                del c.distill.terms[name]
            else:
                put(c, field, value, where)
    return c


def check_tunable(config: ConfigDict, field: str, where: str) -> None:
    """Raises InputError for a field that ``tuned`` may not set."""
    section = field.partition(".")[0]
    if section not in TUNABLE:
        raise InputError(f"{where}: no field {field!r}{nearest(section, TUNABLE)}")
    for shared in SHARED:
        if f"{field}.".startswith(f"{shared}."):
            raise InputError(
                f"{where}: {shared} is the same for all models; set it with --config.{shared}"
            )
