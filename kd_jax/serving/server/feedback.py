"""What users clicked, liked or disliked since the export."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from kd_jax.serving.server.log import Record
from kd_jax.serving.server.requests import EVENTS

FILE = "feedback.jsonl"


class Feedback:
    """Events by user, as ids, so that they outlive a model.

    An item's newest event counts: a click or a like makes it the newest of the history, a dislike
    takes it out.
    """

    def __init__(self) -> None:
        self._users: dict[str, dict[str, bool]] = {}  # item id -> whether it is in the history
        self.counts = dict.fromkeys(EVENTS, 0)

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            items = self._users.setdefault(record["user"], {})
            items.pop(record["item"], None)
            items[record["item"]] = record["event"] != "dislike"
            self.counts[record["event"]] += 1

    def of(self, user: str) -> list[tuple[str, bool]]:
        """(item id, whether it is in the history) of a user, oldest event first."""
        found = self._users.get(user)
        return list(found.items()) if found else []


def record(user: object, item: object, event: str) -> Record:
    """A line of the file: a user, an item, the event, and seconds since 1970."""
    return {
        "user": str(user).strip(),
        "item": str(item),
        "event": event,
        "timestamp": int(time.time()),
    }


def valid(value: Any) -> bool:
    """Whether ``value`` is a line of the file."""
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(field), str) for field in ("user", "item"))
        and value.get("event") in EVENTS
    )
