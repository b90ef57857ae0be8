"""Requests that arrive together are answered together: one matrix product for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from kd_jax.serving.server.answers import Ask

MOST = 64  # requests in one group


class Groups:
    """Calls ``answer`` on groups of requests, in the event loop.

    answer: from requests to one value for each. A thread of its own made answers slower: it and the
    event loop take turns at the interpreter.
    """

    def __init__(self, answer: Callable[[Sequence[Ask]], Sequence[Any]]):
        self._answer = answer
        self._pending: list[tuple[Ask, asyncio.Future[Any]]] = []
        self._running: asyncio.Task[None] | None = None

    async def ask(self, ask: Ask) -> Any:
        """The value of one request. Raises what ``answer`` raises."""
        answered = asyncio.get_running_loop().create_future()
        self._pending.append((ask, answered))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await answered

    async def _run(self) -> None:
        while self._pending:
            waiting = 0
            while waiting < len(self._pending) < MOST:  # as long as each turn brings more
                waiting = len(self._pending)
                await asyncio.sleep(0)
            group, self._pending = self._pending[:MOST], self._pending[MOST:]
            try:
                values = self._answer([ask for ask, _ in group])
            except Exception as error:
                for _, answered in group:
                    if not answered.done():
                        answered.set_exception(error)
                continue
            for (_, answered), value in zip(group, values, strict=True):
                if not answered.done():  # its request was cancelled
                    answered.set_result(value)
