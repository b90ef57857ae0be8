"""Your own data: one file of interactions and one of items, CSV, TSV or Parquet.

    python launch.py --config=configs/csv.py --workdir=runs/mine \\
        --config.data.files.path=interactions.csv --config.data.files.items_path=items.csv

interactions: user, item and, where known, rating, timestamp, split. items: item and any text
columns, the title first. Other column names are mapped with
--config.data.files.columns.user=customer_id and so on.

Cost and result: depend on your data; on the embedded sets see configs/quickstart.py and
configs/online_retail.py.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink


def get_config(arg: str = "") -> ConfigDict:
    _, runlocal = parse(arg)
    c = common()
    c.data.reader = "files"
    c.data.files.path = "interactions.csv"
    c.data.files.items_path = "items.csv"
    c.data.split = "leave_one_out"
    return shrink(c) if runlocal else c
