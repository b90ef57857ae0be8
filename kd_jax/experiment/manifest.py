"""The provenance of a workdir, so that every reported number can be traced.

It consists of versions, devices, git revision, data checksum and seeds.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax

from kd_jax.core.files import write_json

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "transformers",
    "polars",
    "numpy",
)


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def write(workdir: Path, data_checksum: str, seeds: Sequence[int]) -> None:
    """Write ``manifest.json``."""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    write_json(
        workdir / "manifest.json",
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": ["python", Path(sys.argv[0]).name, *sys.argv[1:]],
            "git": {
                "revision": _git("rev-parse", "HEAD"),
                "modified": bool(changed) if changed is not None else None,
            },
            "python": platform.python_version(),
            "versions": {name: metadata.version(name) for name in PACKAGES},
            "platform": platform.platform(terse=True),
            "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
            "data_checksum": data_checksum,
            "seeds": list(seeds),
        },
    )
