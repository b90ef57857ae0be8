r"""Where the seconds of a run go: every stage from start to report, with compilation apart.

    python benchmarks/waterfall.py --config=configs/quickstart.py:runlocal

runs launch.py with the given flags in this process, in a temporary workdir unless --workdir is
given, and prints a row a stage: wall seconds and CPU seconds (of all threads) without the stages
inside it, the number of calls, and the peak memory of the process at the end of its last call.
Time in which JAX traces, lowers and compiles (or reads a compiled program) is taken out of the
stage it happens in and has rows of its own. A second table has the seconds and the number of
compilations of the 16 programs that took longest. --json=FILE writes all rows of both.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import importlib
import json
import resource
import runpy
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import ROOT, table

BEGAN = time.perf_counter(), time.process_time()

# (stage, module, function): in the order of a run.
STAGES = (
    ("data", "experiment.prepared", "prepared"),
    ("popularity snapshots", "data.popularity", "trends"),
    ("language model: load", "experiment.config", "language_model"),
    ("texts: tokenize", "models.language.model", "LanguageModel.texts"),
    ("texts: encode", "models.language.encoding", "encode"),
    ("build a model", "experiment.builders", "build"),
    ("training: set up", "training.loop", "_Loop.__init__"),
    ("training: steps", "training.loop", "_Loop.run"),
    ("training: checkpoints", "training.checkpoint", "Checkpoints.save"),
    ("training: checkpoints", "training.checkpoint", "Checkpoints.wait"),
    ("training: checkpoints", "training.checkpoint", "Checkpoints.__exit__"),
    ("training: checkpoints", "training.checkpoint", "Checkpoints.params"),
    ("training: validation", "training.loop", "_Loop._validate"),
    ("labels", "experiment.label_store", "LabelStore.write"),
    ("evaluation: ranking", "experiment.evaluate", "evaluate"),
    ("evaluation: new users", "experiment.new_users", "NewUsers.metrics"),
    ("evaluation: new items", "experiment.new_items", "NewItems.metrics"),
    ("evaluation: latency", "evaluation.latency", "rates"),
    ("evaluation: latency", "evaluation.latency", "text_seconds"),
    ("evaluation: intervals", "evaluation.significance", "gains"),
    ("export", "experiment.export", "export"),
    ("report", "experiment.pipeline", "report"),
)
EVENTS = {
    "jaxpr_trace_duration": "compile: trace",
    "jaxpr_to_mlir_module_duration": "compile: lower",
    "backend_compile_duration": "compile: XLA, or read from the cache",
}


class Clock:
    """Wall and CPU seconds of stages, each without the stages inside it."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0, 0.0])
        self.programs: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        self.open: list[list[float]] = []  # wall and CPU seconds of what is inside each open stage
        self.samples: list[tuple[float, float]] = [BEGAN]  # wall and CPU seconds

    def start(self) -> None:
        """Starts a thread that takes samples until the process ends."""
        threading.Thread(target=self.sample, daemon=True).start()

    def sample(self) -> None:
        while True:
            self.samples.append((time.perf_counter(), time.process_time()))
            time.sleep(0.01)

    def cpu_since(self, wall: float) -> float:
        """CPU seconds since ``wall``, to one sample."""
        place = bisect.bisect_left(self.samples, (wall, 0.0))
        return time.process_time() - self.samples[min(place, len(self.samples) - 1)][1]

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter(), time.process_time()
        self.open.append([0.0, 0.0])
        try:
            yield
        finally:
            self.close(name, time.perf_counter() - began[0], time.process_time() - began[1])

    def close(self, name: str, wall: float, cpu: float) -> None:
        inner = self.open.pop()
        row = self.rows[name]
        row[0] += wall - inner[0]
        row[1] += cpu - inner[1]
        row[2] += 1
        row[3] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if self.open:
            self.open[-1][0] += wall
            self.open[-1][1] += cpu

    def event(self, event: str, duration_secs: float, **given: Any) -> None:
        name = EVENTS.get(event.rpartition("/")[2])
        if name is None:
            return
        if "XLA" in name:
            program = self.programs[str(given.get("fun_name", "?"))]
            program[0] += duration_secs
            program[1] += 1
        self.open.append([0.0, 0.0])
        self.close(name, duration_secs, self.cpu_since(time.perf_counter() - duration_secs))

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return timed


def instrument(clock: Clock) -> None:
    """Replaces each function of STAGES wherever it is imported."""
    import jax

    jax.monitoring.register_event_duration_secs_listener(clock.event)
    importlib.import_module("kd_jax.experiment.pipeline")
    loaded = [module for name, module in sys.modules.items() if name.startswith("kd_jax.")]
    for stage, module, name in STAGES:
        owner, last = owner_of(module, name)
        function = getattr(owner, last)
        timed = clock.wrapped(stage, function)
        setattr(owner, last, timed)
        for other in loaded:
            if "." not in name and getattr(other, last, None) is function:
                setattr(other, last, timed)


def owner_of(module: str, name: str) -> tuple[Any, str]:
    """The module or class that holds the function, and the function's name in it."""
    owner: Any = importlib.import_module(f"kd_jax.{module}")
    *outer, last = name.split(".")
    return functools.reduce(getattr, outer, owner), last


def main() -> None:
    given = sys.argv[1:]
    out = next((arg.partition("=")[2] for arg in given if arg.startswith("--json=")), "")
    given = [arg for arg in given if not arg.startswith("--json=")]
    clock = Clock()
    clock.start()
    status: Any = 0
    with clock.stage("imports"):
        instrument(clock)
    with clock.stage("other"), tempfile.TemporaryDirectory() as folder:
        if not any(arg.startswith("--workdir") for arg in given):
            given.append(f"--workdir={folder}/run")
        sys.argv = ["launch.py", *given]
        try:
            runpy.run_path(str(ROOT / "launch.py"), run_name="__main__")
        except SystemExit as done:
            status = done.code
    wall, cpu = time.perf_counter() - BEGAN[0], time.process_time()
    order = ["imports", *dict.fromkeys(stage for stage, *_ in STAGES)]
    order += sorted(name for name in clock.rows if name not in order)
    rows = [[name, *clock.rows[name]] for name in order if name in clock.rows]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(["all", wall, cpu, 1, peak])
    cells = [[n, f"{w:.1f}", f"{c:.1f}", f"{k:.0f}", f"{p:,.0f}"] for n, w, c, k, p in rows]
    print(table(["stage", "wall s", "CPU s", "calls", "peak MB"], cells))
    programs = sorted(clock.programs.items(), key=lambda item: -item[1][0])
    cells = [[n, f"{s:.1f}", f"{k:.0f}"] for n, (s, k) in programs[:16]]
    print(table(["program", "s", "times"], cells), flush=True)
    if out:
        Path(out).write_text(json.dumps({"stages": rows, "programs": programs}))
    sys.exit(status)


if __name__ == "__main__":
    main()
