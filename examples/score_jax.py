# The best items for a user of the data set: JAX, without kd_jax. export.formats has 'jax_export'.
import json
from pathlib import Path

import jax
from jax import export

folder = Path("runs/quickstart/export")
program = export.deserialize(bytearray((folder / "user_scores.jax_export").read_bytes()))
ids = json.loads((folder / "jax_export.json").read_text())
user = ids["users"].index(ids["users"][0])
scores = program.call(jax.numpy.array([user]))[0]
print([ids["items"][item] for item in jax.lax.top_k(scores, 10)[1].tolist()])
