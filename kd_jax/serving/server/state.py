"""The model that is served, and how a new export replaces it."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.runtime import Runtime, store
from kd_jax.serving.server import answers, feedback
from kd_jax.serving.server.errors import Refused
from kd_jax.serving.server.log import Log, Record, report

LOOK_EVERY = 1.0  # seconds between two looks at the export
ITEMS_FILE = "items.jsonl"
FOLDER = "serving"


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded export. name: of the answers; the same export has the same name."""

    runtime: Runtime
    name: str
    loaded: float  # seconds since 1970


def load(path: Path) -> Model:
    """Reads an export. Raises InputError if it is missing or damaged.

    The bytes are copied first: the file may be overwritten while it is read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = None
    if data is None:
        store.read(path)  # raises the error with its fix
        raise InputError(f"{path} is missing")
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
        copy.write(data)
        copy.flush()
        try:
            runtime = Runtime(store.read(Path(copy.name)))
            runtime.lookup.items("")
            runtime.lookup.user("")
        except InputError as error:
            raise InputError(str(error).replace(copy.name, str(path))) from None
        except Exception as error:
            raise InputError(
                f"{path} is damaged ({error!r}); run the stage 'export' again"
            ) from error
    digest = hashlib.sha256(data).hexdigest()[:12]
    texts = [value for value in runtime.export.description.values() if isinstance(value, str)]
    name = "/".join([*texts, digest])  # for example distilled/mf/1f825aa2f0e4
    return Model(runtime, name, time.time())


class State:
    """The model, the feedback and the added items of a server.

    workdir: of a finished run. Raises InputError if it has no export, or if another server uses it.
    """

    def __init__(self, workdir: Path):
        self.path = workdir / "export" / store.FILE
        self._stamp = stamp(self.path)
        self.model = load(self.path)
        self.feedback = feedback.Feedback()
        self._events = Log(workdir / FOLDER / feedback.FILE)
        self.feedback.add(self._events.records(feedback.valid))
        self._events.on_stored = self.feedback.add
        self._items = Log(workdir / FOLDER / ITEMS_FILE)
        self._added = list(self._items.records(_is_item))
        self._items.on_stored = self._store_items
        self._reserved: set[str] = set()  # ids of items that are being written
        self.model = self._with_items(self.model)

    def answer(self, asks: Sequence[answers.Ask]) -> list[tuple[Any, str]]:
        """The list of each request, or an exception, with the name of the model."""
        model = self.model
        found = answers.answer(model.runtime, self.feedback, asks)
        return [(one, model.name) for one in found]

    async def add_event(self, user: object, item: str | int, event: str) -> Record:
        """Stores an event; from then on the user's lists have it."""
        runtime = self.model.runtime
        index = answers.item(runtime, item)
        record = feedback.record(user, runtime.export.item_ids[index], event)
        await self._events.append(record)
        return record

    async def add_item(self, item: Record) -> Model:
        """Stores an item with ``id``, ``title``, ``vector`` and ``bias``, and serves it."""
        model, key = self.model, item["id"]
        if key in self._reserved:
            raise Refused(409, f"item {key[:100]!r} is being added by another request")
        try:
            _grown(model.runtime, [item])
        except InputError as error:
            exists = model.runtime.lookup.item(key) is not None
            raise Refused(409 if exists else 400, str(error)) from None
        self._reserved.add(key)
        try:
            await self._items.append(item | {"model": model.name, "timestamp": int(time.time())})
        finally:
            self._reserved.discard(key)
        if self.model.name != model.name:
            raise Refused(409, "the model was replaced; send a vector of the new one")
        return self.model

    async def watch(self) -> None:
        """Replaces the model when its file changes; a damaged file keeps the old model."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            found = stamp(self.path)
            if found == self._stamp:
                continue
            self._stamp = found
            try:
                new = await asyncio.to_thread(load, self.path)
            except Exception as error:
                report(f"the old model is kept: {error}")
                continue
            if new.name != self.model.name:
                self.model = self._with_items(new)
                report(f"model {new.name} is served")

    async def close(self) -> None:
        await self._events.close()
        await self._items.close()

    def _store_items(self, records: list[Record]) -> None:
        self._added += records
        mine = [record for record in records if record["model"] == self.model.name]
        self.model = dataclasses.replace(self.model, runtime=_grown(self.model.runtime, mine))

    def _with_items(self, model: Model) -> Model:
        """The model with the items that were added to it; vectors of another do not fit."""
        mine = [record for record in self._added if record["model"] == model.name]
        if len(mine) < len(self._added):
            report(f"{len(self._added) - len(mine)} added items are of another model: left out")
        runtime = model.runtime
        for record in mine if mine else ():
            try:
                runtime = _grown(runtime, [record])
            except (ValueError, OverflowError) as error:
                report(f"item {record['id'][:100]!r} is left out: {error}")
        return dataclasses.replace(model, runtime=runtime)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file: its time, its size and its inode; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _grown(runtime: Runtime, items: Sequence[Record]) -> Runtime:
    if not items:
        return runtime
    ids, titles, vectors, biases = zip(
        *((item["id"], item["title"], item["vector"], item["bias"]) for item in items), strict=True
    )
    return runtime.add_items(
        ids, titles, np.array(vectors, np.float32), np.array(biases, np.float32)
    )


def _is_item(value: Any) -> bool:
    texts, numbers = ("id", "title", "model"), (int, float)
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(field), str) for field in texts)
        and isinstance(value.get("vector"), list)
        and all(isinstance(one, numbers) for one in [value.get("bias"), *value["vector"]])
    )
