"""What a file is: its kind by its ending, and the check that its content is of that kind."""

from __future__ import annotations

import re
from pathlib import Path

from kd_jax.core.errors import InputError

KINDS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".inter": "tsv",  # RecBole's atomic files
    ".item": "tsv",
    ".user": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
COMPRESSED = (".gz", ".zst")
# How other files begin, what they are, and what to do with them.
CONTENTS = (
    (b"PAR1", "a Parquet file", "give it the ending .parquet"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"PK\x03\x04", "a zip archive or an Excel sheet", "unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel sheet", "save it as CSV"),
    (b"\x1f\x8b", "compressed by gzip", "add .gz to its name"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "add .zst to its name"),
    (b"ARROW1", "an Arrow file", "convert it to Parquet"),
    (b"SQLite format 3", "an SQLite database", "export its tables as CSV"),
    (b"%PDF", "a PDF", "give the data file"),
    (b"<!DOCTYPE", "an HTML page", "download the file itself"),
    (b"<html", "an HTML page", "download the file itself"),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file with git lfs pull"),
)


def kind_of(file: Path, what: str) -> str:
    """The kind of a file by its ending, or by its content where it has none of those known."""
    name = file.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    for ending, kind in KINDS.items():
        if name.endswith(ending):
            return kind
    if name.endswith(".arrow"):
        raise InputError(
            f"{file} ({what}) is an Arrow file; give the folder that save_to_disk of Hugging Face's"
            " datasets wrote, or convert it to Parquet"
        )
    with file.open("rb") as handle:
        if handle.read(4) == b"PAR1":
            return "parquet"
    raise InputError(
        f"{file} ({what}) is a file with an ending that is not read; give a file that ends in"
        f" {', '.join(KINDS)}"
    )


def check_content(file: Path, kind: str) -> None:
    """Raises InputError for a file whose content is not of the kind in its name."""
    with file.open("rb") as handle:
        head = handle.read(4096)
    name = file.name.lower()
    packed = name.endswith(COMPRESSED)
    if kind == "parquet":
        if not head.startswith(b"PAR1"):
            raise InputError(f"{file} can't be read: it is no Parquet file; check its ending")
        return
    if packed:
        magic = b"\x1f\x8b" if name.endswith(".gz") else b"\x28\xb5\x2f\xfd"
        if not head.startswith(magic):
            raise InputError(f"{file} can't be read: it is not compressed; drop its last ending")
        return
    for start, content, fix in CONTENTS:
        if head.startswith(start):
            raise InputError(f"{file} can't be read: it is {content}; {fix}")
    if head.count(b"\0") * 4 > len(head):
        raise InputError(f"{file} can't be read: it is UTF-16 text; save it as UTF-8")
    if b"\0" in head:
        raise InputError(f"{file} can't be read: it is no text; give a text or a Parquet file")
    if kind != "jsonl" and re.match(rb'\s*\{\s*"', head):
        raise InputError(f"{file} can't be read: it holds JSON lines; give it the ending .jsonl")
    if kind == "jsonl" and re.match(rb"\s*\[", head):
        raise InputError(
            f"{file} can't be read: it is one JSON list; write one object per line instead"
        )
