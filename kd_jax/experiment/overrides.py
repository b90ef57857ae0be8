"""Command-line arguments that set fields of named sections.

Named sections are those of terms, sources, ``tuned``, students, readers and export formats.
ml_collections sets only fields that exist, and the user chooses the names of these sections, so
their arguments are taken out of the command line and applied after the configuration is loaded.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from kd_jax.core.errors import InputError, nearest
from kd_jax.experiment import sections

FLAG = re.compile(
    r"--?config\.((?:distill\.(?:terms|sources)|(?:teacher|student)\.clicks|tuned)(?:\.[^=]*)?"
    r"|(?:student|data|export)\.(?!optimizer\.)\w+\.[^=]+)"  # of a student, reader or exporter
    r"(?:=(.*))?",
    re.DOTALL,
)
NAME = re.compile(r"[A-Za-z0-9_-]+")
REMOVED = "None"


# Fields with several words, which may be given bare: --config.eval.metrics=ndcg,recall.
WORDS = ("data.text_columns", "eval.lists", "eval.metrics", "export.formats", "stages", "trackers")
BARE = re.compile(rf"--?config\.({'|'.join(map(re.escape, WORDS))})=([^'\"()\[\]{{}}]*)")


class Override(NamedTuple):
    """--config.<field>=<text>."""

    field: str
    text: str

    @property
    def flag(self) -> str:
        return f"--config.{self.field}={self.text}"


def quoted(argv: Sequence[str]) -> list[str]:
    """The arguments with bare words of fields of ``WORDS`` as tuples of texts.

    ml_collections takes 'title,genres' for one word.
    """
    found = []
    for argument in argv:
        if flag := BARE.fullmatch(argument):
            words = tuple(word.strip() for word in flag[2].split(",") if word.strip())
            argument = f"--config.{flag[1]}={words!r}"
        found.append(argument)
    return found


def take_out(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Separates arguments for named sections from the others.

    Returns (the other arguments, the overrides). Raises InputError for an argument without a value.
    """
    rest: list[str] = []
    found: list[Override] = []
    arguments = iter(argv)
    for argument in arguments:
        flag = FLAG.fullmatch(argument)
        if flag is None:
            rest.append(argument)
            continue
        text = next(arguments, None) if flag[2] is None else flag[2]
        if text is None:
            raise InputError(f"{argument} has no value; give --config.{flag[1]}=<value>")
        found.append(Override(flag[1], text))
    return rest, found


def apply(config: ConfigDict, overrides: Sequence[Override]) -> None:
    """Applies ``overrides`` to ``config``, in order.

    Raises InputError, starting with the argument, for a field or value that cannot be set.
    """
    with config.unlocked():
        for override in overrides:
            field, flag = override.field, override.flag
            if field == "tuned" or field.startswith("tuned."):
                _tune(config, override)
            elif override.text == REMOVED:
                _remove(config, field, flag)
            else:
                _check_name(field, flag)
                for name, value in _values(override):
                    text = isinstance(value, str) and name == field
                    sections.put(config, name, value, flag, text=text)


def _check_name(field: str, flag: str) -> None:
    for named in sections.NAMED:
        name = field.removeprefix(f"{named}.").partition(".")[0]
        if field == named or (field.startswith(f"{named}.") and not NAME.fullmatch(name)):
            raise InputError(
                f"{flag}: give --config.{named}.<name>.<field>=<value>; a name has letters,"
                " digits, _ and -"
            )


def _values(override: Override) -> list[tuple[str, Any]]:
    """(field, value) of an argument; of one that is a section ({…}), each of its fields."""
    if not override.text.strip().startswith("{"):
        return [(override.field, override.text)]
    try:
        tree = ast.literal_eval(override.text.strip())
    except (ValueError, SyntaxError):
        raise InputError(f"{override.flag}: cannot be read; quote it for the shell") from None
    return list(sections.leaves(tree, f"{override.field}."))


def _remove(config: ConfigDict, field: str, flag: str) -> None:
    """Removes a term or a source, or all of them."""
    if field in sections.NAMED:
        parent, _, name = field.rpartition(".")
        config[parent][name] = {}
        return
    parent, _, name = field.rpartition(".")
    if parent not in sections.NAMED:
        raise InputError(f"{flag}: only a whole section can be removed, with {parent}=None")
    section = _section(config, parent)
    if name not in section:
        raise InputError(f"{flag}: there is no {name!r} in {parent}{nearest(name, section)}")
    del section[name]


def _section(config: ConfigDict, field: str) -> ConfigDict:
    for part in field.split("."):
        config = config[part]
    return config


def _tune(config: ConfigDict, override: Override) -> None:
    """Sets or, with None, removes a tuned value of one role."""
    _, _, field = override.field.partition(".")
    role, _, field = field.partition(".")
    if role not in config.tuned:
        raise InputError(f"{override.flag}: no role {role!r}{nearest(role, config.tuned)}")
    if override.text == REMOVED:
        _prune(config.tuned, f"{role}.{field}" if field else role, override.flag)
        return
    for name, value in _values(override):
        name = name.removeprefix(f"tuned.{role}").removeprefix(".")
        if not name:
            raise InputError(f"{override.flag}: give --config.tuned.{role}.<field>=<value>")
        sections.check_tunable(config, name, override.flag)
        scratch = sections.merged(config, {f"tuned.{role}": config.tuned[role]})
        text = isinstance(value, str) and not override.text.strip().startswith("{")
        _store(
            config.tuned[role], name, sections.put(scratch, name, value, override.flag, text=text)
        )


def _store(tree: ConfigDict, field: str, value: Any) -> None:
    """Sets ``value`` in a part of a config's sections, creating the sections around it."""
    *parents, name = field.split(".")
    for part in parents:
        known = tree.get(part, {})
        if not isinstance(known, ConfigDict):  # a number that becomes a schedule, or nothing yet
            with tree.ignore_type():
                tree[part] = ConfigDict({"start": known} if known else {})
        tree = tree[part]
    with tree.ignore_type():
        tree[name] = value


def _prune(tuned: ConfigDict, field: str, flag: str) -> None:
    """Removes a field, a section or a role's whole tree."""
    parent, _, name = field.rpartition(".")
    section: Any = tuned
    for part in parent.split(".") if parent else ():
        section = section.get(part) if isinstance(section, ConfigDict) else None
    if not isinstance(section, ConfigDict) or name not in section:
        raise InputError(f"{flag}: tuned.{field} is not set; leave this argument out")
    if parent:
        del section[name]
    else:
        tuned[name] = {}
