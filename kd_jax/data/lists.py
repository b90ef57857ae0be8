"""Reads ranked lists of another system, a JSON object per line, as soft labels.

    {"user": 42, "items": ["Gravity (2013)", 7, "Argo (2012)"], "weight": 0.8}
    {"history": ["Alien (1979)", "Heat (1995)"], "items": [11, 3], "scores": [2.5, 0.3]}

items: ids or titles, the best first. The probabilities of a list are softmax(logits / T) at the
temperature T of the term that reads it. The logits are the 'scores', or the logarithm of the
'probabilities', or, with neither, -rank / decay, the weighting by position of Tang and Wang,
"Ranking Distillation", KDD 2018.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from kd_jax.core.errors import InputError
from kd_jax.core.lookup import Lookup
from kd_jax.core.types import PAD
from kd_jax.data.dataset import Dataset

FIELDS = ("user", "history", "items", "scores", "probabilities", "weight")
LINES = 20  # numbers of malformed lines in a message
SHOWN = 5  # unmatched names, or malformed lines with their error, in a message


@dataclasses.dataclass(frozen=True)
class Lists:
    """N lists of items with logits; row 0 is an empty list of weight 0.

    items: padded with ``PAD``. by_user: the row of each user's list, or 0. by_history: the row of
    the list for a history, given as the bytes of its items (int32, oldest first). notes: for the
    log.
    """

    items: Int32[np.ndarray, "N K"]
    logits: Float32[np.ndarray, "N K"]
    weights: Float32[np.ndarray, " N"]
    by_user: Int32[np.ndarray, " U"]
    by_history: dict[bytes, int]
    notes: tuple[str, ...] = ()

    @property
    def history(self) -> int:
        """The number of items of the longest history."""
        return max((len(key) // 4 for key in self.by_history), default=1)

    def place(
        self, user: np.ndarray, history: Int32[np.ndarray, "B L"], example_kind: str
    ) -> Int32[np.ndarray, "B P"]:
        """The row of the list for each predicted position; 0 where there is none.

        user: [B]. history: as in a batch, [B, L]. example_kind: 'all' or 'last'. At the last
        position it is the user's own list, if any; else, and at all other positions, the list of
        the longest history that ends with the items up to the position. A history longer than L is
        cut to its newest L items.
        """
        length = history.shape[1]
        found = np.zeros((len(history), length if example_kind == "all" else 1), np.int32)
        known: dict[int, dict[bytes, int]] = {}
        # Shorter ones first, so that a complete history comes before one that is cut to the same.
        for key, row in sorted(self.by_history.items(), key=lambda pair: len(pair[0])):
            key = key[-4 * length :]
            known.setdefault(len(key) // 4, {}).setdefault(key, row)
        for size, rows in sorted(known.items()):  # a longer history replaces a shorter one
            windows = np.lib.stride_tricks.sliding_window_view(history, size, axis=1)
            if example_kind != "all":
                windows = windows[:, -1:]
            newest = [np.frombuffer(key, np.int32)[-1] for key in rows]
            for example, start in np.argwhere(np.isin(windows[..., -1], newest)):
                row = rows.get(windows[example, start].tobytes(), 0)
                if row:
                    found[example, start - windows.shape[1]] = row
        own = self.by_user[user]
        found[:, -1] = np.where(own > 0, own, found[:, -1])
        return found


def read(
    path: Path, dataset: Dataset, *, rank_decay: float = 10.0, max_unmatched: float = 0.1
) -> Lists:
    """The lists in ``path`` (JSONL) of users and histories of ``dataset``.

    rank_decay: see the module. max_unmatched: the tolerated share of unknown or ambiguous names. An
    item that is unknown or ambiguous is left out of its list. A line is left out if its user is
    unknown, if an item of its history is, or if no item of its list is left. Raises InputError for
    malformed lines and for too many unmatched names: file, line, what is wrong, and the fix.
    """
    found = _Collector(path, dataset, rank_decay)
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            if raw.strip():
                found.add(number, raw)
    found.check(max_unmatched)
    return found.lists()


class _Names:
    """Looks up names in the data set and counts those that are unknown or ambiguous."""

    def __init__(self, dataset: Dataset):
        users, items = dataset.user_ids.to_list(), dataset.item_ids.to_list()
        self._lookup = Lookup(users, items, dataset.titles)
        self._unmatched = Counter[str]()
        self.first_line: dict[str, int] = {}  # of each unmatched name
        self.total = 0

    @property
    def missing(self) -> int:
        """How often a name was unmatched."""
        return self._unmatched.total()

    def user(self, value: Any, line: int) -> int | None:
        """The index of a user; None if unknown."""
        self.total += 1
        index = self._lookup.user(value)
        if index is None:
            self._miss(f"user {value!r}", line)
        return index

    def items(self, values: list[Any], line: int) -> list[int | None]:
        """The index of each item; None if unknown or ambiguous."""
        indices: list[int | None] = []
        for value in values:
            self.total += 1
            same = self._lookup.items(value)
            if len(same) == 1:
                indices.append(same[0])
                continue
            indices.append(None)
            count = f" ({len(same)} items have this id or title)" if same else ""
            self._miss(f"{value!r}{count}", line)
        return indices

    def _miss(self, name: str, line: int) -> None:
        self._unmatched[name] += 1
        self.first_line.setdefault(name, line)

    def summary(self) -> str:
        """The most frequent unmatched names, with the line of each."""
        parts = []
        for name, count in self._unmatched.most_common(SHOWN):
            times = f", {count} times in all" if count > 1 else ""
            parts.append(f"{name} in line {self.first_line[name]}{times}")
        if len(self._unmatched) > SHOWN:
            parts.append(f"and {len(self._unmatched) - SHOWN:,} more")
        return "; ".join(parts)


class _Collector:
    """Collects the lists of a file line by line."""

    def __init__(self, path: Path, dataset: Dataset, rank_decay: float):
        self._path = path
        self._rank_decay = rank_decay
        self._names = _Names(dataset)
        self._rows: list[tuple[list[int], list[float], float]] = [([], [], 0.0)]
        self._by_user = np.zeros(dataset.num_users, np.int32)
        self._by_history: dict[bytes, int] = {}
        self._first_line: dict[Any, int] = {}  # of each user or history
        self._errors: dict[int, InputError] = {}  # by line
        self._kinds = Counter[str]()
        self._ignored = Counter[str]()
        self._repeated = 0
        self._empty = 0

    def add(self, number: int, raw: bytes) -> None:
        """Adds a line; a malformed one is kept for the message of ``check``."""
        try:
            self._add(number, raw)
        except InputError as error:
            self._errors[number] = error

    def _add(self, number: int, raw: bytes) -> None:
        where = f"{self._path}:{number}"
        line = _object(raw, where)
        kind, values, weight = _checked(line, where)
        self._ignored.update(line.keys() - set(FIELDS))
        key = self._key(line, number)
        items = self._logits(line, number, kind, values)
        if key is None or not items:
            self._empty += 1
            return
        if key in self._first_line:
            what = f"user {line['user']!r}" if "user" in line else f"history {line['history']!r}"
            raise InputError(
                f"{where}: {what} has a list already, in line {self._first_line[key]}; keep one of"
                " them"
            )
        self._first_line[key] = number
        self._kinds[kind or "ranks alone"] += 1
        if "user" in line:
            self._by_user[key] = len(self._rows)
        else:
            self._by_history[key] = len(self._rows)
        self._rows.append((list(items), list(items.values()), weight))

    def _key(self, line: dict[str, Any], number: int) -> Any:
        """The line's user index, or the bytes of its history; None if a name is unmatched."""
        if "user" in line:
            return self._names.user(line["user"], number)
        history = self._names.items(line["history"], number)
        return None if None in history else np.array(history, np.int32).tobytes()

    def _logits(
        self, line: dict[str, Any], number: int, kind: str, values: list[float] | None
    ) -> dict[int, float]:
        """The logit of each known item that has a probability above 0, best first."""
        items: dict[int, float] = {}
        for rank, item in enumerate(self._names.items(line["items"], number)):
            if item is None:
                continue
            self._repeated += int(item in items)
            if values is None:
                logit = -rank / self._rank_decay
            elif kind == "scores":
                logit = values[rank]
            else:
                logit = math.log(values[rank]) if values[rank] > 0 else -math.inf
            items.setdefault(item, logit)
        return {item: logit for item, logit in items.items() if logit > -math.inf}

    def check(self, max_unmatched: float) -> None:
        """Raises InputError for malformed lines, too many unmatched names, or a file of no list."""
        _raise_errors(self._path, self._errors)
        missing = self._names.missing
        without_lists = len(self._rows) == 1
        if missing > max_unmatched * self._names.total or (missing and without_lists):
            raise InputError(
                f"{self._path}:{min(self._names.first_line.values())}: {missing:,} of"
                f" {self._names.total:,} users, items and titles are not in the data set, or"
                f" ambiguous: {self._names.summary()}; ids and titles must be those of the data, or"
                " raise distill.max_unmatched"
            )
        if without_lists:
            raise InputError(
                f"{self._path} holds no list; give a JSON object per line with 'user' or 'history',"
                " and 'items'"
            )

    def lists(self) -> Lists:
        """All lists as arrays."""
        shape = (len(self._rows), max(len(items) for items, _, _ in self._rows))
        table = np.full(shape, PAD, np.int32)
        logits = np.zeros(shape, np.float32)
        for row, (items, values, _) in enumerate(self._rows):
            table[row, : len(items)] = items
            top = max(values, default=0.0)  # a softmax depends on differences only
            logits[row, : len(items)] = [value - top for value in values]
        weights = np.array([weight for _, _, weight in self._rows], np.float32)
        notes = self._notes(shape[1])
        return Lists(table, logits, weights, self._by_user, self._by_history, notes)

    def _notes(self, width: int) -> tuple[str, ...]:
        how = ", ".join(f"{count:,} by {name}" for name, count in self._kinds.items())
        notes = [f"{len(self._rows) - 1:,} lists of up to {width} items ({how})"]
        unmatched = (
            f"of {self._names.total:,} users, items and titles are not in the data set, or"
            f" ambiguous: {self._names.summary()}"
        )
        for count, what in (
            (self._names.missing, unmatched),
            (self._empty, "lines are left out: no known user, history or item"),
            (self._repeated, "items are in their list twice; the first place counts"),
        ):
            if count:
                notes.append(f"{count:,} {what}")
        if self._ignored:
            notes.append(f"unknown fields, ignored: {', '.join(sorted(self._ignored))}")
        return tuple(notes)


def _raise_errors(path: Path, errors: dict[int, InputError]) -> None:
    """Raises one InputError for all malformed lines, if any: the first few errors, then numbers."""
    if not errors:
        return
    first, *others = errors
    messages = [str(errors[first])]
    for number in others[: SHOWN - 1]:
        messages.append(f"line {number}: {errors[number]}".replace(f"{path}:{number}: ", ""))
    if rest := others[SHOWN - 1 :]:
        more = " …" if rest[LINES:] else ""
        lines = ", ".join(map(str, rest[:LINES]))
        messages.append(f"and {len(rest):,} more, in lines {lines}{more}")
    raise InputError("; ".join(messages))


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", str(error))  # without the position in the line
        raise InputError(f"{where}: no JSON ({reason}); write one object per line") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: {str(value)[:40]!r} is no object; write {{'user': …, 'items': […]}}"
        )
    return value


def _checked(line: dict[str, Any], where: str) -> tuple[str, list[float] | None, float]:
    """Checks a line and returns ('scores', 'probabilities' or '', their values or None, weight)."""
    if ("user" in line) == ("history" in line):
        raise InputError(
            f"{where}: give either 'user' or 'history'; this line has"
            f" {', '.join(line) or 'no field'}"
        )
    for name in ("history", "items"):
        value = line.get(name, None if name == "items" else [0])
        if not isinstance(value, list) or not value or not all(_is_name(entry) for entry in value):
            raise InputError(
                f"{where}: '{name}' is {str(value)[:60]}; it must be a list of ids or titles, not"
                " empty"
            )
    if "user" in line and not _is_name(line["user"]):
        raise InputError(f"{where}: 'user' is {str(line['user'])[:60]}; it must be an id")
    weight = line.get("weight", 1.0)
    if not _is_number(weight) or weight < 0:
        raise InputError(f"{where}: 'weight' is {weight!r}; it must be a number from 0 up")
    kinds = [name for name in ("scores", "probabilities") if name in line]
    if not kinds:
        return "", None, float(weight)
    if len(kinds) > 1:
        raise InputError(f"{where}: give 'scores' or 'probabilities', not both")
    (kind,) = kinds
    values = line[kind]
    if not isinstance(values, list) or len(values) != len(line["items"]):
        size = len(values) if isinstance(values, list) else "no list of"
        raise InputError(
            f"{where}: '{kind}' has {size} values for {len(line['items'])} items; give one for each"
        )
    for value in values:
        if not _is_number(value) or (kind == "probabilities" and value < 0):
            expected = "a finite number" if kind == "scores" else "a number from 0 up"
            raise InputError(f"{where}: {value!r} among '{kind}' must be {expected}")
    if kind == "probabilities" and not sum(values) > 0:
        raise InputError(f"{where}: all 'probabilities' are 0; leave the line out")
    return kind, [float(value) for value in values], float(weight)


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30
