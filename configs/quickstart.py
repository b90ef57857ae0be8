"""MovieTweetings 100K (Dooms et al. 2013), embedded: what people rate next.

    python launch.py

Cost: 5 min 8 s and 1.6 GB on 2 CPU cores. Result (test NDCG@10 all/warm, 3 seeds): popularity
.0561/.0677, trending .0775/.0973, student .0718/.0891, control .0748/.0944, distilled .0864/.1089,
teacher .0857/.1076.
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
    c.teacher.steps = 300
    c.teacher.batch_size = 256
    c.teacher.learning_rate = 3e-3
    c.teacher.schedule = "cosine"
    c.teacher.warmup_steps = 15
    c.teacher.weight_decay = 0.01
    c.teacher.eval_every = 50
    c.teacher.patience = 3
    c.student.decay = 3.0
    c.student.decay_unit = "days"
    c.train.batch_size = 256
    c.train.steps = 480
    c.train.eval_every = 30
    c.train.patience = 4
    c.distill.teachers = "all"
    c.distill.terms = (("kl", 1.0, 1.0, "constant", "all"),)
    # Chosen by benchmarks/tune.py on validation alone, 12 trials for each teacher and 24 for each
    # student, 3 finalists:
    c.tuned.teacher = (
        ("teacher.weight_decay", 0.1), ("teacher.dropout", 0.1), ("teacher.window_days", 30.0),
        ("teacher.init_scale", 0.03), ("teacher.hidden", 256),
    )  # fmt: skip
    c.tuned.control_teacher = (
        ("teacher.learning_rate", 1e-3), ("teacher.weight_decay", 0.1), ("teacher.batch_size", 512),
        ("teacher.horizon_days", 28.0), ("teacher.window_days", 30.0),
    )  # fmt: skip
    c.tuned.student = (
        ("train.learning_rate", 0.02), ("train.weight_decay", 0.01), ("student.dropout", 0.5),
        ("student.decay", 1.0), ("student.user_power", 0.5),
    )  # fmt: skip
    c.tuned.control = (
        ("student.bias", "teacher"), ("train.learning_rate", 0.02), ("train.weight_decay", 0.01),
        ("student.dropout", 0.3), ("student.user_power", 0.0),
    )  # fmt: skip
    c.tuned.distilled = (
        ("student.bias", "teacher"), ("train.learning_rate", 0.02), ("train.schedule", "cosine"),
        ("train.weight_decay", 0.01), ("student.dropout", 0.1), ("student.user_power", 0.0),
        ("distill.terms", (("kl", 1.0, 2.0, "constant", "all"),)),
    )  # fmt: skip
    return shrink(c) if runlocal else c
