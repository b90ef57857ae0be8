#!/usr/bin/env bash
# transformers 4.57.6: saving an EmbeddingGemma and loading it again halves its attention window.
#
# Expected: save_pretrained and from_pretrained keep a configuration. Seen: with
# use_bidirectional_attention=True (EmbeddingGemma), Gemma3TextConfig replaces sliding_window by
# its half plus one when it is constructed, writes that value, and halves it again when it reads
# it: 512 in the file of the release gives 257, a saved copy 129, a copy of the copy 65. A fine-tuned
# model therefore encodes texts longer than the window otherwise than it did before it was saved.
# transformers 5.24.0 writes what it read: 257 every time. Neither needs torch for this.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
cat > "$folder/program.py" <<'PYTHON'
import json
import sys
import tempfile
from pathlib import Path

import transformers
from transformers import Gemma3TextConfig

used, written = [], []
config = Gemma3TextConfig(sliding_window=512, use_bidirectional_attention=True)
for _ in range(3):
    used.append(config.sliding_window)
    with tempfile.TemporaryDirectory() as place:
        config.save_pretrained(place)
        written.append(json.loads((Path(place) / "config.json").read_text())["sliding_window"])
        config = Gemma3TextConfig.from_pretrained(place)
print("transformers", transformers.__version__, "uses", used, "and writes", written)
expected = {"shrinks": ([257, 129, 65], [257, 129, 65]), "stays": ([257] * 3, [512] * 3)}
assert (used, written) == expected[sys.argv[1]], "changed"
PYTHON
"$python" -m pip install --quiet transformers==4.57.6
"$python" "$folder/program.py" shrinks
"$python" -m pip install --quiet transformers==5.24.0
"$python" "$folder/program.py" stays
