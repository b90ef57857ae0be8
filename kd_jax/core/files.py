"""Atomic writes, hashes of files and values, and the lock on a workdir."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kd_jax.core.errors import InputError

BLOCK = 1 << 23  # bytes that are hashed at once; threads hash blocks side by side


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
        plain = json.loads(json.dumps(value, default=plain_value), parse_constant=lambda _: None)
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


@contextlib.contextmanager
def checked(path: Path, fix: str) -> Iterator[None]:
    """Raises InputError, with ``fix``, where the value read from ``path`` has another form."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); {fix}") from None


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


def plain_value(value: Any) -> Any:
    """A value that JSON has, for the ``default`` of ``json.dumps``: numpy's as Python's."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    return value.tolist() if hasattr(value, "tolist") else str(value)


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of SHA-256 over the canonical JSON of ``value``."""
    canonical = json.dumps(value, sort_keys=True, default=plain_value)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def data_files(path: Path) -> list[Path]:
    """The file, or all data files in a folder and its folders, in natural order of their names.

    Names that begin with '_' or '.' are no data: Spark's _SUCCESS and .crc files, for example.
    """
    if not path.is_dir():
        return [path]
    found = [
        file
        for file in path.rglob("*")
        if file.is_file()
        and not any(part.startswith(("_", ".")) for part in file.relative_to(path).parts)
    ]
    return sorted(found, key=lambda file: _natural(str(file.relative_to(path))))


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which part-2 comes before part-10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def stamp(*paths: str) -> list[str] | None:
    """Name, size and SHA-256 of every data file; None if a path does not exist.

    paths: files, or folders with all that is in them (``data_files``).
    """
    stamps = []
    for path in (Path(name).expanduser() for name in paths if name):
        if not path.exists():
            return None
        for file in data_files(path):
            name = file.relative_to(path) if path.is_dir() else file.name
            stamps.append(f"{name} {file.stat().st_size} {content_hash(file)}")
    return stamps


def content_hash(path: Path) -> str:
    """Sixteen hex digits of SHA-256 over the hashes of the file's blocks of ``BLOCK`` bytes."""

    def of_block(start: int) -> bytes:
        with path.open("rb") as handle:
            handle.seek(start)
            return hashlib.sha256(handle.read(BLOCK)).digest()

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        blocks = threads.map(of_block, range(0, path.stat().st_size, BLOCK))
        return hashlib.sha256(b"".join(blocks)).hexdigest()[:16]


def difference(old: Any, new: Any, prefix: str = "") -> str:
    """The first three leaves in which two nested dicts differ: 'field: old there, new here'.

    Those that both have come first: a chosen name before the fields of what it names.
    """
    new = json.loads(json.dumps(new, default=plain_value))
    leaves = sorted(_differences(old, new, prefix), key=lambda leaf: None in leaf)
    found = [f"{field}: {before} there, {now} here" for field, before, now in leaves]
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _differences(old: Any, new: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{prefix}.{key}".lstrip("."))
    elif old != new:
        yield prefix, old, new


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
