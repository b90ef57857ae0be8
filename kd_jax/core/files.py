"""Atomic writes, hashes of files and values, and the lock on a workdir."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kd_jax.core.errors import InputError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Writes ``path`` atomically: yields a temporary path, which replaces ``path`` on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The random part is needed too: hosts that share a folder repeat each other's process ids.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()
        usual_mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(usual_mode)  # some writers create files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically; numpy values as plain ones, NaN and infinities as null."""
    with atomic(path) as temporary:
        plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)
        temporary.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, fix: str) -> Any:
    """The value in ``path``.

    fix: how to repair a missing or damaged file, for the message of the InputError that is raised.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {fix}") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}); {fix}") from None


def read_tensors(path: Path, fix: str) -> dict[str, np.ndarray]:
    """The tensors in a safetensors file.

    fix: how to repair a missing or damaged file, for the message of the InputError that is raised.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {fix}") from None
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); {fix}") from None


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file atomically.

    Arrays are made C-contiguous first: safetensors 0.8 writes the memory of a transposed or strided
    array as it lies, without an error.
    """
    plain = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with atomic(path) as temporary:
        save_file(plain, temporary, metadata=metadata)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk (or quota) caused ``error``.

    Libraries wrap the operating system's error in exceptions of their own, so the chain of causes
    and the messages are searched.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in map(os.strerror, (errno.ENOSPC, errno.EDQUOT))):
            return True
        error = error.__cause__ or error.__context__
    return False


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    return value.tolist() if hasattr(value, "tolist") else str(value)


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of SHA-256 over the canonical JSON of ``value``."""
    canonical = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def stamp(*paths: str) -> list[str] | None:
    """Size and hash of both ends (1 MiB each) of every file; None if a path does not exist.

    paths: files, or folders, of which only the files directly inside count.
    """
    stamps = []
    for path in (Path(name).expanduser() for name in paths if name):
        if not path.exists():
            return None
        for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
            with file.open("rb") as handle:
                ends = handle.read(1 << 20)
                size = handle.seek(0, os.SEEK_END)
                handle.seek(max(0, size - (1 << 20)))
                ends += handle.read()
            stamps.append(f"{file.name} {size} {hashlib.sha256(ends).hexdigest()[:16]}")
    return stamps


def difference(old: Any, new: Any, prefix: str = "") -> str:
    """The first three leaves in which two nested dicts differ: 'field: old there, new here'."""
    new = json.loads(json.dumps(new, default=_plain))
    found = list(_differences(old, new, prefix))
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _differences(old: Any, new: Any, prefix: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{prefix}.{key}".lstrip("."))
    elif old != new:
        yield f"{prefix}: {old} there, {new} here"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks the workdir for this process; a new workdir that stays empty is removed at the end.

    Raises InputError if another run holds the lock. The lock of a killed run is released by the
    operating system.
    """
    new = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = (workdir / ".lock").open("a+")
    except OSError as error:
        if disk_is_full(error):
            raise
        raise InputError(
            f"--workdir={workdir} cannot be used as a folder ({error.strerror}); choose another"
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            raise InputError(
                f"--workdir={workdir} is in use by another run (process"
                f" {handle.read().strip() or '?'}); wait for it, stop it, or choose another"
                " --workdir"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if new and [path.name for path in workdir.iterdir()] == [".lock"]:
                    (workdir / ".lock").unlink()
                    workdir.rmdir()
