"""Requests per second, latency, CPU time and memory of a running ``python -m kd_jax.serve``.

python -m kd_jax.serve --workdir=runs/quickstart --port=8000 &
python benchmarks/serving_http.py --workdir=runs/quickstart --port=8000 --seconds=10 --pid=$!

Every request is a history of --length random items; a connection sends the next one when it has the
answer. The load is made by this one process, on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from kd_jax import runtime  # noqa: E402

REQUESTS = 2000  # different ones


class Connection(asyncio.Protocol):
    """Sends requests one after the other and notes their latencies."""

    def __init__(self, requests: list[bytes], until: float):
        self.requests = requests
        self.until = until
        self.latencies: list[float] = []
        self.errors = 0
        self.done = asyncio.get_running_loop().create_future()
        self._buffer = b""

    def connection_made(self, transport):
        self.transport = transport
        self._send()

    def _send(self):
        self._began = time.perf_counter()
        if self._began >= self.until:
            self.transport.close()
            return
        self.transport.write(random.choice(self.requests))

    def data_received(self, data):
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) < length:
            return
        self.latencies.append(time.perf_counter() - self._began)
        self.errors += not head.startswith(b"HTTP/1.1 200")
        self._buffer = b""
        self._send()

    def connection_lost(self, error):
        self.errors += error is not None or bool(self._buffer)
        if not self.done.done():
            self.done.set_result(None)


def requests_of(options: argparse.Namespace) -> list[bytes]:
    ids = runtime.load(options.workdir).export.item_ids
    rng = random.Random(0)
    found = []
    for _ in range(REQUESTS):
        body = json.dumps({"history": rng.sample(ids, options.length), "k": options.k}).encode()
        head = (
            f"POST /v1/recommend HTTP/1.1\r\nHost: {options.host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


def resident(pid: int | None) -> str:
    if pid is None:
        return "-"
    status = Path(f"/proc/{pid}/status").read_text()
    return f"{int(status.partition('VmRSS:')[2].split()[0]) / 1024:.1f} MiB"


def cpu_seconds(pid: int | None) -> float:
    if pid is None:
        return float("nan")
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(options: argparse.Namespace) -> int:
    requests, before = requests_of(options), resident(options.pid)
    loop = asyncio.get_running_loop()
    cpu = cpu_seconds(options.pid)
    began = time.perf_counter()
    until = began + options.seconds
    connections = [
        (
            await loop.create_connection(
                lambda: Connection(requests, until), options.host, options.port
            )
        )[1]
        for _ in range(options.connections)
    ]
    await asyncio.gather(*(connection.done for connection in connections))
    seconds = time.perf_counter() - began
    latencies = sorted(one for connection in connections for one in connection.latencies)
    errors = sum(connection.errors for connection in connections)
    p50, p99 = (latencies[int(share * (len(latencies) - 1))] * 1000 for share in (0.5, 0.99))
    print(
        f"{len(latencies) / seconds:,.0f} requests/s, {len(latencies):,} in {seconds:.1f} s,"
        f" p50 {p50:.1f} ms, p99 {p99:.1f} ms, {errors} errors,"
        f" {(cpu_seconds(options.pid) - cpu) / len(latencies) * 1000:.2f} ms CPU each,"
        f" RSS {before} before, {resident(options.pid)} after"
    )
    return int(errors > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--workdir", required=True, help="of the run that is served")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--pid", type=int, help="of the server, for its memory and CPU time")
    add("--seconds", type=float, default=10)
    add("--connections", type=int, default=32)
    add("--length", type=int, default=10, help="items of a history")
    add("-k", type=int, default=10)
    return asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
