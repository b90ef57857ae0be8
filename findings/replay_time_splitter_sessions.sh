#!/usr/bin/env bash
# replay-rec 0.22.0: with sessions, TimeSplitter puts rows from after the threshold into train, if a
# pandas log is not in the order of time.
#
# With session_id_column a session that the threshold cuts is kept whole: it goes to test with the
# strategy "test", the default, and to train with "train" (docstring). Expected: with "test" no row
# of train is at or after the threshold, in whatever order the rows come; the splitter asks for no
# order. Seen, with no warning: for pandas the side of a session is that of its last row in the
# DataFrame (with "train" of its first), whatever its time. In a log sorted by item, 20 of the 39
# cut sessions go to train, so that the model is fitted on rows of the time that it is tested for.
# The same rows as a polars DataFrame, or sorted by time before, are split as documented.
# RatioSplitter and LastNSplitter with sessions do not depend on the order, since they sort.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet replay-rec==0.22.0 pandas==2.3.3 polars==1.44.2 numpy==2.4.6
"$python" -W ignore - 2>"$folder/stderr" <<'PYTHON' || { cat "$folder/stderr"; exit 1; }
import numpy as np
import pandas as pd
import polars as pl
from replay.splitters import LastNSplitter, RatioSplitter, TimeSplitter

random = np.random.default_rng(0)
THRESHOLD = 1000
rows = []
for session in range(300):  # of 60 users; each session is 6 rows within 400 units of time
    start = random.integers(0, 1600)
    for time, item in zip(start + random.choice(400, 6, replace=False), random.permutation(50)):
        rows.append((session % 60, int(item), int(time), session))
log = pd.DataFrame(rows, columns=["query_id", "item_id", "timestamp", "session_id"])
by_time = log.sort_values("timestamp", ignore_index=True)
by_item = log.sort_values("item_id", ignore_index=True, kind="stable")
late = (log.timestamp >= THRESHOLD).groupby(log.session_id).agg(["any", "all"])
cut = set(late.index[late["any"] & ~late["all"]])  # sessions on both sides of the threshold


def split(splitter, frame, **options):
    train, test = splitter(
        **options, query_column="query_id", session_id_column="session_id"
    ).split(frame)
    if isinstance(train, pl.DataFrame):
        train, test = train.to_pandas(), test.to_pandas()
    assert len(train) + len(test) == len(log)
    return train, test


def sessions(frame):
    return set(frame.session_id.tolist())


found = {}
for strategy in ("test", "train"):
    options = {"time_threshold": THRESHOLD, "session_id_processing_strategy": strategy}
    for name, frame in (
        ("pandas by time", by_time),
        ("pandas by item", by_item),
        ("polars by item", pl.from_pandas(by_item)),
    ):
        train, test = split(TimeSplitter, frame, **options)
        side = test if strategy == "test" else train
        found[strategy, name] = {
            "cut sessions": len(cut),
            "on the side asked for": len(cut & sessions(side)),
            "train rows after the threshold": int((train.timestamp >= THRESHOLD).sum()),
        }
        print(strategy, "|", name, "|", found[strategy, name])
for (strategy, name), numbers in found.items():
    asked = numbers["on the side asked for"]
    if name == "pandas by item":
        assert 0 < asked < len(cut), "changed: rows by item are split as documented"
    else:
        assert asked == len(cut), "changed: the split that was as documented"
leaks = {name: found["test", name]["train rows after the threshold"] for _, name in found}
assert leaks["pandas by time"] == leaks["polars by item"] == 0 < leaks["pandas by item"]

for splitter, options in (
    (RatioSplitter, {"test_size": 0.3}),
    (LastNSplitter, {"N": 5, "divide_column": "query_id"}),
):
    sides = [sorted(sessions(split(splitter, frame, **options)[0])) for frame in (by_time, by_item)]
    print(splitter.__name__, "same in both orders:", sides[0] == sides[1])
    assert sides[0] == sides[1]
PYTHON
