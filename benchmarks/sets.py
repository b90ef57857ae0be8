"""The data sets of docs/results.md: their configurations, and what they read from --data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

OWN = ("teacher", "control_teacher")
FILES = {"path": "interactions.parquet", "items_path": "items.parquet"}


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A configuration in configs/, and the folder of its data.

    folder: in --data; '' for data that are shipped. flags: more of launch.py. teachers: whom the
    students of ``distillation.py`` learn from, models of the run or, with a '/', of another set's.
    texts: items have texts.
    """

    config: str
    folder: str = ""
    flags: tuple[str, ...] = ()
    teachers: tuple[str, ...] = OWN
    texts: bool = True

    def command(self, data: Path) -> list[str]:
        """The flags of launch.py; raises FileNotFoundError without the data."""
        found = [f"--config=configs/{self.config}", *self.flags]
        if not self.folder:
            return found
        folder = data / self.folder
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} does not exist")
        if self.folder.startswith("ml-"):
            return [*found, f"--config.data.movielens.path={folder}"]
        return found + [
            f"--config.data.files.{field}={folder / name}"
            for field, name in FILES.items()
            if (folder / name).exists()
        ]


# CiteULike's narrow students learn from the wide one; their run has clicks alone.
CLICKS = (
    "--config.stages=('data','student','evaluate','report')",
    "--config.distill.sources=None",
    "--config.distill.terms.soft=None",
)

SETS = {
    "movietweetings": DataSet("quickstart.py"),
    "online-retail": DataSet("online_retail.py"),
    "ml-100k": DataSet("movielens.py:100k", "ml-100k"),
    "ml-1m": DataSet("movielens.py:1m", "ml-1m", teachers=("student",)),
    "beauty": DataSet("amazon_2014.py:beauty", "amazon-beauty", teachers=("student",)),
    "sports": DataSet("amazon_2014.py:sports", "amazon-sports", teachers=("student",)),
    "citeulike-wide": DataSet("citeulike.py:wide", "citeulike", teachers=(), texts=False),
    "citeulike-d20": DataSet(
        "citeulike.py:d20", "citeulike", CLICKS, ("citeulike-wide/base/student",), False
    ),
}
