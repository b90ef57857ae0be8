"""Threads that compute blocks ahead; NumPy lets them run side by side."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Block = TypeVar("Block")
Result = TypeVar("Result")
MOST = 4  # threads


def ahead(call: Callable[[Block], Result], blocks: Sequence[Block]) -> Iterator[Result]:
    """``call`` of each block, in order; as many are computed ahead as there are threads.

    There is a thread per core, at most MOST, and none for a single block or core.
    """
    count = min(MOST, cores(), len(blocks))
    if count <= 1:
        yield from map(call, blocks)
        return
    with ThreadPoolExecutor(count) as pool:
        running: collections.deque[Future[Result]] = collections.deque()
        for block in blocks:
            running.append(pool.submit(call, block))
            if len(running) > count:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
