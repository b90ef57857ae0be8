"""Teachers from outside a run, as configured in ``distill.sources``.

A source is a file of ranked lists or a trained model in another workdir.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import fingerprint, read_json

FIELDS = ("path", "confidence")
TARGET = "target"
CONFIDENCES = ("", "entropy", TARGET)


@dataclasses.dataclass(frozen=True)
class Source:
    """A teacher from outside the run.

    folder: of a trained model in another workdir; None if ``path`` is a JSONL file of lists.
    """

    name: str
    path: Path
    confidence: str
    folder: Path | None

    @property
    def role(self) -> str:
        """The role of the model in the run that trained it."""
        assert self.folder is not None
        return self.folder.name.partition(".")[0]

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """A hash of the content, and ``confidence``.

        The content is the whole file or, for a model, its identity and its training result.
        """
        if self.folder is None:
            with self.path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        else:
            cure = f"train it again, or take {self.name!r} out of distill.sources"
            content = fingerprint(
                [read_json(self.folder / f"{part}.json", cure) for part in ("identity", "result")]
            )
        return {"content": content, "confidence": self.confidence}


def members(teacher: str) -> list[str]:
    """The sources whose logits the teacher of a term has the mean of, 'a+b'; one for 'a'."""
    return teacher.split("+")


def sources(
    sections: Mapping[str, Mapping[str, Any]], reserved: Collection[str], preferred: Sequence[str]
) -> dict[str, Source]:
    """name -> source of ``distill.sources``, sections {path, confidence}.

    reserved: names that no source may have. preferred: roles; of a workdir that is named without a
    model, the first of these that is trained. Raises InputError for a source that cannot be, or is
    not there.
    """
    found: dict[str, Source] = {}
    for name, section in sections.items():
        field = f"distill.sources.{name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in reserved:
            raise InputError(
                f"distill.sources: {name!r} cannot be a name; use letters and digits, and none of"
                f" {', '.join(reserved)}"
            )
        for key, value in section.items():
            if key not in FIELDS:
                raise InputError(f"{field}: no field {key!r}{nearest(key, FIELDS)}")
            if not isinstance(value, str):
                raise InputError(f"{field}.{key}={value!r} must be a string")
        path, confidence = (section.get(key, "") for key in FIELDS)
        if not path:
            raise InputError(f"{field}.path is missing; give a JSONL file or the workdir of a run")
        if confidence not in CONFIDENCES:
            raise InputError(
                f"{field}.confidence={confidence!r} is unknown{nearest(confidence, CONFIDENCES)}"
            )
        place = Path(path).expanduser()
        found[name] = Source(name, place, confidence, _folder(field, place, preferred))
        if confidence == TARGET and found[name].folder is None:
            raise InputError(
                f"{field}.confidence={TARGET!r} reads the probability of every target, and {path}"
                " lists a few items; use 'entropy' or ''"
            )
    return found


def _folder(field: str, path: Path, preferred: Sequence[str]) -> Path | None:
    """The trained model that ``path`` means: a workdir, or a model in one; None for a file."""
    if path.is_file():
        return None
    if not path.exists():
        raise InputError(f"{field}: {path} not found; give a JSONL file or the workdir of a run")
    of_workdir = (path / "config.json").exists()
    for folder in [path / role for role in preferred] if of_workdir else [path]:
        if (folder / "result.json").exists() and (folder.parent / "config.json").exists():
            return folder
    what = "no model of a kd_jax workdir that is fully trained"
    if of_workdir:
        what = f"no trained {' or '.join(preferred)}"
    raise InputError(
        f"{field}: {path} holds {what}; finish that run, or name another of its models"
    )
