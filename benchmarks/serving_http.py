"""Requests per second, latency, CPU time and memory of a server, and of implicit's beside it.

    python benchmarks/serving_http.py --workdir=runs/quickstart [--seconds=60] \\
        [--implicit=peers/implicit/bin/python]

It starts ``python -m kd_jax.serve`` for the workdir, and a minimal FastAPI server with implicit,
fitted to the same interactions with as many factors. Every request is a history of --length random
items; a connection sends the next one when it has the answer. The load is made by this one
process. Memory is read after a second of load, and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.serving_process import Server, environment, ours
from kd_jax import runtime
from kd_jax.runtime import store

REQUESTS = 2000  # different ones
WARM_UP = 1.0  # seconds


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


def requests_of(items: Sequence[Any], length: int, k: int) -> list[bytes]:
    rng = random.Random(0)
    found = []
    for _ in range(REQUESTS):
        body = json.dumps({"history": rng.sample(items, length), "k": k}).encode()
        head = (
            "POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


def resident(pid: int) -> float:
    """MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(
    server: Server, requests: list[bytes], seconds: float, connections: int
) -> tuple[list[float], int, float]:
    """The latencies in s, the number of errors, and the seconds it took."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    opened = [
        await loop.create_connection(
            lambda: Connection(requests, began + seconds), server.host, server.port
        )
        for _ in range(connections)
    ]
    await asyncio.gather(*(connection.done for _, connection in opened))
    latencies = sorted(one for _, connection in opened for one in connection.latencies)
    errors = sum(connection.errors for _, connection in opened)
    return latencies, errors, time.perf_counter() - began


def measure(
    server: Server, requests: list[bytes], seconds: float, connections: int
) -> dict[str, float]:
    pid = server.process.pid
    asyncio.run(load(server, requests, WARM_UP, connections))
    before, cpu = resident(pid), cpu_seconds(pid)
    latencies, errors, took = asyncio.run(load(server, requests, seconds, connections))
    p50, p99 = (latencies[int(share * (len(latencies) - 1))] * 1000 for share in (0.5, 0.99))
    return {
        "requests_per_s": len(latencies) / took,
        "requests": len(latencies),
        "seconds": took,
        "p50": p50,
        "p99": p99,
        "errors": errors,
        "cpu_ms": (cpu_seconds(pid) - cpu) / len(latencies) * 1000,
        "rss_before": before,
        "rss_after": resident(pid),
    }


def measure_all(
    workdir: Path,
    implicit: str | None = None,
    *,
    seconds: float = 60.0,
    connections: int = 32,
    length: int = 10,
    k: int = 10,
) -> dict[str, dict[str, float]]:
    """The figures of our server, and of implicit's where its interpreter is given."""
    export = runtime.load(workdir).export
    requests = requests_of(export.item_ids, length, k)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "export").mkdir()
        shutil.copy(workdir / "export" / store.FILE, folder / "export")
        with ours(folder) as server:
            found["kd_jax"] = measure(server, requests, seconds, connections)
        if implicit:
            np.savez(
                folder / "interactions.npz",
                indptr=export.indptr,
                items=export.items,
                num_items=len(export.item_ids),
                item_ids=np.array(export.item_ids),
                titles=np.array(export.titles),
            )
            factors = export.item_vectors.shape[1]
            script = Path(__file__).parent / "peer_implicit_server.py"
            command = [implicit, str(script), f"--data={folder}", f"--factors={factors}"]
            with Server(command, environment(1)) as server:
                found["implicit"] = measure(server, requests, seconds, connections)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="of the run that is served")
    add("--implicit", help="the interpreter of the environment that has implicit")
    add("--seconds", type=float, default=60)
    add("--connections", type=int, default=32)
    add("--length", type=int, default=10, help="items of a history")
    add("-k", type=int, default=10)
    add("--json", action="store_true", help="print a JSON object")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    found = measure_all(**options)
    if as_json:
        print(json.dumps(found))
        return 0
    for name, one in found.items():
        print(
            f"{name}: {one['requests_per_s']:,.0f} requests/s, {one['requests']:,} in"
            f" {one['seconds']:.1f} s, p50 {one['p50']:.1f} ms, p99 {one['p99']:.1f} ms,"
            f" {one['errors']} errors, {one['cpu_ms']:.2f} ms CPU each,"
            f" RSS {one['rss_before']:.1f} MB before, {one['rss_after']:.1f} MB after"
        )
    return int(any(one["errors"] for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
