"""Measures the cost of training: time per activity, FLOPs against the device's peak, memory."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Side of the square matrices that are multiplied to measure the peak rate, by backend.
CEILING_SIZE = {"cpu": 2048}
CEILING_SIZE_ELSEWHERE = 8192
# Parameters of a custom derivative; they hold functions that are not called here.
_DERIVATIVES = ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd")


def matmul_flops(function: Any, *arguments: Any) -> int:
    """FLOPs of all matrix products in one call of ``function``.

    Counted in the traced program: recomputation counts, and so do products that XLA removes later.
    The body of a loop counts once per iteration, or once for a ``while`` of unknown length; a
    ``cond`` counts as its most expensive branch.
    """
    # A jitted function keeps the trace for its first call.
    trace = function.trace if hasattr(function, "trace") else jax.jit(function).trace
    return _count(trace(*arguments).jaxpr.jaxpr)


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
            once = max(inner) if equation.primitive.name == "cond" else sum(inner)
            total += times * parts * once
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for name, value in params.items():
        if name in _DERIVATIVES:
            continue
        for found in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(found, "jaxpr", found), "eqns"):
                yield found


@functools.cache
def ceiling() -> float:
    """The peak FLOP/s of one device: those of a large f32 matrix product, measured once."""
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
    """The peak of bytes in use so far, on the first device; on a CPU, of this process.

    None where neither can be read.
    """
    found = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if found is not None:
        return int(found)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024


class Meter:
    """Measures the seconds of the training loop by activity of the host.

    'input': waiting for batches. 'dispatch': starting programs. 'wait': waiting for results, while
    the device is busy. The remainder is all other work on the host.

    flops: of the matrix products of one step over all devices, to be set before the first reading.
    """

    def __init__(self, devices: int):
        self.flops = 0
        self._ceiling = ceiling() * devices
        self.reset(0)

    def reset(self, ahead: int) -> None:
        """Starts a new measurement; ahead: steps that are dispatched before any is finished."""
        self._seconds = dict.fromkeys(("input", "dispatch", "wait"), 0.0)
        self._began = time.perf_counter()
        self._steps = -ahead

    @contextlib.contextmanager
    def time(self, kind: str) -> Iterator[None]:
        """Adds the seconds of the block to the activity ``kind``."""
        began = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - began

    def step(self, count: int) -> None:
        """Counts ``count`` further steps as dispatched."""
        self._steps += count

    def read(self, batch_size: float) -> dict[str, Any]:
        """The measurement since the last reading, after which a new one starts.

        Examples per second, milliseconds per step by activity, TFLOP/s of the matrix products,
        their share of the peak rate, and the peak of memory in bytes. Empty before the first
        finished step.
        """
        if self._steps <= 0:
            return {}
        elapsed = time.perf_counter() - self._began
        steps = max(1, self._steps)
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
    """Writes an XProf trace of the block to ``folder``; None: no trace."""
    with contextlib.nullcontext() if folder is None else jax.profiler.trace(folder):
        yield


# Operations between devices: those that XLA's partitioner adds have the names of XLA, those that
# are called for in shard_map the names of JAX.
COLLECTIVES = re.compile(
    r"(?:all-reduce|all[-_]gather|(?:unreduced_)?reduce[-_]scatter|(?:ragged[-_])?all[-_]to[-_]all"
    r"|collective-permute|collective-broadcast|(?:unreduced_)?(?:psum|pmax|pmin)"
    r"|ppermute|pbroadcast)(?:_invariant|_reduced|_dynamic|_start|_done)*(?:[-.]|$)"
)
# Operations that only contain others, which are counted by themselves.
_CONTAINERS = ("while", "conditional", "call")


def device_time(folder: Path, steps: int) -> dict[str, float]:
    """Milliseconds per step, mean over this process's devices, in an XProf trace.

    folder: of the trace, of which the newest file is read. steps: steps in the trace. Returns
    'collective' (including the wait for other devices) and 'compute' (every other operation); empty
    where the trace has no operations.
    """
    found = {"compute": 0.0, "collective": 0.0}
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        return {}
    with warnings.catch_warnings():
        # Python 3.13 warns of the first use of jaxlib's classes, which name no module.
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
        for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes:
            for event in (event for line in plane.lines for event in line.events):
                name = next((str(value) for key, value in event.stats if key == "hlo_op"), "")
                if name and not name.startswith(_CONTAINERS):
                    kind = "collective" if COLLECTIVES.match(name) else "compute"
                    found[kind] += event.duration_ns / 1e6
    share = steps * jax.local_device_count()
    if not any(found.values()):
        return {}
    return {kind: round(value / share, 3) for kind, value in found.items()}
