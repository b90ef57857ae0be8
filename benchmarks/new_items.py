"""New items from their text against a full retraining that has them in its catalogue.

    python launch.py --workdir=runs/quickstart
    python benchmarks/new_items.py --workdir=runs/quickstart [--without=runs/new-items]

The run in --workdir is the full retraining. A second run, in --without, has the same settings,
seeds and users, but none of the items without a train interaction (cold items); it is trained if it
is not there: the teacher, its labels, and the distilled student. Then the cold items are added to
its students from their texts, and the test targets of the first run are ranked: cold targets among
cold items, and all targets, and cold targets alone, among all items. 'ratio' is added / retrained
of the mean over seeds, with a 95 % bootstrap interval over users.

Last, the time from the arrival of a text until the item is recommended, with the export of
--workdir: in one process, and by HTTP to a server on a copy of the export.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax.numpy as jnp
import numpy as np
import polars as pl

from benchmarks.measuring import ROOT
from kd_jax import runtime
from kd_jax.core.logging import Log
from kd_jax.core.scores import Factors
from kd_jax.data.dataset import Dataset
from kd_jax.data.splits import NAMES, TEST
from kd_jax.evaluation.evaluator import RankResult, evaluate_rank
from kd_jax.evaluation.significance import paired_bootstrap
from kd_jax.experiment import roles
from kd_jax.experiment.build_student import inputs_of
from kd_jax.experiment.new_items import NewItems
from kd_jax.experiment.trained import TrainedModels, open_workdir
from kd_jax.serving.exporters import Bundle
from kd_jax.serving.exporters.bundle import Vectors

ROLE = next(role for role in roles.by_export() if role.text)
METRIC = "ndcg@10"
TIMES = 50  # items that are added to measure the time


def train_without(dataset: Dataset, config: Path, workdir: Path) -> None:
    """Trains the run without cold items; what is finished is skipped."""
    workdir.mkdir(parents=True, exist_ok=True)
    warm = dataset.warm
    interactions = pl.DataFrame(
        {
            "user": dataset.user_ids.gather(dataset.user),
            "item": dataset.item_ids.gather(dataset.item),
            "rating": dataset.rating,
            "timestamp": dataset.timestamp,
            "split": np.array(NAMES)[dataset.split],
        }
    )
    items = dataset.items.select(dataset.item_ids.alias("item"), pl.all())
    files = {"interactions": interactions.filter(warm[dataset.item]), "items": items.filter(warm)}
    for name, frame in files.items():
        if not (workdir / f"{name}.parquet").exists():
            frame.write_parquet(workdir / f"{name}.parquet")
    stages = ("data", roles.main_teacher().name, "labels", ROLE.name)
    command = [
        *(sys.executable, str(ROOT / "launch.py"), f"--config={config}", f"--workdir={workdir}"),
        "--config.data.reader=files",
        f"--config.data.files.path={workdir}/interactions.parquet",
        f"--config.data.files.items_path={workdir}/items.parquet",
        "--config.data.split=column",
        "--config.data.min_interactions=0",
        f"--config.stages={stages}",
    ]
    subprocess.run(command, check=True, cwd=ROOT)


def students(models: TrainedModels) -> Iterator[tuple[NewItems, Vectors]]:
    """The distilled student of each seed as vectors."""
    for seed in models.experiment.seeds:
        trained = models.open(ROLE, seed)
        found = NewItems(trained)
        description = {"task": "rank", "history": trained.parts.history}
        inputs = inputs_of(models.experiment, ROLE)
        bundle = Bundle(models.experiment.dataset, trained.model, description, inputs, until=TEST)
        assert bundle.vectors is not None
        yield found, bundle.vectors


def with_cold_items(
    vectors: Vectors, new: NewItems, small: Dataset, whole: Dataset, texts: list[str]
) -> Vectors:
    """The students' vectors for the users and items of the ``whole`` data set."""
    text_map = new.text_map()
    assert text_map is not None
    items, bias = text_map(texts)
    places = _places(whole, small)
    items[places], bias[places] = vectors.items, vectors.bias
    users = np.searchsorted(small.user_ids.to_numpy(), whole.user_ids.to_numpy())
    assert (small.user_ids.to_numpy()[users] == whole.user_ids.to_numpy()).all()
    return Vectors(vectors.contexts[users], items, bias)


def _places(whole: Dataset, small: Dataset) -> np.ndarray:
    found = np.searchsorted(whole.item_ids.to_numpy(), small.item_ids.to_numpy())
    assert (whole.item_ids.to_numpy()[found] == small.item_ids.to_numpy()).all()
    return found


def evaluated(vectors: Vectors, dataset: Dataset) -> RankResult:
    contexts, items, bias = map(jnp.asarray, (vectors.contexts, vectors.items, vectors.bias))
    return evaluate_rank(
        lambda users: Factors(contexts[users], items, bias), dataset, TEST, metrics=(METRIC,)
    )


def compare(full: list[RankResult], added: list[RankResult]) -> None:
    print("\n| NDCG@10 of test targets | retrained | added from text | ratio | 95 % interval |")
    print("|---|---|---|---|---|")
    kinds = {
        "cold among cold items": "cold_only",
        "all among all items": "",
        "warm among all items": "warm",
        "cold among all items": "cold",
    }
    for title, part in kinds.items():
        sides = [
            np.stack(
                [(one.per_user_slices[part] if part else one.per_user)[METRIC] for one in side]
            )
            for side in (full, added)
        ]
        means = [np.nanmean(side, axis=1) for side in sides]
        cells = [
            f"{mean.mean():.4f} ± {mean.std(ddof=min(1, len(mean) - 1)):.4f}" for mean in means
        ]
        gain = paired_bootstrap(*sides)
        ends = [None if end is None else 1 + end for end in gain.ci95]
        interval = "-" if None in ends else f"{ends[0]:.2f} to {ends[1]:.2f}"
        ratio = "-" if gain.relative is None else f"{1 + gain.relative:.2f}"
        print(f"| {title} | {cells[0]} | {cells[1]} | {ratio} | {interval} |", flush=True)


def milliseconds(values: list[float]) -> str:
    p50, p99 = (1e3 * float(np.quantile(values, share)) for share in (0.5, 0.99))
    return f"median {p50:.1f} ms, 99th percentile {p99:.1f} ms"


def in_process(workdir: Path, texts: list[str]) -> list[float]:
    """Seconds from a text until a list that holds the new item."""
    found, took = runtime.load(workdir), []
    for number, text in enumerate(texts):
        key = new_id(found, number)
        began = time.perf_counter()
        found = found.add_items([key], [f"New {number}"], texts=[text])
        only = runtime.Filters(only=found.items([key]))
        (row,) = found.recommend(found.export.user_ids[0], k=1, filters=only)
        took.append(time.perf_counter() - began)
        assert str(row.item) == str(key)
    return took


def new_id(model: runtime.Runtime, number: int) -> Any:
    first = model.export.item_ids[0]
    return 9 * 10**17 + number if isinstance(first, int) else f"new-item-{number}"


def by_http(workdir: Path, texts: list[str]) -> list[float]:
    """Seconds from the request with a text until the answer with the new item."""
    model = runtime.load(workdir)
    user, took = str(model.export.user_ids[0]), []
    with tempfile.TemporaryDirectory() as folder, served(workdir, Path(folder)) as url:
        for number, text in enumerate(texts):
            key = str(new_id(model, number))
            began = time.perf_counter()
            post(f"{url}/v1/items", {"id": key, "title": f"New {number}", "text": text})
            asked = {"user": user, "only": [f"id:{key}"], "k": 1}
            (row,) = post(f"{url}/v1/recommend", asked)["items"]
            took.append(time.perf_counter() - began)
            assert str(row["item"]) == key
    return took


@contextlib.contextmanager
def served(workdir: Path, copy: Path) -> Iterator[str]:
    shutil.copytree(workdir / "export", copy / "export")
    command = [sys.executable, "-m", "kd_jax.serve", f"--workdir={copy}", "--port=0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        host, _, port = url.removeprefix("http://").partition(":")
        for _ in range(200):  # it is printed before the server listens
            with contextlib.suppress(ConnectionError):
                socket.create_connection((host, int(port))).close()
                break
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def post(url: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    # The server is on this machine: a proxy from the environment cannot reach it.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.load(answer)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of the finished run")
    parser.add_argument("--without", type=Path, default=Path("runs/new-items"))
    parser.add_argument("--config", type=Path, default=ROOT / "configs/quickstart.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder) / "log", METRIC)
        full = open_workdir(options.workdir, log)
        whole = full.experiment.dataset
        train_without(whole, options.config, options.without)
        less = open_workdir(options.without, log)
        small = less.experiment.dataset
        texts = full.experiment.texts(roles.main_teacher()).items
        retrained = [evaluated(vectors, whole) for _, vectors in students(full)]
        added = []
        for new, vectors in students(less):
            print(f"{new.settings()}")
            added.append(evaluated(with_cold_items(vectors, new, small, whole, texts), whole))
    compare(retrained, added)
    cold = [text for text, warm in zip(texts, whole.warm, strict=True) if not warm][:TIMES]
    items = f"{whole.num_items:,} items"
    print(f"\ntext to list, in process, {items}: {milliseconds(in_process(options.workdir, cold))}")
    print(f"text to list, HTTP, {items}: {milliseconds(by_http(options.workdir, cold))}")


if __name__ == "__main__":
    main()
