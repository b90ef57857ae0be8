"""SIGTERM and Ctrl-C: save a checkpoint, then exit."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import jax

from kd_jax.devices.processes import preempted


class Preemption:
    """Turns SIGTERM and SIGINT into a request to write a checkpoint and exit.

    The loop honours the request between two programs. A second Ctrl-C ends the process at once.
    With several processes JAX's own handler of SIGTERM stays in place, and all of them agree on
    where to stop.
    """

    def __init__(self) -> None:
        self.signal = signal.SIGTERM
        self._requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        if jax.process_count() == 1:
            self._previous = {
                s: signal.signal(s, self._request) for s in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self._requested, self.signal = True, signal.Signals(signum)
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    def requested(self) -> bool:
        """Whether to stop here; every process asks equally often and gets the same answer."""
        return self._requested or preempted()


class Preempted(SystemExit):
    """Raised after the checkpoint is on disk.

    The exit status is 143 or 130, as for any process ended by SIGTERM or SIGINT.
    """

    def __init__(self, by: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(128 + by)
