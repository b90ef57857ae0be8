"""What every request passes first: the token, the rate limit, the size of its body."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from kd_jax.core.errors import InputError
from kd_jax.serving.server.errors import Refused
from kd_jax.serving.server.metrics import Metrics

CLIENTS = 10_000  # that are remembered
BODY_SECONDS = 30.0  # for a body to arrive
OPEN = "/healthz"
BROKEN = "internal error; the log of the server has the reason"
Post = Callable[[bytes], Awaitable[Any]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """token: of the header Authorization; None: not needed. rate: requests/s of a client; 0: off.

    body: bytes of a request. public: paths that need no token.
    """

    token: str | None = None
    rate: float = 0.0
    body: int = 1 << 16
    public: frozenset[str] = frozenset()


class Buckets:
    """A token bucket for every client: ``rate`` requests per second, as many at once."""

    def __init__(self, rate: float):
        self._rate = rate
        self._most = max(1.0, rate)
        self._clients: dict[str, tuple[float, float]] = {}  # tokens, and when

    def take(self, client: str) -> bool:
        """Whether the client may send a request now."""
        now = time.monotonic()
        # Clients are kept in the order of their last request: the first has the fullest bucket.
        tokens, since = self._clients.pop(client, (self._most, now))
        tokens = min(self._most, tokens + (now - since) * self._rate)
        allowed = tokens >= 1
        self._clients[client] = (tokens - allowed, now)
        if len(self._clients) > CLIENTS:
            del self._clients[next(iter(self._clients))]
        return allowed


class Gate:
    """An ASGI application that refuses a request, answers it, or hands it on with its whole body.

    posts: what answers the body of a POST, by path. They do not go through ``app``: the dispatch of
    FastAPI takes as long as the answer.
    """

    def __init__(self, app: Any, posts: dict[str, Post], limits: Limits, metrics: Metrics):
        self._app = app
        self._posts = posts
        self._limits = limits
        self._metrics = metrics
        self._buckets = Buckets(limits.rate) if limits.rate else None
        self._token = None if limits.token is None else f"Bearer {limits.token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status, post = time.perf_counter(), 500, None

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            body = await self._body(scope, receive)
            post = self._posts.get(scope["path"]) if scope["method"] == "POST" else None
            if post is None:
                await self._app(scope, _again(body, receive), sending)
            else:
                json_only(_header(scope, b"content-type"))
                await respond(200, await post(body), sending)
        except InputError as error:
            await respond(getattr(error, "status", 400), {"error": str(error)}, sending)
        except Exception:
            if post is None:  # FastAPI has answered
                raise
            traceback.print_exc()
            await respond(500, {"error": BROKEN}, sending)
        finally:
            self._metrics.observe(scope["path"], status, time.perf_counter() - began)

    def _check(self, scope: Any) -> None:
        if scope["path"] == OPEN:
            return
        client = scope["client"][0] if scope.get("client") else ""
        if self._buckets is not None and not self._buckets.take(client):
            raise Refused(429, f"more than {self._limits.rate:g} requests/s; wait and try again")
        if self._token is not None and scope["path"] not in self._limits.public:
            given = _header(scope, b"authorization") or b""
            if not hmac.compare_digest(given, self._token):
                raise Refused(401, "the token is missing or wrong; send Authorization: Bearer …")

    async def _body(self, scope: Any, receive: Any) -> bytes:
        too_long = Refused(
            413, f"the body is longer than {self._limits.body} bytes; send several requests"
        )
        length = _header(scope, b"content-length") or b"0"
        if not length.isdigit() or len(length) > 18:
            raise Refused(400, "Content-Length is not a number")
        if int(length) > self._limits.body:
            raise too_long
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body"):
            parts = [body]
            size = len(body)
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    while message.get("more_body") and size <= self._limits.body:
                        message = await receive()
                        parts.append(message.get("body", b""))
                        size += len(parts[-1])
            except TimeoutError:
                raise Refused(408, "the body did not arrive in time") from None
            body = b"".join(parts)
        if len(body) > self._limits.body:
            raise too_long
        return body


def json_only(kind: bytes | None) -> None:
    """Raises Refused for a Content-Type that a browser sends to another host unasked."""
    if (kind or b"").partition(b";")[0].strip().lower() != b"application/json":
        raise Refused(415, "send the body with Content-Type: application/json")


async def respond(status: int, value: Any, send: Any) -> None:
    """Sends JSON."""
    body = json.dumps(value).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _again(body: bytes, receive: Any) -> Any:
    """A ``receive`` that gives a body that has been read."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Any:
        return next(messages, None) or await receive()

    return replay


def _header(scope: Any, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
