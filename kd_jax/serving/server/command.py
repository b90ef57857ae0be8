"""What ``python -m kd_jax.serve`` does with its arguments."""

from __future__ import annotations

import argparse
import contextlib
import socket
from pathlib import Path

from kd_jax.core.errors import InputError

LOCAL = "127.0.0.1"


def run(options: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM. Raises InputError for bad arguments."""
    token = _token(options)
    if options.rate < 0 or options.max_body < 1 or not 0 <= options.port < 1 << 16:
        raise InputError("--rate, --max-body and --port must be positive; the last below 65536")
    try:
        from kd_jax.serving.server import app
    except ModuleNotFoundError as error:
        raise InputError(
            f"the server needs {error.name}, which is not installed; pip install -e '.[serve]'"
        ) from None
    with _listen(options.host, options.port) as listening:
        state = app.State(Path(options.workdir).expanduser())
        limits = app.Limits(token, options.rate, options.max_body)
        host, port = listening.getsockname()[:2]
        print(f"serving {state.model.name} on http://{host}:{port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            app.server(app.create(state, limits)).run(sockets=[listening])


def _token(options: argparse.Namespace) -> str | None:
    if options.token_file is None:
        if options.host != LOCAL:
            raise InputError(
                f"--host={options.host} lets other machines in; give --token-file=FILE with a"
                f" secret, or leave --host at {LOCAL}"
            )
        return None
    try:
        token = Path(options.token_file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file={options.token_file} can't be read ({error})") from None
    if not token or not token.isascii() or " " in token or len(token.splitlines()) > 1:
        raise InputError(
            f"--token-file={options.token_file} must hold one line of ASCII without spaces"
        )
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise InputError(
            f"--host={host} --port={port} cannot be used ({error.strerror}); choose another"
        ) from None
    return found
