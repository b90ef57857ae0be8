"""Bodies of requests: checked values, or Refused with one line."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from kd_jax.serving.server.errors import Refused

MAX_K = 1000
MAX_HISTORY = 1000
MAX_DIVERSE = 100  # items of a diversified list: its time grows with k²
MAX_NAME = 1000  # characters of an id or a title
MAX_TEXT = 20_000  # characters of an item's text
EVENTS = ("click", "like", "dislike")
Name = str | int


def parse(body: bytes, allowed: Sequence[str]) -> dict[str, Any]:
    """The JSON object of a body; fields that are null count as absent."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except Refused:
        raise
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON; send one JSON object") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object; send {…}")
    unknown = [name for name in value if name not in allowed]
    if unknown:
        raise Refused(
            400, f"unknown field {unknown[0][:100]!r}; the fields are {', '.join(allowed)}"
        )
    return {name: field for name, field in value.items() if field is not None}


def _refuse_constant(text: str) -> NoReturn:
    raise Refused(400, f"{text} is not JSON; numbers must be finite")


def name(body: dict[str, Any], field: str) -> Name:
    """A user or an item: an id, or a title."""
    if field not in body:
        raise Refused(400, f"{field} is missing")
    return _name(body[field], field)


def _name(value: Any, field: str) -> Name:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused(400, f"{field} must be a text or a whole number")
    if isinstance(value, int):
        if abs(value) >= 1 << 63:
            raise Refused(400, f"{field} has too many digits")
        return value
    if not value.strip() or len(value) > MAX_NAME:
        raise Refused(400, f"{field} must have 1 to {MAX_NAME} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(400, f"{field} is not valid Unicode") from None
    return value


def names(body: dict[str, Any], field: str, most: int | None = None) -> list[Name] | None:
    """A list of items; None where it is absent."""
    if field not in body:
        return None
    value = body[field]
    if not isinstance(value, list):
        raise Refused(400, f"{field} must be a list of ids or titles")
    if most is not None and len(value) > most:
        raise Refused(400, f"{field} has {len(value)} items; at most {most} are allowed")
    return [_name(one, field) for one in value]


def list_size(body: dict[str, Any]) -> int:
    k = body.get("k", 10)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise Refused(400, f"k must be a whole number from 1 to {MAX_K}")
    return k


def number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(400, f"{field} must be a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not abs(found) < 1e30:
        raise Refused(400, f"{field} must be a finite number")
    return found


def diversity_of(body: dict[str, Any]) -> float:
    found = number(body.get("diversity", 0.0), "diversity")
    if not 0 <= found <= 1:
        raise Refused(400, "diversity must be between 0 and 1")
    return found


def item_text(body: dict[str, Any]) -> str:
    """The text of an item; '' where it is absent."""
    found = body.get("text", "")
    if not isinstance(found, str):
        raise Refused(400, "text must be a text")
    if len(found) > MAX_TEXT:
        raise Refused(400, f"text has {len(found)} characters; at most {MAX_TEXT} are allowed")
    return found


@dataclasses.dataclass(frozen=True)
class Recommend:
    """A request for a list of items. Items are names."""

    user: Name | None
    history: list[Name] | None
    k: int
    exclude: list[Name]
    only: list[Name] | None
    include_seen: bool
    diversity: float

    @classmethod
    def of(cls, body: dict[str, Any]) -> Recommend:
        user = name(body, "user") if "user" in body else None
        history = names(body, "history", MAX_HISTORY)
        if user is None and not history:
            raise Refused(400, "give a user, a history with at least one item, or both")
        include_seen = body.get("include_seen", False)
        if not isinstance(include_seen, bool):
            raise Refused(400, "include_seen must be true or false")
        k, diversity = list_size(body), diversity_of(body)
        if diversity and k > MAX_DIVERSE:
            raise Refused(400, f"k must be at most {MAX_DIVERSE} with diversity")
        only = names(body, "only")
        return cls(user, history, k, names(body, "exclude") or [], only, include_seen, diversity)


RECOMMEND = tuple(field.name for field in dataclasses.fields(Recommend))


@dataclasses.dataclass(frozen=True)
class Compare:
    """A request for the lists of all models. text: of an item that does not exist."""

    user: Name | None
    history: list[Name]
    disliked: list[Name]
    k: int
    diversity: float
    text: str

    @classmethod
    def of(cls, body: dict[str, Any]) -> Compare:
        k, diversity = list_size(body), diversity_of(body)
        if k > MAX_DIVERSE:
            raise Refused(400, f"k must be at most {MAX_DIVERSE}")
        return cls(
            name(body, "user") if "user" in body else None,
            names(body, "history", MAX_HISTORY) or [],
            names(body, "disliked", MAX_HISTORY) or [],
            k,
            diversity,
            item_text(body),
        )


COMPARE = tuple(field.name for field in dataclasses.fields(Compare))


@dataclasses.dataclass(frozen=True)
class Similar:
    """A request for the items that fit to an item."""

    item: Name
    k: int

    @classmethod
    def of(cls, body: dict[str, Any]) -> Similar:
        return cls(name(body, "item"), list_size(body))


ITEM = ("id", "title", "text", "vector", "bias")


def new_item(body: dict[str, Any]) -> dict[str, Any]:
    """A new item: texts ``id``, ``title`` and ``text``; where given, ``vector`` and ``bias``."""
    key, title, text = name(body, "id"), name(body, "title"), item_text(body)
    item = {"id": str(key).strip(), "title": title, "text": text}
    if not isinstance(title, str):
        raise Refused(400, "title must be a text")
    if "vector" not in body:
        if not text.strip() or "bias" in body:
            raise Refused(400, "send the item's text, or its vector and bias")
        return item
    if not isinstance(body["vector"], list):
        raise Refused(400, "vector must be a list of numbers")
    vector = [number(value, "vector") for value in body["vector"]]
    bias = number(body.get("bias", 0.0), "bias")
    return item | {"vector": vector, "bias": bias}
