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
from kd_jax.runtime import Runtime, compared, store
from kd_jax.serving.server import answers, compare, feedback, requests
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
        self._stamps = self._looked()
        self.model = load(self.path)
        self.compared = compare.load(self.path.parent, self.model.runtime)
        self.feedback = feedback.Feedback()
        self._events = Log(workdir / FOLDER / feedback.FILE)
        self.feedback.add(self._events.records(feedback.valid))
        self._events.on_stored = self.feedback.add
        self._items = Log(workdir / FOLDER / ITEMS_FILE)
        self._added = list(self._items.records(_is_item))
        self._items.on_stored = self._store_items
        self._titles: tuple[Runtime, compare.Titles] | None = None
        self._reserved: set[str] = set()  # ids of items that are being written
        self.model = _with_items(self.model, self._added)

    def answer(self, asks: Sequence[answers.Ask]) -> list[tuple[Any, str]]:
        """The list of each request, or an exception, with the name of the model."""
        model = self.model
        found = answers.answer(model.runtime, self.feedback, asks)
        return [(one, model.name) for one in found]

    def compare(self, ask: requests.Compare) -> Record:
        """The lists of all models for one user. Raises Refused as ``compare.answer``."""
        model = self.model
        found = compare.answer(model.runtime, self.compared, self.feedback, ask)
        return found | {"model": model.name}

    def search(self, words: str) -> list[Record]:
        """Items by words of their title."""
        runtime = self.model.runtime
        if self._titles is None or self._titles[0] is not runtime:
            self._titles = runtime, compare.Titles(runtime)
        return self._titles[1].search(words)

    async def add_event(self, user: object, item: str | int, event: str) -> Record:
        """Stores an event; from then on the user's lists have it."""
        runtime = self.model.runtime
        index = answers.item(runtime, item)
        record = feedback.record(user, runtime.export.item_ids[index], event)
        await self._events.append(record)
        return record

    async def add_item(self, item: Record) -> Model:
        """Stores an item (``requests.new_item``), and serves it."""
        model, key = self.model, item["id"]
        record = item | {"model": model.name, "timestamp": int(time.time())}
        if key in self._reserved:
            raise Refused(409, f"item {key[:100]!r} is being added by another request")
        if "vector" not in item and model.runtime.export.text_map is None:
            raise Refused(501, "this export cannot read texts; send the item's vector and bias too")
        try:
            _grown(model, [record])
        except InputError as error:
            exists = model.runtime.lookup.item(key) is not None
            raise Refused(409 if exists else 400, str(error)) from None
        self._reserved.add(key)
        try:
            await self._items.append(record)
        finally:
            self._reserved.discard(key)
        if self.model.runtime.lookup.item(key) is None:
            raise Refused(409, "the model was replaced; send a vector of the new one")
        return self.model

    async def watch(self) -> None:
        """Replaces the model when its file changes; a damaged file keeps the old model."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            found = self._looked()
            if found == self._stamps:
                continue
            self._stamps = found
            try:
                new = await asyncio.to_thread(load, self.path)
                beside = await asyncio.to_thread(compare.load, self.path.parent, new.runtime)
            except Exception as error:
                report(f"the old model is kept: {error}")
                continue
            same = new.name == self.model.name
            model = self.model if same else _with_items(new, self._added)
            self.model, self.compared = model, beside
            if not same:
                report(f"model {new.name} is served")

    def _looked(self) -> list[tuple[int, int, int] | None]:
        """The stamps of the files that change with an export."""
        folder = self.path.parent / compared.FOLDER
        return [stamp(path) for path in (self.path, folder / compared.LIST)]

    async def close(self) -> None:
        await self._events.close()
        await self._items.close()

    def _store_items(self, records: list[Record]) -> None:
        self._added += records
        self.model = _with_items(self.model, records)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file: its time, its size and its inode; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _with_items(model: Model, records: Sequence[Record]) -> Model:
    """The model with the items that were added to it; those that it cannot read are reported."""
    new = [one for one in records if model.runtime.lookup.item(one["id"]) is None]
    if len(new) < len(records):
        report(f"{len(records) - len(new)} added items are in the export now")
    usable = [one for one in new if _has_vector(model, one) or _has_text(model, one)]
    if len(usable) < len(new):
        left = len(new) - len(usable)
        report(
            f"{left} added items are left out: this model has no text map, and reads no"
            " vectors of another model"
        )
    try:
        return _grown(model, usable)
    except (ValueError, OverflowError):  # a damaged record: the others are added one by one
        pass
    for record in usable:
        try:
            model = _grown(model, [record])
        except (ValueError, OverflowError) as error:
            report(f"item {record['id'][:100]!r} is left out: {error}")
    return model


def _has_vector(model: Model, item: Record) -> bool:
    """Whether an item has a vector of this model."""
    return "vector" in item and item["model"] == model.name


def _has_text(model: Model, item: Record) -> bool:
    """Whether an item has a text that the model can read."""
    return model.runtime.export.text_map is not None and bool(item["text"].strip())


def _grown(model: Model, items: Sequence[Record]) -> Model:
    """The model with more items; those without a vector of this model get that of their text."""
    runtime = model.runtime
    for given in (True, False):
        chosen = [item for item in items if _has_vector(model, item) == given]
        if not chosen:
            continue
        ids, titles, texts = ([item[key] for item in chosen] for key in ("id", "title", "text"))
        if given:
            vectors = np.array([item["vector"] for item in chosen], np.float32)
            biases = np.array([item["bias"] for item in chosen], np.float32)
            runtime = runtime.add_items(ids, titles, vectors, biases)
        else:
            runtime = runtime.add_items(ids, titles, texts=texts)
    return dataclasses.replace(model, runtime=runtime)


def _is_item(value: Any) -> bool:
    texts, numbers = ("id", "title", "text", "model"), (int, float)
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in texts):
        return False
    if "vector" not in value:
        return bool(value["text"].strip())
    return isinstance(value["vector"], list) and all(
        isinstance(one, numbers) for one in [value.get("bias"), *value["vector"]]
    )
