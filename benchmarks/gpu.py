"""Measures on one accelerator what docs/performance.md has for CPUs alone, in at most 8 minutes.

    python benchmarks/gpu.py [--minutes=8] [--small]

Four parts, each in processes of its own, so that one that fails or takes too long leaves the
others:

- language model: a BERT-base in bfloat16 with random weights on texts of 128 tokens: encoding 512
  at a time, and AdamW steps on 64;
- loss: ``streamed_loss.py`` with 100,000 and 1,000,000 items;
- training: the default run with one seed, and its student as SASRec, from their metrics.jsonl: time
  of a step by activity and by the trace of the device, examples a second, and the rate of the
  matrix products;
- ranking: the users a second of the models of both runs, from their report.

A table is printed after each part, and ``--out`` gets all numbers. A part gets what is left of the
minutes, and is left out where less than ``LEAST`` seconds are; those that did not end are named.
--small: sizes for a trial on a CPU, whose figures mean nothing.

of peak: the rate of the matrix products, counted in the traced program, divided by that of one
product of two 8192 x 8192 matrices of the same type in the same process.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import measuring
from benchmarks.lm_throughput import MAX_LENGTH, RATE, bert_step

LEAST = 30  # seconds
ROLES = {  # what is run: overrides of the default configuration
    "default run": (),
    "SASRec": ("--config.student.name=sasrec", "--config.stages=('data','student','evaluate')"),
}


def language_model(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds, TFLOP/s and share of the peak of encoding and of a fine-tuning step."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from kd_jax.devices import profiling
    from kd_jax.models.language.bert import Bert, BertConfig
    from kd_jax.models.language.encoder import NativeEncoder

    config = BertConfig(num_hidden_layers=2) if spec["small"] else BertConfig()
    rate = measuring.ceiling("bfloat16", 1024 if spec["small"] else 8192)
    encoder = NativeEncoder(Bert(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(encoder)
    forward, step, init = bert_step(graphdef, RATE)

    found: dict[str, Any] = {"peak": max(rate() for _ in range(5)), "rows": []}
    rng, shrink = np.random.default_rng(0), 64 if spec["small"] else 1
    for name, function, texts, given in (
        ("encoding", forward, 512 // shrink, (params,)),
        ("fine-tuning step", step, 64 // shrink, (params, init(params))),
    ):
        ids = jnp.asarray(rng.integers(1000, 30000, (texts, MAX_LENGTH)), jnp.int32)
        flops = profiling.matmul_flops(function, *given, ids)
        run = jax.jit(function).lower(*given, ids).compile()
        jax.block_until_ready(run(*given, ids))
        best = min(measuring.seconds(lambda: run(*given, ids)) for _ in range(10))  # noqa: B023
        found["rows"].append([name, texts, best, flops / best / found["peak"]])
    return found | measuring.machine()


def show_language_model(found: dict[str, Any]) -> str:
    rows = [
        [name, texts, f"{1e3 * best:.1f}", f"{texts / best:,.0f}", f"{share:.0%}"]
        for name, texts, best, share in found["rows"]
    ]
    head = ("BERT-base, bfloat16, 128 tokens", "texts", "ms", "texts/s", "of peak")
    peak = f"{found['device']}, JAX {found['jax']}; peak {found['peak'] / 1e12:.0f} TFLOP/s"
    return f"{peak}\n\n{measuring.table(head, rows)}"


def failure(command: list[str], seconds: float, **given: Any) -> dict[str, str]:
    """Why a command did not do its work within ``seconds``, as 'failed'; empty if it did."""
    try:
        done = subprocess.run(command, timeout=seconds, check=False, **given)
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {seconds:.0f} s"}
    return {"failed": f"exit status {done.returncode}"} if done.returncode else {}


def train(name: str, folder: Path, small: bool, seconds: float) -> dict[str, Any]:
    """The lines of metrics.jsonl and the models of metrics.json of a run; seconds: at most."""
    config = "configs/quickstart.py" + (":runlocal" if small else "")
    command = [sys.executable, "launch.py", f"--config={config}", f"--workdir={folder}"]
    command += ["--config.seeds=(0,)", "--config.trace=True", *ROLES[name]]
    if failed := failure(command, seconds, cwd=measuring.ROOT, stdout=subprocess.DEVNULL):
        return failed
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    models = json.loads((folder / "report/metrics.json").read_text())["models"]
    return {"lines": lines, "models": models}


def steps(run: str, found: dict[str, Any]) -> list[list[Any]]:
    """Of each model of a run its last logged step, and what the trace says of the device."""
    rows = []
    lines = [line for line in found.get("lines", ()) if line.get("seed") is not None]
    for model in dict.fromkeys(line["model"] for line in lines):
        own = [line for line in lines if line["model"] == model]
        timed = [line for line in own if "step_ms" in line]
        traced: dict[str, float] = next(
            (line["device_ms"] for line in own if "device_ms" in line), {}
        )
        if timed:
            last = timed[-1]
            share = last.get("flops_utilisation")
            rows.append(
                [f"{run}: {model}", f"{last['examples_per_second']:,.0f}",
                 _milliseconds(last["step_ms"]), _milliseconds(traced),
                 "" if share is None else f"{share:.0%}", f"{last['peak_bytes'] / 1e9:.2f}"]
            )  # fmt: skip
    return rows


def _milliseconds(parts: dict[str, float]) -> str:
    return ", ".join(f"{part} {value:.2f}" for part, value in parts.items())


def ranked(run: str, found: dict[str, Any]) -> list[list[Any]]:
    return [
        [f"{run}: {model['name']}", f"{model['users_per_second']:,.0f}"]
        for model in found.get("models", ())
        if model.get("users_per_second")
    ]


def loss(out: Path, small: bool, seconds: float) -> dict[str, Any]:
    """The rows of ``streamed_loss.py``, which prints them; seconds: at most."""
    command = [sys.executable, str(Path(__file__).with_name("streamed_loss.py"))]
    command += [f"--items={'10_000' if small else '100_000,1_000_000'}"]
    command += ["--seconds=2", f"--out={out}", *["--rows=512"] * small]
    failed = failure(command, seconds)
    return failed | ({"rows": json.loads(out.read_text())} if out.is_file() else {})


def main() -> None:
    parser = measuring.parser(__doc__, "runs/benchmarks/gpu.json")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--small", action="store_true", help="for a trial on a CPU")
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(language_model(args.measure)))
    end = time.monotonic() + 60 * args.minutes
    found: dict[str, dict[str, Any]] = {}

    def part(name: str, run: Callable[[float], dict[str, Any]]) -> None:
        began = time.monotonic()
        left = end - began
        found[name] = run(left) if left > LEAST else {"failed": "left out, for lack of time"}
        found[name]["seconds"] = time.monotonic() - began
        how = found[name].get("failed") or f"{found[name]['seconds']:.0f} s"
        print(f"\n{name}: {how}\n", flush=True)

    part("language model", lambda left: measuring.child(__file__, {"small": args.small}, left))
    if "rows" in found["language model"]:
        print(show_language_model(found["language model"]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in ROLES:
            part(name, functools.partial(train, name, Path(folder) / name, args.small))
        runs = [(name, found[name]) for name in ROLES]
        head = ("model", "examples/s", "ms a step", "of the device", "of peak", "GB")
        print(measuring.table(head, [row for run in runs for row in steps(*run)]))
        rows = [row for run in runs for row in ranked(*run)]
        print("\n" + measuring.table(("model", "users/s ranked"), rows), flush=True)
        part("loss", functools.partial(loss, Path(folder) / "loss.json", args.small))
    measuring.write(args.out, found)


if __name__ == "__main__":
    main()
