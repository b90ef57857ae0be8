"""Table, the rows of a source with their places."""

from __future__ import annotations

import dataclasses

import polars as pl

TAB = "\t"
NOWHERE = "\x01"  # a separator that no text contains, to read whole lines
LINE = "(line)"  # a name that no column of the user is likely to have
SHIFT = 40  # the bits of LINE that count lines; those above count the parts of a table


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a source, lazily, with a column LINE that has the number of each row.

    unit: what LINE counts, for messages. broken: the number of lines that are no rows. problem: the
    message for the first of these. paths: the files of a table in parts, in the order of LINE.
    split_added: whether the column 'split' is none of the files', but the name of a part.
    """

    path: str
    rows: pl.LazyFrame
    unit: str = "line"
    broken: int = 0
    problem: str = ""
    paths: tuple[str, ...] = ()
    split_added: bool = False

    def place(self, line: int) -> str:
        """The place of a row, for messages."""
        part, line = line >> SHIFT, line & ((1 << SHIFT) - 1)
        path = self.paths[part] if self.paths else self.path
        return f"{path}:{line}" if self.unit == "line" else f"{path}, {self.unit} {line}"

    def columns(self) -> dict[str, pl.DataType]:
        """Name -> type of all columns but LINE."""
        return {name: kind for name, kind in self.rows.collect_schema().items() if name != LINE}
