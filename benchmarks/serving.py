"""All that is promised of serving, measured, in one table.

    python benchmarks/serving.py --workdir=runs/quickstart \\
        --implicit=peers/implicit/bin/python --before=FOLDER --before-workdir=WORKDIR

Every part runs in processes of its own; --parts leaves some out:

runtime (on one core): import and load, memory, latency of known users and of histories of 1 to 20
items, similar items, explanations. mixed: 1,000 calls of all kinds; nothing can be compiled where
JAX is not imported. equal: the lists of all trained users beside those of the model in JAX.
before: ``kd_jax.load(WORKDIR).recommend`` with the same histories in an earlier checkout. lists:
lists of all users beside implicit's (``serving_lists.py``). http: requests of our server beside
those of one with implicit (``serving_http.py``). Without --implicit, lists and http are ours alone
or left out; use an idle machine. The environment of implicit:

    python3.11 -m venv peers/implicit
    peers/implicit/bin/pip install implicit==0.7.3 fastapi 'uvicorn[standard]'
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving_process import environment

HERE = Path(__file__).parent


class Row(NamedTuple):
    """A figure, what it is compared with, its target in words, and whether it is met."""

    name: str
    figure: str
    beside: str = ""
    target: str = ""
    met: bool | None = None


def output(command: list[str], env: dict[str, str] | None = None) -> Any:
    """The JSON on the last line that a process prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def part(name: str, options: argparse.Namespace, one_core: bool = True, *more: str) -> Any:
    """The figures of a part of ``serving_parts.py``."""
    workdir = options.workdir.absolute()
    command = [sys.executable, str(HERE / "serving_parts.py"), name, f"--workdir={workdir}"]
    command += [f"--calls={options.calls}", *more]
    if one_core and hasattr(os, "sched_getaffinity"):
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
    return output(command, environment(1) if one_core else None)


def runtime(options: argparse.Namespace) -> list[Row]:
    found = part("runtime", options)

    def latency(name: str, key: str, most: float | None = None) -> Row:
        p50, p99, _ = found[key]
        figure = f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"
        if most is None:
            return Row(name, figure)
        return Row(name, figure, "", f"p99 < {most:g} ms", p99 < most)

    ready, memory = found["ready"], found["resident"]
    options.history = found["history"][0]
    return [
        Row("import and load", f"{ready:.2f} s", "", "< 0.5 s", ready < 0.5),
        Row("resident memory", f"{memory:.0f} MB", "", "< 80 MB", memory < 80),
        latency("known user", "known", 2),
        latency("history of 1 to 20 items", "history", 3),
        latency("similar items", "similar"),
        latency("explanation", "explanation"),
        Row("lists of all users, one core", f"{found['many']:,.0f} users/s"),
        Row("resident memory at the end", f"{found['resident_end']:.0f} MB"),
    ]


def mixed(options: argparse.Namespace) -> list[Row]:
    found = part("mixed", options)
    imported = "imported" if found["jax"] else "not imported"
    return [
        Row(
            f"{options.calls:,} mixed calls, {name}",
            f"{answered:,} answered, JAX is {imported}",
            "",
            "0 compilations: no JAX",
            answered == options.calls and not found["jax"],
        )
        for name, answered in found["answered"].items()
    ]


def equal(options: argparse.Namespace) -> list[Row]:
    found = part("equal", options, False)
    met = found["same"] == found["users"] and found["apart"] < 1e-5
    figure = f"{found['same']:,} of {found['users']:,} lists, scores within {found['apart']:.1e}"
    return [Row("the same lists as JAX", figure, "", "all, within 1e-05", met)]


def before(options: argparse.Namespace) -> list[Row]:
    if not options.before:
        return []
    more = [f"--checkout={options.before.absolute()}"]
    if options.before_workdir:
        more.append(f"--workdir={options.before_workdir.absolute()}")
    ours = getattr(options, "history", None) or part("runtime", options)["history"][0]
    median, _, worst = part("before", options, True, *more)["history"]
    ratio = median / ours
    return [
        Row(
            "history, beside the earlier checkout",
            f"{ratio:,.0f} times as fast",
            f"p50 {median:,.0f} ms, worst of 12 {worst:,.0f} ms",
            "at least 300",
            ratio >= 300,
        )
    ]


def lists(options: argparse.Namespace) -> list[Row]:
    if not options.implicit:
        return []
    command = [sys.executable, str(HERE / "serving_lists.py"), f"--implicit={options.implicit}"]
    found = output([*command, f"--threads={options.threads}", "--json"])
    theirs = found["implicit"]
    figures = {
        name: (
            f"{found[key]['users_per_s']:,.0f} users/s, {found[key]['cpu']:.2f} s of CPU",
            f"implicit {theirs['users_per_s']:,.0f} users/s, {theirs['cpu']:.2f} s of CPU",
            "at least implicit's",
            found[key]["users_per_s"] >= theirs["users_per_s"],
        )
        for key, name in (("arrays", "arrays"), ("parquet", "Parquet"))
    }
    same = f"{found['same']:,} of {found['users']:,} lists"
    return [
        *(Row(f"all users of MovieLens-1M's shape, {name}", *row) for name, row in figures.items()),
        Row("the same items as implicit", same, "", "all", found["same"] == found["users"]),
    ]


def http(options: argparse.Namespace) -> list[Row]:
    command = [sys.executable, str(HERE / "serving_http.py"), f"--workdir={options.workdir}"]
    command += [f"--seconds={options.seconds}", "--json"]
    command += [f"--implicit={options.implicit}"] if options.implicit else []
    found = output(command, environment(1))
    ours, theirs = found["kd_jax"], found.get("implicit")

    def row(name: str, text: str, target: str = "", met: bool | None = None) -> Row:
        beside = "implicit " + text.format(**theirs) if theirs else ""
        return Row(f"HTTP: {name}", text.format(**ours), beside, target, met)

    rate, growth = ours["requests_per_s"], ours["rss_after"] / ours["rss_before"]
    return [
        row("32 connections", "{requests_per_s:,.0f} requests/s", "at least 2,000", rate >= 2000),
        row("latency", "p50 {p50:.1f} ms, p99 {p99:.1f} ms", "p99 < 30 ms", ours["p99"] < 30),
        row("errors", "{errors:,} of {requests:,}", "0", ours["errors"] == 0),
        row("CPU time of a request", "{cpu_ms:.2f} ms"),
        row("memory", "{rss_before:.0f} to {rss_after:.0f} MB", "at most 2 % more", growth < 1.02),
    ]


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "runtime": runtime,
    "mixed": mixed,
    "equal": equal,
    "before": before,
    "lists": lists,
    "http": http,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True)
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--implicit", help="the interpreter of an environment with implicit, fastapi and uvicorn")
    add("--before", type=Path, help="a checkout to compare with")
    add("--before-workdir", type=Path, help="a finished run of that checkout")
    add("--calls", type=int, default=1000)
    add("--seconds", type=float, default=60, help="of the load over HTTP")
    add("--threads", type=int, default=2, help="of the lists of all users")
    options = parser.parse_args()
    print("| | measured | beside it | target | |\n|---|---|---|---|---|", flush=True)
    rows = []
    for name in options.parts:
        for row in PARTS[name](options):
            rows.append(row)
            met = {None: "", True: "met", False: "missed"}[row.met]
            print(f"| {' | '.join([*row[:4], met])} |", flush=True)
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
