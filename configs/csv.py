"""Your own data: one file of interactions and one of items, CSV, TSV or Parquet.

    python launch.py --config=configs/csv.py --workdir=runs/mine \\
        --config.data.files.path=interactions.csv --config.data.files.items_path=items.csv

interactions: user, item and, where known, rating, timestamp, split. items: item and any text
columns, the title first. Other column names are mapped with
--config.data.files.columns.user=customer_id and so on.

There are three recipes; the data stage suggests one of them (--config.stages=data), by how well the
newest item of a user predicts the next one (docs/results.md), or configs/citeulike.py where no item
has a text.

configs/csv.py: the students are SASRec models that start from the item texts; the distilled one
learns from the mean of three of them, and no other teacher is trained. It suits histories in time
whose next items are nearly all known.

configs/csv.py:trends: the recipe of configs/quickstart.py. A matrix factorisation learns from a
text teacher that knows what is popular at the moment, beside a control whose teacher has item IDs.
It needs dates, and splits by time.

configs/csv.py:teacher: the defaults of configs/common.py, for tastes without dates. A matrix
factorisation learns from the clicks and from a text teacher without popularity, that of its own
seed, beside the control. It knows the train interactions of a user alone, so under
data.split='leave_one_out' it is evaluated without the item before the tested one; the models that
read histories have it. The export knows all of them.

Cost and result: depend on your data; Amazon Beauty with 200,000 purchases takes about an hour. For
a first try add --config.seeds="(0,)", or use configs/csv.py:runlocal, which takes seconds. Judge
distillation by three seeds: with one, the distilled student learns from a single copy of itself.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, sequences, shrink, trends


def get_config(arg: str = "") -> ConfigDict:
    recipe, runlocal = parse(arg, ("sequences", "trends", "teacher"), "sequences")
    c = common()
    c.data.reader = "files"
    c.data.files.path = "interactions.csv"
    c.data.files.items_path = "items.csv"
    c.data.split = "leave_one_out"
    if recipe == "sequences":
        sequences(c)
    if recipe == "trends":
        trends(c)
    return shrink(c) if runlocal else c
