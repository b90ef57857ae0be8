"""Synthetic data: the same bytes again, readable by the readers, with texts that tell something."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from configs import courses, posts
from kd_jax.data import readers
from kd_jax.data.synthetic import SHAPES, __main__

SIZES = {
    "amazon": {"users": 80, "items": 60},
    "courses": {"users": 80, "items": 40, "length": 30},
    "mind": {"users": 60, "items": 200},
    "posts": {"users": 60, "items": 120, "per_user": 30},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every shape in a folder of its own, as the command writes it."""
    root = tmp_path_factory.mktemp("synthetic")
    for name, sizes in SIZES.items():
        flags = [f"--{field}={value}" for field, value in sizes.items()]
        assert __main__.main([name, f"--out={root / name}", *flags]) == 0
    return root


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def raw(name, folder):
    """The data as the reader reads it that its config names."""
    if name == "amazon":
        return readers.read("amazon", {"path": str(folder)})
    if name == "mind":
        return readers.read("mind", {"path": str(folder / "train")})
    section = {"posts": posts, "courses": courses}[name].get_config().data.files.to_dict()
    for field in ("path", "items_path"):
        section[field] = str(folder / Path(section[field]).name)
    return readers.read("files", section)


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_seed_writes_the_same_bytes(name, written, tmp_path):
    first = contents(written / name)
    paths = SHAPES[name](tmp_path / "again", **SIZES[name])
    assert {str(path.relative_to(tmp_path / "again")) for path in paths} == set(first)
    assert contents(tmp_path / "again") == first
    SHAPES[name](tmp_path / "other", seed=1, **SIZES[name])
    other = contents(tmp_path / "other")
    assert other.keys() == first.keys() and all(other[key] != first[key] for key in first)


@pytest.mark.parametrize("name", SHAPES)
def test_readers_read_it_and_texts_tell_what_users_choose(name, written):
    """Items of one user share more words than items drawn at random."""
    found = raw(name, written / name)
    assert found.counts["malformed"] == 0 and found.interactions.height > 200
    items = found.items.filter(pl.col("item").is_in(found.interactions["item"].implode()))
    texts = items.select(pl.exclude("item", "author", "created", "hours")).cast(pl.String)
    lists = [set(re.findall("[a-z]{4,}", " ".join(row).lower())) for row in texts.rows()]
    words = {word: place for place, word in enumerate(sorted(set().union(*lists)))}
    counts = np.zeros((len(lists), len(words)))
    for row, known in enumerate(lists):
        counts[row, [words[word] for word in known]] = 1
    counts *= np.log(len(lists) / counts.sum(0))  # words that all texts have tell nothing
    counts /= np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)
    alike = counts @ counts.T
    place = {item: row for row, item in enumerate(items["item"])}
    of_user = found.interactions.unique(["user", "item"], maintain_order=True)
    of_user = of_user.filter(pl.col("item").is_in(items["item"].implode()))
    rows = of_user.group_by("user", maintain_order=True).agg("item")["item"].to_list()
    pairs = [(place[a], place[b]) for row in rows for a, b in zip(row, row[1:], strict=False)]
    one, other = np.array(pairs).T
    shuffled = np.random.default_rng(0).permutation(other)
    different = (one != other) & (one != shuffled)
    assert alike[one, other][different].mean() > 1.3 * alike[one, shuffled][different].mean()


def test_posts_have_repeats_bursts_and_all_events(written):
    log = pl.read_csv(written / "posts/events.csv")
    assert set(log["event"]) == {"view", "like", "unlike", "reply"}
    assert log["timestamp"].is_sorted()
    views = log.filter(event="view")
    assert views.height > views.unique(["user", "post"]).height
    by_hour = views.group_by(pl.col("timestamp") // 3_600_000).len()["len"]
    assert by_hour.max() > 4 * by_hour.mean()
    pair = ["user", "post"]
    first = log.group_by(*pair, "event").agg(pl.col("timestamp").min())
    likes, unlikes = (first.filter(event=event) for event in ("like", "unlike"))
    both = unlikes.join(likes, on=pair, how="left")
    assert (both["timestamp"] > both["timestamp_right"]).all()
    texts = pl.read_ndjson(written / "posts/posts.jsonl")
    assert (
        texts["text"].str.contains(r"#\w+").any() and texts["text"].str.contains("https://").any()
    )
    assert texts["post"].is_sorted() and texts["post"].min() > 2**53
    born = views.join(texts, on="post")
    assert (born["timestamp"] >= born["created"]).all()


def test_completion_is_a_share_that_follows_taste(written):
    found = raw("courses", written / "courses").interactions["rating"]
    assert found.min() >= 0 and found.max() <= 1
    assert (found < 0.5).any() and (found > 0.5).any()
    lengths = raw("courses", written / "courses").items["description"].str.count_matches(r"\S+")
    assert lengths.min() >= SIZES["courses"]["length"]


def test_about_half_of_the_news_clicked_in_dev_are_new(written):
    train, dev = (
        readers.read("mind", {"path": str(written / "mind" / part)}) for part in ("train", "dev")
    )
    assert train.impressions.height > dev.impressions.height > 0
    for part in (train, dev):
        shown = part.impressions
        assert shown["items"].list.len().min() >= 4 and shown["clicked"].list.any().all()
        assert set(shown["items"].explode()) <= set(part.items["item"])
    clicked = set(train.interactions["item"])
    of_dev = readers.read("mind", {"path": str(written / "mind/dev"), "history": False})
    new = [item not in clicked for item in of_dev.interactions["item"]]
    assert 0.3 < np.mean(new) < 0.8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("posts", "--items=3"), "--items=3 must be 50 or more"),
        (("amazon", "--users=0"), "--users=0 must be 1 or more"),
        (("mind", "--seed=-1"), "--seed=-1 must be 0 or more"),
    ],
)
def test_sizes_that_cannot_be(tmp_path, capsys, flags, message):
    assert __main__.main([*flags, f"--out={tmp_path / 'data'}"]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "data").exists()
