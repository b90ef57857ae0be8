"""MovieTweetings 100K (Dooms et al. 2013), embedded: the default run.

python launch.py
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink


def get_config(arg: str = "") -> ConfigDict:
    _, runlocal = parse(arg)
    c = common()
    c.teacher.trend = True
    c.teacher.train_bias = False
    c.teacher.hidden = 128
    c.teacher.steps = 240
    c.teacher.batch_size = 256
    c.teacher.learning_rate = 3e-3
    c.teacher.schedule = "cosine"
    c.teacher.warmup_steps = 12
    c.teacher.weight_decay = 0.01
    c.teacher.eval_every = 40
    c.teacher.patience = 10
    c.student.decay = 3.0
    c.student.decay_unit = "days"
    c.train.batch_size = 256
    c.train.steps = 480
    c.train.eval_every = 30
    c.train.patience = 4
    c.distill.terms = (("kl", 1.0, 1.0, "constant", "all"),)
    c.tuned.distilled = c.tuned.control = (("student.user_power", 0.0), ("student.bias", "teacher"))
    return shrink(c) if runlocal else c
