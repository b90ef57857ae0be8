"""The output of a run: a live display on a terminal or plain lines, and metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kd_jax.core.trackers import Tracker, scalars

LINES_EVERY = 5.0  # seconds between two plain lines of one stage


class Bar:
    """The progress of one stage; ``update`` is cheap enough for every step."""

    def __init__(self, log: Log, title: str, total: int, start: int):
        self._log = log
        self._title = title
        self._total = total
        self._printed = time.perf_counter()
        self._first: tuple[float, int] | None = None  # when, and after how many steps
        self._task = None
        if log.progress is not None:
            self._task = log.progress.add_task(title, total=total, completed=start, terms="")

    def update(
        self, done: int, terms: dict[str, float] | None = None, rate: float | None = None
    ) -> None:
        """Shows the progress.

        done: steps of ``total``. terms: loss terms to show, of a training, which may stop early.
        rate: examples per second.
        """
        shown = " ".join(
            f"{key} {value:.4f}" for key, value in (terms or {}).items() if key != "grad_norm"
        )
        shown += f" {rate:,.0f} examples/s" if rate else ""
        if self._log.progress is not None and self._task is not None:
            self._log.progress.update(self._task, completed=done, terms=shown)
            return
        now = time.perf_counter()
        began, first = self._first = self._first or (now, done)  # without what compiles before it
        if now - self._printed >= LINES_EVERY and done > first:
            left = (now - began) / (done - first) * (self._total - done)
            most = "at most " * (terms is not None)
            line = f"{self._title}: step {done}/{self._total} {shown}, {most}{left:.0f} s left"
            self._log.note(line.replace("  ", " ").replace(" ,", ","))
            self._printed = now

    def close(self) -> None:
        if self._log.progress is not None and self._task is not None:
            self._log.progress.remove_task(self._task)


class Log:
    """Writes events to ``path`` (JSON lines) and progress to the console.

    metric: the validation metric by which models are selected. silent: write and show nothing, as
    in all processes but the first. trackers: get the events, too, and are closed at the end.
    """

    def __init__(
        self,
        path: Path,
        metric: str,
        console: Console | None = None,
        silent: bool = False,
        trackers: Sequence[Tracker] = (),
    ):
        self.console = console or Console(highlight=False, quiet=silent)
        if console is None and not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console.width = 160  # a file has no width, and tables must not be cut
        self.metric = metric
        self._trackers = () if silent else trackers
        self.progress: Progress | None = None
        self._path = Path(os.devnull) if silent else path
        # Opened by the first event, so that a run that cannot start creates no file.
        self._file: TextIO | None = None

    def __enter__(self) -> Log:
        if self.console.is_terminal and not self.console.quiet:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[terms]}"),
                console=self.console,
            )
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def write(self, **event: object) -> None:
        """Appends one event as a line of JSON, with the time in seconds since the epoch."""
        if self._file is None:
            self._file = self._path.open("a")
        self._file.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
        self._file.flush()
        if self._trackers and "step" in event:
            values = {key: event[key] for key in event if key not in ("model", "seed", "step")}
            for tracker in self._trackers:
                run = f"{event['model']}.seed{event['seed']}"
                tracker.write(run, int(str(event["step"])), scalars(values))

    def note(self, line: str) -> None:
        """Prints a line to the console."""
        self.console.print(line, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, title: str, total: int, start: int = 0) -> Iterator[Bar]:
        """A progress bar over ``total`` steps, of which ``start`` are done."""
        bar = Bar(self, title, total, start)
        began = time.perf_counter()
        try:
            yield bar
            self.note(f"{title}: done in {time.perf_counter() - began:.1f} s")
        finally:
            bar.close()
