"""Online Retail (Chen 2015), embedded: the next purchases of 4,334 customers of a UK gift shop.

    python launch.py --config=configs/online_retail.py

Product descriptions are the texts. Cost: 2.5 min and 1.6 GB on 2 CPU cores. Result (test NDCG@10, 3
seeds): popularity .0272, trending .0690, student .0582, control .0686, distilled .0731, teacher
.0706; the gain over trending, +6.0 %, is not significant.
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink, trends


def get_config(arg: str = "") -> ConfigDict:
    _, runlocal = parse(arg)
    c = common()
    c.data.reader = "online_retail"
    trends(c)  # without the teachers' search, which suits the films
    if runlocal:
        shrink(c)
        c.data.min_item_interactions = 10  # fewer products to encode
    return c
