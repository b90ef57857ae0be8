#!/usr/bin/env bash
# safetensors 0.8.0 with numpy 2.4.0: save_file writes a transposed or strided array scrambled.
#
# Expected: save_file of a NumPy array that is not C-contiguous either copies it or raises, as
# safetensors.torch.save_file does for a tensor that is not contiguous. Seen: no error; the file has
# the array's shape with the values in the order of the memory, so load_file returns other values
# than were saved. A transposed matrix of the same shape on both axes looks plausible.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet safetensors==0.8.0 numpy==2.4.0
"$python" - "$folder/file.safetensors" <<'PYTHON'
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

plain = np.arange(6, dtype=np.float32).reshape(2, 3)
for name, array in {"transposed": plain.T, "strided": plain[:, ::2]}.items():
    save_file({"x": array}, sys.argv[1])
    found = load_file(sys.argv[1])["x"]
    assert found.shape == array.shape
    print(f"{name}: saved {array.tolist()}, loaded {found.tolist()}")
    assert not np.array_equal(found, array), f"changed: {name} arrays are saved as they are"
PYTHON
