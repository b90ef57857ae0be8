"""Prepared data are the data in memory: ids, splits, examples; a half-made folder is nothing."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from kd_jax.core.errors import InputError
from kd_jax.core.types import PAD
from kd_jax.data import prepare as command
from kd_jax.data import readers
from kd_jax.data.dataset import ARRAYS, build
from kd_jax.data.examples.base import BatchRows, batches
from kd_jax.data.examples.sequence import sequence_examples
from kd_jax.data.examples.shards import ShardOrder, shard_examples
from kd_jax.data.examples.user import user_examples
from kd_jax.data.popularity import decayed_counts
from kd_jax.data.prepared import folder as folders
from kd_jax.data.prepared import options as options_
from kd_jax.data.prepared import streaming
from kd_jax.data.prepared.options import PrepareOptions
from kd_jax.data.raw import RawData

ROWS = 4000


def write_source(folder, *, strings=False, seed=0, scale=1):
    """Interactions with repeats and ties, in two files, and items; some have no interaction."""
    rng = np.random.default_rng(seed)
    user = rng.zipf(1.3, ROWS) % 150
    item = rng.zipf(1.4, ROWS) % 90
    rows = pl.DataFrame(
        {
            "user": 7 * user + 1_000_000,
            "item": 3 * item,
            "rating": rng.integers(1, 6, ROWS).astype(np.float64),
            "timestamp": (rng.integers(0, 900, ROWS) * 3600 + 1_600_000_000) * scale,
        }
    )
    items = pl.DataFrame({"item": np.arange(0, 300, 3), "title": [f"film {n}" for n in range(100)]})
    if strings:
        rows = rows.with_columns(pl.format("u{}", "user").alias("user"))
        rows = rows.with_columns(pl.format("é{}", "item").alias("item"))
        items = items.with_columns(pl.format("é{}", "item").alias("item"))
    (folder / "clicks").mkdir(parents=True)
    rows[: ROWS // 3].write_parquet(folder / "clicks/part-2.parquet")
    rows[ROWS // 3 :].write_parquet(folder / "clicks/part-10.parquet")
    items.write_parquet(folder / "films.parquet")
    return rows, items


def options_for(folder, **fields):
    given = {"interactions": str(folder / "clicks"), "items": str(folder / "films.parquet")}
    return PrepareOptions(**given | {"shards": 4} | fields)


def in_memory(rows, items, options):
    raw = RawData("clicks", rows.with_columns(pl.col("timestamp").cast(pl.Int64)), items)
    return build(
        raw,
        split=options.split,
        min_user_interactions=options.min_interactions,
        min_item_interactions=options.min_item_interactions,
        min_rating=options.min_rating,
        repeats=options.repeats,
    )


CASES = {
    "leave_one_out": {"split": "leave_one_out"},
    "temporal": {"split": "temporal"},
    "core": {"split": "leave_one_out", "min_interactions": 6, "min_item_interactions": 9},
    "rated": {"split": "temporal", "min_rating": 3.0, "repeats": "max", "min_interactions": 3},
    "last": {"split": "leave_one_out", "repeats": "last", "min_item_interactions": 5},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["numbers", "strings"])
def test_the_data_are_those_in_memory(tmp_path, case, kind):
    scale = 1000 if kind == "strings" else 1  # milliseconds that are whole seconds
    rows, items = write_source(tmp_path, strings=kind == "strings", scale=scale)
    options = options_for(tmp_path, **CASES[case])
    assert streaming.prepare(options, tmp_path / "out", note=lambda _: None)
    found = readers.read("prepared", {"path": str(tmp_path / "out")})
    want = in_memory(rows, items, options)
    assert found.user_ids.equals(want.user_ids) and found.item_ids.equals(want.item_ids)
    assert found.items.equals(want.items) and found.time_unit == want.time_unit == "s"
    for name in (*ARRAYS, "indptr", "item_counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name), err_msg=name)
    assert found.counts == want.counts
    assert found.splits == tuple(np.bincount(want.split, minlength=3))
    if case == "core":
        assert want.counts["below_min_interactions"] > 0, "the k-core drops something"


@pytest.fixture
def prepared(tmp_path):
    rows, items = write_source(tmp_path)
    options = options_for(tmp_path, split="leave_one_out")
    streaming.prepare(options, tmp_path / "out", note=lambda _: None)
    return tmp_path / "out", in_memory(rows, items, options)


EXAMPLES = {
    "user": {"decay": 5.0},
    "days": {"decay": 9.0, "decay_unit": "days", "user_power": 0.3},
    "all": {},
    "last": {},
}


def both_examples(prepared, kind, eval_users=0):
    folder, memory = prepared
    found = folders.open_folder(folder, eval_users)
    weighting = EXAMPLES[kind]
    if weighting:
        want = user_examples(memory, history=6, **weighting)
        return shard_examples(found, history=6, example_kind="user", **weighting), want
    want = sequence_examples(memory, history=6, example_kind=kind)
    return shard_examples(found, history=6, example_kind=kind), want


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_epoch_has_the_examples_that_are_in_memory(prepared, kind):
    found, want = both_examples(prepared, kind, eval_users=10)
    assert found.size == want.size
    mine, theirs = (examples.gather(np.arange(want.size)) for examples in (found, want))
    order = np.argsort(mine["user"])
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        assert mine[name].dtype == values.dtype
        np.testing.assert_array_equal(mine[name][order], values, err_msg=name)


def windows_of(batch):
    """The windows of bins: their users, and the items, targets and places of each."""
    found = {}
    for row in range(len(batch["row"])):
        for segment in np.unique(batch["segment"][row]):
            at = (batch["segment"][row] == segment) & (batch["history"][row] != PAD)
            if at.any():
                (user,) = np.unique(batch["row"][row, at])
                assert user not in found
                found[user] = {name: batch[name][row, at]
                               for name in ("history", "targets", "weights", "place")}  # fmt: skip
    return found


def test_bins_of_shards_have_every_window_once(prepared):
    folder, memory = prepared
    data = folders.open_folder(folder, 10)
    found = shard_examples(data, history=6, example_kind="all", packed=True)
    padded = sequence_examples(memory, history=6, example_kind="all")
    want = padded.gather(np.arange(padded.size))
    batch = found.gather(np.arange(found.size))
    windows, empty = windows_of(batch), batch["history"] == PAD
    assert not batch["row"][empty].any() and not batch["weights"][empty].any()
    assert found.windows == len(windows) == padded.size
    assert found.rows_of(64) < 64 and empty.mean() < (want["history"] == PAD).mean() / 2
    for row, user in enumerate(want["user"]):
        known = want["history"][row] != PAD
        assert (windows[user]["place"] == np.flatnonzero(known)).all()
        for name in ("history", "targets", "weights"):
            np.testing.assert_array_equal(windows[user][name], want[name][row, known])
    again = found.gather(np.arange(found.size)[::-1])
    np.testing.assert_array_equal(again["history"][::-1], batch["history"])


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_batch_of_bins_has_all_lanes(prepared, parts):
    found = shard_examples(
        folders.open_folder(prepared[0], 0), history=6, example_kind="all", packed=True
    )
    users = 100
    rows = found.rows_of(users, parts)
    assert rows % parts == 0 and abs(rows * found.per_row - users) < 6 * parts * found.per_row
    lanes = found.order.lanes(rows)
    assert lanes == found.lanes == 4
    epoch = [found.order.epoch(3, 0, lane, lanes) for lane in range(lanes)]
    assert sorted(np.concatenate(epoch)) == list(range(found.size)), "every bin once per epoch"
    shard = np.searchsorted(found.order.offsets, np.arange(found.size), side="right") - 1
    source, read = BatchRows(found, rows, 100, 0), [set(), set()]
    for number in range(20):
        for process, half in enumerate((source[number][: rows // 2], source[number][-rows // 2 :])):
            read[process] |= set(shard[half])
    assert not read[0] & read[1], "two processes read different shards"
    assert found.rows_of(3, parts) in (parts, 2 * parts)  # few bins: fewer lanes


def test_rows_may_be_looked_up_in_any_order(prepared):
    found, _ = both_examples(prepared, "all")
    rows = np.random.default_rng(0).permutation(found.size)[:50]
    one, many = [found.gather(rows[i : i + 1]) for i in range(50)], found.gather(rows)
    for name in many:
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in one]), many[name])


def test_the_order_is_a_function_of_seed_and_epoch_and_of_nothing_else(prepared):
    found, _ = both_examples(prepared, "all")
    size = 12  # four lanes of three
    first = BatchRows(found, size, 1000, 3)
    again, other = BatchRows(both_examples(prepared, "all")[0], size, 1000, 3), None
    for number in (500, 3, 77, 0):  # in another sequence
        np.testing.assert_array_equal(again[number], first[number])
    other = BatchRows(found, size, 1000, 4)
    assert any((other[n] != first[n]).any() for n in range(3))
    order = found.order
    lanes = order.lanes(size)
    assert lanes == 4 and order.lanes(5) == 1 and order.lanes(6) == 2
    for lane in range(lanes):
        epochs = [order.epoch(3, epoch, lane, lanes) for epoch in range(2)]
        assert sorted(epochs[0]) == sorted(epochs[1]) and (epochs[0] != epochs[1]).any()
    whole = np.concatenate([order.epoch(3, 0, lane, lanes) for lane in range(lanes)])
    assert sorted(whole) == list(range(found.size)), "every example once per epoch"


def test_processes_look_up_disjoint_shards(prepared):
    found, _ = both_examples(prepared, "all")
    source = BatchRows(found, 16, 100, 0)
    shard = np.searchsorted(found.order.offsets, np.arange(found.size), side="right") - 1
    read = [set(), set()]
    for number in range(100):
        for process, rows in enumerate(np.split(source[number], 2)):
            read[process] |= set(shard[rows])
    assert not read[0] & read[1] and read[0] | read[1] == set(range(4))


def test_an_iterator_resumes_at_its_batch(prepared):
    found, _ = both_examples(prepared, "user")
    how = {"batch_size": 8, "num_batches": 60, "seed": 1, "chunk": 2}
    whole = batches(found, **how)
    for _ in range(11):
        next(whole)
    state = whole.get_state()
    want = [next(whole) for _ in range(5)]
    resumed = batches(both_examples(prepared, "user")[0], **how)
    resumed.set_state(state)
    for batch in want:
        again = next(resumed)
        for name, values in batch.items():
            np.testing.assert_array_equal(again[name], values)


def test_an_empty_lane_is_left_out():
    assert ShardOrder(np.array([3, 0, 2, 0])).lanes(8) == 1
    assert sorted(ShardOrder(np.array([3, 0, 2, 0]))(0, 0, 5)) == [0, 1, 2, 3, 4]


def test_only_the_evaluated_users_are_in_memory(prepared):
    folder, memory = prepared
    found = folders.open_folder(folder, 20)
    chosen = np.unique(found.user)
    assert len(chosen) == 20 and not found.whole and found.held == 20
    mine = np.isin(memory.user, chosen)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(memory, name)[mine])
    np.testing.assert_array_equal(found.item_counts, memory.item_counts)
    for days in (1.0, np.inf):
        np.testing.assert_allclose(
            decayed_counts(found, days), decayed_counts(memory, days), rtol=1e-12, atol=0
        )


def test_a_killed_maker_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    write_source(tmp_path)
    options, out = options_for(tmp_path), tmp_path / "out"
    for name, after in (("write_shard", 2), ("catalogue", 0), ("_finish", 0)):
        calls, real = [], getattr(folders, name)

        def killed(*args, calls=calls, real=real, after=after):
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(folders, name, killed)
            with pytest.raises(KeyboardInterrupt):
                streaming.prepare(options, out, note=lambda _: None)
        with pytest.raises(InputError, match=r"prepared.json is missing; prepare the data again"):
            folders.open_folder(out, 0)
    assert streaming.prepare(options, out, note=lambda _: None)
    streaming.prepare(options, tmp_path / "other", note=lambda _: None)
    assert contents(out) == contents(tmp_path / "other")


def contents(folder):
    assert not (folder / folders.WORK).exists()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["items.parquet", "shard-1.parquet", ".git", "notes.txt"])
def test_a_folder_with_files_of_no_maker_is_refused_and_kept(tmp_path, name):
    write_source(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(InputError, match=rf"out has other files \({name}\); choose a new one"):
        streaming.prepare(options_for(tmp_path), out, note=lambda _: None)
    assert (out / name).read_text() == "mine"
    (out / name).unlink()
    assert streaming.prepare(options_for(tmp_path), out, note=lambda _: None)
    with pytest.raises(InputError, match="clicks.txt is a file; choose a folder"):
        (tmp_path / "clicks.txt").touch()
        streaming.prepare(options_for(tmp_path), tmp_path / "clicks.txt", note=lambda _: None)


def test_a_changed_source_or_shard_is_noticed(tmp_path, monkeypatch):
    rows, _ = write_source(tmp_path)
    options, out = options_for(tmp_path), tmp_path / "out"
    assert streaming.prepare(options, out, note=lambda _: None)
    assert not streaming.prepare(options, out, note=lambda _: None), "it is up to date"
    with pytest.raises(InputError, match="from another source or with other options"):
        streaming.prepare(options_for(tmp_path, min_interactions=2), out, note=lambda _: None)
    rows[5:].write_parquet(tmp_path / "clicks/part-10.parquet")
    with pytest.raises(InputError, match="from another source or with other options"):
        streaming.prepare(options, out, note=lambda _: None)

    shard = folders.shard_path(out, 1)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="shard-00001.parquet has changed since it was written"):
        folders.open_folder(out, 0)
    shard.write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"shard-00001.parquet has \d+ bytes, \d+ when written"):
        folders.open_folder(out, 0)

    shutil.rmtree(out)
    real = streaming._Maker.run

    def changed(maker):
        made = real(maker)
        rows[7:].write_parquet(tmp_path / "clicks/part-10.parquet")
        return made

    monkeypatch.setattr(streaming._Maker, "run", changed)
    with pytest.raises(InputError, match="has changed while it was read"):
        streaming.prepare(options, out, note=lambda _: None)


@pytest.mark.parametrize("text", [False, True])
def test_distinct_ids_are_merged_while_they_grow(monkeypatch, text):
    monkeypatch.setattr(streaming, "BATCH", 5)
    rng = np.random.default_rng(0)
    dtype = pl.String() if text else pl.Int64()
    distinct, given, merged = streaming._Distinct(dtype), set(), 0
    for size in (3, 0, 40, 7, 1, 90, 12):
        values = pl.Series(rng.integers(0, 60, size)).cast(dtype)
        distinct.add(values)
        given |= set(values.to_list())
        merged += not distinct.batches
        assert sum(map(len, distinct.batches)) <= max(5, len(distinct.found))
    assert merged >= 2 and distinct.sorted().to_list() == sorted(given)
    empty = streaming._Distinct(dtype).sorted()
    assert empty.dtype == dtype and not len(empty)


def test_order_statistics_are_exact():
    rng = np.random.default_rng(0)
    parts = [rng.integers(-(2**40), 2**40, 300), rng.integers(0, 5, 300), np.zeros(0, np.int64)]
    want = np.sort(np.concatenate(parts))
    for rank in (0, 1, 299, 310, 420, 599):
        assert streaming.select(lambda: iter(parts), (rank, 0))[0] == want[rank]


@pytest.mark.parametrize(
    ("classes", "divisible", "option", "want"),
    [
        ([0, 9, 0, 0, 0], 3, "auto", ("s", 1)),
        ([0, 0, 9, 0, 0], 0, "auto", ("ms", 1)),
        ([0, 0, 9, 0, 0], 2, "auto", ("s", 1000)),
        ([9, 0, 0, 0, 1], 0, "auto", ("s", 1)),
        ([0, 1, 0, 9, 0], 1, "auto", ("ms", 1000)),
        ([0, 9, 0, 0, 0], 1, "ns", ("us", 1000)),
    ],
)
def test_units_of_times(classes, divisible, option, want):
    assert options_.unit_of(classes, divisible, option) == want


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "ratio"}, "--split='ratio' is not supported by prepared data"),
        ({"repeats": "count"}, "--repeats='count' is not supported"),
        ({"shards": 5000}, "--shards=5000 must be 0"),
        ({"ratios": (0.5, 0.1, 0.1)}, "give three positive shares"),
        ({"user": "usr"}, r"no column 'usr' \(--user\); did you mean 'user'"),
        ({"timestamp": "rating"}, "column 'rating' is Float64, not whole numbers; cast it"),
        ({"item_id": "id"}, r"no column 'id' \(--item_id\)"),
        ({"min_interactions": 9999}, "no interaction is left; lower --min_interactions"),
        ({"min_rating": 9.0}, "no row is left; lower --min_rating"),
        ({"items": "films.csv"}, "films.csv is missing or is no .parquet file"),
        ({"ratios": (0.998, 0.001, 0.001), "shards": 3}, None),
    ],
)
def test_bad_options_are_refused(tmp_path, fields, message):
    write_source(tmp_path)
    if message is None:
        streaming.prepare(options_for(tmp_path, **fields), tmp_path / "out", note=lambda _: None)
        return
    with pytest.raises(InputError, match=message):
        streaming.prepare(options_for(tmp_path, **fields), tmp_path / "out", note=lambda _: None)


def test_malformed_rows_are_counted_and_refused(tmp_path):
    rows, _ = write_source(tmp_path)
    bad = rows.with_columns(
        pl.when(pl.int_range(pl.len()) == 5).then(None).otherwise("user").alias("user"),
        pl.when(pl.int_range(pl.len()) == 9).then(np.inf).otherwise("rating").alias("rating"),
    )
    bad.write_parquet(tmp_path / "clicks/part-10.parquet")
    with pytest.raises(InputError, match="2 of 5,333 rows lack an id, a timestamp or a finite"):
        streaming.prepare(options_for(tmp_path), tmp_path / "out", note=lambda _: None)
    tolerant = options_for(tmp_path, max_malformed=0.01)
    streaming.prepare(tolerant, tmp_path / "out", note=lambda _: None)
    assert json.loads((tmp_path / "out/prepared.json").read_text())["counts"]["malformed"] == 2


def test_the_command(tmp_path, capsys):
    write_source(tmp_path)
    flags = [f"--interactions={tmp_path / 'clicks'}", f"--items={tmp_path / 'films.parquet'}"]
    flags += [f"--out={tmp_path / 'out'}", "--shards=4", "--ratios=0.7,0.2,0.1", "--min_rating=2"]
    assert command.main(flags) == 0
    assert "k-core" in capsys.readouterr().out
    assert command.main(flags) == 0
    assert "up to date" in capsys.readouterr().out
    assert command.main([*flags, "--split=strong"]) == 2
    assert "not supported by prepared data" in capsys.readouterr().err
    assert command.main([*flags, "--shards=many"]) == 2
    assert "prepare: argument --shards: invalid int value: 'many'" in capsys.readouterr().err
    found = readers.read("prepared", {"path": str(tmp_path / "out"), "eval_users": 5})
    assert found.counts["below_min_rating"] > 0 and found.held == 5
    given = {"path": str(tmp_path / "out")}
    for section, message in (
        ({"path": ""}, "data.prepared.path is not set"),
        ({"eval_users": -1}, "data.prepared.eval_users=-1 must be 0"),
    ):
        with pytest.raises(InputError, match=message):
            readers.read("prepared", given | section)
