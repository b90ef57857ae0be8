"""Lists of the compared models for a few users, and how much they agree, for the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_json, write_json
from kd_jax.data.dataset import Dataset
from kd_jax.data.popularity import decayed_counts
from kd_jax.data.splits import TEST
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.roles import main_teacher
from kd_jax.report.examples import FILE
from kd_jax.runtime import Runtime, compared, live, topk
from kd_jax.runtime import load as load_runtime
from kd_jax.runtime.live import Live
from kd_jax.runtime.runtime import SCORES_AT_ONCE

SHOWN = 4  # users
LENGTH = 5  # of a list, and of what is shown of a history
DEPTHS = (1, 5, 10, 20, 50)  # of the agreement
JUDGED = 1_000  # users, at most, of the agreement


def write(experiment: Experiment) -> None:
    """Writes report/lists.json from the export; removes it where there is none to read."""
    path = experiment.workdir / "report" / FILE
    models = _models(experiment)
    if not models:
        path.unlink(missing_ok=True)
        return
    data = experiment.dataset
    lengths, chosen = np.diff(data.history(TEST)[0]), np.diff(data.targets(TEST)[0])
    judged = np.flatnonzero((lengths > 0) & (chosen > 0))
    if not len(judged):
        path.unlink(missing_ok=True)
        return
    # Not chosen by their lists: users at equal steps from the shortest to the longest history.
    by_length = judged[np.argsort(lengths[judged], kind="stable")]
    places = (np.arange(SHOWN) + 0.5) / SHOWN * len(by_length)
    shown = dict.fromkeys(by_length[places.astype(int)].tolist())
    users = judged[:: -(-len(judged) // JUDGED)]
    same = _same_for_all(experiment)
    teacher, agreement = main_teacher().name, {}
    if teacher in models:
        best = {name: _best(model, data, users, DEPTHS[-1]) for name, model in models.items()}
        agreement = {
            name: {str(k): _agreement(best[teacher], items, k) for k in DEPTHS}
            for name, items in best.items()
            if name != teacher
        }
    write_json(
        path,
        {
            "reference": teacher,
            "agreement": agreement,
            "agreement_users": len(users),
            "users": [_example(models, same, data, user) for user in shown],
        },
    )


def _models(experiment: Experiment) -> dict[str, Runtime]:
    """The exported model and those beside it, in the order of the page; {} without an export."""
    folder = experiment.workdir / "export"
    try:
        main = load_runtime(folder)
        if main.export.description["dataset"]["checksum"] != experiment.dataset.checksum:
            return {}
        found = {}
        for one in compared.described(folder, main.export):
            model = compared.load(folder, one.name, main.export, main.lookup)
            if one.name == main.export.description["model"]:
                model = main
            if model is not None:
                found[one.name] = model
    except InputError:
        return {}
    return found


def _best(model: Runtime, data: Dataset, users: np.ndarray, k: int) -> np.ndarray:
    """The best items of users as the test split judges them, int32 [B, k]."""
    step = max(1, SCORES_AT_ONCE // data.num_items)
    parts = [users[start : start + step] for start in range(0, len(users), step)]
    return np.concatenate([topk.best_rows(scores, k)[0] for scores in _scores(model, data, parts)])


def _scores(model: Runtime, data: Dataset, parts: list[np.ndarray]) -> Iterator[np.ndarray]:
    (indptr, items), none = data.history(TEST), np.zeros(0, np.int64)
    for part in parts:
        seen = [items[indptr[user] : indptr[user + 1]].astype(np.int64) for user in part.tolist()]
        users = [Live(user, none, none) for user in part.tolist()]
        scores = model.scores(live.contexts(model, users, seen))
        for row, known in zip(scores, seen, strict=True):
            row[known] = -np.inf
        yield scores


def _agreement(one: np.ndarray, other: np.ndarray, k: int) -> float:
    """The mean share of the ``k`` best items that two models have in common."""
    pairs = zip(one[:, :k], other[:, :k], strict=True)
    same = [len(np.intersect1d(first, second)) for first, second in pairs]
    return float(np.mean(same) / min(k, one.shape[1]))


def _same_for_all(experiment: Experiment) -> dict[str, np.ndarray]:
    """The items of the baselines that are the same for every user, best first, int [I]."""
    data, path = experiment.dataset, experiment.workdir / "report/metrics.json"
    counts = {"popularity": data.item_counts}
    metrics = read_json(path, "run the stage 'evaluate' again") if path.exists() else {}
    for row in metrics.get("models", ()):
        if row["name"] == "trending":
            counts["trending"] = decayed_counts(data, row["days"])[0]
    return {name: np.argsort(-found, kind="stable") for name, found in counts.items()}


def _example(
    models: dict[str, Runtime], same: dict[str, np.ndarray], data: Dataset, user: int
) -> dict[str, Any]:
    def titles(csr: tuple[np.ndarray, np.ndarray]) -> list[str]:
        indptr, items = csr
        return [data.titles[item] for item in items[indptr[user] : indptr[user + 1]].tolist()]

    history, one = titles(data.history(TEST)), np.array([user])
    indptr, items = data.history(TEST)
    seen = items[indptr[user] : indptr[user + 1]]
    lists = {name: best[~np.isin(best, seen)][:LENGTH].tolist() for name, best in same.items()}
    lists |= {name: _best(model, data, one, LENGTH)[0].tolist() for name, model in models.items()}
    return {
        "user": str(data.user_ids[user]),
        "history": history[-LENGTH:][::-1],
        "earlier": max(0, len(history) - LENGTH),
        "chosen": list(dict.fromkeys(titles(data.targets(TEST)))),
        "lists": {
            name: [data.titles[item] for item in chosen if item >= 0]
            for name, chosen in lists.items()
        },
    }
