"""Requests that wait at the same time are answered together: one matrix product for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kd_jax.serving.server.answers import Ask

MOST = 64  # requests in one group


class Groups:
    """Runs ``answer`` on groups of requests in a thread, one group after the other.

    answer: from requests to one value for each.
    """

    def __init__(self, answer: Callable[[Sequence[Ask]], Sequence[Any]]):
        self._answer = answer
        self._pending: list[tuple[Ask, asyncio.Future[Any]]] = []
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "answers")

    async def ask(self, ask: Ask) -> Any:
        answered = asyncio.get_running_loop().create_future()
        self._pending.append((ask, answered))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await answered

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            group, self._pending = self._pending[:MOST], self._pending[MOST:]
            try:
                asks = [ask for ask, _ in group]
                values = await loop.run_in_executor(self._thread, self._answer, asks)
            except Exception as error:
                for _, answered in group:
                    if not answered.done():
                        answered.set_exception(error)
                continue
            for (_, answered), value in zip(group, values, strict=True):
                if not answered.done():  # its request was cancelled
                    answered.set_result(value)

    def close(self) -> None:
        self._thread.shutdown()
