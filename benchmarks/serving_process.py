"""A server that runs as a process of its own, for benchmarks and tests."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.measuring import ROOT

SECONDS = 60.0  # until it must answer


class Server:
    """A started server that answers; ``with`` ends it.

    command: prints a line that ends with 'http://HOST:PORT' and answers GET /healthz. Raises
    RuntimeError if it does not start.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None):
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=env or os.environ
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "http://" not in line:
            self.end()
            raise RuntimeError(f"{' '.join(command)} did not start: {line!r}")
        self.host, port = line.split("http://")[1].split()[0].rsplit(":", 1)
        self.port = int(port)
        until = time.monotonic() + SECONDS
        while not self._answers():
            if time.monotonic() > until or self.process.poll() is not None:
                self.end()
                raise RuntimeError(f"{' '.join(command)} does not answer")
            time.sleep(0.02)

    def _answers(self) -> bool:
        client = Client(self.host, self.port)
        try:
            return client.send("GET", "/healthz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            client.close()

    def end(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal and waits."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


class Client:
    """One connection that is kept open."""

    def __init__(self, host: str, port: int):
        self._connection = http.client.HTTPConnection(host, port, timeout=SECONDS)

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the JSON of the answer. Raises OSError or HTTPException without one."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def close(self) -> None:
        self._connection.close()


def ours(workdir: Path) -> Server:
    """``python -m kd_jax.serve`` on a free port."""
    return Server([sys.executable, "-m", "kd_jax.serve", f"--workdir={workdir}", "--port=0"])


def environment(threads: int) -> dict[str, str]:
    """The environment of this process, with so many threads for BLAS and OpenMP."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return os.environ | dict.fromkeys(names, str(threads))
