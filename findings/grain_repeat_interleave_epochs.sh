#!/usr/bin/env bash
# grain 0.2.18: RepeatIterDataset over InterleaveIterDataset reads other shards from the third epoch
# on, and a checkpoint made in the second epoch loses what was unread of the open shards.
#
# 8 shards of 5 rows are interleaved, 4 at a time (cycle_length=4), and repeated. Expected: each
# epoch has the same 40 rows ("Each epoch will be identical", says RepeatIterDataset), and an
# iterator that is restored goes on where the saved one was. Seen, with no error and no warning:
#   epochs 1 and 2 are right; each later epoch has 40 rows too, but they are the last 4 shards
#     twice, and the first 4 are never read again;
#   an iterator restored from a state of the second epoch leaves out what was unread of the 4 shards
#     that were open, while these are the first 4 (a state of the first epoch restores right).
# InterleaveDatasetIterator.set_state keeps the list of indices of the state it is given and later
# writes into it, and that is the state from which RepeatIterDataset starts each epoch; nor does it
# clear which iterators had been exhausted, so that the next get_state says that they are. With
# cycle_length=8 all epochs are right, but a restored iterator leaves out the rest of the second.
# Both are right when the list of shards is repeated in place of the interleaved rows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet grain==0.2.18 numpy==2.4.6
"$python" - 2>"$folder/stderr" <<'PYTHON' || { cat "$folder/stderr"; exit 1; }
import json

import grain

SHARDS, ROWS, OPEN = 8, 5, 4
EVERY = SHARDS * ROWS


def interleaved(cycle_length, repeats=1):
    shards = [
        grain.MapDataset.range(first, first + ROWS).to_iter_dataset()
        for first in range(0, EVERY, ROWS)
    ]
    shards = grain.MapDataset.source(shards).repeat(repeats)
    return grain.experimental.InterleaveIterDataset(shards, cycle_length=cycle_length)


def repeated(cycle_length, epochs):
    return grain.experimental.RepeatIterDataset(interleaved(cycle_length), epochs)


def epochs(rows):
    return [rows[first : first + EVERY] for first in range(0, len(rows), EVERY)]


rows = list(repeated(OPEN, 5))
different = [len(set(epoch)) for epoch in epochs(rows)]
print("different rows of 40 in each epoch:", different)
print("third epoch:", sorted(rows[2 * EVERY : 3 * EVERY]))
assert different == [EVERY, EVERY, 20, 20, 20], "changed: the rows of the later epochs"
last = [row for row in range(EVERY // 2, EVERY) for _ in range(2)]
assert sorted(rows[2 * EVERY : 3 * EVERY]) == last, "changed: the rows of the third epoch"

for name, other in (
    ("cycle_length=8:", repeated(SHARDS, 5)),
    ("the list of shards repeated:", interleaved(OPEN, 5)),
):
    counts = [len(set(epoch)) for epoch in epochs(list(other))]
    print(name, counts)
    assert counts == [EVERY] * 5

for name, make, losses in (
    ("cycle_length=4", lambda: repeated(OPEN, 2), {10: 0, 45: 15, 50: 10, 70: 0}),
    ("cycle_length=8", lambda: repeated(SHARDS, 2), {10: 0, 45: 35, 50: 30, 70: 10}),
    ("the list of shards repeated", lambda: interleaved(OPEN, 2), {10: 0, 45: 0, 50: 0, 70: 0}),
):
    whole = list(make())
    assert sorted(whole) == sorted([*range(EVERY), *range(EVERY)])
    for taken, lost in losses.items():
        saved, restored = iter(make()), iter(make())
        assert [next(saved) for _ in range(taken)] == whole[:taken]
        restored.set_state(json.loads(json.dumps(saved.get_state())))
        after = list(restored)
        assert list(saved) == whole[taken:]
        missing = sorted(set(whole[taken:]) - set(after))
        print(f"{name}, restored after {taken} of 80: {len(after)} follow, missing: {missing}")
        assert len(whole) - taken - len(after) == lost, "changed: what is left out"
PYTHON
