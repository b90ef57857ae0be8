"""The routes of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from kd_jax import __version__
from kd_jax.core.errors import InputError
from kd_jax.serving.server import requests, schemas
from kd_jax.serving.server.errors import Refused
from kd_jax.serving.server.groups import Groups
from kd_jax.serving.server.limits import OPEN, Gate, Limits
from kd_jax.serving.server.metrics import Metrics
from kd_jax.serving.server.requests import EVENTS, Recommend, Similar, parse
from kd_jax.serving.server.state import State

ROUTES = ("/v1/recommend", "/v1/similar", "/v1/feedback", "/v1/items", OPEN, "/metrics")
ITEM_FIELDS = ("id", "title", "text", "vector", "bias")


def create(state: State, limits: Limits) -> Gate:
    """The ASGI application. It closes ``state`` when it ends."""
    groups, metrics = Groups(state.answer), Metrics(ROUTES)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(state.watch())
        yield
        watching.cancel()
        groups.close()
        await state.close()

    # The pages of /docs load scripts from another host, so there is /openapi.json alone.
    api = FastAPI(
        title="kd_jax", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    for kind, handler in HANDLERS.items():
        api.add_exception_handler(kind, handler)
    _lists(api, groups)
    _changes(api, state)

    @api.get(OPEN, tags=["server"])
    async def health() -> Response:
        return reply({"status": "ok", "model": state.model.name})

    @api.get("/metrics", tags=["server"])
    async def counters() -> Response:
        model = state.model
        text = metrics.text(state.feedback.counts, model.runtime.num_items, model.loaded)
        return Response(text, media_type="text/plain; version=0.0.4")

    return Gate(api, limits, metrics)


def _lists(api: FastAPI, groups: Groups) -> None:
    async def answered(ask: Recommend | Similar) -> Response:
        found, model = await groups.ask(ask)
        if isinstance(found, Exception):
            raise found
        return reply({"items": found, "model": model})

    @api.post("/v1/recommend", openapi_extra=schemas.RECOMMEND)
    async def recommend(request: Request) -> Response:
        return await answered(Recommend.of(await _json(request, requests.RECOMMEND)))

    @api.get("/v1/recommend", openapi_extra=schemas.QUERY)
    async def recommend_simply(request: Request) -> Response:
        return await answered(Recommend.of(_query(request)))

    @api.post("/v1/similar", openapi_extra=schemas.SIMILAR)
    async def similar(request: Request) -> Response:
        return await answered(Similar.of(await _json(request, ("item", "k"))))


def _changes(api: FastAPI, state: State) -> None:
    @api.post("/v1/feedback", openapi_extra=schemas.FEEDBACK)
    async def feedback(request: Request) -> Response:
        body = await _json(request, ("user", "item", "event"))
        user, item = requests.name(body, "user"), requests.name(body, "item")
        event = body.get("event")
        if event not in EVENTS:
            raise Refused(400, f"event must be one of {', '.join(EVENTS)}")
        return reply(await state.add_event(user, item, event))

    @api.post("/v1/items", openapi_extra=schemas.ITEM)
    async def items(request: Request) -> Response:
        body = await _json(request, ITEM_FIELDS)
        key, title = requests.name(body, "id"), requests.name(body, "title")
        if not isinstance(title, str) or not isinstance(body.get("text", ""), str):
            raise Refused(400, "title and text must be texts")
        if "vector" not in body:
            raise Refused(
                501, "this export cannot read texts; send the item's vector and bias as well"
            )
        if not isinstance(body["vector"], list):
            raise Refused(400, "vector must be a list of numbers")
        vector = [requests.number(value, "vector") for value in body["vector"]]
        bias = requests.number(body.get("bias", 0.0), "bias")
        item = {"id": str(key).strip(), "title": title, "text": body.get("text", "")}
        model = await state.add_item(item | {"vector": vector, "bias": bias})
        return reply({"item": item["id"], "title": title, "model": model.name})


async def _json(request: Request, fields: tuple[str, ...]) -> dict[str, Any]:
    # A page in a browser cannot send this type to another host unasked.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "send the body with Content-Type: application/json")
    return parse(await request.body(), fields)


def _query(request: Request) -> dict[str, Any]:
    query = request.query_params
    unknown = [name for name in query if name not in ("user", "history", "k", "diversity")]
    if unknown:
        raise Refused(400, f"unknown parameter {unknown[0][:100]!r}; use POST for all fields")
    found: dict[str, Any] = {}
    if "user" in query:
        found["user"] = query["user"]
    if "history" in query:
        found["history"] = query.getlist("history")
    for name, kind in (("k", int), ("diversity", float)):
        try:
            if name in query:
                found[name] = kind(query[name])
        except ValueError:
            raise Refused(400, f"{name} must be a number") from None
    return found


def reply(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    return reply({"error": str(error)}, getattr(error, "status", 400))


async def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    routes = ", ".join((*ROUTES, "/openapi.json"))
    return reply({"error": f"{error.detail}; the routes are {routes}"}, error.status_code)


async def _broken(_: Request, error: Exception) -> Response:
    return reply({"error": "internal error; the server's log has the reason"}, 500)


HANDLERS: dict[Any, Any] = {
    InputError: _refused,
    HTTPException: _not_found,
    Exception: _broken,
}
