"""Online Retail (Chen 2015), embedded: what 4,334 customers of a UK gift shop buy next, product descriptions as text.

    python launch.py --config=configs/online_retail.py

@@ONLINE@@
"""

from ml_collections import ConfigDict

from configs.quickstart import get_config as quickstart


def get_config(arg: str = "") -> ConfigDict:
    c = quickstart(arg)  # the same recipe, not tuned again
    c.data.source = "online_retail"
    return c
