"""The exception for a request that is refused."""

from __future__ import annotations

from kd_jax.core.errors import InputError


class Refused(InputError):
    """A request is refused. status: of the HTTP response; the message is its one line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
