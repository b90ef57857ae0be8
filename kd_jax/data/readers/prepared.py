"""Data that ``python -m kd_jax.data.prepare`` has prepared: filtered, indexed and split."""

from __future__ import annotations

from pathlib import Path

from kd_jax.core.errors import InputError
from kd_jax.data.prepared.folder import PreparedDataset, open_folder


def read(path: str = "", eval_users: int = 0) -> PreparedDataset:
    """The prepared data in the folder ``path``, of which training reads one shard after another.

    eval_users: so many users, drawn at random, are evaluated, and only their interactions are in
    memory; 0: all. Raises InputError if the folder is not finished or has changed.
    """
    if not path:
        raise InputError(
            "data.prepared.path is not set; name the folder that python -m kd_jax.data.prepare has"
            " written"
        )
    if eval_users < 0:
        raise InputError(f"data.prepared.eval_users={eval_users} must be 0 (all users) or more")
    return open_folder(Path(path).expanduser(), eval_users)
