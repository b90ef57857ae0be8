r"""Amazon product data of 2014 (He and McAuley, WWW 2016), 5-core: the next product of a customer.

    python launch.py --config=configs/amazon_2014.py:beauty --workdir=runs/beauty \
        --config.data.files.path=beauty/interactions.parquet \
        --config.data.files.items_path=beauty/items.parquet

The argument is 'beauty' or 'sports'. interactions: user, item, and position, the interaction's
place in the user's chronology (a timestamp does as well). items: item_id and the text, title and
categories for 'beauty', five terms for 'sports'. The data may not be redistributed here; they are
at https://jmcauley.ucsd.edu/data/amazon/.

Leave-one-out over the whole catalogue, the protocol of sequential recommendation. The plain student
is a SASRec of one block and 256 numbers with 256 uniform negatives, whose item vectors start from
the language model's. The distilled one, of the same form, learns from the clicks and from the mean
of the logits of the plain students of all seeds. With --config.student.sasrec.vectors=random both
have item IDs alone (docs/results.md).
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, sequences, shrink

TEXT = {"beauty": ("title", "categories"), "sports": ("terms",)}


def get_config(arg: str = "") -> ConfigDict:
    name, runlocal = parse(arg, tuple(TEXT), "beauty")
    c = common()
    c.data.reader = "files"
    c.data.files.path = f"data/amazon-{name}/interactions.parquet"
    c.data.files.items_path = f"data/amazon-{name}/items.parquet"
    c.data.files.columns.timestamp = "position"
    c.data.files.columns.item_id = "item_id"
    c.data.text_columns = TEXT[name]
    c.data.split = "leave_one_out"
    sequences(c)
    c.student.optimizer.eval_every = 250
    return shrink(c) if runlocal else c
