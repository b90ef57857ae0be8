"""MovieTweetings 100K (Dooms et al. 2013), embedded: what people rate next.

    python launch.py

Cost: 6 to 12 min (shared cores) and 1.6 GB on 2 CPU cores. Result (test NDCG@10 all/warm, 3 seeds):
popularity .0561/.0677, trending .0775/.0973, student .0718/.0891, control .0748/.0944, distilled
.0864/.1089, teacher .0857/.1076.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink


def get_config(arg: str = "") -> ConfigDict:
    _, runlocal = parse(arg)
    c = common()
    c.teacher.popularity.enabled = True
    c.teacher.model.train_bias = False
    c.teacher.model.hidden = 128
    c.teacher.optimizer.steps = 300
    c.teacher.optimizer.batch_size = 256
    c.teacher.optimizer.learning_rate = 3e-3
    c.teacher.optimizer.schedule = "cosine"
    c.teacher.optimizer.warmup_steps = 15
    c.teacher.optimizer.weight_decay = 0.01
    c.teacher.optimizer.eval_every = 50
    c.teacher.optimizer.patience = 3
    for section in (c.student.mf, c.student.mlp):
        section.decay = 3.0
        section.decay_unit = "days"
    c.student.optimizer.batch_size = 256
    c.student.optimizer.steps = 480
    c.student.optimizer.eval_every = 30
    c.student.optimizer.patience = 4
    c.distill.teachers = "all"
    c.distill.terms = {"soft": {"loss": "kl"}}
    tune(c)
    if runlocal:
        shrink(c)
        c.data.min_item_interactions = 10  # 1,208 films to encode instead of 10,506
        c.tuned.control_teacher.teacher.optimizer.batch_size = 64
    return c


def tune(c: ConfigDict) -> None:
    """The best values of kd_jax.sweep on validation.

    There were 12 trials for each teacher and 24 for each student, with 3 finalists.
    """
    c.tuned.teacher = {
        "teacher": {
            "model": {"dropout": 0.1, "init_scale": 0.03, "hidden": 256},
            "popularity": {"window_days": 30.0},
            "optimizer": {"weight_decay": 0.1},
        }
    }
    c.tuned.control_teacher = {
        "teacher": {
            "popularity": {"horizon_days": 28.0, "window_days": 30.0},
            "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "batch_size": 512},
        }
    }
    c.tuned.student = {
        "student": {
            "mf": {"dropout": 0.5, "decay": 1.0, "user_power": 0.5},
            "optimizer": {"learning_rate": 0.02, "weight_decay": 0.01},
        }
    }
    c.tuned.control = {
        "student": {
            "mf": {"bias": "teacher", "dropout": 0.3, "user_power": 0.0},
            "optimizer": {"learning_rate": 0.02, "weight_decay": 0.01},
        }
    }
    c.tuned.distilled = {
        "student": {
            "mf": {"bias": "teacher", "dropout": 0.1, "user_power": 0.0},
            "optimizer": {"learning_rate": 0.02, "schedule": "cosine", "weight_decay": 0.01},
        },
        "distill": {"terms": {"soft": {"temperature": 2.0}}},
    }
