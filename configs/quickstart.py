"""MovieTweetings, embedded: the default run.

    python launch.py
"""

from ml_collections import ConfigDict

from configs.common import get_config as common


def get_config(arg: str = "") -> ConfigDict:
    c = common()
    if arg == "runlocal":
        c.seeds = (0,)
        c.data.max_users = 300
        c.teacher.steps = c.train.steps = 20
        c.teacher.eval_every = c.train.eval_every = 10
    return c
