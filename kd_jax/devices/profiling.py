"""What a training run costs while it runs: where its time goes, its FLOPs against the device's
ceiling, its memory.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CEILING_SIZE = {"cpu": 2048}  # of the square matrices whose product measures the ceiling
CEILING_SIZE_ELSEWHERE = 8192


def matmul_flops(function: Any, *arguments: Any) -> int:
    """FLOPs of all matrix products in one call of ``function``, loops counted as often as they run.

    Read from the traced program, so recomputation counts and what XLA removes later does too.
    Branches of a ``cond`` count as the dearest, a ``while`` whose length is not known as one round.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
            continue
        inner = [_count(getattr(found, "jaxpr", found)) for found in _inner(equation.params)]
        if inner:
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            parts = equation.params["mesh"].size if equation.primitive.name == "shard_map" else 1
            total += (
                times * parts * (max(inner) if equation.primitive.name == "cond" else sum(inner))
            )
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for name, value in params.items():
        if name in (
            "jvp_jaxpr_fun",
            "fwd_jaxpr_thunk",
            "bwd",
        ):  # of a custom derivative, not taken here
            continue
        for found in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(found, "jaxpr", found), "eqns"):
                yield found


@functools.cache
def ceiling() -> float:
    """FLOP/s of a large f32 matrix product on one device, measured once: what our matrix products
    are held against.
    """
    size = CEILING_SIZE.get(jax.default_backend(), CEILING_SIZE_ELSEWHERE)
    square = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    seconds = math.inf
    for _ in range(3):
        began = time.perf_counter()
        product(square, square).block_until_ready()
        seconds = min(seconds, time.perf_counter() - began)
    return 2 * size**3 / seconds


def peak_memory() -> int | None:
    """The most bytes in use so far: on the first device, or of this process where devices do not
    say (CPU).
    """
    found = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if found is not None:
        return int(found)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024


class Meter:
    """Seconds of the training loop by what the host does: 'input' (waiting for batches), 'dispatch'
    (starting programs) and 'wait' (for results, so the device is busy); the rest is everything else
    on the host.

    flops: of the matrix products of one step over all devices; set it when the step is known.
    """

    def __init__(self, devices: int):
        self.flops, self._ceiling = 0, ceiling() * devices
        self.reset(0)

    def reset(self, ahead: int) -> None:
        """Start to measure here: what was before is not training. ahead: steps that are started
        before any is done.
        """
        self._seconds = dict.fromkeys(("input", "dispatch", "wait"), 0.0)
        self._began, self._steps = time.perf_counter(), -ahead

    @contextlib.contextmanager
    def time(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - began

    def step(self, count: int) -> None:
        self._steps += count

    def read(self, batch_size: int) -> dict[str, Any]:
        """Since the last reading: examples/s; milliseconds a step, split; TFLOP/s of the products
        done and their share of the ceiling; peak bytes so far. Nothing where no step is done
        yet.
        """
        if self._steps <= 0:
            return {}
        elapsed, steps = time.perf_counter() - self._began, max(1, self._steps)
        split = {kind: 1e3 * seconds / steps for kind, seconds in self._seconds.items()}
        split["other"] = 1e3 * elapsed / steps - sum(split.values())
        rate = self.flops * self._steps / elapsed
        examples = self._steps * batch_size / elapsed
        self.reset(0)
        return {
            "examples_per_second": round(examples, 1),
            "step_ms": {kind: round(value, 3) for kind, value in split.items()},
            "tflops": float(np.round(rate / 1e12, 4)),
            "flops_utilisation": float(np.round(rate / self._ceiling, 4)),
            "peak_bytes": peak_memory(),
        }


@contextlib.contextmanager
def trace(folder: Path | None) -> Iterator[None]:
    """An XProf trace of what runs inside, in ``folder``; nothing where it is None."""
    with contextlib.nullcontext() if folder is None else jax.profiler.trace(folder):
        yield


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_CONTAINERS = ("while", "conditional", "call")  # whose time is that of the operations inside


def device_time(folder: Path, steps: int) -> dict[str, float]:
    """Milliseconds a step, mean over this process's devices, of an XProf trace of ``steps`` steps
    in ``folder``: 'collective', waiting for other devices included, and 'compute', every other
    operation. Nothing where the trace names no operation.
    """
    found = {"compute": 0.0, "collective": 0.0}
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)[
        -1:
    ]  # the newest
    planes = [
        plane for path in files for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    ]
    for plane in planes:
        for event in (event for line in plane.lines for event in line.events):
            operation = next((str(value) for name, value in event.stats if name == "hlo_op"), "")
            if operation and not operation.startswith(_CONTAINERS):
                kind = "collective" if operation.startswith(COLLECTIVES) else "compute"
                found[kind] += event.duration_ns / 1e6
    share = steps * jax.local_device_count()
    if not any(found.values()):
        return {}
    return {kind: round(value / share, 3) for kind, value in found.items()}
