#!/usr/bin/env bash
# datasets 5.2.0 with pyarrow 26.0.1: save_to_disk over an earlier save keeps the files of that save.
#
# Expected: after save_to_disk of 4 rows into the folder of an earlier save of 6 rows, the folder has
# 4 rows. Seen: without a warning, the three Arrow files of the 6 rows stay beside the new one, since
# their names contain the number of files. load_from_disk reads 4 rows, for state.json lists the new
# file alone; whoever reads the Arrow files of the folder, load_dataset("arrow", data_files=...)
# included, gets 10. A reader must follow state.json (kd_jax does). A split that a DatasetDict no
# longer has stays as a folder in the same way.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet datasets==5.2.0 pyarrow==26.0.1
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
"$python" - "$folder/data" <<'PYTHON'
import os
import sys

import datasets

datasets.disable_progress_bars()
path = sys.argv[1]
rows = datasets.Dataset.from_dict({"x": list(range(6))})
rows.save_to_disk(path, num_shards=3)
rows.select(range(4)).save_to_disk(path)
print(sorted(name for name in os.listdir(path) if name.endswith(".arrow")))
saved = list(datasets.load_from_disk(path)["x"])
found = datasets.load_dataset("arrow", data_files=f"{path}/*.arrow", split="train")["x"]
print("load_from_disk:", saved, "the Arrow files:", sorted(found))
assert saved == [0, 1, 2, 3]
assert sorted(found) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5], "changed: the earlier files are gone"

both = datasets.DatasetDict({"train": rows, "test": rows})
both.save_to_disk(f"{path}-splits")
datasets.DatasetDict({"train": rows}).save_to_disk(f"{path}-splits")
assert list(datasets.load_from_disk(f"{path}-splits")) == ["train"]
assert os.path.isdir(f"{path}-splits/test"), "changed: the earlier split is gone"
PYTHON
