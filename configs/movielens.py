r"""MovieLens, any release: 100k, 1m, 10m, 20m, 25m, 32m, latest-small.

    python launch.py --config=configs/movielens.py:1m --workdir=runs/ml1m \
        --config.data.movielens.path=~/data/ml-1m

The path is the folder that GroupLens ships (https://grouplens.org/datasets/movielens).
Leave-one-out on the 5-core, the protocol of the sequential literature, with SASRec as student.
':1m,runlocal' shrinks it to seconds.

Cost and result (:100k, seed 0, on 2 CPU cores): 9 min and 1.6 GB; test NDCG@10 popularity .0432,
student .0862, control .0992, distilled .1076 (+24.8 % over the student, CI +9.9 to +42.4 %),
teacher .1076. The other releases were run in small only.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink

RELEASES = ("100k", "1m", "10m", "20m", "25m", "32m", "latest-small")


def get_config(arg: str = "1m") -> ConfigDict:
    release, runlocal = parse(arg, RELEASES, default="1m")
    c = common()
    c.data.reader = "movielens"
    c.data.movielens.path = f"data/ml-{release}"
    c.data.split = "leave_one_out"
    c.data.min_item_interactions = 5
    c.student.name = "sasrec"
    c.student.sasrec.dropout = 0.2
    c.student.sasrec.history = c.teacher.model.history = 50
    small = release in ("100k", "latest-small")
    for section in (c.teacher.optimizer, c.student.optimizer):
        section.steps = 1500 if small else 6000
        section.batch_size = 128
        section.learning_rate = 1e-3
        section.eval_every = 100 if small else 250
        section.patience = 4
    return shrink(c) if runlocal else c
