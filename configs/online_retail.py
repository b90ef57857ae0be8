"""Online Retail (Chen 2015), embedded: what 4,334 customers of a UK gift shop buy next, product descriptions as text.

    python launch.py --config=configs/online_retail.py

Cost: 1 min 30 s a seed on 2 busy CPU cores. Result (test NDCG@10, seed 0): popularity .0272, trending .0690,
student .0611, control .0660, distilled .0723, teacher .0708; the gain over trending, +4.8 %, cannot be told from zero.
"""

from ml_collections import ConfigDict

from configs.quickstart import get_config as quickstart


def get_config(arg: str = "") -> ConfigDict:
    c = quickstart(arg)  # the same recipe, not tuned again
    c.data.source = "online_retail"
    return c
