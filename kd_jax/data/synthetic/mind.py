"""News and impressions in the format of MIND (Wu et al., ACL 2020), in folders train and dev."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from kd_jax.data.synthetic import world
from kd_jax.data.synthetic.world import World, pick, sentence, words

TOPICS = {
    ("sports", "football_nfl"): words("quarterback touchdown coach season injury playoffs"),
    ("sports", "basketball_nba"): words("rebound guard arena rookie dunk finals"),
    ("finance", "markets"): words("stocks shares earnings tariffs investors bank"),
    ("weather", "weathertopstories"): words("storm snow forecast flood temperatures wind"),
    ("health", "wellness"): words("doctors sleep diet vaccine symptoms exercise"),
    ("movies", "movienews"): words("film actress trailer studio director premiere"),
    ("news", "newspolitics"): words("senate hearing vote president witness campaign"),
    ("autos", "autosnews"): words("pickup engine recall hybrid sedan driver"),
}
NAMES = tuple(TOPICS)
COMMON = words("after new says over could first before why here more what back still report")
START = datetime.datetime(2019, 11, 9)  # the first day of MINDsmall_train
DAY = 86_400
TRAIN_DAYS, DEV_DAYS, PAST_DAYS = 6, 1, 14


@dataclasses.dataclass(frozen=True)
class News:
    """born: seconds since ``START``, in order. lines: as in news.tsv. names: 'N1001', …."""

    born: Int64[np.ndarray, " I"]
    lines: list[str]
    names: list[str]


def write(
    folder: Path, seed: int = 0, users: int = 500, items: int = 800, per_user: int = 6
) -> list[Path]:
    """Writes behaviors.tsv and news.tsv in train/ and dev/, and returns their paths.

    News are shown for a day, so that about half of dev's clicks are on news without a click in
    train. A user's history is that before the first day, the same in every line, as in MIND. An
    impression has 4 to 20 news and at least one click. items: how many news there are. per_user:
    mean number of impressions.
    """
    world.enough("items", items, 100)
    rng = np.random.default_rng([seed, 4])
    hidden = world.make(rng, users, items, len(TOPICS))
    news = _news(rng, hidden)
    past = np.flatnonzero(news.born < 0)
    sizes = np.minimum(rng.poisson(8, users), len(past))  # some users have no history
    histories = world.draw(rng, hidden.interest(slice(None))[:, past], sizes)
    history = [" ".join(news.names[past[place]] for place in row) for row in histories]
    written = []
    count = 0
    for part, first, days in (("train", 0, TRAIN_DAYS), ("dev", TRAIN_DAYS, DEV_DAYS)):
        size = rng.poisson(users * per_user * days / (TRAIN_DAYS + DEV_DAYS)) + 1
        time = first * DAY + np.sort(rng.integers(days * DAY, size=size))
        lines, used = [], set(" ".join(history).split())
        for moment, user in zip(time, rng.integers(users, size=size), strict=True):
            count += 1
            shown = _impression(rng, hidden, news, int(user), int(moment))
            used |= {token[:-2] for token in shown}
            when = _written(START + datetime.timedelta(seconds=int(moment)))
            past_of_user = history[user]
            lines.append(f"{count}\tU{user + 1}\t{when}\t{past_of_user}\t{' '.join(shown)}")
        texts = [line for name, line in zip(news.names, news.lines, strict=True) if name in used]
        written += [
            world.write_text(folder / part / "behaviors.tsv", lines),
            world.write_text(folder / part / "news.tsv", texts),
        ]
    return written


def _news(rng: np.random.Generator, hidden: World) -> News:
    items = len(hidden.topic)
    born = np.sort(rng.integers(-PAST_DAYS * DAY, (TRAIN_DAYS + DEV_DAYS) * DAY, size=items))
    lines, names = [], [f"N{1001 + number}" for number in range(items)]
    for name, topic in zip(names, hidden.topic, strict=True):
        category, subcategory = NAMES[topic]
        known = [*TOPICS[category, subcategory], *COMMON]
        title = sentence(rng, known, int(rng.integers(5, 10)))[:-1]
        if rng.random() < 0.1:
            title = f'"{title}"'  # quotes are a part of the text
        abstract = sentence(rng, known, 18) if rng.random() < 0.95 else ""
        label = pick(rng, TOPICS[category, subcategory])[0].title()
        entity = {"Label": label, "Type": "C", "WikidataId": f"Q{rng.integers(1, 10**6)}"}
        entities = json.dumps([entity] if rng.random() < 0.5 else [])
        fields = (name, category, subcategory, title, abstract, f"https://news.example/{name}")
        lines.append("\t".join((*fields, entities, "[]")))
    return News(born, lines, names)


def _impression(
    rng: np.random.Generator, hidden: World, news: News, user: int, time: int
) -> list[str]:
    """What a user is shown, as N1001-1 or N1001-0; the clicks follow the user's taste."""
    recent = np.flatnonzero((news.born <= time) & (news.born > time - DAY))
    if len(recent) < 4:
        recent = np.argsort(np.abs(news.born - time), kind="stable")[:4]
    size = min(int(rng.integers(4, 21)), len(recent))
    shown = recent[world.draw(rng, hidden.appeal[None, recent], np.array([size]))[0]]
    shown = shown[rng.permutation(size)]
    interest: Float64[np.ndarray, " n"] = hidden.interest(np.array([user]))[0, shown]
    clicks = world.draw(rng, interest[None], np.array([1 + (rng.random() < 0.15)]))[0]
    clicked = np.isin(np.arange(size), clicks)
    return [f"{news.names[item]}-{int(hit)}" for item, hit in zip(shown, clicked, strict=True)]


def _written(time: datetime.datetime) -> str:
    """As MIND writes it: 11/9/2019 9:05:58 AM, without zeros in front of day and hour."""
    half = "AM" if time.hour < 12 else "PM"
    return f"{time.month}/{time.day}/{time.year} {time.hour % 12 or 12}:{time:%M:%S} {half}"
