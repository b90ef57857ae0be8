"""Opens the files of a table: text with separators, JSON lines and Parquet, also in parts."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import mmap
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from kd_jax.core.errors import InputError
from kd_jax.core.files import data_files
from kd_jax.data.readers import quotes, saved
from kd_jax.data.readers.kinds import COMPRESSED, check_content, kind_of
from kd_jax.data.readers.table import LINE, NOWHERE, SHIFT, TAB, Table

ATOMIC = r":(token|float|token_seq|float_seq)$"  # the types in the header line of RecBole's files
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
T = TypeVar("T")
Use = Callable[[Table], T]


@dataclasses.dataclass(frozen=True)
class Style:
    """How text files are written.

    separator: between fields; '': a comma in .csv, a tab in .tsv. quote: 'auto': in .csv fields may
    be in double quotes, in .tsv where the quotes close within the line; '"': always; '': never.
    header: whether the first line names the columns; otherwise they are called 1, 2, 3, ….
    schema: the columns of JSON lines that are read, and their types; None: all, whose types are
    those of all lines. field: the section of these options, for messages.
    """

    separator: str = ""
    quote: str = "auto"
    header: bool = True
    schema: Mapping[str, pl.DataType] | None = None
    field: str = "data.files"

    def __post_init__(self) -> None:
        if self.quote not in ("auto", '"', ""):
            raise InputError(f"{self.field}.quote={self.quote!r} must be 'auto', '\"' or ''")
        if len(self.separator) > 1:
            raise InputError(
                f"{self.field}.separator={self.separator!r} must be one character, or '' to take"
                " a comma in .csv and a tab in .tsv"
            )


def opened(
    path: str | Path,
    use: Use[T],
    *,
    what: str,
    field: str,
    style: Style | None = None,
    only: Sequence[Path] = (),
) -> T:
    """``use(table)`` for the table in a file, in all data files of a folder or in a saved data set.

    In a folder the files whose names begin with '_' or '.' and empty ones are no data, and folders
    such as month=2024-05 give their files a column; see ``saved`` for data sets. what, field: the
    content of the table and the configuration field of its path, for messages. only: the files in
    the folder that make the table; () = all. Raises InputError if the files cannot be read.
    """
    path, style = existing(path, what, field), style or Style()
    if saved.is_saved(path):
        with readable(path):
            return use(_joined(path, saved.parts(path), "parquet"))
    files = [file for file in only or data_files(path) if file.stat().st_size]
    if not files:
        raise InputError(f"{path} ({what}) is a folder without data files; check {field}")
    # Arrow first, whose error says more than that of the file dataset_info.json beside it
    arrow_first = sorted(files, key=lambda file: file.suffix != ".arrow")
    kinds = {kind_of(file, what) for file in arrow_first}
    if len(kinds) > 1:
        raise InputError(
            f"{path} ({what}) is a folder with different kinds of files"
            f" ({', '.join(sorted(kinds))}); a table is in files of one kind"
        )
    kind = kinds.pop()
    for file in files:
        check_content(file, kind)
    with readable(path):
        try:
            return use(_joined(path, [_part(file, kind, style) for file in files], kind))
        except pl.exceptions.ComputeError:
            if kind == "parquet":
                raise
            return use(_joined(path, [_well_formed(file, kind, style) for file in files], kind))


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what polars and the system say of a file into an InputError of one line."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = "".join(c if c.isprintable() else "?" for c in str(error).splitlines()[0])
        raise InputError(
            f"{path} can't be read ({reason[:300]}); it must be Parquet, JSON lines, or UTF-8"
            " text with a header line and commas (.csv) or tabs (.tsv)"
        ) from None


def existing(path: str | Path, what: str, field: str) -> Path:
    """The path; raises InputError if it is missing or an empty file.

    what, field: as for ``opened``.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder ({what}); check {field}")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty ({what}); was its download cut off?")
    return path


def _joined(path: Path, parts: list[Table], kind: str) -> Table:
    """The parts of a table as one; LINE counts within each part."""
    broken = sum(part.broken for part in parts)
    problem = next((part.problem for part in parts if part.broken), "")
    unit = {"parquet": "row", "jsonl": "record"}.get(kind, "line")
    frames = []
    for number, part in enumerate(parts):
        rows = part.rows.with_columns(pl.col(LINE).cast(pl.Int64) + (number << SHIFT))
        values = _partition(Path(part.path).relative_to(path)) if path.is_dir() else {}
        frames.append(rows.with_columns(**{key: pl.lit(v) for key, v in values.items()}))
    if len(parts) > 1:
        _check_same_columns(parts)
    rows = frames[0] if len(frames) == 1 else pl.concat(frames, how="vertical_relaxed")
    paths = tuple(part.path for part in parts)
    added = any(part.split_added for part in parts)
    return Table(str(path), rows, unit, broken, problem, paths, added)


def _check_same_columns(parts: list[Table]) -> None:
    first = parts[0].columns()
    for part in parts[1:]:
        other = set(part.columns()) ^ set(first)
        if other:
            raise InputError(
                f"{part.path} and {parts[0].path} are parts of one table, but only one of them has"
                f" the column {sorted(other)[0]!r}; give all parts the same columns"
            )


def _partition(relative: Path) -> dict[str, str | None]:
    """The columns in the names of folders, as Hive and Spark write them: month=2024-05."""
    found: dict[str, str | None] = {}
    for folder in relative.parts[:-1]:
        key, equals, value = folder.partition("=")
        if equals:
            found[key] = None if value == HIVE_NULL else urllib.parse.unquote(value)
    return found


def _part(file: Path, kind: str, style: Style) -> Table:
    if kind == "parquet":
        rows = pl.scan_parquet(
            file, row_index_name=LINE, row_index_offset=1, glob=False, hive_partitioning=False
        )
        return Table(str(file), rows, "row")
    if kind == "jsonl":
        schema = _schema(file, style)
        rows = pl.scan_ndjson(
            file, schema=schema, infer_schema_length=None, row_index_name=LINE, row_index_offset=1
        )
        return Table(str(file), rows, "record")
    return delimited(file, style.separator or _separator(kind), style)


def _schema(file: Path, style: Style) -> dict[str, pl.DataType] | None:
    """The columns to read of a file of JSON lines: those of the style that it has.

    Its first lines have them all as a rule; otherwise the whole file is searched for the others.
    """
    if style.schema is None:
        return None
    have = set(pl.scan_ndjson(file, infer_schema_length=100).collect_schema())
    if rare := [name for name in style.schema if name not in have]:
        rows = pl.scan_ndjson(file, schema=dict(style.schema))
        some = rows.select(pl.col(rare).is_not_null().any()).collect(engine="streaming")
        have |= {name for name in rare if some[name][0]}
    return {name: kind for name, kind in style.schema.items() if name in have}


def _separator(kind: str) -> str:
    return TAB if kind == "tsv" else ","


def delimited(path: Path, separator: str, style: Style | None = None) -> Table:
    """A text file with all columns as String; blank lines are skipped."""
    style = style or Style()
    quoted = style.quote != "" and _has_quotes(path)
    within = quoted and style.quote == "auto" and separator == TAB  # quotes close within a line
    rows = pl.scan_csv(
        path,
        separator=separator,
        quote_char='"' if quoted and not within else None,
        has_header=style.header,
        infer_schema=False,
        row_index_name=LINE,
        row_index_offset=2 if style.header else 1,
        glob=False,
    )
    # The filter reads all columns, so that polars checks the number of fields of every line.
    rows = rows.filter(~pl.all_horizontal(pl.exclude(LINE).is_null()))
    if within:
        quotes.check_closed(str(path), rows, style.field)
        rows = rows.with_columns(quotes.removed(pl.exclude(LINE)))
    elif quoted and style.quote == "auto":
        quotes.check_swallowed(str(path), rows, separator, style.field)
    return Table(str(path), _renamed(rows, style))


def _renamed(rows: pl.LazyFrame, style: Style) -> pl.LazyFrame:
    """The rows with columns 1, 2, 3 if the file has no header line, and without RecBole's types."""
    names = [name for name in rows.collect_schema() if name != LINE]
    if not style.header:
        return rows.rename({name: str(n) for n, name in enumerate(names, start=1)})
    plain = [re.sub(ATOMIC, "", name) for name in names]
    if names and all(old != new for old, new in zip(names, plain, strict=True)):
        return rows.rename(dict(zip(names, plain, strict=True)))
    return rows


def _has_quotes(path: Path) -> bool:
    """Whether a text file may hold double quotes; compressed files may."""
    if path.name.lower().endswith(COMPRESSED):
        return True
    with (
        path.open("rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(b'"') >= 0


def _well_formed(path: Path, kind: str, style: Style) -> Table:
    if kind == "jsonl":
        return _json_lines(path, style)
    return well_formed(path, style.separator or _separator(kind), style)


def well_formed(path: Path, separator: str, style: Style | None = None) -> Table:
    """The well-formed rows of a file that ``delimited`` cannot read; the others are ``broken``."""
    style = style or Style()
    text = _whole_lines(path)
    width = text["text"][0].count(separator) + 1
    other = re.escape(separator)
    plain = f"[^{other}]*" if style.quote == "" else f'[^"{other}]*'
    if separator == TAB and style.quote == "auto":
        plain = f'(?:[^"{other}][^{other}]*|"[^"{other}]*)?'  # quotes that open no field
    field = plain if style.quote == "" else f'(?:"(?:[^"]|"")*"|{plain})'
    good = text["text"].str.contains(f"^{field}(?:{other}{field}){{{width - 1}}}$")
    body = io.BytesIO("\n".join(text["text"].filter(good)).encode())
    rows = pl.read_csv(
        body,
        separator=separator,
        quote_char=None if style.quote == "" else '"',
        has_header=style.header,
        infer_schema=False,
    ).with_columns(text[LINE].filter(good)[int(style.header) :])
    broken = text[LINE].filter(~good)
    problem = ""
    if len(broken):
        problem = (
            f"{path}:{broken[0]}: no row of {width} fields; a text with a separator or a quote must"
            f" be in quotes (or set {style.field}.quote='' if quotes are a part of the text)"
        )
    return Table(str(path), _renamed(rows.lazy(), style), broken=len(broken), problem=problem)


def _whole_lines(path: Path) -> pl.DataFrame:
    """The lines of a text file that are not blank, as (text, LINE)."""
    return (
        pl.read_csv(
            path,
            separator=NOWHERE,
            quote_char=None,
            has_header=False,
            new_columns=["text"],
            infer_schema=False,
            glob=False,
        )
        .with_row_index(LINE, offset=1)
        .drop_nulls()
    )


def _json_lines(path: Path, style: Style) -> Table:
    """The objects of a file of JSON lines, some of which are broken."""
    text = _whole_lines(path)
    good, reason = [], ""
    for line in text["text"]:
        try:
            good.append(isinstance(json.loads(line), dict))
            reason = reason or ("" if good[-1] else "it is no object")
        except ValueError as error:
            good.append(False)
            reason = reason or str(error)
    broken = text[LINE].filter(~pl.Series(good, dtype=pl.Boolean))
    if not any(good):
        raise InputError(f"{path}:{text[LINE][0]}: no JSON object ({reason}); fix the file")
    whole = text.filter(pl.Series(good))
    body = io.BytesIO("\n".join(whole["text"]).encode())
    schema = dict(style.schema) if style.schema is not None else None
    rows = pl.read_ndjson(body, schema=schema, infer_schema_length=None)
    rows = rows.with_columns(whole[LINE])
    problem = f"{path}:{broken[0]}: no JSON object ({reason})" if len(broken) else ""
    return Table(str(path), rows.lazy(), "line", len(broken), problem)


def lines(path: Path, separator: str, names: Sequence[str]) -> Table:
    """A file without header or quotes; the separator may have several characters, such as '::'."""
    whole = pl.scan_csv(
        path,
        separator=NOWHERE,
        quote_char=None,
        has_header=False,
        new_columns=["text"],
        infer_schema=False,
        row_index_name=LINE,
        row_index_offset=1,
        glob=False,
    )
    parts = (
        pl.col("text")
        .str.splitn(separator, len(names))
        .struct.rename_fields(list(names))
        .alias("parts")
    )
    return Table(
        str(path), whole.filter(pl.col("text").is_not_null()).select(LINE, parts).unnest("parts")
    )
