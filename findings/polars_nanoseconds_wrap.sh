#!/usr/bin/env bash
# polars 2.1.0: a date as text beyond the year 2262, read in nanoseconds, becomes another date.
#
# Expected: str.to_datetime(time_unit="ns", strict=False) gives null for a date that 64 bits of
# nanoseconds cannot hold (as for a date that does not parse), or raises with strict=True. Seen: no
# error and no null with either; the number wraps around, so 9999-12-31, a usual mark for "no end",
# becomes a day in 1816, and 1600-01-01 one in 2184. In microseconds both dates are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet polars==2.1.0
"$python" - <<'PYTHON'
import polars as pl

dates = pl.Series(["9999-12-31 00:00:00", "1600-01-01 00:00:00"])
form = "%Y-%m-%d %H:%M:%S"
years = {
    (unit, strict): dates.str.to_datetime(form, time_unit=unit, strict=strict).dt.year().to_list()
    for unit in ("us", "ns")
    for strict in (False, True)
}
for key, found in years.items():
    print(*key, found)
for strict in (False, True):
    assert years["us", strict] == [9999, 1600]
    assert years["ns", strict] == [1816, 2184], "changed: the dates no longer wrap around"
PYTHON
