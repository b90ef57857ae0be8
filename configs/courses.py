r"""Courses: what a participant begins and finishes next; few interactions and long descriptions.

    python -m kd_jax.data.synthetic courses --out=data/courses
    python launch.py --config=configs/courses.py

The first command writes synthetic data; there is no redistributable data of this kind. Give your
own with data.files.path and items_path. A course counts from half of it on (data.min_rating), and
one that was given up earlier is not recommended to that participant again. Descriptions are read
up to 256 tokens.

Cost and result (synthetic data, seed 0): 3.7 min of one CPU core; test NDCG@10 popularity .1111,
student .1126, control .1139, distilled .1261, teacher .1292. This is a smoke test: the texts name
what the choices depend on, and nothing follows for real courses.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink


def get_config(arg: str = "") -> ConfigDict:
    _, runlocal = parse(arg)
    c = common()
    c.data.reader = "files"
    c.data.files.path = "data/courses/completions.csv"
    c.data.files.items_path = "data/courses/courses.jsonl"
    c.data.files.columns.item = "course"
    c.data.files.columns.item_id = "course"
    c.data.files.columns.rating = "completion"
    c.data.files.columns.timestamp = "started"
    c.data.text_columns = ("title", "subject", "level", "description")
    c.data.min_rating = 0.5
    c.data.min_interactions = 3
    c.data.split = "leave_one_out"
    c.teacher.lm.max_tokens = 256
    c.teacher.optimizer.steps = 600
    c.student.optimizer.steps = 600
    return shrink(c) if runlocal else c
