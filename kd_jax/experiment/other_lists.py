"""Lists of other systems, evaluated on test beside the models of the run."""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD, Array
from kd_jax.data import lists
from kd_jax.data.lists import Lists
from kd_jax.data.splits import TEST
from kd_jax.evaluation.evaluator import eval_users
from kd_jax.evaluation.scoring import dense_users
from kd_jax.evaluation.significance import TRANSFER
from kd_jax.evaluation.tasks import Evaluation, Rank
from kd_jax.experiment import roles
from kd_jax.experiment.experiment import Experiment

NAME = re.compile(r"(?!over_)[A-Za-z][A-Za-z0-9_-]*")
GAIN = ("baseline", "candidate", "relative", "ci95", "p_value", "taught_by")  # fields of a gain


def paths(experiment: Experiment) -> dict[str, Path]:
    """The files of ``eval.lists`` by the names that the report gives them, those of the files.

    Raises InputError for a name that is no word, or that a model or a field of ``gain`` has.
    """
    found: dict[str, Path] = {}
    fields = {field for role in roles.ROLES.values() for field in role.over.values()}
    reserved = {*roles.ROLES, *roles.BASELINES, roles.ENSEMBLE, *fields, *GAIN, TRANSFER}
    for text in experiment.config.eval.get("lists", ()):
        path = Path(text).expanduser()
        name = path.stem
        if not NAME.fullmatch(name) or name in reserved | found.keys():
            raise InputError(
                f"eval.lists: {text}: the report calls the lists {name!r}, as the file; give the"
                " file a name of letters, digits, _ and - that no other model has"
            )
        found[name] = path
    return found


def check(experiment: Experiment) -> None:
    """Raises InputError for lists that cannot be read, or for another task than 'rank'."""
    found = paths(experiment)
    if found and not isinstance(experiment.task, Rank):
        raise InputError("eval.lists are of task='rank'; leave them out for task='rate'")
    for path in found.values():
        read(experiment, path)


def read(experiment: Experiment, path: Path) -> Lists:
    """The lists in a file; raises InputError for one that cannot be read or has no user's list."""
    if not path.is_file():
        raise InputError(f"eval.lists: {path} does not exist; give a JSONL file of lists")
    found = lists.read(
        path, experiment.dataset, max_unmatched=experiment.config.distill.max_unmatched
    )
    if not found.by_user.any():
        raise InputError(f"eval.lists: {path} has lists of histories alone; give those of users")
    return found


def evaluated(experiment: Experiment, path: Path) -> tuple[Evaluation, list[str]]:
    """The evaluation of the lists on test, and notes on them.

    Items that are not in a list, and users without one, come last.
    """
    task, data, found = experiment.task, experiment.dataset, read(experiment, path)
    assert isinstance(task, Rank)
    width = found.items.shape[1]
    notes = list(found.notes)
    judged = eval_users(data, TEST)
    without = int(np.sum(found.by_user[judged] == 0))
    if without:
        notes.append(f"{without:,} of {len(judged):,} test users have no list, which counts as 0")
    if width < max(task.ks):
        notes.append(f"up to {width} items a user: metrics of longer lists are too low")

    def score(users: np.ndarray) -> Array:
        rows = found.by_user[users]
        scores = np.full((len(users), data.num_items + 1), -width, np.float32)
        places = np.where(found.items[rows] == PAD, data.num_items, found.items[rows])
        order = np.argsort(-found.logits[rows], axis=1, kind="stable").argsort(axis=1)
        np.put_along_axis(scores, places, -order.astype(np.float32), axis=1)
        return jnp.asarray(scores[:, :-1])

    at_once = dense_users(task.batch_size, data.num_items)
    return task.evaluate(score, "test", task.metric_names, True, 0, at_once), notes
