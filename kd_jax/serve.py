"""An HTTP server of recommendations from the export of a finished run, without JAX.

python -m kd_jax.serve --workdir=runs/quickstart
curl "http://127.0.0.1:8000/v1/recommend?user=42&k=5"
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    found = argparse.ArgumentParser(
        prog="python -m kd_jax.serve", description="Recommendations over HTTP."
    )
    add = found.add_argument
    add("--workdir", required=True, help="the workdir of a finished run")
    add("--host", default="127.0.0.1", help="another than 127.0.0.1 needs --token-file")
    add("--port", type=int, default=8000, help="default: 8000; 0: any that is free")
    add("--token-file", metavar="FILE", help="requests must send the secret in this file, as"
        " Authorization: Bearer …")  # fmt: skip
    add("--rate", type=float, default=0.0, help="requests/s of one client; 0 (default): no limit")
    add("--max-body", type=int, default=1 << 16, help="bytes of a request (default: 65536)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    # Requests run side by side already; OpenBLAS reads this when NumPy starts, hence the imports.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from kd_jax.core import process
    from kd_jax.serving.server import command

    process.keep_freed_memory()  # the scores of a group of requests take megabytes
    return process.status(lambda: command.run(options), Path(options.workdir))


if __name__ == "__main__":
    sys.exit(main())
