"""Parts of ``serving.py`` that need a process of their own; prints a JSON object of figures.

    python benchmarks/serving_parts.py runtime|mixed|equal|before --workdir=WORKDIR [--checkout=DIR]

runtime: seconds until the runtime is imported and has loaded the export, resident memory, and
latencies. mixed: calls of all kinds, of the export and of a SASRec with random weights; whether JAX
was imported. equal: the runtime's lists of all trained users beside those of the model in JAX.
before: latency of ``kd_jax.load(WORKDIR).recommend`` in an earlier checkout.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

K = 10
LONGEST = 20  # items of a history
SLOW_CALLS = 12  # of the earlier checkout, which compiles in most of them


def resident() -> float:
    """MB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def quantiles(call: Callable[[Any], Any], values: list[Any]) -> list[float]:
    """Median, 99th percentile and maximum of the milliseconds of a call."""
    import numpy as np

    call(values[0])
    times = []
    for value in values:
        start = time.perf_counter()
        call(value)
        times.append(1e3 * (time.perf_counter() - start))
    return [float(np.median(times)), float(np.quantile(times, 0.99)), max(times)]


def histories(items: list[Any], calls: int) -> list[list[Any]]:
    """Of 1 to 20 random items; the same for every checkout."""
    import numpy as np

    rng = np.random.default_rng(0)
    lengths = rng.integers(1, LONGEST + 1, calls)
    return [[items[i] for i in rng.integers(0, len(items), n)] for n in lengths]


def runtime(workdir: Path, calls: int) -> dict[str, Any]:
    began = time.perf_counter()
    from kd_jax import runtime

    found = runtime.load(workdir)
    figures: dict[str, Any] = {"ready": time.perf_counter() - began}
    found.recommend(found.export.user_ids[0])
    figures["resident"] = resident()
    import numpy as np

    chosen = np.random.default_rng(0).integers(0, found.num_users, calls)
    users = [found.export.user_ids[i] for i in chosen]
    items = [f"id:{i}" for i in found.export.item_ids]
    asked = histories(items, calls)
    figures |= {
        "users": found.num_users,
        "items": found.num_items,
        "known": quantiles(lambda user: found.recommend(user), users),
        "history": quantiles(lambda history: found.recommend(history=history), asked),
        "similar": quantiles(lambda history: found.similar(history[0]), asked),
        "explanation": quantiles(lambda h: found.explain(items[0], history=h), asked),
    }
    start = time.perf_counter()
    for _ in found.many(k=K):
        pass
    figures["many"] = found.num_users / (time.perf_counter() - start)
    return figures | {"resident_end": resident()}


def mixed(workdir: Path, calls: int) -> dict[str, Any]:
    from kd_jax import runtime
    from kd_jax.runtime import store

    exported = runtime.load(workdir)
    with tempfile.TemporaryDirectory() as folder:
        store.write(Path(folder) / store.FILE, random_sasrec(exported.export))
        sasrec = runtime.load(folder)
    answered = {name: ask(found, calls) for name, found in (("mf", exported), ("sasrec", sasrec))}
    return {"answered": answered, "jax": "jax" in sys.modules}


def ask(found: Any, calls: int) -> int:
    """Calls of all kinds in turns; the number of them that returned rows."""
    from kd_jax.runtime import Filters

    items = [f"id:{i}" for i in found.export.item_ids]
    asked, users = histories(items, calls), found.export.user_ids
    kinds: list[Callable[[Any, list[Any]], Iterable[Any]]] = [
        lambda user, history: found.recommend(user, k=K),
        lambda user, history: found.recommend(history=history, k=K),
        lambda user, history: found.recommend(user, history, k=K),
        lambda user, history: found.recommend(user, filters=Filters(found.items(history))),
        lambda user, history: found.recommend(history=history, diversity=0.3),
        lambda user, history: found.similar(history[0], K),
        lambda user, history: found.explain(history[0], user),
        lambda user, history: found.many([user], k=K),
    ]
    return sum(
        bool(list(kinds[n % len(kinds)](users[n % len(users)], history)))
        for n, history in enumerate(asked)
    )


def random_sasrec(export: Any, length: int = 20, blocks: int = 2) -> Any:
    """The export with a Transformer of random weights in place of its model of histories."""
    import dataclasses

    import numpy as np

    from kd_jax.runtime.contexts import Transformer

    rng = np.random.default_rng(0)
    dim = export.item_vectors.shape[1]

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(scale=0.1, size=shape).astype(np.float32)

    context = Transformer(
        position=draw(length, dim),
        norm=draw(2, dim),
        norms=draw(blocks, 2, 2, dim),
        qkv_kernel=draw(blocks, dim, 3 * dim),
        qkv_bias=draw(blocks, 3 * dim),
        out_kernel=draw(blocks, dim, dim),
        out_bias=draw(blocks, dim),
        up_kernel=draw(blocks, dim, dim),
        up_bias=draw(blocks, dim),
        down_kernel=draw(blocks, dim, dim),
        down_bias=draw(blocks, dim),
        heads=2,
    )
    return dataclasses.replace(export, context=context, hidden=None)


def equal(workdir: Path, calls: int) -> dict[str, Any]:
    import numpy as np

    from kd_jax import runtime
    from kd_jax.core.logging import Log
    from kd_jax.data.splits import TEST
    from kd_jax.evaluation.evaluator import top_k
    from kd_jax.experiment.new_items import biases_of
    from kd_jax.experiment.new_users import NewUsers
    from kd_jax.experiment.roles import ROLES
    from kd_jax.experiment.served import served
    from kd_jax.experiment.trained import open_workdir

    found = runtime.load(workdir)
    with tempfile.TemporaryDirectory() as folder, Log(Path(folder) / "log", "", silent=True) as log:
        models = open_workdir(workdir, log)
        experiment, role = models.experiment, ROLES[found.export.description["model"]]
        seed = experiment.seeds[0]
        data, trained = experiment.dataset, models.open(role, seed)
        users, biases = NewUsers(trained), biases_of(models, role, seed)
        params, _ = served(trained, users, biases, TEST + 1, crossed=False)
        score, _ = trained.score_function(TEST + 1, params=params)
        # A user without a vector is served by the map of new users, which is not in JAX.
        chosen = np.flatnonzero(found.export.user_vectors.any(1))
        items, scores = top_k(score, chosen, K, data.history(TEST + 1), num_items=data.num_items)
    blocks = list(found.many(k=K))
    ours, values = (np.concatenate([block[n] for block in blocks])[chosen] for n in (1, 2))
    same = (ours == items).all(1)
    return {
        "users": len(chosen),
        "same": int(same.sum()),
        "apart": float(np.abs(values - np.asarray(scores)).max()),
    }


def before(workdir: Path, calls: int) -> dict[str, Any]:
    import kd_jax

    found = kd_jax.load(workdir)
    asked = histories(found.dataset.item_ids.to_list(), SLOW_CALLS)
    return {"history": quantiles(lambda history: found.recommend(history=history), asked)}


PARTS = {"runtime": runtime, "mixed": mixed, "equal": equal, "before": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()
    sys.path.insert(0, str(options.checkout.absolute()))
    print(json.dumps(PARTS[options.part](options.workdir, options.calls)))


if __name__ == "__main__":
    main()
