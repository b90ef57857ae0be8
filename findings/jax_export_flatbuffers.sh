#!/usr/bin/env bash
# jax 0.10.2 (CPU, Python 3.11): a program of jax.export cannot be serialised after `pip install jax`.
#
# Expected: jax.export.export(f)(x).serialize() works, since it is the purpose of jax.export and jax
# documents it without a further requirement. Seen: ImportError, "Please install 'flatbuffers' in
# order to use Exported serialization". Neither jax's dependencies nor any of its extras has
# flatbuffers; with flatbuffers 25.12.19 the same call returns bytes that run after deserialize().
# Who serves an exported program must install it in both places.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/program.py" <<'PYTHON'
import importlib.metadata as metadata
import sys

import jax
import jax.export
import numpy as np

needs = [line for line in metadata.requires("jax") if "flatbuffers" in line.lower()]
assert not needs, f"jax requires it now: {needs}"
exported = jax.export.export(jax.jit(lambda x: 2 * x))(np.ones(3, np.float32))
try:
    data = exported.serialize()
except ImportError as error:
    assert "flatbuffers" in str(error), error
    print("without flatbuffers:", error)
    sys.exit(3)
found = jax.export.deserialize(bytearray(data)).call(np.ones(3, np.float32))
print("with flatbuffers:", len(data), "bytes, which give", np.asarray(found).tolist())
PYTHON
status=0
"$python" "$folder/program.py" || status=$?
[ "$status" -eq 3 ] || { echo "changed: exit status $status without flatbuffers"; exit 1; }
"$python" -m pip install --quiet flatbuffers==25.12.19
"$python" "$folder/program.py"
