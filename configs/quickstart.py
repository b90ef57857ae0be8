"""MovieTweetings 100K (Dooms et al. 2013), embedded: what people rate next.

    python launch.py

Cost: 4 min (up to 12 on shared cores) and 1.5 GB on 2 CPU cores. Result (test NDCG@10 all/warm, 3
seeds): popularity .0561/.0677, trending .0775/.0973, student .0718/.0891, control .0791/.0993,
distilled .0864/.1089, teacher .0857/.1076.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink, trends


def get_config(arg: str = "") -> ConfigDict:
    _, runlocal = parse(arg)
    c = common()
    trends(c)
    tune(c)
    if runlocal:
        shrink(c)
        c.data.min_item_interactions = 20  # a few hundred films to encode instead of 10,506
        for name in ("batch_size", "steps", "eval_every"):
            c.tuned.control_teacher.teacher.optimizer[name] = c.teacher.optimizer[name]
    return c


def tune(c: ConfigDict) -> None:
    """The best teachers of kd_jax.sweep on validation, of 12 trials each.

    The steps of the control teacher are the best of five settings for the control's validation
    (docs/results.md).
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
            "optimizer": {
                "learning_rate": 1e-3,
                "weight_decay": 0.1,
                "batch_size": 512,
                "steps": 150,
                "eval_every": 25,
            },
        }
    }
