"""JSON lines that are on the disk before they are acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kd_jax.core.errors import InputError
from kd_jax.serving.server.errors import Refused

Record = dict[str, Any]
SHOWN = 10  # damaged lines that are reported one by one


def report(message: str) -> None:
    """One line on stderr."""
    print(f"serve: {message}", file=sys.stderr, flush=True)


class Log:
    """An append-only file of JSON lines. One server holds its lock.

    Raises InputError where another server holds it. A last line without its end, which a killed
    process leaves, is cut off and reported.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise InputError(
                f"{path} is in use by another server; stop it, or give another --workdir"
            ) from None
        self._size = self._cut()
        _sync_folder(path.parent)
        self._pending: list[tuple[Record, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "log")
        self.on_stored: Callable[[list[Record]], None] = lambda records: None

    def records(self, valid: Callable[[Any], bool]) -> Iterator[Record]:
        """The records of the file; lines that are damaged or not ``valid`` are reported."""
        damaged = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                    good = valid(record)
                except (ValueError, RecursionError):
                    good = False
                if good:
                    yield record
                    continue
                damaged += 1
                if damaged <= SHOWN:
                    report(f"{self.path}: line {number} is damaged and is skipped")
        if damaged > SHOWN:
            report(f"{self.path}: {damaged} damaged lines in all are skipped")

    async def append(self, record: Record) -> None:
        """Returns when the record is on the disk and ``on_stored`` has had it.

        Records that arrive during a write are written together by the next, with one fsync.
        Raises Refused (503) if the disk refuses.
        """
        stored = asyncio.get_running_loop().create_future()
        self._pending.append((record, stored))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await stored

    async def close(self) -> None:
        """Waits for what is being written, and releases the file."""
        if self._writing is not None:
            await self._writing
        self._thread.shutdown()
        os.close(self._file)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            group, self._pending = self._pending, []
            records = [record for record, _ in group]
            data = "".join(json.dumps(record) + "\n" for record in records).encode()
            failed: Exception | None = None
            try:
                await loop.run_in_executor(self._thread, self._store, data)
                self.on_stored(records)
            except Exception as error:
                report(f"{self.path}: not written ({error})")
                failed = Refused(503, f"not stored ({error}); send it again later")
            for _, stored in group:
                if stored.done():  # its request was cancelled
                    continue
                if failed is None:
                    stored.set_result(None)
                else:
                    stored.set_exception(failed)

    def _store(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fdatasync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _cut(self) -> int:
        """Cuts off a last line without its end; returns the size."""
        size = os.fstat(self._file).st_size
        end = size
        while end:
            start = max(0, end - (1 << 16))
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)
            os.fsync(self._file)
            report(
                f"{self.path}: the last line was not whole (the server was killed while writing"
                f" it); {size - end} bytes are cut off"
            )
        return end


def _sync_folder(folder: Path) -> None:
    """Makes the names of new files in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
