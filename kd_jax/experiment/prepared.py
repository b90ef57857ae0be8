"""The prepared data set of a workdir: read, filtered and split once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.core.errors import InputError
from kd_jax.core.files import difference, read_json, stamp, write_json
from kd_jax.core.logging import Log
from kd_jax.data import dataset as datasets
from kd_jax.data import readers
from kd_jax.data.prepared.folder import MANIFEST, PreparedDataset
from kd_jax.data.raw import RawData


def prepared(config: ConfigDict, workdir: Path, log: Log) -> datasets.Dataset:
    """The data set in ``dataset/``, which is written if it is missing.

    Raises InputError if it was made with other settings, or from other files.
    """
    folder = workdir / "dataset"
    note = folder / "identity.json"
    if config.data.reader == "prepared":
        return _opened(config, note)
    identity = _identity(config)
    if note.exists():
        _check_same(read_json(note, f"delete {folder} and run again"), identity, folder)
        return datasets.load(folder)
    built = _read(config, log)
    built.save(folder)
    write_json(note, identity)
    return built


def _opened(config: ConfigDict, note: Path) -> PreparedDataset:
    """The data of the reader 'prepared', which stay where they are; note: the file of the identity.

    Raises InputError where the configuration and the folder have different options.
    """
    section = _section(config.data)
    found = readers.read("prepared", section)
    assert isinstance(found, PreparedDataset)
    c, path = config.data.to_dict(), section["path"]
    made = read_json(Path(path).expanduser() / MANIFEST, "prepare the data again")["options"]
    for name, value in made.items():
        if (list(c[name]) if isinstance(value, list) else c[name]) != value:
            raise InputError(
                f"data.{name}={c[name]!r}, but {path} was prepared with {value!r}; set"
                f" --config.data.{name} to that, or prepare the data again"
            )
    for name, value in (("max_users", 0), ("events", "")):
        if c[name] != value:
            raise InputError(
                f"data.{name}={c[name]!r} is not supported by data.reader='prepared'; set"
                f" --config.data.{name}={value!r}, or use data.reader='files'"
            )
    identity = {"reader": "prepared", "files": [found.checksum], "eval_users": found.held}
    if note.exists():
        _check_same(read_json(note, f"delete {note.parent} and run again"), identity, note.parent)
    else:
        write_json(note, identity)
    return found


def _identity(config: ConfigDict) -> dict[str, Any]:
    """The identity of a data set: the used fields of section ``data``, and a stamp of its files.

    The paths of the files have no effect, only their content.
    """
    c, section = config.data, _section(config.data)
    fields = {name: value for name, value in c.to_dict().items() if not isinstance(value, dict)}
    fields[c.reader] = {name: value for name, value in section.items() if not _is_path(name)}
    if not c.events:  # as in workdirs that were made before there were types of events
        del fields["events"]
        columns = fields[c.reader].get("columns", {})
        if not columns.get("event"):
            columns.pop("event", None)
    given = [value for name, value in section.items() if _is_path(name)]
    every = readers.PATHS[c.reader](**section) if c.reader in readers.PATHS else given
    return fields | {"task": config.task, "files": stamp(*every)}


def _is_path(field: str) -> bool:
    """Whether a field of a reader is one of its paths."""
    return field == "path" or field.endswith("_path")


def _section(data: ConfigDict) -> dict[str, Any]:
    """The section of the chosen reader; raises InputError for an unknown reader."""
    return readers.reader_section(data.reader, data.to_dict().get(data.reader, {}))


def _check_same(made: dict[str, Any], identity: dict[str, Any], folder: Path) -> None:
    if identity["files"] is None:  # the source is gone; what was made from it is here
        identity = identity | {"files": made["files"]}
    if changed := difference(made | {"files": None}, identity | {"files": None}, "data"):
        raise InputError(
            f"{folder} was made with other settings ({changed}); use another --workdir"
        )
    if made["files"] != identity["files"]:
        old, new = set(made["files"] or ()), set(identity["files"] or ())
        # equal sets are the same files in other places
        names = sorted({stamp.rsplit(" ", 2)[0] for stamp in old ^ new or new})
        raise InputError(
            f"{folder} was made from other files ({', '.join(names[:3])}); use another --workdir,"
            f" with --config.init_from={folder.parent} to start from what is trained there"
        )


def _read(config: ConfigDict, log: Log) -> datasets.Dataset:
    c, section = config.data, _section(config.data)
    raw = readers.read(c.reader, section)
    assert isinstance(raw, RawData)
    built = datasets.build(
        raw,
        split=c.split,
        ratios=tuple(c.ratios),
        min_user_interactions=c.min_interactions,
        min_item_interactions=c.min_item_interactions,
        min_rating=c.min_rating,
        max_malformed=c.max_malformed,
        missing_text=c.missing_text,
        text_columns=tuple(c.text_columns) or None,
        max_users=c.max_users,
        time_unit=c.time_unit,
        repeats=c.repeats,
        events=c.events,
    )
    if raw.untimed and c.split != "column":
        log.note(
            f"warning: data.split={c.split!r} takes the order of the rows as time: {raw.untimed}"
        )
    for line in (*raw.notes, *built.notes):
        log.note(line if line.startswith("warning") else f"data: {line}")
    return built
