"""kd_jax as a contestant of ``peers.py``: ``python benchmarks/peers_ours.py mf|sasrec --data=SPLIT.npz``."""

if __name__ == "__main__":
    raise SystemExit("not written yet")
