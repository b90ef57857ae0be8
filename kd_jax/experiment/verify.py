"""Verification of cached labels by computing them again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kd_jax.core.errors import InputError
from kd_jax.core.logging import Log
from kd_jax.distillation import label_cache
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.trained import open_workdir


def verify(workdir: Path, rows: int) -> int:
    """Prints how well labels agree with their teachers; returns 1 if any does not, else 0.

    rows: number of labels of each folder that are recomputed. Raises InputError if there are none.
    """
    if rows < 1:
        raise InputError(f"--rows={rows} must be at least 1")
    wrong = False
    for checked in computed_again(workdir, rows):
        bad = not checked.error <= label_cache.TOLERANCE
        print(f"{checked}{' (WRONG)' if bad else ''}")
        wrong |= bad
    return int(wrong)


def computed_again(workdir: Path, rows: int) -> Iterator[label_cache.Checked]:
    """Recomputes ``rows`` labels of every folder in ``workdir`` and yields the comparisons.

    The teacher that wrote the labels recomputes them. Raises InputError if there are no finished
    labels, or if they were written for another config or teacher.
    """
    with Log(workdir / "metrics.jsonl", "", silent=True) as log:
        store = LabelStore(open_workdir(workdir, log))
        written = [
            labels for labels in store.all().values() if (labels.folder / "done.json").exists()
        ]
        if not written:
            raise InputError(f"{workdir} holds no finished labels; run its stage 'labels' first")
        for labels in written:
            if not labels.finished:
                raise InputError(
                    f"{labels.folder} was written for another config or teacher; run the stage"
                    " 'labels' again"
                )
            yield label_cache.verify(labels.folder, *labels.make(), rows)
