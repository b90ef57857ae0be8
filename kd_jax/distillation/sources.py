"""Teachers from outside a run: what ``distill.sources`` names, a file of lists or a model of
another workdir.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import fingerprint, read_json

CONFIDENCES = ("", "entropy")
DEFAULTS = (
    "distilled",
    "student",
)  # which model of a workdir that is named without one; the first there is
ID_ONLY = ("student", "control", "control_teacher")  # models that no language model has a part in


@dataclasses.dataclass(frozen=True)
class Source:
    """One outside teacher. folder: of a trained model in another workdir; None: ``path`` is a JSONL
    file of lists.
    """

    name: str
    path: Path
    confidence: str
    folder: Path | None

    @property
    def model(self) -> str:
        assert self.folder is not None
        return self.folder.name.partition(".")[0]

    @property
    def id_only(self) -> bool:
        """Whether it is known to hold nothing that a language model said."""
        return self.folder is not None and self.model in ID_ONLY

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Hash of all of a file; of a model, what made it and how its training ended."""
        if self.folder is None:
            with self.path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        else:
            cure = f"train it again, or take {self.name!r} out of distill.sources"
            content = fingerprint(
                [read_json(self.folder / f"{part}.json", cure) for part in ("identity", "result")]
            )
        return {"content": content, "confidence": self.confidence}


def sources(entries: Sequence[Any], reserved: str) -> dict[str, Source]:
    """name -> source of ``distill.sources``. Raises InputError for one that cannot be, or is not
    there.
    """
    found: dict[str, Source] = {}
    for entry in entries:
        if (
            isinstance(entry, str)
            or not 2 <= len(entry) <= 3
            or not all(isinstance(part, str) for part in entry)
        ):
            raise InputError(
                f"distill.sources: {entry!r} is not (name, path) or (name, path, confidence)"
            )
        name, path, confidence = (*entry, "")[:3]
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == reserved or name in found:
            raise InputError(
                f"distill.sources: {name!r} cannot be a name; use letters and digits, each once,"
                f" and not {reserved!r}"
            )
        if confidence not in CONFIDENCES:
            raise InputError(
                f"distill.sources: {name!r}: confidence {confidence!r} is"
                f" unknown{nearest(confidence, CONFIDENCES)}"
            )
        found[name] = Source(
            name, Path(path).expanduser(), confidence, _folder(name, Path(path).expanduser())
        )
    return found


def _folder(name: str, path: Path) -> Path | None:
    """The trained model that ``path`` means: a workdir, or a model in one; None for a file."""
    if path.is_file():
        return None
    if not path.exists():
        raise InputError(
            f"distill.sources: {name!r}: {path} not found; give a JSONL file or the workdir of"
            " a run"
        )
    of_workdir = (path / "config.json").exists()
    for folder in [path / model for model in DEFAULTS] if of_workdir else [path]:
        if (folder / "result.json").exists() and (folder.parent / "config.json").exists():
            return folder
    what = (
        f"no trained {' or '.join(DEFAULTS)}"
        if of_workdir
        else "no model of a kd_jax workdir that is fully trained"
    )
    raise InputError(
        f"distill.sources: {name!r}: {path} holds {what}; finish that run, or name another of its"
        " models"
    )
