#!/usr/bin/env bash
# optuna 5.0.0: a journal whose last line was cut off is read once, and lost with the next write.
#
# JournalFileBackend keeps a study as a file of JSON lines. A full disk, or a machine that goes down,
# leaves the last line unfinished. Expected: the line is dropped, and the study goes on, as the
# reader suggests: it opens such a file, leaves the unfinished line out and counts its trial as
# running. Seen: the next write is appended to the unfinished line, so that the two are one line
# that is no JSON, and every later use of the file raises JSONDecodeError, the write itself included.
# Cutting the file after its last newline before opening it keeps all that was finished.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet optuna==5.0.0
"$python" -W ignore - "$folder/journal" <<'PYTHON'
import json
import os
import sys
from pathlib import Path

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
path = Path(sys.argv[1])


def study():
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.create_study(storage=storage, study_name="search", load_if_exists=True)


def trial(found):
    asked = found.ask({"rate": optuna.distributions.FloatDistribution(0, 1)})
    found.tell(asked, asked.params["rate"])


found = study()
for _ in range(3):
    trial(found)
torn = path.read_bytes()[:-20]  # as if the disk had been full
assert not torn.endswith(b"\n")

path.write_bytes(torn)
read = [one.state.name for one in study().trials]
print("read:", read)
assert read == ["COMPLETE", "COMPLETE", "RUNNING"], "changed: how an unfinished line is read"
try:
    trial(study())
    raise SystemExit("changed: an unfinished line does not harm the next write")
except json.JSONDecodeError as error:
    print("written:", type(error).__name__, error)
try:
    study()
    raise SystemExit("changed: the file can be opened again")
except json.JSONDecodeError:
    print("opened again: JSONDecodeError")

path.write_bytes(torn)
os.truncate(path, torn.rfind(b"\n") + 1)
trial(study())
print("cut after the last newline first:", [one.state.name for one in study().trials])
PYTHON
