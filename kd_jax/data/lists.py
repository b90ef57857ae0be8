"""Ranked lists that some other system wrote, a JSON object per line, as soft labels.

    {"user": 42, "items": ["Gravity (2013)", 7, "Argo (2012)"], "weight": 0.8}
    {"history": ["Alien (1979)", "Heat (1995)"], "items": [11, 3], "scores": [2.5, 0.3]}

items: ids or titles, the best first. With 'scores' (logits) the list is softmax(scores / T) at the
temperature T of the term that reads it; with 'probabilities' p, it is p ** (1 / T) scaled to sum to
1; with neither, exp(-rank / (decay T)) scaled, the weighting by position of Tang and Wang, "Ranking
Distillation", KDD 2018. All three are logits here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD
from kd_jax.data.dataset import Dataset
from kd_jax.data.lookup import Lookup

FIELDS = ("user", "history", "items", "scores", "probabilities", "weight")
LINES = 20  # numbers of lines that are wrong, too
SHOWN = 5  # names of what was not found


@dataclasses.dataclass(frozen=True)
class Lists:
    """N lists, row 0 an empty one of weight 0. items: padded with ``PAD``. by_user: row of each
    user's list, or 0. by_history: row of the list for a history, the bytes of its items (int32,
    oldest first). notes: for the log.
    """

    items: Int32[np.ndarray, "N K"]
    logits: Float32[np.ndarray, "N K"]
    weights: Float32[np.ndarray, " N"]
    by_user: Int32[np.ndarray, " U"]
    by_history: dict[bytes, int]
    notes: tuple[str, ...] = ()

    @property
    def history(self) -> int:
        """Items of the longest history."""
        return max((len(key) // 4 for key in self.by_history), default=1)

    def place(
        self, user: np.ndarray, history: Int32[np.ndarray, "B L"], positions: str
    ) -> Int32[np.ndarray, "B P"]:
        """The list of each position: the user's own at the last one, else that of the longest
        history that the newest items up to the position are. A history longer than L is cut to its
        newest L.
        """
        length = history.shape[1]
        found = np.zeros((len(history), length if positions == "all" else 1), np.int32)
        known: dict[int, dict[bytes, int]] = {}
        for key, row in sorted(
            self.by_history.items(), key=lambda pair: len(pair[0])
        ):  # whole ones before cut ones
            key = key[-4 * length :]
            known.setdefault(len(key) // 4, {}).setdefault(key, row)
        for size, rows in sorted(known.items()):  # a longer one replaces a shorter one
            windows = np.lib.stride_tricks.sliding_window_view(history, size, axis=1)
            if positions != "all":
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

    An unknown or ambiguous item is left out of its list, and a line without a known user or item,
    or with an unknown item in its history, as a whole: counted, named, and refused past a share
    ``max_unmatched`` of all names. Raises InputError: file, line, what is wrong, and the cure.
    """
    lookup = Lookup(dataset)
    rows: list[tuple[list[int], list[float], float]] = [([], [], 0.0)]
    by_user = np.zeros(dataset.num_users, np.int32)
    by_history: dict[bytes, int] = {}
    first_line: dict[Any, int] = {}
    names, unmatched, met = 0, Counter[str](), dict[str, int]()  # met: in which line first
    kinds, ignored = Counter[str](), Counter[str]()
    repeated = empty = 0

    def find(values: list[Any], number: int) -> list[int | None]:
        nonlocal names
        positions: list[int | None] = []
        for value in values:
            same = lookup.items(value)
            names += 1
            positions.append(same[0] if len(same) == 1 else None)
            if len(same) != 1:
                miss(
                    f"{value!r}" + (f" ({len(same)} items have this title)" if same else ""), number
                )
        return positions

    def miss(name: str, number: int) -> None:
        unmatched[name] += 1
        met.setdefault(name, number)

    wrong: dict[int, InputError] = {}
    for number, raw in _numbered(path):
        where = f"{path}:{number}"
        try:
            line = _object(raw, where)
            kind, given, weight = _checked(line, where)
        except InputError as error:
            wrong[number] = error
            continue
        ignored.update(line.keys() - set(FIELDS))
        key: Any = None
        if "user" in line:
            key = lookup.user(line["user"])
            names += 1
            if key is None:
                miss(f"user {line['user']!r}", number)
        else:
            history = find(line["history"], number)
            if None not in history:
                key = np.array(history, np.int32).tobytes()
        items: dict[int, float] = {}
        found = find(line["items"], number)
        for rank, (item, value) in enumerate(zip(found, given or range(len(found)), strict=True)):
            if item is None:
                continue
            repeated += item in items
            logit = {
                "scores": value,
                "probabilities": math.log(value) if value > 0 else -math.inf,
            }.get(kind)
            items.setdefault(item, -rank / rank_decay if logit is None else logit)
        items = {item: logit for item, logit in items.items() if logit > -math.inf}
        if key is None or not items:
            empty += 1
            continue
        if key in first_line:
            what = f"user {line['user']!r}" if "user" in line else f"history {line['history']!r}"
            wrong[number] = InputError(
                f"{where}: {what} has a list already, in line {first_line[key]}; keep one of them"
            )
            continue
        first_line[key] = number
        kinds[kind or "ranks alone"] += 1
        if "user" in line:
            by_user[key] = len(rows)
        else:
            by_history[key] = len(rows)
        rows.append((list(items), list(items.values()), weight))

    _refuse(path, wrong)
    missing = unmatched.total()
    listed = "; ".join(
        f"{name} in line {met[name]}" + (f", {count} times in all" if count > 1 else "")
        for name, count in unmatched.most_common(SHOWN)
    )
    listed += f"; and {len(unmatched) - SHOWN:,} more" if len(unmatched) > SHOWN else ""
    if missing > max_unmatched * names or (missing and len(rows) == 1):
        raise InputError(
            f"{path}:{min(met.values())}: {missing:,} of {names:,} users, items and titles are not"
            f" in the data set, or ambiguous: {listed}; ids and titles must be those of the data,"
            " or raise distill.max_unmatched"
        )
    if len(rows) == 1:
        raise InputError(
            f"{path} holds no list; give a JSON object per line with 'user' or 'history', and"
            " 'items'"
        )
    width = max(len(items) for items, _, _ in rows)
    table, logits = (
        np.full((len(rows), width), PAD, np.int32),
        np.zeros((len(rows), width), np.float32),
    )
    for row, (found_items, values, _) in enumerate(rows):
        table[row, : len(found_items)] = found_items
        top = max(values, default=0.0)  # only differences count
        logits[row, : len(found_items)] = [value - top for value in values]
    how = ", ".join(f"{count:,} by {name}" for name, count in kinds.items())
    notes = [f"{len(rows) - 1:,} lists of up to {width} items ({how})"]
    for count, what in (
        (
            missing,
            f"of {names:,} users, items and titles are not in the data set, or ambiguous: {listed}",
        ),
        (empty, "lines are left without a known user, history or item"),
        (repeated, "items stand in their list twice; the first place counts"),
    ):
        if count:
            notes.append(f"{count:,} {what}")
    if ignored:
        notes.append(f"fields that say nothing here: {', '.join(sorted(ignored))}")
    weights = np.array([weight for _, _, weight in rows], np.float32)
    return Lists(table, logits, weights, by_user, by_history, tuple(notes))


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank."""
    with path.open("rb") as lines:
        yield from ((number, raw) for number, raw in enumerate(lines, 1) if raw.strip())


def _refuse(path: Path, wrong: dict[int, InputError]) -> None:
    """Raises one InputError for all the lines that are ``wrong``, if any: what it is with the first
    few, and where.
    """
    if not wrong:
        return
    first, *others = wrong
    told = [
        str(wrong[first]),
        *(f"line {n}: {wrong[n]}".replace(f"{path}:{n}: ", "") for n in others[: SHOWN - 1]),
    ]
    if rest := others[SHOWN - 1 :]:
        told.append(
            f"and {len(rest):,} more, in lines"
            f" {', '.join(map(str, rest[:LINES]))}{' …' if rest[LINES:] else ''}"
        )
    raise InputError("; ".join(told))


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        said = getattr(error, "msg", str(error))  # without the place within the line
        raise InputError(f"{where}: no JSON ({said}); write one object per line") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: {str(value)[:40]!r} is no object; write {{'user': …, 'items': […]}}"
        )
    return value


def _checked(line: dict[str, Any], where: str) -> tuple[str, list[float] | None, float]:
    """('scores', 'probabilities' or '', their values or None, weight) of a line that is as it
    should be.
    """
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
            wanted = "a finite number" if kind == "scores" else "a number from 0 up"
            raise InputError(f"{where}: {value!r} among '{kind}' must be {wanted}")
    if kind == "probabilities" and not sum(values) > 0:
        raise InputError(f"{where}: all 'probabilities' are 0; leave the line out")
    return kind, [float(value) for value in values], float(weight)


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30
