r"""MovieLens, any release: 100k, 1m, 10m, 20m, 25m, 32m, latest-small.

    python launch.py --config=configs/movielens.py:1m --workdir=runs/ml1m \
        --config.data.movielens.path=~/data/ml-1m

The path is the folder that GroupLens ships (https://grouplens.org/datasets/movielens).
Leave-one-out on the 5-core, the protocol of the sequential literature. From 1m on, a SASRec of two
blocks reads the newest 200 films, with its film vectors started from the titles, and another learns
from the mean of the three plain ones (measured from one so far: worse than the plain one); 100k and
latest-small have a text teacher of 50 films. ':1m,runlocal' shrinks it to seconds.

Results and costs: docs/results.md. The releases after 1m were run in small only.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import histories, parse, sequences, shrink

RELEASES = ("100k", "1m", "10m", "20m", "25m", "32m", "latest-small")


def get_config(arg: str = "1m") -> ConfigDict:
    release, runlocal = parse(arg, RELEASES, default="1m")
    c = common()
    c.data.reader = "movielens"
    c.data.movielens.path = f"data/ml-{release}"
    c.data.split = "leave_one_out"
    c.data.min_item_interactions = 5
    if release in ("100k", "latest-small"):
        histories(c)
    else:
        sequences(c)
        wide = {"dim": 128, "blocks": 2, "heads": 2, "history": 200, "dropout": 0.3}
        c.student.sasrec.update(wide)
        c.teacher.model.history = 200
        c.student.optimizer.steps = 6000
        c.student.optimizer.eval_every = 250
        c.student.optimizer.patience = 3
        if release == "1m":  # all users, and the whole softmax of 3,416 films, cost little
            c.eval.valid_users = 0
            c.student.clicks["items"] = "warm"
            for term in c.distill.terms.values():
                term["items"] = "warm"
    return shrink(c) if runlocal else c
