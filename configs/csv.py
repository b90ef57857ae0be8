"""Your own data: one file of interactions and one of items, CSV, TSV or Parquet.

    python launch.py --config=configs/csv.py --workdir=runs/mine \\
        --config.data.files.path=interactions.csv --config.data.files.items_path=items.csv

interactions: user, item and, where known, rating, timestamp, split. items: item and any text
columns, the title first. Other column names are mapped with
--config.data.files.columns.user=customer_id and so on.

With --config=configs/csv.py:sequences the students are SASRec models that start from the item
texts, the distilled one learns from the mean of three of them, and no other teacher is trained: the
better start for histories in time whose next items are nearly all known (docs/results.md).

Cost and result: depend on your data; on the embedded sets see configs/quickstart.py and
configs/online_retail.py.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, sequences, shrink


def get_config(arg: str = "") -> ConfigDict:
    recipe, runlocal = parse(arg, ("sequences",))
    c = common()
    c.data.reader = "files"
    c.data.files.path = "interactions.csv"
    c.data.files.items_path = "items.csv"
    c.data.split = "leave_one_out"
    if recipe == "sequences":
        sequences(c)
    return shrink(c) if runlocal else c
