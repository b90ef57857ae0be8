"""What a run says while it runs: one live display on a terminal, plain lines elsewhere, and
metrics.jsonl always.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
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

LINES_EVERY = 5.0  # seconds between two plain lines of one stage


class Bar:
    """The progress of one stage. ``update`` is cheap; it prints or redraws a few times a second at
    most.
    """

    def __init__(self, log: Log, title: str, total: int, start: int):
        self._log, self._title, self._total, self._start = log, title, total, start
        self._began = self._printed = time.perf_counter()
        self._task = None
        if log.progress is not None:
            self._task = log.progress.add_task(title, total=total, completed=start, terms="")

    def update(
        self, done: int, terms: dict[str, float] | None = None, rate: float | None = None
    ) -> None:
        """done: of ``total``; terms: loss terms to show; rate: examples per second."""
        shown = " ".join(
            f"{key} {value:.4f}" for key, value in (terms or {}).items() if key != "grad_norm"
        )
        shown += f" {rate:,.0f} examples/s" if rate else ""
        if self._log.progress is not None and self._task is not None:
            self._log.progress.update(self._task, completed=done, terms=shown)
            return
        now = time.perf_counter()
        if now - self._printed >= LINES_EVERY and done > self._start:
            eta = (now - self._began) / (done - self._start) * (self._total - done)
            self._log.note(
                f"{self._title}: step {done}/{self._total} {shown} ETA {eta:.0f} s".replace(
                    "  ", " "
                )
            )
            self._printed = now

    def close(self) -> None:
        if self._log.progress is not None and self._task is not None:
            self._log.progress.remove_task(self._task)


class Log:
    """Writes events to ``path`` (JSON lines) and progress to the console.

    metric: the name of the validation metric that selects models. silent: nothing is written or
    shown, as in all processes but the first.
    """

    def __init__(
        self, path: Path, metric: str, console: Console | None = None, silent: bool = False
    ):
        self.console = console or Console(highlight=False, quiet=silent)
        if console is None and not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console.width = 160  # of a file nobody knows it, and a table must not be cut
        self.metric = metric
        self.progress: Progress | None = None
        self._path = Path(os.devnull) if silent else path
        self._file: TextIO | None = (
            None  # opened by the first event: a run that cannot start leaves none
        )

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

    def write(self, **event: object) -> None:
        """One JSON object per line, with the time in seconds since the epoch."""
        if self._file is None:
            self._file = self._path.open("a")
        self._file.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
        self._file.flush()

    def note(self, line: str) -> None:
        """A line for the reader."""
        self.console.print(line, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, title: str, total: int, start: int = 0) -> Iterator[Bar]:
        bar = Bar(self, title, total, start)
        began = time.perf_counter()
        try:
            yield bar
            self.note(f"{title}: done in {time.perf_counter() - began:.1f} s")
        finally:
            bar.close()
