"""Online Retail (Chen 2015), embedded: first purchases in a UK gift shop, product descriptions as text.

python launch.py --config=configs/online_retail.py
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink


def get_config(arg: str = "") -> ConfigDict:
    _, runlocal = parse(arg)
    c = common()
    c.data.source = "online_retail"
    return shrink(c) if runlocal else c
