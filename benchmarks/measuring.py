"""Shared parts of the benchmarks: fresh processes, peak memory, peak rate, tables, plots."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """With ``--out``, and the hidden ``--measure`` by which a script calls itself."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--out", type=Path, default=Path(out), help=f"JSON of all that was measured ({out})"
    )
    found.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    return found


def number(text: str) -> int:
    """1_000_000, 1e6 or 1000000."""
    return int(float(text.replace("_", "")))


def numbers(text: str) -> list[int]:
    return [number(part) for part in text.split(",")]


def child(
    script: str, spec: dict[str, Any], timeout: float | None = None, **env: str
) -> dict[str, Any]:
    """The JSON on the last line that ``script --measure=SPEC`` prints in a process of its own.

    timeout: seconds that it may take. What went wrong is in 'failed'.
    """
    command = [sys.executable, script, f"--measure={json.dumps(spec)}"]
    given = os.environ | env
    try:
        done = subprocess.run(
            command, check=False, env=given, stdout=subprocess.PIPE, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as late:
        return spec | {"failed": f"took more than {late.timeout:.0f} s"}
    if done.returncode:
        return spec | {"failed": f"exit status {done.returncode}"}
    return spec | json.loads(done.stdout.splitlines()[-1])


def memory(field: str) -> int:
    """Bytes of this process: 'VmRSS' now, 'VmHWM' its highest since ``reset_peak``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def reset_peak() -> int:
    """Gives freed memory back and starts a new VmHWM. Returns VmRSS."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def machine() -> dict[str, Any]:
    """Device, cores and JAX version; call it in a measuring process only, as it starts JAX."""
    import jax

    return {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
    }


def ceiling(dtype: str = "float32", size: int = 4096) -> Callable[[], float]:
    """A function that multiplies two matrices [size, size] and returns its FLOP/s."""
    import jax
    import jax.numpy as jnp

    one = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(one, one))

    def rate() -> float:
        return 2 * size**3 / seconds(lambda: product(one, one))

    return rate


def seconds(run: Callable[[], Any]) -> float:
    import jax

    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]])


@contextlib.contextmanager
def plot(
    path: Path, labels: Sequence[tuple[str, str]], size: tuple[float, float]
) -> Iterator[Sequence[Any]]:
    """Axes side by side, one for each (x label, y label), in the style of the report.

    They are logarithmic, with plain numbers as ticks, since the style writes text instead of
    formulas. The plot is saved when the context ends.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    pyplot.style.use(ROOT / "kd_jax/report/templates/report.mplstyle")
    figure, panels = pyplot.subplots(1, len(labels), figsize=size)
    yield panels
    for axes, (across, up) in zip(panels, labels, strict=True):
        axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
        for axis, steps in ((axes.xaxis, (1.0,)), (axes.yaxis, (1.0, 2.0, 5.0))):
            axis.set_major_locator(ticker.LogLocator(subs=steps))
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axis.set_minor_formatter(ticker.NullFormatter())
    panels[0].legend()
    figure.savefig(path, transparent=False, facecolor="white")
    print(f"Plot: {path}")


def write(path: Path, value: Any) -> None:
    from kd_jax.core.files import write_json

    write_json(path, value)
    print(f"\nAll numbers: {path}")
