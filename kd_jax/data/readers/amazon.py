"""Amazon Reviews 2023, of Hou et al., arXiv 2403.03952: reviews, ratings and published splits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl

from kd_jax.core.errors import InputError
from kd_jax.data.raw import RawData
from kd_jax.data.readers import sources, tables
from kd_jax.data.readers.sources import Style
from kd_jax.data.readers.table import LINE, SHIFT, Table

SECTION = "data.amazon"
COLUMNS = {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp"}
PARTS = ("train", "valid", "test")
ENDINGS = tuple(f".{kind}{packed}" for kind in ("jsonl", "csv") for packed in ("", ".gz", ".zst"))
META = "meta_"
REVIEW = {
    "user_id": pl.String(),
    "parent_asin": pl.String(),
    "rating": pl.Float64(),
    "timestamp": pl.Int64(),
}
WORDS = pl.List(pl.String)
PRODUCT = {
    "parent_asin": pl.String(),
    "title": pl.String(),
    "store": pl.String(),
    "main_category": pl.String(),
    "categories": WORDS,
    "features": WORDS,
    "description": WORDS,
}


def read(path: str = "", items_path: str = "") -> RawData:
    """Reviews of one category as interactions, and products with their text.

    path: <category>.jsonl (reviews), <category>.csv (ratings only), one of the files
    <category>.train.csv, .valid.csv and .test.csv of a published split, or a folder with the files
    of one of these. The three files of a split are read together, with their names in the column
    'split'. items_path: meta_<category>.jsonl; '': it is beside the reviews. All may be compressed
    (.gz, .zst). A product is a parent_asin; asin, its variant, is not read. Raises InputError if a
    file is missing or cannot be read.
    """
    if not path:
        raise InputError(
            f"data.reader='amazon' needs {SECTION}.path; give the file of reviews of a category"
        )
    field = f"{SECTION}.path"
    files = _files(sources.existing(path, "reviews", field), field)
    folder, category = files[0].parent, _category(files)
    header = files[0].name.endswith(_endings("jsonl")) or _has_header(files[0])
    style = Style(header=header, schema=REVIEW, field=SECTION)
    found = sources.opened(
        folder,
        lambda table: _interactions(table, header, len(files) > 1),
        what="reviews",
        field=field,
        style=style,
        only=files,
    )
    meta = _meta(folder, category, items_path)
    products, notes = sources.opened(
        meta,
        _products,
        what="metadata",
        field=f"{SECTION}.items_path",
        style=Style(schema=PRODUCT, field=SECTION),
    )
    raw = tables.raw_data(category, found, products, path=str(path), items_path=str(meta))
    return dataclasses.replace(raw, notes=(*raw.notes, *notes))


def paths(path: str, items_path: str) -> tuple[str, ...]:
    """What is read: a file that is given stands for those of its split, and metadata is beside it.

    A folder, or a path that is missing, is as it is given. Raises InputError if another is missing.
    """
    given = Path(path).expanduser()
    if not path or not given.is_file():
        return path, items_path
    files = _files(given, f"{SECTION}.path")
    return *map(str, files), str(_meta(given.parent, _category(files), items_path))


def _category(files: list[Path]) -> str:
    return files[0].name.partition(".")[0]


def _endings(kind: str) -> tuple[str, ...]:
    return tuple(ending for ending in ENDINGS if ending.startswith(f".{kind}"))


def _files(path: Path, field: str) -> list[Path]:
    """The file of reviews, or the three files of the split that it is a part of."""
    if path.is_dir():
        inside = [
            file
            for file in sorted(path.iterdir())
            if file.name.endswith(ENDINGS) and not file.name.startswith(META)
        ]
        names = {_stem(file) for file in inside}
        if len(names) != 1:
            listed = ", ".join(file.name for file in inside) or "none"
            raise InputError(
                f"{path} has reviews of {len(names)} categories or kinds ({listed}); give one"
                f" file of reviews with {field}"
            )
        path = inside[0]
    part, ending = _part(path)
    if not part:
        return [path]
    stem = path.name.removesuffix(f".{part}{ending}")
    return [
        sources.existing(path.with_name(f"{stem}.{name}{ending}"), f"{name} split", field)
        for name in PARTS
    ]


def _part(path: Path) -> tuple[str, str]:
    """The part of a split that a file has, '' for none, and its ending."""
    ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), "")
    stem = path.name.removesuffix(ending)
    return next((name for name in PARTS if stem.endswith(f".{name}")), ""), ending


def _stem(path: Path) -> str:
    part, ending = _part(path)
    return path.name.removesuffix(ending).removesuffix(f".{part}") + ending


def _has_header(path: Path) -> bool:
    """Whether the first line names columns: in the download it does; the scripts write none."""
    with sources.readable(path):
        first = pl.read_csv(path, n_rows=1, has_header=False, infer_schema=False, glob=False)
    return "user_id" in first.row(0)


def _interactions(table: Table, header: bool, split: bool) -> tables.Rows:
    names = COLUMNS if header else dict(zip(COLUMNS, "1234", strict=True))
    if split:
        part = (pl.col(LINE) // (1 << SHIFT)).replace_strict(
            dict(enumerate(PARTS)), return_dtype=pl.String
        )
        table = dataclasses.replace(table, rows=table.rows.with_columns(split=part))
        names = names | {"split": "split"}
    found = tables.find_columns(table, names, fix="is it a file of Amazon Reviews 2023?")
    return tables.interactions(table, found, whole=frozenset())


def _meta(folder: Path, category: str, items_path: str) -> Path:
    field = f"{SECTION}.items_path"
    if items_path:
        return sources.existing(items_path, "metadata", field)
    for ending in _endings("jsonl"):
        if (folder / f"{META}{category}{ending}").exists():
            return folder / f"{META}{category}{ending}"
    raise InputError(
        f"{folder} has no {META}{category}.jsonl or .jsonl.gz; give the file of metadata with"
        f" {field}"
    )


def _products(table: Table) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """The products and notes; of a product that is listed again the first row counts."""
    found = tables.find_columns(table, {"item": "parent_asin", "title": "title"})
    item = pl.col(found["item"])
    rows = table.rows.filter(item.is_first_distinct() | item.is_null())
    again = int(table.rows.select(pl.len()).collect().item()) - int(
        rows.select(pl.len()).collect().item()
    )
    note = f"{table.path}: {again:,} products are listed again; their first row counts"
    once = dataclasses.replace(table, rows=rows)
    return tables.items(once, found["item"], whole=False), (note,) if again else ()
