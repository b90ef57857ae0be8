"""What every request passes first: the token, the rate limit, the size of its body."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import time
from typing import Any

from kd_jax.serving.server.errors import Refused
from kd_jax.serving.server.metrics import Metrics

CLIENTS = 10_000  # that are remembered
BODY_SECONDS = 30.0  # for a body to arrive
OPEN = "/healthz"


@dataclasses.dataclass(frozen=True)
class Limits:
    """token: of the header Authorization; None: not needed. rate: requests/s of a client; 0: off.

    body: bytes of a request.
    """

    token: str | None = None
    rate: float = 0.0
    body: int = 1 << 16


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
    """An ASGI application around another: refuses, or hands on a request with its whole body."""

    def __init__(self, app: Any, limits: Limits, metrics: Metrics):
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._buckets = Buckets(limits.rate) if limits.rate else None
        self._token = None if limits.token is None else f"Bearer {limits.token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            body = await self._body(scope, receive)
            messages = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def replay() -> Any:
                return next(messages, None) or await receive()

            await self._app(scope, replay, sending)
        except Refused as error:
            await refuse(error, sending)
        finally:
            self._metrics.observe(scope["path"], status, time.perf_counter() - began)

    def _check(self, scope: Any) -> None:
        if scope["path"] == OPEN:
            return
        client = scope["client"][0] if scope.get("client") else ""
        if self._buckets is not None and not self._buckets.take(client):
            raise Refused(429, f"more than {self._limits.rate:g} requests/s; wait and try again")
        if self._token is not None:
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


async def refuse(error: Refused, send: Any) -> None:
    """Sends the one line of an error."""
    body = json.dumps({"error": str(error)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _header(scope: Any, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
