"""Fields of earlier configurations, and their new names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.core.errors import InputError
from kd_jax.experiment.roles import ROLES, Kind

_LM = (
    "weights backend pooling normalize template max_tokens dtype train top_n lora_rank"
    " lora_targets remat"
)
_MODEL = (
    "form item_features context components whitening dim blocks heads hidden history dropout"
    " init_scale train_bias softmax negatives hard_negatives"
)
_OPTIMIZER = (
    "steps batch_size learning_rate schedule warmup_steps accumulate weight_decay clip_norm"
    " eval_every patience"
)


def _each(old: str, fields: str, new: str) -> dict[str, str]:
    return {f"{old}.{field}": f"{new}.{field}" for field in fields.split()}


_TEACHER, _STUDENT = (kind.value for kind in Kind)
FORMATS = {"safetensors": "weights", "parquet": "vectors", "npz": "numpy"}  # of export.formats

# Old field -> new name. <name> is a student's, <reader> one of data.<reader>.
RENAMED = {
    "data.source": "data.reader",
    "data.path": "data.<reader>.path",
    "data.items_path": "data.files.items_path",
    "data.columns": "data.files.columns",
    **_each("data.columns", "user item rating timestamp split item_id", "data.files.columns"),
    "data.tfds_name": "data.tfds.name",
    "data.tfds_fields": "data.tfds.fields",
    **_each("data.tfds_fields", "user item rating timestamp title", "data.tfds.fields"),
    **_each(_TEACHER, _LM, "teacher.lm"),
    **_each(_TEACHER, _MODEL, "teacher.model"),
    "teacher.trend": "teacher.popularity.enabled",
    **_each(_TEACHER, "snapshots snapshot_days horizon_days window_days", "teacher.popularity"),
    **_each(_TEACHER, f"{_OPTIMIZER} lm_learning_rate", "teacher.optimizer"),
    "train": "student.optimizer",
    **_each("train", f"{_OPTIMIZER} sparse moments", "student.optimizer"),
    **_each(_STUDENT, "dim dropout init_scale bias", "student.<name>"),
    "student.trend_days": "student.<name>.popularity_days",
    **{
        f"student.{field}": f"student.mf.{field} and student.mlp.{field}"
        for field in ("decay", "decay_unit", "user_power")
    },
    "student.hidden": "student.mlp.hidden",
    **_each(_STUDENT, "history blocks heads", "student.sasrec"),
    "distill.clicks": "teacher.clicks and student.clicks",
    **{f"export.{old}": f"export.{new}" for old, new in FORMATS.items()},
    "export.npz.compressed": "export.numpy.compressed",
}
_TREE = '{"student": {"mf": {"dropout": 0.1}}}'
# Fields that have their old name and hold sections in place of tuples -> what they hold.
RESHAPED = {
    "distill.terms": "a section per term, distill.terms.<name> = {loss, weight, temperature, …}",
    "distill.sources": "a section per teacher, distill.sources.<name> = {path, confidence}",
    **{f"tuned.{role}": f"a part of the sections of a config, as {_TREE}" for role in ROLES},
}
FLAG = re.compile(r"--?(?:no)?config\.([\w.]+)(?:=(.*))?", re.DOTALL)


def new_name(field: str) -> str:
    """A message with the new name of a renamed ``field``; '' for any other field.

    For example 'train.steps is now student.optimizer.steps'.
    """
    if field in RENAMED:
        return f"{field} is now {RENAMED[field]}"
    return f"{field} is now {RESHAPED[field]}" if field in RESHAPED else ""


def check_flags(argv: Sequence[str]) -> None:
    """Raises InputError for the first argument of a command that sets an old field."""
    for argument in argv:
        flag = FLAG.fullmatch(argument)
        if flag is None:
            continue
        field, value = flag[1], (flag[2] or "").strip()
        if field in RESHAPED and value[:1] not in ("(", "["):
            continue
        for known in (field, field.rpartition(".")[0]):  # of an unknown field, its old section
            if new := new_name(known) if known == field or known in RENAMED else "":
                raise InputError(f"--config.{field}: {new}")


def check_names(config: Mapping[str, Any] | ConfigDict) -> None:
    """Raises InputError for a config with a renamed field or export format."""
    _check_fields(_fields(config))
    for name in config.get("export", {}).get("formats", ()):
        if name in FORMATS:
            raise InputError(f"export.formats: {name!r} is now {FORMATS[name]!r}")


def _check_fields(found: Iterable[tuple[str, Any]]) -> None:
    for field, value in found:
        if field in RENAMED or (field in RESHAPED and isinstance(value, (list, tuple))):
            raise InputError(new_name(field))


def check_written(config: Mapping[str, Any], path: Path) -> None:
    """Raises InputError for the config of a workdir, read from ``path``, with an old field.

    Old names in its section ``export`` are accepted: nothing that is trained depends on them.
    """
    try:
        _check_fields(item for item in _fields(config) if not item[0].startswith("export."))
    except InputError as error:
        raise InputError(
            f"{path} is of an earlier version of kd_jax ({error}), whose workdirs cannot be read;"
            " use another --workdir"
        ) from None


def in_error(message: str) -> str:
    """``new_name`` of the renamed field that an error is about; '' if it is about none.

    message: of the error raised when a configuration file set or read the field.
    """
    for form in (r'instead of "(\w+)"', r"(?:override field |^\W*)'(\w+)'"):
        if name := re.search(form, message):
            fields = (name[1], *RESHAPED, *RENAMED)  # a whole section first, as train
            found = (x for x in fields if new_name(x) and x.rpartition(".")[2] == name[1])
            return new_name(next(found, ""))
    return ""


def _fields(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field and section, a section after its fields."""
    for name, value in config.items():
        if isinstance(value, (Mapping, ConfigDict)):
            yield from _fields(value, f"{prefix}{name}.")
        yield f"{prefix}{name}", value
