"""Serving costs: users per second, and the time to encode a history or a new item."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from kd_jax.core.types import PAD, Params, PyTree
from kd_jax.data.dataset import Dataset
from kd_jax.data.examples.base import last_items
from kd_jax.data.splits import TEST
from kd_jax.devices import sharding
from kd_jax.evaluation.evaluator import eval_users, top_k
from kd_jax.evaluation.scoring import score_function, users_at_once

TIMED_USERS = 8_192
Encode = Callable[[Sequence[str]], Any]


def rates(
    dataset: Dataset,
    graphdef: nnx.GraphDef,
    params: Params,
    constants: PyTree,
    history: int,
    *,
    k: int = 10,
) -> dict[str, float]:
    """Top-``k`` lists per second over the whole catalogue, without seen items.

    'users_per_second' is of the whole machine. 'users_per_core_second' is per second of processor
    time, of all threads together: what one core does, whatever else the machine does. It is left
    out where devices are no CPU, and with several processes. Batches of 256 of at most
    ``TIMED_USERS`` users are scored twice: the first pass compiles, the second is timed.
    """
    scores = score_function(dataset, graphdef, TEST, history)(params, constants)
    users, seen = eval_users(dataset, TEST)[:TIMED_USERS], dataset.history(TEST)
    at_once = users_at_once(graphdef, 256, dataset.num_items, sharding.data_parts(params))
    sizes = {"batch_size": at_once, "num_items": dataset.num_items}
    top_k(scores, users, k, seen, **sizes)
    began, used = time.perf_counter(), time.process_time()
    top_k(scores, users, k, seen, **sizes)
    wall, used = time.perf_counter() - began, time.process_time() - used
    found = {"users_per_second": len(users) / wall}
    if jax.default_backend() == "cpu" and jax.process_count() == 1 and used > 0:
        found["users_per_core_second"] = len(users) / used
    return found


def typical_seconds(call: Callable[[Any], Any], arguments: Iterable[Any]) -> float:
    """The median time of a call, after one that is not timed; 0 without arguments."""
    found = []
    for argument in arguments:
        began = time.perf_counter()
        call(argument)
        found.append(time.perf_counter() - began)
    return float(np.median(found[1:] or found or [0.0]))


def text_seconds(
    encode: Encode, dataset: Dataset, texts: Sequence[str], history: int, *, users: int = 16
) -> tuple[float, float]:
    """Seconds in which a language model encodes one user's history, and one new item.

    The texts of the newest ``history`` items of ``users`` users are encoded in one call, after
    compilation. A text that several users share is encoded once, and none is read from a cache:
    this is the cost of a service with batches of ``users``.
    """
    chosen = eval_users(dataset, TEST)[:users]
    windows = last_items(*dataset.history(TEST), history)[chosen]
    found = [texts[item] for item in windows.ravel() if item != PAD]
    encode(found)
    began = time.perf_counter()
    encode(found)
    seconds = time.perf_counter() - began
    return seconds / max(1, len(chosen)), seconds / max(1, len(set(found)))


def costs(
    rows: Sequence[dict[str, Any]],
    per_user: float,
    per_item: float,
    *,
    teacher: str,
    students: Mapping[str, bool],
) -> list[dict[str, Any]]:
    """The serving table of report/metrics.json, from its ``models`` and ``text_seconds``.

    teacher: the model that reads text; students: name -> whether one learns from it.
    """

    def mean(name: str, field: str) -> float | None:
        values = [row[field] for row in rows if row["name"] == name and row.get(field) is not None]
        return float(np.mean(values)) if values else None

    def entry(name: str, speed: float, new_item: float | None, note: str) -> dict[str, Any]:
        return {
            "name": name,
            "users_per_second": speed,
            "new_item_seconds": new_item,
            "note": note,
        }

    table: list[dict[str, Any]] = []
    note = "one training run takes in any number of new items"
    for name, distilled in students.items():
        speed, training = mean(name, "users_per_second"), mean(name, "train_seconds")
        if speed:
            if training is not None:
                training += mean(name, "label_seconds") or 0.0
            how = " from their text, labels included" if distilled else ", once they have clicks"
            table.append(entry(f"{name}, trained again", speed, training, note + how))
            maps = {key: mean(name, key) for key in ("new_item_seconds", "new_user_seconds")}
            if any(maps.values()):
                why = "a vector from a new item's text, or from a new user's history"
                table.append(entry(f"{name}, by its maps", speed, None, why) | maps)
    cached = mean(teacher, "users_per_second")
    if cached:
        note = "the language model reads each new item once"
        table.append(entry(f"{teacher}, item vectors cached", cached, per_item, note))
        note = "the language model reads the user's history anew"
        speed = 1.0 / (1.0 / cached + per_user)
        table.append(entry(f"{teacher}, reading text", speed, per_item, note))
    return table
