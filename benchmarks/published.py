r"""Runs of docs/results.md again: one command each, and the range in which it must land.

    python benchmarks/published.py --out=runs/published --data=data
    python benchmarks/published.py --out=runs/published --quick     # one seed, about 10 minutes

--data holds the data sets that are not shipped, each in a folder of its own: amazon-beauty and
amazon-sports with interactions.parquet and items.parquet, citeulike with interactions.parquet, and
the MovieLens releases ml-100k and ml-1m. A row without its data, or whose run fails, is missing.
Each row has a workdir in --out, so that the same command goes on where it was cut off; --report
prints what there is and trains nothing. --rows chooses rows, --quick those of the shipped data. A
row that learns from another's students (beauty-mf, sports-mf, citeulike-d20, citeulike-d10) needs
that one in --out.

The table has the mean of the seeds on test, and whether it lies in its range: the value of
docs/results.md, with room for seeds and machines. The exit status is 1 if a value is outside.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import table
from benchmarks.methods import launch, metrics_of, seeds_of
from benchmarks.sets import SETS
from configs.common import three_plain_students

METRICS = ("ndcg@10", "recall@10")
CITEULIKE = ("ndcg@20", "recall@50")
ROOM = 0.04  # of a published value: what seeds and machines may differ
ONE_SEED = 0.08  # the same of a single seed
RANDOM = "--config.student.sasrec.vectors=random"
RANDOM_DROPOUT = (
    RANDOM,
    "--config.student.sasrec.item_dropout=0.3",
    "--config.student.sasrec.dropout=0.3",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A published run.

    set: of ``SETS``. values: role -> metric -> value. config: another configuration of the set's
    data. teacher: the row whose plain students are the sources a, b and c.
    """

    name: str
    set: str
    values: dict[str, dict[str, float]]
    flags: tuple[str, ...] = ()
    config: str = ""
    teacher: str = ""

    def command(self, data: Path, out: Path) -> list[str]:
        """The flags of launch.py; raises FileNotFoundError without the data."""
        dataset = SETS[self.set]
        if self.config:
            dataset = dataclasses.replace(dataset, config=self.config)
        sources = three_plain_students(str(out / self.teacher)) if self.teacher else {}
        return [
            *dataset.command(data),
            *self.flags,
            *(
                f"--config.distill.sources.{name}.path={source.path}"
                for name, source in sources.items()
            ),
        ]


def values(
    metrics: Sequence[str] = METRICS, **roles: tuple[float, ...]
) -> dict[str, dict[str, float]]:
    """Role -> metric -> value, of values in the order of ``metrics``."""
    return {role: dict(zip(metrics, found, strict=False)) for role, found in roles.items()}


ROWS = (
    Row(
        "movietweetings",
        "movietweetings",
        values(
            popularity=(0.0561,),
            trending=(0.0775,),
            control_teacher=(0.0777,),
            teacher=(0.0857,),
            student=(0.0718,),
            control=(0.0791,),
            distilled=(0.0864,),
        ),
    ),
    Row(
        "online-retail",
        "online-retail",
        values(
            popularity=(0.0272,),
            trending=(0.0690,),
            teacher=(0.0706,),
            student=(0.0582,),
            distilled=(0.0731,),
        ),
    ),
    Row(
        "ml-100k",
        "ml-100k",
        values(popularity=(0.0432,), teacher=(0.1076,), student=(0.0862,), distilled=(0.1076,)),
        ("--config.seeds=(0,)",),
    ),
    Row(
        "ml-1m",
        "ml-1m",
        values(student=(0.1833, 0.3164), distilled=(0.1783, 0.3103)),
        ("--config.seeds=(0,)", "--config.student.optimizer.steps=4000"),
    ),
    Row(
        "beauty",
        "beauty",
        values(student=(0.0632, 0.1077), distilled=(0.0686, 0.1132)),
    ),
    Row(
        "beauty-ids",
        "beauty",
        values(student=(0.0493, 0.0800), distilled=(0.0570, 0.0931)),
        (RANDOM,),
    ),
    Row(
        "beauty-ids-dropout",
        "beauty",
        values(student=(0.0532, 0.0884), distilled=(0.0567, 0.0936)),
        RANDOM_DROPOUT,
    ),
    Row(
        "beauty-mf",
        "beauty",
        values(student=(0.0273, 0.0507), distilled=(0.0408, 0.0771)),
        config="amazon_2014.py:beauty_mf",
        teacher="beauty",
    ),
    Row(
        "sports",
        "sports",
        values(student=(0.0332, 0.0575), distilled=(0.0367, 0.0629)),
    ),
    Row(
        "sports-mf",
        "sports",
        values(student=(0.0143, 0.0267), distilled=(0.0221, 0.0423)),
        config="amazon_2014.py:sports_mf",
        teacher="sports",
    ),
    Row(
        "sports-ids-dropout",
        "sports",
        values(student=(0.0294, 0.0498), distilled=(0.0327, 0.0563)),
        RANDOM_DROPOUT,
    ),
    Row("citeulike-wide", "citeulike-wide", values(CITEULIKE, student=(0.1188, 0.3347))),
    Row(
        "citeulike-d20",
        "citeulike-wide",
        values(CITEULIKE, student=(0.1003, 0.2911), distilled=(0.1163, 0.3181)),
        config="citeulike.py:d20",
        teacher="citeulike-wide",
    ),
    Row(
        "citeulike-d10",
        "citeulike-wide",
        values(CITEULIKE, student=(0.0770, 0.2424), distilled=(0.1015, 0.2877)),
        config="citeulike.py:d10",
        teacher="citeulike-wide",
    ),
)
QUICK = ("movietweetings", "online-retail")


def measured(row: Row, workdir: Path) -> list[tuple[str, ...]]:
    """The lines of a row: what its report has, beside the published values and their ranges."""
    metrics = metrics_of(workdir) or {"models": []}
    lines: list[tuple[str, ...]] = []
    for role, published in row.values.items():
        seeds = seeds_of(metrics, role)
        for metric, value in published.items():
            one = len(seeds) == 1 and seeds[0]["seed"] is not None  # baselines have none
            room = ONE_SEED if one else ROOM
            low, high = (1 - room) * value, (1 + room) * value
            cells = row.name, role, metric, f"{value:.4f}", f"{low:.4f} to {high:.4f}"
            if not seeds:
                lines.append((*cells, "", "missing"))
                continue
            found = statistics.fmean(seed["test"][metric] for seed in seeds)
            verdict = "inside" if low <= found <= high else "OUTSIDE"
            lines.append((*cells, f"{found:.4f}", verdict))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--rows", type=lambda text: text.split(","), default=names)
    chosen.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    wanted = QUICK if options.quick else options.rows
    unknown = set(wanted) - set(names)
    if unknown:
        parser.error(f"--rows: {', '.join(sorted(unknown))} unknown; known: {', '.join(names)}")
    out, data = options.out.absolute(), options.data.expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    lines: list[tuple[str, ...]] = []
    for row in ROWS:
        if row.name not in wanted:
            continue
        workdir = out / (f"{row.name}.quick" if options.quick else row.name)
        if not options.report:
            try:
                command = row.command(data, out)
                launch(workdir, [*command, *(["--config.seeds=(0,)"] if options.quick else [])])
            except (FileNotFoundError, SystemExit) as error:
                print(f"{row.name}: {error}", flush=True)
        lines += measured(row, workdir)
        print(" | ".join(lines[-1]), flush=True)
    head = ("row", "model", "metric", "published", "range", "measured", "")
    print(f"\n{table(head, lines)}")
    (out / "published.json").write_text(json.dumps(lines, indent=1))
    return int(any(line[-1] == "OUTSIDE" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
