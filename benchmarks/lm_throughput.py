"""Measures texts and tokens per second of language models: ours, and transformers'.

    python benchmarks/lm_throughput.py [--torch=peers/torch/bin/python] [--beauty=FOLDER] \\
        [--out=lm_throughput.json]

All contestants have the same weights (all-MiniLM-L6-v2, or --weights) and token ids, on the same
machine and in the same run. Texts are the film texts of the embedded MovieTweetings (title and
genres) and, with --beauty, those of a folder with items.parquet (title, categories); also the films
of the most common length, and histories of 128 tokens, to compare without padding. --texts of each
are drawn. Each library has one process, so that everything is compiled once; in every round each
contestant runs once, one after another, and medians over the rounds are shown. 'first s' is the
additional time of the first call: compilation, where there is any.

Contestants: texts padded to the longest of their batch, in batches of 32 or 128 in the given order;
sorted by length, as in sentence-transformers; batches of one length only (PyTorch's best case);
Flax's jitted class on padded batches; ``encoding.encode``. A fine-tuning step moves the mean
vectors of 64 texts towards fixed random vectors: squared error, AdamW, all parameters, no dropout.
Vectors and losses are checked to be equal.

Tokens are real ones; 'computed' is the number of computed tokens per real token. FLOPs are those of
the matrix products on real tokens only. 'of ceiling' is relative to the fastest product of two
large matrices by any of the libraries in this run. --lowered runs no model: it counts FLOPs and
bytes of a BERT-base in bfloat16.

PyTorch runs in an environment of its own and is skipped without one; with Python 3.11:

    python3.11 -m venv peers/torch
    peers/torch/bin/pip install torch==2.13.0 'transformers<5'
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks import measuring
from benchmarks.peer_transformers import Contestant, Tokens, read_spec, serve
from benchmarks.peers import environment

BATCH = 64
MAX_LENGTH = 128
RATE = 2e-5
PACKAGES = ("jax", "flax", "optax", "transformers", "numpy")


def texts_of(beauty: Path | None) -> dict[str, list[str]]:
    import polars as pl

    from kd_jax.data import readers
    from kd_jax.data.text import item_texts

    films = item_texts(readers.read("movietweetings").items, ["title", "genres"])
    found = {"films": films}
    if beauty is not None:
        found["Beauty"] = item_texts(
            pl.read_parquet(beauty / "items.parquet"), ["title", "categories"]
        )
    return found


def write_cases(folder: Path, options: argparse.Namespace) -> tuple[dict[str, str], dict[str, Any]]:
    """Writes the tokens of all cases.

    Returns, by case, the file of the tokens, and the number of texts, tokens and matrix-product
    FLOPs.
    """
    from kd_jax.data.text import history_text, tokenize
    from kd_jax.models.language.hf import load_encoder

    encoder, tokenizer = load_encoder(options.weights, max_length=MAX_LENGTH)
    rng = np.random.default_rng(0)
    found = {}
    for case, texts in texts_of(options.beauty).items():
        distinct = list(
            dict.fromkeys(rng.permutation(texts).tolist())
        )  # ours would compute no text twice
        found[case] = tokenize(tokenizer, distinct[: options.texts], MAX_LENGTH)
        if case == "films":
            common = np.bincount(found[case].lengths).argmax()
            lengths = tokenize(tokenizer, distinct, MAX_LENGTH).lengths
            same = [distinct[row] for row in np.flatnonzero(lengths == common)[: options.texts]]
            found[f"films of {common} tokens"] = tokenize(tokenizer, same, MAX_LENGTH)
            histories = [
                history_text(distinct[start : start + 20], 20)
                for start in range(0, len(distinct) - 20, 20)
            ]
            found[f"histories of {MAX_LENGTH} tokens"] = tokenize(
                tokenizer, histories[: max(1, options.texts // 16)], MAX_LENGTH
            )
    files = {}
    counts = {}
    forward, step = flops_by_length(encoder)
    for number, (case, table) in enumerate(found.items()):
        files[case] = str(folder / f"{number}.npz")
        targets = rng.standard_normal((len(table), encoder.dim), np.float32)
        np.savez(
            files[case], ids=table.ids, indptr=table.indptr, pad_id=table.pad_id, targets=targets
        )
        counts[case] = {
            "lengths": table.lengths.tolist(),
            "encoding": forward(table.lengths).tolist(),
            "fine-tuning": step(table.lengths).tolist(),
        }
    return files, counts


def flops_by_length(encoder: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """FLOPs of the matrix products of one text, as polynomials of degree two of its length.

    They are for encoding and for fine-tuning.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from kd_jax.devices import profiling

    graphdef, params, *rest = nnx.split(encoder, nnx.Param, ...)

    def total(params: Any, ids: Any) -> Any:
        return nnx.merge(graphdef, params, *rest)(ids, jnp.ones_like(ids)).sum()

    lengths = np.array([8, 16, 32])
    counted = []
    for function in (total, jax.grad(total)):
        flops = [
            profiling.matmul_flops(function, params, np.zeros((1, length), np.int32))
            for length in lengths
        ]
        counted.append(np.poly1d(np.polyfit(lengths, flops, 2)))
    return counted[0], counted[1]


def groups(lengths: np.ndarray, unit: int = 8) -> list[tuple[int, int, int]]:
    """At most three groups (start, stop, width) that fit every batch.

    lengths: [batches, texts], each row sorted, longest first. As ``data/examples/live_items.py``
    groups the texts of a batch.
    """
    longest = lengths.max(0)
    size = len(longest)
    edges = range(unit, size, unit)
    choices = [
        (0, *cuts, size) for count in range(3) for cuts in itertools.combinations(edges, count)
    ]
    best = min(
        choices, key=lambda cuts: sum((b - a) * longest[a] for a, b in itertools.pairwise(cuts))
    )
    return [(a, b, int(longest[a])) for a, b in itertools.pairwise(best)]


def ours(spec: dict[str, Any]) -> None:
    """The worker of ``encoding.encode`` and of a training step through our encoder."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from kd_jax.core.process import keep_freed_memory
    from kd_jax.data.text import TokenTable
    from kd_jax.models.language.batching import plan_batches
    from kd_jax.models.language.encoding import encode
    from kd_jax.models.language.hf import load_encoder

    keep_freed_memory()  # as every run does
    encoder, _ = load_encoder(
        spec["weights"],
        pooling="mean",
        normalize=False,
        dtype=jnp.dtype(spec["dtype"]),
        max_length=MAX_LENGTH,
    )
    graphdef, params, *rest = nnx.split(encoder, nnx.Param, ...)
    tx = optax.adamw(spec["rate"], weight_decay=0.01)

    def encoding(tokens: Tokens) -> Contestant:
        table = TokenTable(tokens.ids, tokens.indptr, tokens.pad_id)
        batch_tokens = spec["tokens"] if jax.default_backend() == "cpu" else None
        plan = plan_batches(table.lengths, batch_tokens, False, encoder.reads_packed)
        computed = sum(batch.size * batch.length for batch in plan.batches)
        return lambda: (encode(encoder, table, batch_tokens=batch_tokens), computed)

    def loss(params: Any, parts: list[Any], targets: Any) -> Any:
        model = nnx.merge(graphdef, params, *rest)
        return ((jnp.concatenate([model(ids, mask) for ids, mask in parts]) - targets) ** 2).mean()

    def training(tokens: Tokens) -> Contestant:
        batches = [
            rows[np.argsort(-tokens.lengths[rows], kind="stable")]
            for rows in tokens.as_they_come(BATCH)
        ]
        spans = groups(np.stack([tokens.lengths[rows] for rows in batches]))
        table = TokenTable(tokens.ids, tokens.indptr, tokens.pad_id)

        def inputs(rows: np.ndarray) -> tuple[Any, ...]:
            return [table.padded(rows[a:b], width) for a, b, width in spans], tokens.targets[rows]

        return train(loss, params, tx, batches, inputs)

    run_jax(spec, encoding, training)


def flax(spec: dict[str, Any]) -> None:
    """The worker of transformers' Flax class, jitted.

    Batches are padded to a multiple of 16 tokens, since every width is compiled.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from transformers import FlaxAutoModel, logging

    logging.set_verbosity_error()
    model = FlaxAutoModel.from_pretrained(
        spec["weights"], dtype=getattr(jnp, spec["dtype"]), local_files_only=True
    )
    params = {name: value for name, value in model.params.items() if name != "pooler"}
    tx = optax.adamw(spec["rate"], weight_decay=0.01)

    def vectors(params: Any, ids: Any, mask: Any) -> Any:
        hidden = model(
            ids, mask, params=params | {"pooler": model.params["pooler"]}
        ).last_hidden_state
        weights = mask[..., None].astype(jnp.float32)
        return (hidden.astype(jnp.float32) * weights).sum(1) / weights.sum(1)

    forward = jax.jit(vectors)

    def encoding(tokens: Tokens) -> Contestant:
        batches = tokens.as_they_come(32)

        def run() -> tuple[np.ndarray, int]:
            found = np.zeros_like(tokens.targets)
            computed = 0
            for rows in batches:
                filled = np.concatenate(
                    [rows, np.repeat(rows[:1], 32 - len(rows))]
                )  # one shape less to compile
                ids, mask = tokens.padded(filled, 16)
                found[rows] = np.asarray(forward(params, ids, mask))[: len(rows)]
                computed += ids.size
            return found, computed

        return run

    def loss(params: Any, parts: list[Any], targets: Any) -> Any:
        ((ids, mask),) = parts
        return ((vectors(params, ids, mask) - targets) ** 2).mean()

    def training(tokens: Tokens) -> Contestant:
        def inputs(rows: np.ndarray) -> tuple[Any, ...]:
            return [tokens.padded(rows, 16)], tokens.targets[rows]

        return train(loss, params, tx, tokens.as_they_come(BATCH), inputs)

    run_jax(spec, encoding, training)


def train(
    loss: Callable[..., Any],
    params: Any,
    tx: Any,
    batches: Sequence[np.ndarray],
    inputs: Callable[[np.ndarray], tuple[Any, ...]],
) -> Contestant:
    """A contestant that trains on the batches, from its own copy of ``params``.

    Its values are the losses.
    """
    import jax
    import jax.numpy as jnp
    import optax

    def step(params: Any, state: Any, *inputs: Any) -> tuple[Any, Any, Any]:
        value, grads = jax.value_and_grad(loss)(params, *inputs)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    now: list[Any] = []

    def run() -> tuple[np.ndarray, int]:
        if not now:
            now.extend([jax.tree.map(jnp.copy, params), tx.init(params)])
        losses = []
        computed = 0
        for rows in batches:
            parts, targets = inputs(rows)
            now[0], now[1], value = compiled(now[0], now[1], parts, targets)
            losses.append(value)
            computed += sum(ids.size for ids, _ in parts)
        return np.stack([np.asarray(value) for value in losses]), computed

    return run


def run_jax(
    spec: dict[str, Any],
    encoding: Callable[[Tokens], Contestant],
    training: Callable[[Tokens], Contestant],
) -> None:
    import jax

    contestants = {}
    for case, path in spec["cases"].items():
        tokens = Tokens(path)
        contestants[f"{case}: encode"] = encoding(tokens)
        if len(np.unique(tokens.lengths)) > 1:
            contestants[f"{case}: fine-tuning"] = training(Tokens(path, spec["trained"]))
    versions = {name: version(name) for name in PACKAGES}
    versions |= {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    serve(contestants, measuring.ceiling(spec["dtype"], spec["square"]), versions, spec["cpu_time"])


class Worker:
    """A process that runs the contestants of one library."""

    def __init__(self, library: str, command: list[str], spec: Path, threads: int):
        self.library = library
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*command, f"--spec={spec}"],
            env=environment(threads),
            stdin=pipe,
            stdout=pipe,
            text=True,
        )
        self.about = self._answer()

    def run(self, name: str, values: Path | None = None) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(name if values is None else f"{name}\t{values}", file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.library}: ended with status {self.process.wait()}, see above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compete(
    workers: Sequence[Worker], rounds: int, folder: Path, only: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One row for each contestant: the seconds of its runs, and the file of its values.

    The first run is left out of the seconds. only: parts of the names of those that run; () is all.
    """
    rows: list[dict[str, Any]] = []
    for worker in workers:
        for name in worker.about["contestants"]:
            if only and not any(part in f"{worker.library} {name}" for part in only):
                continue
            case, _, how = name.partition(": ")
            kind = "fine-tuning" if how.startswith("fine-tuning") else "encoding"
            rows.append(
                {
                    "case": case,
                    "kind": kind,
                    "library": worker.library,
                    "how": how.removeprefix(kind + ", "),
                }
            )
            rows[-1] |= {
                "seconds": [],
                "ceilings": [],
                "values": folder / f"values-{len(rows)}.npy",
            }
            rows[-1] |= {"run": functools.partial(worker.run, name)}
    cases = list(dict.fromkeys(row["case"] for row in rows))
    rows.sort(key=lambda row: (cases.index(row["case"]), row["kind"]))
    for turn in range(rounds + 1):
        for row in rows:
            print(
                f"round {turn} of {rounds}: {row['case']}, {row['library']} {row['how']}",
                file=sys.stderr,
                flush=True,
            )
            found = row["run"](row["values"] if turn == 0 else None)
            row["ceilings"].append(found["ceiling"])
            if turn == 0:
                row |= {"computed": found["tokens"], "first": found["seconds"]}
            else:
                row["seconds"].append(found["seconds"])
    for row in rows:
        del row["run"]
    return rows


def add_rates(rows: list[dict[str, Any]], counts: dict[str, Any], trained: int) -> float:
    """Adds rates, shares and differences from our values to the rows, in place.

    Returns the ceiling in FLOP/s.
    """
    ceiling = max(value for row in rows for value in row["ceilings"])
    for row in rows:
        values = np.load(row["values"], allow_pickle=False)
        ours = next(
            o
            for o in rows
            if (o["case"], o["kind"], o["library"]) == (row["case"], row["kind"], "kd_jax")
        )
        row["difference"] = float(
            np.abs(values - np.load(ours["values"], allow_pickle=False)).max()
        )
        first = trained if row["kind"] == "fine-tuning" else None
        lengths, flops = (counts[row["case"]][key][:first] for key in ("lengths", row["kind"]))
        median = float(np.median(row["seconds"]))
        row |= {
            "median": median,
            "compile": row["first"] - median,
            "ratio": median / float(np.median(ours["seconds"])),
        }
        row |= {"texts_per_s": len(lengths) / median, "tokens_per_s": sum(lengths) / median}
        row |= {
            "padding": row["computed"] / sum(lengths),
            "of_ceiling": sum(flops) / median / ceiling,
        }
    for row in rows:
        del row["values"]
    return ceiling


def show(rows: list[dict[str, Any]]) -> str:
    head = (
        "texts",
        "contestant",
        "texts/s",
        "tokens/s",
        "computed",
        "of ceiling",
        "time / ours",
        "s (least to most)",
        "first s",
        "difference",
    )
    lines = [
        [
            f"{row['case']}, {row['kind']}",
            f"{row['library']}: {row['how']}",
            f"{row['texts_per_s']:,.0f}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['padding']:.2f}",
            f"{row['of_ceiling']:.0%}",
            f"{row['ratio']:.2f}",
            f"{row['median']:.2f} ({min(row['seconds']):.2f} to {max(row['seconds']):.2f})",
            f"{row['compile']:.1f}",
            f"{row['difference']:.0e}",
        ]
        for row in rows
    ]
    return measuring.table(head, lines)


def bert_step(graphdef: Any, rate: float) -> tuple[Any, Any, Any]:
    """(forward, training step, initial optimiser state) of an encoder, as functions of its params.

    forward: (params, ids) -> vectors. step: (params, state, ids) -> (params, state), by AdamW.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    tx = optax.adamw(rate)

    def forward(params: Any, ids: Any) -> Any:
        return nnx.merge(graphdef, params)(ids, jnp.ones_like(ids))

    def step(params: Any, state: Any, ids: Any) -> Any:
        grads = jax.grad(lambda params: (forward(params, ids) ** 2).mean())(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return forward, step, tx.init


def lowered() -> None:
    """FLOPs and bytes of a BERT-base in bfloat16 at 128 tokens.

    They are for encoding 512 texts, and for a fine-tuning step on 64.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from kd_jax.devices import profiling
    from kd_jax.models.language.bert import Bert, BertConfig
    from kd_jax.models.language.encoder import NativeEncoder

    encoder = nnx.eval_shape(
        lambda: NativeEncoder(Bert(BertConfig(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    )
    graphdef, params = nnx.split(encoder)
    forward, step, init = bert_step(graphdef, RATE)

    rows = []
    for name, function, texts, given in (
        ("encode", forward, 512, (params,)),
        ("fine-tuning step", step, 64, (params, jax.eval_shape(init, params))),
    ):
        ids = jax.ShapeDtypeStruct((texts, MAX_LENGTH), jnp.int32)
        flops = profiling.matmul_flops(function, *given, ids)
        traced = jax.jit(function).trace(*given, ids)
        start = time.perf_counter()
        compiled = traced.lower().compile()
        seconds = time.perf_counter() - start
        planned = compiled.memory_analysis()
        moved = compiled.cost_analysis()["bytes accessed"]
        programs = [
            traced.lower(lowering_platforms=(target,)).as_text() for target in ("cuda", "tpu")
        ]
        products = [
            [line for line in text.splitlines() if "stablehlo.dot_general" in line]
            for text in programs
        ]
        half = [f"{sum('bf16' in line for line in lines)} of {len(lines)}" for lines in products]
        rows.append(
            [
                name,
                texts,
                f"{flops / 1e12:.2f}",
                f"{moved / 1e9:.1f}",
                f"{flops / moved:.0f}",
                f"{planned.argument_size_in_bytes / 1e9:.2f}",
                f"{planned.temp_size_in_bytes / 1e9:.2f}",
                f"{seconds:.0f}",
                *half,
            ]
        )
    head = (
        "BERT-base, bfloat16, 128 tokens",
        "texts",
        "TFLOP",
        "GB moved",
        "FLOP/byte",
        "GB given",
        "GB scratch",
        "compile s",
        "bfloat16 products, cuda",
        "tpu",
    )
    print(
        f"Compiled for {jax.devices()[0].device_kind}, not run.\n\n" + measuring.table(head, rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", default="sentence-transformers/all-MiniLM-L6-v2", help="a BERT-like encoder"
    )
    parser.add_argument(
        "--torch", help="the interpreter of the environment that has torch and transformers"
    )
    parser.add_argument(
        "--beauty", type=Path, help="a folder with items.parquet: title, categories"
    )
    parser.add_argument("--texts", type=int, default=4096, help="of each kind, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of fine-tuning in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="such as 'kd_jax films: encode'")
    parser.add_argument(
        "--tokens",
        type=int,
        default=1024,
        help="in a batch of ours, and of PyTorch's on one length",
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--square", type=int, default=4096, help="side of the matrices whose product is the ceiling"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="s of CPU: for a busy machine, with --threads=1"
    )
    parser.add_argument(
        "--lowered", action="store_true", help="count a BERT-base in bfloat16 instead"
    )
    parser.add_argument("--out", type=Path, help="all that was measured as JSON")
    parser.add_argument("--worker", choices=("ours", "flax"), help=argparse.SUPPRESS)
    parser.add_argument("--spec", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        {"ours": ours, "flax": flax}[options.worker](read_spec())
        return
    if options.lowered:
        lowered()
        return
    from kd_jax.core.files import write_json
    from kd_jax.models.language.weights import resolve_weights

    options.weights = str(resolve_weights(options.weights))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases, counts = write_cases(folder, options)
        trained = options.steps * BATCH
        spec = {
            "cases": cases,
            "trained": trained,
            "batch": BATCH,
            "rate": RATE,
            "square": options.square,
        }
        spec |= {
            key: getattr(options, key)
            for key in ("weights", "threads", "tokens", "dtype", "cpu_time")
        }
        write_json(folder / "spec.json", spec)
        here = [sys.executable, __file__]
        commands = {"kd_jax": [*here, "--worker=ours"], "Flax": [*here, "--worker=flax"]}
        if options.torch:
            commands["PyTorch"] = [
                options.torch,
                str(Path(__file__).with_name("peer_transformers.py")),
            ]
        else:
            print("PyTorch is skipped: no --torch")
        workers = [
            Worker(library, command, folder / "spec.json", options.threads)
            for library, command in commands.items()
        ]
        for worker in workers:
            print(
                f"{worker.library}: "
                + ", ".join(f"{key} {value}" for key, value in worker.about["versions"].items())
            )
        rows = compete(workers, options.rounds, folder, options.only)
        for worker in workers:
            worker.close()
        ceiling = add_rates(rows, counts, trained)
    for case, count in counts.items():
        lengths = count["lengths"]
        print(
            f"{case}: {len(lengths):,} texts, {sum(lengths):,} tokens,"
            f" {sum(count['encoding']) / 1e12:.2f} TFLOP"
        )
    machine = {"threads": options.threads, "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    print(
        f"{Path(options.weights).name}, {options.dtype}, {options.threads} threads of"
        f" {os.cpu_count()}, load {machine['load']:.1f} at the end; ceiling {ceiling / 1e9:.0f}"
        f" GFLOP/s; fine-tuning: {BATCH} texts a step\n"
    )
    print(show(rows))
    if options.out:
        about = {worker.library: worker.about["versions"] for worker in workers}
        write_json(
            options.out, {"machine": machine, "versions": about, "ceiling": ceiling, "rows": rows}
        )


if __name__ == "__main__":
    main()
