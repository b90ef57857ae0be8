r"""Amazon Reviews 2023 (Hou et al. 2024): the next product of a customer, in one category.

    python -m kd_jax.data.synthetic amazon --out=data/amazon
    python launch.py --config=configs/amazon.py --config.data.amazon.path=data/amazon

The first command writes synthetic data in the published format. For the real data give a folder
with <category>.jsonl.gz and meta_<category>.jsonl.gz (https://amazon-reviews-2023.github.io), or
one with a published split and data.amazon.items_path; they may not be redistributed here.
Leave-one-out on the 5-core, which is the published split last_out, with SASRec as student.

Cost and result (synthetic data, seed 0): 15 min of one CPU core; test NDCG@10 popularity .0728,
student .2045, control .2176, distilled .2196, teacher .2050. This is a smoke test of small data,
whose differences are within chance; the published data are not at hand here.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import histories, parse, shrink


def get_config(arg: str = "") -> ConfigDict:
    _, runlocal = parse(arg)
    c = common()
    c.data.reader = "amazon"
    c.data.amazon = {"path": "data/amazon"}
    c.data.split = "leave_one_out"
    c.data.min_item_interactions = 5
    c.data.missing_text = "id"  # some products have no metadata
    histories(c)
    return shrink(c) if runlocal else c
