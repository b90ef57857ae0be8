"""MovieTweetings 100K (Dooms et al. 2013), embedded: the default run.

    python launch.py
"""

from ml_collections import ConfigDict

from configs.common import get_config as common
from configs.common import parse, shrink


def get_config(arg: str = "") -> ConfigDict:
    _, runlocal = parse(arg)
    c = common()
    return shrink(c) if runlocal else c
