"""JSON schemas of the requests, for /openapi.json."""

from __future__ import annotations

from typing import Any

from kd_jax.serving.server.requests import EVENTS, MAX_DIVERSE, MAX_HISTORY, MAX_K, MAX_TEXT

NAME = {"oneOf": [{"type": "string"}, {"type": "integer"}]}
NAMES = {"type": "array", "items": NAME}
K = {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": 10}


def body(required: list[str], **properties: Any) -> dict[str, Any]:
    """The part of an operation that describes a JSON body."""
    schema: dict[str, Any] = {"type": "object", "required": required, "properties": properties}
    schema["additionalProperties"] = False
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


RECOMMEND = body(
    [],
    user=NAME,
    history={**NAMES, "maxItems": MAX_HISTORY, "description": "ids or titles, oldest first"},
    k=K,
    exclude=NAMES,
    only=NAMES,
    include_seen={"type": "boolean", "default": False},
    diversity={"type": "number", "minimum": 0, "maximum": 1, "default": 0},
)
COMPARE = body(
    [],
    user=NAME,
    history={**NAMES, "maxItems": MAX_HISTORY, "description": "ids or titles, oldest first"},
    disliked={**NAMES, "maxItems": MAX_HISTORY},
    k={**K, "maximum": MAX_DIVERSE},
    diversity={"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    text={"type": "string", "maxLength": MAX_TEXT, "description": "of an item that is not there"},
)
SIMILAR = body(["item"], item=NAME, k=K)
FEEDBACK = body(["user", "item", "event"], user=NAME, item=NAME, event={"enum": list(EVENTS)})
ITEM = body(
    ["id", "title"],
    id=NAME,
    title={"type": "string"},
    text={"type": "string", "maxLength": MAX_TEXT, "description": "as the texts of the data set"},
    vector={"type": "array", "items": {"type": "number"}},
    bias={"type": "number", "default": 0},
)
_PARAMETERS: dict[str, Any] = {
    "user": {"type": "string"},
    "history": {"type": "array", "items": {"type": "string"}},
    "k": K,
    "diversity": {"type": "number"},
}
QUERY = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in _PARAMETERS.items()
    ]
}
SEARCH = {
    "parameters": [{"name": "q", "in": "query", "required": False, "schema": {"type": "string"}}]
}
