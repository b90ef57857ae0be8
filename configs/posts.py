r"""Social posts: what a user views, likes or answers next; posts live for days.

    python -m kd_jax.data.synthetic posts --out=data/posts
    python launch.py --config=configs/posts.py

The first command writes synthetic data; there is no redistributable data of this kind. Give your
own with data.files.path and items_path. Split by time: test posts are mostly new, so that only
their texts and their first hours tell something about them. The heaviest event of a user with a
post counts, as often as it was repeated; an unlike takes a like back (data.events).

Cost and result (synthetic data, seed 0): 3.5 min of one CPU core; test NDCG@10 popularity
.0000, trending .0015, student .0042, control .1216, distilled .1378, teacher .1848. This is a smoke
test: the texts name what the choices depend on, and nothing follows for real posts.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink


def get_config(arg: str = "") -> ConfigDict:
    _, runlocal = parse(arg)
    c = common()
    c.data.reader = "files"
    c.data.files.path = "data/posts/events.csv"
    c.data.files.items_path = "data/posts/posts.jsonl"
    c.data.files.columns.item = "post"
    c.data.files.columns.item_id = "post"
    c.data.files.columns.event = "event"
    # a like, or an answer, is what counts; a view is a hint; an unlike takes a like back
    c.data.events = "view=0.2, like=1, unlike=0, reply=1"
    c.data.repeats = "count"
    c.data.text_columns = ("text",)
    c.teacher.popularity.enabled = True
    c.teacher.popularity.snapshot_days = 0.25
    c.teacher.popularity.horizon_days = 1.0
    c.teacher.popularity.window_days = 7.0
    c.teacher.model.train_bias = False
    c.teacher.optimizer.steps = 300
    c.student.mf.bias = "trend"
    c.student.mf.popularity_days = 0.5
    c.student.mf.decay = 1.0
    c.student.mf.decay_unit = "days"
    c.student.optimizer.steps = 480
    return shrink(c) if runlocal else c
