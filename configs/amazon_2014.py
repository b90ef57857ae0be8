r"""Amazon product data of 2014 (He and McAuley, WWW 2016), 5-core: the next product of a customer.

    python launch.py --config=configs/amazon_2014.py:beauty --workdir=runs/beauty \
        --config.data.files.path=beauty/interactions.parquet \
        --config.data.files.items_path=beauty/items.parquet

The argument is 'beauty', 'sports', 'beauty_mf' or 'sports_mf'. interactions: user, item, and
position, the interaction's place in the user's chronology (a timestamp does as well). items:
item_id and the text, title and categories for 'beauty', five terms for 'sports'. The data may not
be redistributed here; they are at https://jmcauley.ucsd.edu/data/amazon/.

Leave-one-out over the whole catalogue, the protocol of sequential recommendation. The plain student
is a SASRec of one block and 256 numbers with 256 uniform negatives, whose item vectors start from
the language model's. The distilled one, of the same form, learns from the clicks and from the mean
of the logits of the plain students of all seeds. With --config.student.sasrec.vectors=random both
have item IDs alone (docs/results.md).

'beauty_mf' is a matrix factorisation of 64 numbers that learns from the three plain SASRec of
runs/beauty, beside one that learns from clicks; the length of the vectors and the weight of recent
clicks were chosen on validation for each. 'sports_mf' has the same settings and learns from those
of runs/sports.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, sequences, shrink, three_plain_students

TEXT = {"beauty": ("title", "categories"), "sports": ("terms",)}
NAMES = (*TEXT, *(f"{name}_mf" for name in TEXT))


def get_config(arg: str = "") -> ConfigDict:
    chosen, runlocal = parse(arg, NAMES, "beauty")
    name = chosen.removesuffix("_mf")
    c = common()
    c.data.reader = "files"
    folder = f"data/amazon-{name}"
    c.data.files.path = f"{folder}/interactions.parquet"
    c.data.files.items_path = f"{folder}/items.parquet"
    c.data.files.columns.timestamp = "position"
    c.data.files.columns.item_id = "item_id"
    c.data.text_columns = TEXT[name]
    c.data.split = "leave_one_out"
    sequences(c)
    c.student.optimizer.eval_every = 250
    if chosen != name:
        factorisation(c, name)
    return shrink(c) if runlocal else c


def factorisation(c: ConfigDict, name: str) -> None:
    """An MF with vectors of one length, and one that learns from the SASRec of runs/<name>."""
    c.student.name = "mf"
    c.student.clicks["items"] = "warm"
    c.student.mf.update({"dropout": 0.0, "decay": 2.0, "user_power": 0.0})
    optimizer = c.student.optimizer
    optimizer.update({"steps": 800, "batch_size": 512, "eval_every": 100, "patience": 3})
    optimizer.update({"learning_rate": 0.05, "schedule": "cosine", "vector_norm": 2.7})
    c.tuned.distilled = {
        "student": {
            "mf": {"decay": 1.5, "user_power": 0.5},
            "optimizer": {"vector_norm": 3.6},
        }
    }
    c.distill.sources = three_plain_students(f"runs/{name}")
    # alpha = 0: KL over the items that the user does not have, the ones that are ranked
    c.distill.terms = {
        "clicks": {"loss": "ce", "items": "warm"},
        "soft": {"loss": "dkd", "alpha": 0.0, "items": "warm", "teacher": "a+b+c", "weight": 3.0},
    }
