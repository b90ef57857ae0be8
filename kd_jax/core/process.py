"""Start and end of a command: log levels, memory allocation, compilation cache, exit status."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from logging import CRITICAL, getLogger
from pathlib import Path

from absl import logging

from kd_jax.core.errors import InputError
from kd_jax.core.files import disk_is_full

# Options of mallopt(3): M_ARENA_MAX, M_MMAP_MAX, M_TOP_PAD and M_TRIM_THRESHOLD.
MALLOPT = ((-8, 1), (-4, 0), (-2, 1 << 26), (-1, (1 << 31) - 1))


def start() -> None:
    """Configures the process; to be called before the first array is created."""
    quiet()
    keep_freed_memory()


def quiet() -> None:
    """Silences the logs of libraries.

    Orbax logs every checkpoint; an error in one of its threads is raised at the next save as well,
    and is to be shown only once.
    """
    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel(CRITICAL)
    # Transformers 5 says that it finds no PyTorch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    shown = sys.unraisablehook
    sys.unraisablehook = lambda event: (
        None if "Event loop is closed" in str(event.exc_value) else shown(event)
    )


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory; no effect on systems without glibc.

    By default glibc returns the large buffers of every train step to the kernel and requests new
    pages for the next step, which costs a quarter of a step's time on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in MALLOPT:
            mallopt(option, value)


def keep_compiled(workdir: Path) -> None:
    """Caches compiled programs in ``workdir``, or in JAX_COMPILATION_CACHE_DIR where it is set."""
    import jax  # not at import time: kd_jax.serve runs without it

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str((workdir / "cache/xla").absolute()))


def compile_quickly() -> None:
    """Makes XLA compile in a third of the time, into slower programs; for short runs on a CPU.

    To be called before the first array is created. What the environment sets is kept.
    """
    import jax

    if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
        jax.config.update("jax_disable_most_optimizations", True)
    # XLA ends the process at a flag that it does not know: jaxlib 0.12 does not have this one.
    if version("jaxlib").startswith("0.10."):
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {given}".strip()


def status(body: Callable[[], int | None], workdir: Path) -> int:
    """Runs ``body`` and returns the exit status of the command.

    The status is what ``body`` returns (None counts as 0); 2, after one line on stderr, for an
    error that the user can fix; 130 after Ctrl-C. Other exceptions are raised.
    """
    try:
        return body() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of stdout, such as head, has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except PermissionError as error:
        print(
            f"error: {error.filename}: {error.strerror}; change its permissions, or give another"
            " folder",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is saved", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        # Polars, safetensors and TensorStore report a full disk with exception types of their own.
        if disk_is_full(error):
            print(
                f"error: the disk of {workdir} is full; free some space and run the same command"
                " again: it resumes",
                file=sys.stderr,
            )
        elif "RESOURCE_EXHAUSTED" in str(error):  # JAX's status code for lack of memory
            reason = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
            print(
                f"error: not enough memory on the device ({reason}); lower batch_size (a teacher"
                " may accumulate over several, or set teacher.lm.remat=True)",
                file=sys.stderr,
            )
        else:
            raise
    return 2
