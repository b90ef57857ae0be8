r"""Methods of distillation beside baselines, teachers and plain students, on every data set.

    python -m benchmarks.distillation --out=runs/methods --data=data
    python -m benchmarks.distillation --out=runs/methods --sets=movietweetings --methods=kl,rrd
    python -m benchmarks.distillation --out=runs/quick --quick            # 10 minutes on 2 cores
    python -m benchmarks.distillation --out=runs/own --config=configs/csv.py:teacher [FLAGS]

--data holds the data sets that are not shipped, each in its folder (benchmarks/sets.py); a set
without its data is missing. With --config one run of that configuration takes the place of the
sets. Other flags go to launch.py. What is done with a set is described in benchmarks/methods.py;
--quick takes MovieTweetings, one seed, one weight and four losses.

The same command goes on where it was cut off, and --report trains nothing. OUT/results.md has, for
each set of OUT, its models (means of the seeds on test) and the methods with their gain over the
plain student and its interval (paired bootstrap over users), and says what is missing. Where a
set's clicks have a sampled softmax (beauty, sports), those are missing that no engine computes from
a sample (docs/methods.md), ``topk_kl`` has k = distill.top, and ``item_matching`` draws 256 items.
OUT/gains.png draws the gains, OUT/results.json has all numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import ROOT, table
from benchmarks.methods import METHODS, UNTUNED, Study, metric_of, metrics_of, seeds_of
from benchmarks.sets import OWN, SETS

QUICK = {"sets": "movietweetings", "methods": "kl,reverse_kl,rrd,listmle", "weights": "3"}
Cell = Callable[[dict[str, Any]], float | None]


def sliced(part: str, metric: str) -> Cell:
    return lambda row: row.get("slices", {}).get(part, {}).get(metric)


def columns(ks: Sequence[int]) -> dict[str, tuple[Cell, str]]:
    """Of the models' table: head -> what a row of metrics.json has there, and its format."""

    def on_test(metric: str) -> Cell:
        return lambda row: row["test"].get(metric)

    metrics = {
        f"{head}@{k}": f"{name}@{k}"
        for name, head in (("ndcg", "NDCG"), ("recall", "Recall"), ("hit_rate", "HR"))
        for k in ks
    }
    return {
        **{head: (on_test(metric), ".4f") for head, metric in metrics.items()},
        **{
            f"Recall@{k} {part}": (sliced(part, f"recall@{k}"), ".4f")
            for k in ks[-1:]
            for part in ("cold", "tail")
        },
        "parameters": (lambda row: row.get("params"), ",.0f"),
        "bytes": (lambda row: row.get("bytes"), ",.0f"),
        "train s": (lambda row: row.get("train_seconds"), ",.0f"),
        "users/s": (lambda row: row.get("users_per_second"), ",.0f"),
    }


def spread(values: Sequence[float], form: str = ".4f") -> str:
    mean = format(statistics.fmean(values), form)
    if len(values) == 1 or form != ".4f":
        return mean
    return f"{mean} ± {statistics.stdev(values):{form}}"


def models(rows: Sequence[dict[str, Any]]) -> str:
    """The table of models: means and standard deviations of their seeds."""
    found = [name for name in rows[0]["test"] if name.startswith("ndcg@")]
    shown = columns(sorted(int(name.partition("@")[2]) for name in found))
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        seeds = [row for row in rows if row["name"] == name]
        line = [name]
        for cell, form in shown.values():
            values = [value for row in seeds if (value := cell(row)) is not None]
            line.append(spread(values, form) if values else "–")
        lines.append(line)
    return table(("model", *shown), lines)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def line(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a method."""
    if "missing" in row:
        return row["method"], row["teacher"], *("",) * 3, f"missing: {row['missing']}", ""
    low, high = map(percent, row["ci95"])
    return (
        row["method"],
        row["teacher"],
        f"{row['weight']:g}",
        spread(row["valid"]),
        spread(row["test"]),
        f"{percent(row['gain'])} % ({low} to {high})",
        f"{statistics.fmean(row['seconds']):.1f}",
    )


def measured(study: Study) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Runs a study; returns its models, the rows of its methods, and the metric of these.

    Raises SystemExit where a run fails, or where --report finds none.
    """
    metrics = study.begin()
    metric = metric_of(study.base)
    shown = metrics["models"] + study.other_start()
    alone = seeds_of(metrics, "student")
    seeds = [row["seed"] for row in alone]
    rows = []
    for teacher in study.teachers:
        for method in study.methods:
            rows.append(study.row(method, teacher, metric, seeds))
            print(f"{study.out.name}: {' | '.join(line(rows[-1]))}", flush=True)
    return shown, rows, metric


def draw(path: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """The gains of the methods over the plain student with their intervals, a panel for each set.

    Nothing is drawn where nothing is finished.
    """
    gains = {
        name: [row for row in rows if row.get("gain") is not None] for name, rows in found.items()
    }
    gains = {name: rows for name, rows in gains.items() if rows}
    if not gains:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.style.use(ROOT / "kd_jax/report/templates/report.mplstyle")
    height = 1 + 0.25 * max(map(len, gains.values()))
    figure, panels = pyplot.subplots(
        1, len(gains), figsize=(4 * len(gains), height), squeeze=False, layout="constrained"
    )
    for axes, (name, rows) in zip(panels[0], gains.items(), strict=True):
        for at, row in enumerate(reversed(rows)):
            low, high = row["ci95"]
            if low is not None and high is not None:
                axes.plot([100 * low, 100 * high], [at, at], color="tab:blue")
            axes.plot(100 * row["gain"], at, "o", color="tab:blue")
        axes.axvline(0, color="grey", linewidth=0.8)
        labels = [f"{row['method']}, {row['teacher']}" for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.set(title=name, xlabel="gain over the plain student, %")
    figure.savefig(path, transparent=False, facecolor="white")
    pyplot.close(figure)


def studies(options: argparse.Namespace, flags: list[str]) -> dict[str, Study | str]:
    """Each set's study, or why it is missing; those that are only in OUT are read."""
    out, data = options.out.expanduser().absolute(), options.data.expanduser().absolute()
    own = any(flag.startswith("--config=") for flag in flags)
    wanted = ["own"] if own else options.sets
    there = [name for name in (*SETS, "own") if metrics_of(out / name / "base")]
    found: dict[str, Study | str] = {}
    for name in dict.fromkeys((*wanted, *there)):
        report = options.report or name not in wanted
        known = out / name / "study.json"
        if report and known.exists():  # as it was begun
            study = json.loads(known.read_text())
            found[name] = Study(out / name, **study, texts=has_texts(name), report=True)
            continue
        try:
            command = [] if report or name == "own" else SETS[name].command(data)
        except FileNotFoundError as error:
            found[name] = str(error)
            continue
        found[name] = Study(
            out=out / name,
            flags=(*command, *flags, *UNTUNED),
            methods=options.methods,
            teachers=options.teachers or teachers_of(out, name),
            weights=options.weights,
            texts=has_texts(name),
            report=report,
        )
    return found


def has_texts(name: str) -> bool:
    return name == "own" or SETS[name].texts


def teachers_of(out: Path, name: str) -> list[str]:
    """Whom the students of a set learn from; of another set's run: a folder in OUT."""
    known = OWN if name == "own" else SETS[name].teachers
    return [str(out / one) if "/" in one else one for one in known]


def parsed() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--sets", type=names, default=list(SETS), help=", ".join(SETS))
    parser.add_argument("--methods", type=names, default=list(METHODS), help=", ".join(METHODS))
    parser.add_argument("--teachers", type=names, help="models of the run, or folders of models")
    parser.add_argument(
        "--weights", type=lambda text: [float(x) for x in text.split(",")], default=[0.3, 1.0, 3.0]
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    options, flags = parser.parse_known_args()
    if options.quick:
        quick = [f"--{name}={value}" for name, value in QUICK.items()]
        given = [*quick, "--teachers=teacher", "--config.seeds=(0,)", *sys.argv[1:]]
        options, flags = parser.parse_known_args(given)
    for name, known in (("sets", SETS), ("methods", METHODS)):
        unknown = set(getattr(options, name)) - set(known)
        if unknown:
            parser.error(f"--{name}: {', '.join(sorted(unknown))} unknown; {', '.join(known)}")
    return options, flags


def main() -> int:
    options, flags = parsed()
    out = options.out.expanduser()
    out.mkdir(parents=True, exist_ok=True)
    page = ["# Distillation on every data set"]
    found: dict[str, dict[str, Any]] = {}
    chosen, failed = studies(options, flags), False
    for study in chosen.values():  # before anything is written
        if isinstance(study, Study):
            study.check()
    for name, study in chosen.items():
        try:
            if isinstance(study, str):
                raise SystemExit(study)
            shown, rows, metric = measured(study)
        except SystemExit as error:  # the other sets go on
            part, failed = [f"missing: {error}"], True
            print(f"{name}: {error}", flush=True)
        else:
            found[name] = {"metric": metric, "models": shown, "methods": rows}
            head = ("method", "teacher", "weight", "validation", f"test {metric}", "gain", "s")
            part = [models(shown)] + ([table(head, list(map(line, rows)))] if rows else [])
            part.append(f"Flags: `{' '.join(study.flags)}`")
        page += [f"## {name}", *part]
        (out / "results.md").write_text("\n\n".join(page) + "\n")
        (out / "results.json").write_text(json.dumps(found, indent=1))
    draw(out / "gains.png", {name: some["methods"] for name, some in found.items()})
    print("\n" + "\n\n".join(page[1:]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
