"""Data sets that Hugging Face's datasets saved: the fixtures are its own files.

clicks and films were written by version 5.2.0, selected by version 1.1.3, whose ``select`` saved a
list of row numbers beside the rows. films was written twice, with three files and then with two.
"""

import datetime
import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from helpers.toy import refused
from kd_jax.data import readers
from kd_jax.data.dataset import build

SAVED = Path(__file__).parent / "fixtures/saved"
ROWS = [
    (user, f"i{(user * 3 + k * 5) % 7}", float((user + k) % 5 + 1), (1 + user, k))
    for user in range(3)
    for k in range(4)
]


def read(path, **section):
    return readers.read("files", {"path": str(path)} | section)


def moment(day, hour):
    time = datetime.datetime(2024, 1, day, hour, tzinfo=datetime.UTC)
    return int(time.timestamp()) * 1000 + 5


def test_splits_of_a_data_set_are_a_column():
    raw = read(SAVED / "clicks", items_path=str(SAVED / "films"))
    expected = {
        (user, item, rating, moment(*time), ("train", "train", "validation", "test")[time[1]])
        for user, item, rating, time in ROWS
    }
    found = raw.interactions
    assert found.columns == ["user", "item", "rating", "timestamp", "split"]
    assert found.height == len(expected) and set(found.rows()) == expected
    # train was reordered by select before it was saved
    assert found["user"].to_list()[:6] == [2, 2, 0, 0, 1, 1] and raw.time_unit == "ms"
    data = build(raw, split="column", text_columns=("title", "genre"))
    assert [int((data.split == code).sum()) for code in range(3)] == [6, 3, 3]


def test_labels_are_names_and_media_and_files_of_an_earlier_save_are_left_out():
    items = read(SAVED / "clicks", items_path=str(SAVED / "films")).items
    assert items.columns == ["item", "title", "genre", "tags", "vector"]  # cover is an image
    assert items["item"].to_list() == [f"i{k}" for k in range(7)]  # 14 rows are in the folder
    assert items["genre"].to_list() == ["drama", "comedy", "", "", "drama", "comedy", "drama"]
    assert items["tags"].to_list() == ["short", "long, short", "", "", "long", "short", "short"]
    assert items["vector"].dtype == pl.List(pl.List(pl.Float32))
    raw = read(SAVED / "clicks", items_path=str(SAVED / "films"))
    refused(lambda: build(raw), "column 'vector' is of type List(List(Float32))", "text_columns")


def test_a_list_of_row_numbers_is_followed():
    raw = read(SAVED / "selected")
    assert raw.interactions.rows() == [(2, "c"), (2, "a"), (2, "b"), (1, "a"), (1, "a"), (1, "c")]


def test_one_split_is_a_data_set():
    one = read(SAVED / "clicks/test")
    assert one.interactions.height == 3 and "split" not in one.interactions.columns


def write(folder, frame, features=None, **state):
    """A data set of one file, in the layout of save_to_disk."""
    folder.mkdir(parents=True)
    frame.write_ipc_stream(folder / "data-00000-of-00001.arrow")
    files = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(files | state))
    features = features or {name: {"_type": "Value"} for name in frame.columns}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


CLICKS = pl.DataFrame({"user": [1, 1, 2], "item": ["a", "b", "a"], "split": ["x", "y", "z"]})


def test_a_split_column_of_its_own_is_kept_and_empty_splits_are_none(tmp_path):
    write(tmp_path / "data/train", CLICKS)
    write(tmp_path / "data/none", CLICKS.clear(), _data_files=[])
    (tmp_path / "data/dataset_dict.json").write_text('{"splits": ["train", "none"]}')
    assert read(tmp_path / "data").interactions["split"].to_list() == ["x", "y", "z"]


def test_the_name_of_a_split_is_no_text_of_an_item(tmp_path):
    for name, item in (("train", "a"), ("test", "b")):
        write(tmp_path / "items" / name, pl.DataFrame({"item": [item], "title": [f"Film {item}"]}))
    (tmp_path / "items/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    write(tmp_path / "data", CLICKS)
    items = read(tmp_path / "data", items_path=str(tmp_path / "items")).items
    assert items.rows() == [("a", "Film a"), ("b", "Film b")]


def test_places_of_faults(tmp_path):
    write(tmp_path / "data/train", CLICKS)
    write(tmp_path / "data/test", CLICKS.with_columns(user=pl.Series([1, None, 2])))
    (tmp_path / "data/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    raw = read(tmp_path / "data")
    assert raw.problems == (f"{tmp_path}/data/test, row 2: there is no user",)
    assert raw.counts == {"rows": 6, "malformed": 1}


def missing(folder):
    (folder / "data-00000-of-00001.arrow").unlink()


def cut(folder):
    path = folder / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-200])


def stateless(folder):
    (folder / "state.json").unlink()


def featureless(folder):
    (folder / "dataset_info.json").write_text("{}")


def empty(folder):
    (folder / "state.json").write_text('{"_data_files": []}')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"splits": ["train", "../other"]}', "'../other' is no name of a split"),
        ('{"splits": [".."]}', "'..' is no name of a split"),
        ('{"splits": [3]}', "3 is no name of a split"),
        ('{"splits": "train"}', "is no list of names"),
        ('["train"]', "has no 'splits'"),
    ],
)
def test_names_of_splits_stay_in_the_folder(tmp_path, content, message):
    for name in ("data/train", "other"):
        write(tmp_path / name, CLICKS)
    (tmp_path / "data/dataset_dict.json").write_text(content)
    refused(lambda: read(tmp_path / "data"), "dataset_dict.json", message)


def listed(folder):
    (folder / "state.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (listed, "is no JSON object; save the data set again"),
        (missing, "no such file, which"),
        (cut, "can't be read"),
        (stateless, "give the folder that save_to_disk of Hugging Face's datasets wrote"),
        (featureless, "dataset_info.json has no 'features'; save the data set again"),
        (empty, "the data set has no rows"),
    ],
)
def test_bad_folders(tmp_path, damage, message):
    damage(write(tmp_path / "data", CLICKS))
    refused(lambda: read(tmp_path / "data"), str(tmp_path / "data"), message)


def test_a_changed_file_that_is_not_of_the_data_set_changes_nothing(tmp_path):
    shutil.copytree(SAVED / "films", tmp_path / "films")
    (tmp_path / "films/data-00002-of-00003.arrow").unlink()
    again = read(SAVED / "clicks", items_path=str(tmp_path / "films"))
    assert again.items.equals(read(SAVED / "clicks", items_path=str(SAVED / "films")).items)
