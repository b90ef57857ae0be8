"""The page of the server: its files, and the headers that confine them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import FastAPI, Response

FILES = {  # path -> file, type
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/lists.js": ("lists.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    # Nothing inline, nothing of another host, in no frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add(api: FastAPI) -> None:
    """Adds the routes of the files. They hold no data, so they need no token."""
    folder = resources.files("kd_jax.serving.server") / "static"
    for path, (name, kind) in FILES.items():
        file = _file((folder / name).read_bytes(), f"{kind}; charset=utf-8")
        api.add_api_route(path, file, methods=["GET"], include_in_schema=False)


def _file(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def file() -> Response:
        return Response(content, headers=HEADERS | {"Content-Type": kind})

    return file
