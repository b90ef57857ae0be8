r"""kd_jax: distil a language model into a recommender.

    python launch.py                # embedded data, a few minutes on a laptop
    python launch.py --config=configs/movielens.py:1m --workdir=runs/ml1m \
        --config.data.movielens.path=~/data/ml-1m

The same command again resumes what was cut off and redoes nothing that is done.
"""

import difflib
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from kd_jax.core.errors import InputError
from kd_jax.experiment import overrides, renamed

ROOT = Path(__file__).parent
FLAGS = ("config", "workdir", "coordinator", "num_processes", "process_id")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        _refuse(
            f"unexpected argument {argv[1]!r}; fields are set as"
            " --config.student.optimizer.steps=100"
        )
    from kd_jax.core import process
    from kd_jax.devices import processes
    from kd_jax.experiment import pipeline

    process.start()
    if flags.FLAGS.config.get("compile_quickly"):
        process.compile_quickly()
    try:
        processes.initialize(
            flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id
        )
    except InputError as error:
        _refuse(str(error))
    except (
        ConnectionError
    ) as error:  # JAX still waits in a thread, and would end with a stack trace
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(os.EX_TEMPFAIL)
    name, _, arg = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    workdir = (
        flags.FLAGS.workdir or f"runs/{'-'.join([Path(name).stem, *filter(None, arg.split(','))])}"
    )
    status = pipeline.main(flags.FLAGS.config, Path(workdir).expanduser())
    if status and processes.several():  # JAX would wait for the others, who wait for this one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _last(argv: list[str]) -> list[str]:
    """``argv`` with only the last of repeated --config.<field>=<value>; absl would join tuples."""
    names = [
        arg.partition("=")[0] if arg.startswith("--config.") and "=" in arg else "" for arg in argv
    ]
    last = {name: place for place, name in enumerate(names)}
    return [
        arg
        for place, (arg, name) in enumerate(zip(argv, names, strict=True))
        if not name or last[name] == place
    ]


def _refuse_field(argv: list[str], error: Exception) -> NoReturn:
    """A field that is not there, on the command line or in the configuration file."""
    message = str(error).replace("\\n", " ").replace("\n", " ").replace("\\", "")
    given = " ".join(argv[1:])
    missing = re.search(r"\w+", message)
    wrong = next((a for a in argv[1:] if missing and f".{missing[0]}" in a), "")
    if not wrong and (new := renamed.in_error(message)):
        _refuse(f"{given}: {new}")
    hint = re.search(r'Did you mean "(\w+)"', message)
    near = f"did you mean {hint[1]!r}? " if hint else ""
    field = "such field"
    if not wrong and missing:
        field = f"field {missing[0]!r}, which the file reads or sets"
        near += "a new section is set as a whole, as c.student.gru4rec = {'dim': 64}; "
    _refuse(f"{wrong or given}: no {field}; {near}all fields are in configs/common.py")


def parse(argv: list[str]) -> list[str]:
    """Parses the flags as absl does.

    An error is one line; for a misspelt field it has the nearest name.
    """
    try:
        renamed.check_flags(argv)
        argv, given = overrides.take_out(overrides.quoted(_last(argv)))
        config_flags.DEFINE_config_file(
            "config", str(ROOT / "configs/quickstart.py"), "FILE or FILE:ARG", sys_argv=argv
        )
        flags.DEFINE_string(
            "workdir", "", "where everything is written (default: runs/<config>-<its argument>)"
        )
        flags.DEFINE_string(
            "coordinator", "", "HOST:PORT of process 0, for several processes (docs/clusters.md)"
        )
        flags.DEFINE_integer(
            "num_processes", 0, "how many processes there are (default: from the cluster)"
        )
        flags.DEFINE_integer(
            "process_id", -1, "which of them this one is, from 0 (default: from the cluster)"
        )
        rest = flags.FLAGS(argv)
        # The first access raises the error of a file that could not be loaded.
        getattr(flags.FLAGS.config, "seeds", None)
        overrides.apply(flags.FLAGS.config, given)
        return rest
    except InputError as error:
        _refuse(str(error))
    except (AttributeError, KeyError) as error:
        _refuse_field(argv, error)
    except flags.UnrecognizedFlagError as error:
        section, dot, field = error.flagname.partition(".")
        names = difflib.get_close_matches(section, FLAGS, n=1)
        near = f"did you mean --{names[0]}{dot}{field}? " if names else ""
        _refuse(f"--{error.flagname}: no such flag; {near}launch.py --help lists them")
    except (
        flags.Error,
        OSError,
    ) as error:  # the last line is what went wrong, those before it where
        if new := renamed.in_error(str(error)):
            _refuse(f"{' '.join(argv[1:])}: {new}")
        where = "launch.py --help lists the flags"
        if "No such file" in str(error):  # of --config; its own error has no errno
            found = (
                f"configs/{path.name}"
                for path in (ROOT / "configs").glob("*.py")
                if path.stem != "common"
            )
            where = f"there are {', '.join(sorted(found))}"
        _refuse(f"{str(error).strip().splitlines()[-1].strip()} ({where})")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
