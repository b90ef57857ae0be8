"""How a command starts and ends: quiet libraries, memory that is kept, and one line for what its
user can mend.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from logging import CRITICAL, getLogger
from pathlib import Path

import jax
from absl import logging

from kd_jax.core.errors import InputError
from kd_jax.core.files import disk_is_full


def start() -> None:
    """Before the first array is made."""
    quiet()
    keep_freed_memory()


def quiet() -> None:
    """Orbax narrates every checkpoint. What fails in its threads is raised at the next save: once
    is enough.
    """
    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel(CRITICAL)
    shown = sys.unraisablehook
    sys.unraisablehook = lambda event: (
        None if "Event loop is closed" in str(event.exc_value) else shown(event)
    )


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed. By default it hands the big buffers of every train step
    back to the kernel, and gets them back as new pages for the next: a quarter of a step's time on
    a CPU. Elsewhere this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in (
            (-8, 1),
            (-4, 0),
            (-2, 1 << 26),
            (-1, (1 << 31) - 1),
        ):  # ARENA_MAX MMAP_MAX TOP_PAD TRIM
            mallopt(option, value)


def keep_compiled(workdir: Path) -> None:
    """Compiled programs stay in ``workdir``, unless JAX_COMPILATION_CACHE_DIR names a place for
    those of all runs.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str((workdir / "cache/xla").absolute()))


def status(body: Callable[[], int | None], workdir: Path) -> int:
    """What ``body`` returns, None as 0; or 2 after one line on stderr about what the user can
    mend.
    """
    try:
        return body() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except PermissionError as error:
        print(
            f"error: {error.filename}: {error.strerror}; change its permissions, or give another"
            " folder",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is saved", file=sys.stderr)
        return 128 + signal.SIGINT
    except (
        Exception
    ) as error:  # Polars, safetensors and TensorStore report a full disk in types of their own
        if disk_is_full(error):
            print(
                f"error: the disk of {workdir} is full; free some space and run the same command"
                " again: it resumes",
                file=sys.stderr,
            )
        elif "RESOURCE_EXHAUSTED" in str(error):  # JAX's word for memory
            said = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
            print(
                f"error: not enough memory on the device ({said}); lower batch_size (a teacher may"
                " accumulate over several, or set teacher.remat=True)",
                file=sys.stderr,
            )
        else:
            raise
    return 2
