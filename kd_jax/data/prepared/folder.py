"""The format of prepared data: what makers write, and how it is opened.

A folder holds ``shard-00000.parquet`` … with the interactions of the users whose index has that
remainder, by (user, time); ``users.parquet`` and ``items.parquet`` with ids in the order of the
indices, texts and numbers of train interactions; and, written last, ``prepared.json``.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic, content_hash, fingerprint, read_json, stamp, write_json
from kd_jax.data.dataset import ARRAYS, Dataset, indptr_of
from kd_jax.data.item_text import texts
from kd_jax.data.prepared.options import PrepareOptions, parquet_files
from kd_jax.data.raw import RawData, check_items
from kd_jax.data.splits import NAMES, TRAIN

FORMAT = 1
MANIFEST = "prepared.json"
USERS, ITEMS = "users.parquet", "items.parquet"
COUNTED = ("malformed", "rows", "below_min_rating", "repeated", "below_min_interactions")
WORK = ".work"  # of a maker, in the folder
TYPES = {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}


def check_stored(workdir: Path) -> None:
    """Raises InputError for the workdir of a run on prepared data, which it does not hold."""
    note = workdir / "dataset/identity.json"
    if note.exists() and read_json(note, f"delete {note.parent}").get("reader") == "prepared":
        raise InputError(
            f"{workdir} was trained from prepared data, which are not in the workdir; load its"
            f" export alone, kd_jax.runtime.load({str(workdir / 'export')!r}), or serve it with"
            " python -m kd_jax.serve"
        )


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.parquet"


def prepare(options: PrepareOptions, folder: Path, make: Callable[[], Made]) -> bool:
    """Prepares ``folder`` by ``make``, which writes the shards; False if that has been done.

    Raises InputError if the folder is finished and was made otherwise, or has files that are no
    prepared data, and for a source that changes meanwhile.
    """
    parquet_files(options.interactions, "interactions")
    identity = _identity(options)
    if not _begin(folder, identity):
        return False
    made = make()
    if _identity(options) != identity:
        raise InputError(f"{options.interactions} has changed while it was read; start again")
    _finish(folder, options, made, identity)
    return True


def _identity(options: PrepareOptions) -> dict[str, Any]:
    """All that determines the files of a folder: options, and the content of the source."""
    return options.identity | {"source": stamp(options.interactions, options.items)}


def _begin(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether ``folder`` has to be made; what an unfinished maker has left is removed."""
    if folder.is_file():
        raise InputError(f"--out={folder} is a file; choose a folder")
    if (folder / MANIFEST).exists():
        made = read_json(folder / MANIFEST, f"delete {folder}")
        if made["identity"] == fingerprint(identity):
            return False
        raise InputError(
            f"{folder} was prepared from another source or with other options; delete it, or"
            " choose another --out"
        )
    if folder.exists():
        others = sorted(path.name for path in folder.iterdir())
        if WORK in others:  # with which every maker begins: its own files are none of others
            own = {USERS, ITEMS}
            others = [x for x in others if x not in own and not x.startswith((".", "shard-"))]
        if others:
            raise InputError(f"--out={folder} has other files ({others[0]}); choose a new one")
        shutil.rmtree(folder)
    (folder / WORK).mkdir(parents=True)
    return True


def write_shard(folder: Path, number: int, columns: dict[str, np.ndarray]) -> None:
    """Writes a shard; columns: those of ``Dataset`` (``ARRAYS``), sorted by (user, time)."""
    frame = pl.DataFrame({name: columns[name] for name in ARRAYS})
    with atomic(shard_path(folder, number)) as path:
        kinds: Any = {**TYPES, "split": pl.Int8}
        frame.cast(kinds).write_parquet(
            path, compression="zstd", compression_level=3, statistics=False
        )


@dataclasses.dataclass(frozen=True)
class Made:
    """What a maker knows beside the shards.

    user_ids: of the users, sorted. item_ids: of the core, sorted. items: the whole items table, ids
    as 'item'. counts: rows by what became of them (``COUNTED``).
    """

    name: str
    user_ids: pl.Series
    item_ids: pl.Series
    items: pl.DataFrame
    counts: dict[str, int]
    time_unit: str
    shards: int


def catalogue(options: PrepareOptions, used: pl.Series, items: pl.DataFrame) -> pl.Series:
    """The ids of the items: those in use or, without a minimum, all of the items table, too."""
    check_items(items)
    if options.min_item_interactions:
        return used
    return pl.concat([used, items["item"]]).unique().sort()


def _finish(folder: Path, options: PrepareOptions, made: Made, identity: dict[str, Any]) -> None:
    """Writes users, items and, last, the manifest. Raises InputError for an empty split."""
    source = RawData(
        made.name, pl.DataFrame(), made.items, path=options.interactions, items_path=options.items
    )
    table = texts(source, made.item_ids, options.text_columns or None, options.missing_text)
    found = _totals(folder, made, options.split == "leave_one_out")
    users = pl.DataFrame({"id": made.user_ids})
    items = table.select(made.item_ids.alias("id"), pl.all().name.prefix("text_"))
    items = items.with_columns(train=pl.Series(found.pop("train")))
    for name, frame in ((USERS, users), (ITEMS, items)):
        with atomic(folder / name) as path:
            frame.write_parquet(path, statistics=False)
    paths = [shard_path(folder, number) for number in range(made.shards)]
    files = {
        path.name: {"bytes": path.stat().st_size, "hash": content_hash(path)}
        for path in (folder / USERS, folder / ITEMS, *paths)
    }
    sizes = {"users": len(users), "items": len(items), "interactions": sum(found["splits"])}
    note = {
        "format": FORMAT,
        "name": made.name,
        "options": options.checked,
        "counts": {name: made.counts[name] for name in COUNTED} | found.pop("more") | sizes,
        "time_unit": made.time_unit,
        "shards": made.shards,
        **found,
        "files": files,
        "identity": fingerprint(identity),
    }
    write_json(folder / MANIFEST, note)
    shutil.rmtree(folder / WORK)


def _totals(folder: Path, made: Made, loo: bool) -> dict[str, Any]:
    """What is counted over all shards: train interactions of items, rows of splits, the rest."""
    train = np.zeros(len(made.item_ids), np.int64)
    splits, judged = np.zeros(3, np.int64), np.zeros(3, np.int64)
    short = 0
    for number in range(made.shards):
        rows = pl.read_parquet(shard_path(folder, number), columns=["user", "item", "split"])
        user, split = rows["user"].to_numpy() // made.shards, rows["split"].to_numpy()
        train += np.bincount(rows["item"].to_numpy()[split == TRAIN], minlength=len(train))
        splits += np.bincount(split, minlength=3)
        counts = [np.bincount(user[split == code], minlength=user.max(initial=0) + 1)
                  for code in range(3)]  # fmt: skip
        judged += [int(((counts[0] > 0) & (count > 0)).sum()) for count in counts]
        sizes = np.sum(counts, 0)
        short += int(((sizes > 0) & (sizes < 3)).sum())
    for code, name in enumerate(NAMES[:3]):
        if not judged[code]:
            what = "is empty" if not splits[code] else "has no user with an earlier interaction"
            raise InputError(
                f"{made.name}: split {name} {what}; choose another --split or other --ratios, or"
                " lower --min_interactions"
            )
    more = {"users_with_fewer_than_3": short} if loo else {}
    return {"train": train, "splits": splits.tolist(), "more": more}


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """The shards of an opened folder. users, items: their numbers. files: sizes and hashes."""

    folder: Path
    number: int
    users: int
    names: tuple[str, str]  # of the data and of the split
    item_ids: pl.Series
    items: pl.DataFrame
    time_unit: str
    files: dict[str, Any]

    def rows(self, number: int, columns: Sequence[str], check: bool = False) -> pl.DataFrame:
        """Columns of a shard; check: whether its content is compared with its hash.

        Raises InputError for a shard that is missing or has changed.
        """
        path = shard_path(self.folder, number)
        if check and content_hash(path) != self.files[path.name]["hash"]:
            raise InputError(f"{path} has changed since it was written; prepare the data again")
        try:
            return pl.read_parquet(path, columns=list(columns))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{path} can't be read ({error}); prepare the data again") from None

    def users_of(self, number: int) -> int:
        """How many users a shard has; the n-th has the index n * shards + number."""
        return len(range(number, self.users, self.number))

    def part(self, number: int, columns: Sequence[str], check: bool = False) -> Dataset:
        """A shard as a data set of its own users; columns that are not read are 1."""
        rows = self.rows(number, ("user", *columns), check)
        given = {name: rows[name].to_numpy() for name in columns}
        user = rows["user"].to_numpy() // np.int32(self.number)
        users = pl.int_range(self.users_of(number), eager=True)
        filled = np.broadcast_to(np.int8(1), len(user))
        arrays = dict.fromkeys(ARRAYS, filled) | given | {"user": user}
        return Dataset(
            *self.names,
            users,
            self.item_ids,
            self.items,
            **arrays,
            indptr=indptr_of(user, len(users)),
            counts={},
            checksum="",
            time_unit=self.time_unit,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedDataset(Dataset):
    """Prepared data: training reads the shards, all else the interactions of some users.

    The arrays hold the interactions of ``held`` users, those that are evaluated; other users have
    no rows. ids, counts and ``item_counts`` are those of all. train: number of train interactions
    of each item, i64 [I].
    """

    shards: Shards | None = None
    held: int = 0
    train: Int64[np.ndarray, " I"] | None = None
    splits: tuple[int, ...] = ()

    @cached_property
    def item_counts(self) -> Int64[np.ndarray, " I"]:
        """Number of train interactions of each item, of all users."""
        assert self.train is not None
        return self.train

    @property
    def whole(self) -> bool:
        """Whether the interactions of all users are held."""
        return self.held == self.num_users

    def parts(self) -> Iterator[Dataset]:
        """Data sets that together have all interactions of train, valid and test."""
        assert self.shards is not None
        if self.whole:
            yield self
            return
        for number in range(self.shards.number):
            yield self.shards.part(number, ("item", "timestamp", "split"))


def open_folder(path: Path, eval_users: int) -> PreparedDataset:
    """The data in a folder that a maker has finished; eval_users: see ``readers.prepared``.

    Raises InputError if the folder is not finished, or a file is missing or has another size.
    """
    fix = "prepare the data again (python -m kd_jax.data.prepare)"
    note = read_json(path / MANIFEST, fix)
    if note.get("format") != FORMAT:
        raise InputError(f"{path} has the format {note.get('format')}, not {FORMAT}; {fix}")
    for name, file in note["files"].items():
        there = (path / name).stat().st_size if (path / name).is_file() else None
        if there != file["bytes"]:
            raise InputError(
                f"{path / name} has {there} bytes, {file['bytes']} when written; {fix}"
            )
    for name in (USERS, ITEMS):
        if content_hash(path / name) != note["files"][name]["hash"]:
            raise InputError(f"{path / name} has changed since it was written; {fix}")
    user_ids = pl.read_parquet(path / USERS)["id"].rename("user")
    items = pl.read_parquet(path / ITEMS)
    shards = Shards(
        path,
        note["shards"],
        len(user_ids),
        (note["name"], note["options"]["split"]),
        items["id"].rename("item"),
        items.drop("id", "train").rename(lambda name: name.removeprefix("text_")),
        note["time_unit"],
        note["files"],
    )
    held = len(user_ids)
    if 0 < eval_users < held:
        held = eval_users
    arrays: dict[str, Any] = _held(shards, held)
    return PreparedDataset(
        *shards.names,
        user_ids,
        shards.item_ids,
        shards.items,
        **arrays,
        indptr=indptr_of(arrays["user"], len(user_ids)),
        counts=note["counts"],
        checksum=fingerprint({name: note[name] for name in ("files", "options", "time_unit")}),
        time_unit=note["time_unit"],
        shards=shards,
        held=held,
        train=items["train"].to_numpy(),
        splits=tuple(note["splits"]),
    )


def _held(shards: Shards, held: int) -> dict[str, np.ndarray]:
    """The interactions of ``held`` users, drawn at random, the same at every call."""
    chosen = np.zeros(shards.users, bool)
    chosen[np.random.default_rng(0).permutation(shards.users)[:held]] = True
    mine = pl.Series(chosen)
    frames = [
        rows.filter(mine.gather(rows["user"]))
        for rows in (shards.rows(number, ARRAYS, check=True) for number in range(shards.number))
    ]
    rows = pl.concat(frames).sort("user", maintain_order=True)
    return {name: rows[name].to_numpy() for name in ARRAYS}
