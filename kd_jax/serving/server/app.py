"""The routes of the server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from kd_jax.core.errors import InputError
from kd_jax.serving.server import page, requests, schemas
from kd_jax.serving.server.errors import Refused
from kd_jax.serving.server.groups import Groups
from kd_jax.serving.server.limits import BROKEN, OPEN, Gate, Limits, Post, json_only
from kd_jax.serving.server.metrics import Metrics
from kd_jax.serving.server.requests import EVENTS, Compare, Recommend, Similar, parse
from kd_jax.serving.server.state import State

ROUTES = (
    *("/v1/recommend", "/v1/similar", "/v1/feedback", "/v1/items"),
    *("/v1/compare", "/v1/search", OPEN, "/metrics", "/"),
)
FIRST = Compare.of({})  # the page's first request, answered at the start: the next one is fast
SCHEMAS = {
    "/v1/recommend": schemas.RECOMMEND,
    "/v1/similar": schemas.SIMILAR,
    "/v1/feedback": schemas.FEEDBACK,
    "/v1/items": schemas.ITEM,
    "/v1/compare": schemas.COMPARE,
}


def create(state: State, limits: Limits) -> Gate:
    """The ASGI application. It closes ``state`` when it ends."""
    groups, metrics = Groups(state.answer), Metrics(ROUTES)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(state.watch())
        ready = asyncio.create_task(asyncio.to_thread(state.compare, FIRST))
        yield
        await asyncio.gather(ready, return_exceptions=True)
        watching.cancel()
        await state.close()

    # The pages of /docs load scripts from another host, so there is /openapi.json alone.
    api = FastAPI(title="kd_jax", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    for kind, handler in HANDLERS.items():
        api.add_exception_handler(kind, handler)
    posts = {**_lists(groups), **_changes(state), **_compared(state)}
    for path, post in posts.items():
        api.add_api_route(path, _endpoint(post), methods=["POST"], openapi_extra=SCHEMAS[path])

    @api.get("/v1/recommend", openapi_extra=schemas.QUERY)
    async def recommend(request: Request) -> Response:
        """The best items of a user or a history; POST has more fields."""
        return reply(await answered(groups, Recommend.of(_query(request))))

    @api.get("/v1/search", openapi_extra=schemas.SEARCH)
    async def search(request: Request) -> Response:
        """Items by words of their title; without any, the most frequent ones."""
        words = request.query_params.get("q", "")[: requests.MAX_NAME]
        return reply({"items": await asyncio.to_thread(state.search, words)})

    @api.get(OPEN, tags=["server"])
    async def health() -> Response:
        return reply({"status": "ok", "model": state.model.name})

    @api.get("/metrics", tags=["server"])
    async def counters() -> Response:
        model = state.model
        text = metrics.text(state.feedback.counts, model.runtime.num_items, model.loaded)
        return Response(text, media_type="text/plain; version=0.0.4")

    page.add(api)
    limits = dataclasses.replace(limits, public=frozenset(page.FILES))
    return Gate(api, posts, limits, metrics)


def server(app: Gate) -> uvicorn.Server:
    """Serves the application with one process."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # a client could choose its address, and so escape the rate limit
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def _endpoint(post: Post) -> Any:
    """The route that FastAPI describes, and serves where there is no ``Gate``."""

    async def endpoint(request: Request) -> Response:
        json_only(request.headers.get("content-type", "").encode())
        return reply(await post(await request.body()))

    endpoint.__doc__, endpoint.__name__ = post.__doc__, post.__name__
    return endpoint


async def answered(groups: Groups, ask: Recommend | Similar) -> dict[str, Any]:
    found, model = await groups.ask(ask)
    if isinstance(found, Exception):
        raise found
    return {"items": found, "model": model}


def _lists(groups: Groups) -> dict[str, Post]:
    async def recommend(body: bytes) -> Any:
        """The best items of a user, of a history, or of both."""
        return await answered(groups, Recommend.of(parse(body, requests.RECOMMEND)))

    async def similar(body: bytes) -> Any:
        """The items that fit to an item."""
        return await answered(groups, Similar.of(parse(body, ("item", "k"))))

    return {"/v1/recommend": recommend, "/v1/similar": similar}


def _compared(state: State) -> dict[str, Post]:
    async def compare(body: bytes) -> Any:
        """The lists of all models for one user, as the page shows them. Nothing is stored."""
        ask = Compare.of(parse(body, requests.COMPARE))
        # In a thread: it takes several times as long as a list.
        return await asyncio.to_thread(state.compare, ask)

    return {"/v1/compare": compare}


def _changes(state: State) -> dict[str, Post]:
    async def feedback(body: bytes) -> Any:
        """Stores an event; the user's next list has it."""
        fields = parse(body, ("user", "item", "event"))
        user, item = requests.name(fields, "user"), requests.name(fields, "item")
        event = fields.get("event")
        if event not in EVENTS:
            raise Refused(400, f"event must be one of {', '.join(EVENTS)}")
        return await state.add_event(user, item, event)

    async def items(body: bytes) -> Any:
        """Adds an item, which can be recommended at once."""
        item = requests.new_item(parse(body, requests.ITEM))
        model = await state.add_item(item)
        return {"item": item["id"], "title": item["title"], "model": model.name}

    return {"/v1/feedback": feedback, "/v1/items": items}


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
    return reply({"error": BROKEN}, 500)


HANDLERS: dict[Any, Any] = {
    InputError: _refused,
    HTTPException: _not_found,
    Exception: _broken,
}
