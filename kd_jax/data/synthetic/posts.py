"""Social posts and a log of what users did with them: repeats, bursts, hashtags and links."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from kd_jax.data.synthetic import world
from kd_jax.data.synthetic.world import World, pick, sentence, words

TOPICS = {
    "running": words("marathon sneakers pace intervals trail stretching mileage finish"),
    "cooking": words("recipe garlic oven dough simmer spices skillet dinner"),
    "football": words("goal striker penalty league keeper derby transfer referee"),
    "gardening": words("tomatoes compost seedlings roses pruning soil bulbs watering"),
    "films": words("trailer director premiere sequel actor screenplay cinema scene"),
    "coding": words("compiler bug release refactor commit server latency keyboard"),
    "travel": words("airport hostel passport beach backpack museum train sunset"),
    "cats": words("kitten purring whiskers sofa naps catnip paws vet"),
}
NAMES = tuple(TOPICS)
CHAT = words("so today finally this one why really just look my friends anyone tomorrow wow")
EPOCH, START = 1_288_834_974_657, 1_700_000_000_000  # of the ids, and of the log, in ms
DAY = 86_400_000
CHUNK = 1024  # events that are drawn together


@dataclasses.dataclass(frozen=True)
class Views:
    """Who sees what: users, posts and times in ms since ``START``, one per view."""

    user: Int64[np.ndarray, " N"]
    post: Int64[np.ndarray, " N"]
    time: Int64[np.ndarray, " N"]


def write(
    folder: Path,
    seed: int = 0,
    users: int = 500,
    items: int = 600,
    per_user: int = 40,
    days: int = 14,
) -> list[Path]:
    """Writes posts.jsonl and events.csv, and returns their paths.

    An event is a view, or the like, unlike or reply that follows one within a minute; its time is
    in ms. A user may view a post again. Posts are shown for three days at most, and a third of the
    views is in bursts of one topic. Ids of posts are whole numbers of 19 digits, and grow with
    time. items: how many posts there are. per_user: mean number of views.
    """
    world.enough("items", items, 50)
    rng = np.random.default_rng([seed, 3])
    hidden = world.make(rng, users, items, len(TOPICS))
    # Some posts are older than the log, so that there is something to see on its first day.
    born = np.sort(rng.integers(-2 * DAY, (days - 1) * DAY, size=items))
    ids = [((START + int(time) - EPOCH) << 22) + place for place, time in enumerate(born)]
    posts = (
        json.dumps(
            {
                "post": ids[place],
                "author": f"u{rng.integers(users)}",
                "created": START + int(born[place]),
                "text": _text(rng, topic),
            },
            ensure_ascii=False,
        )
        for place, topic in enumerate(hidden.topic)
    )
    views = _views(rng, hidden, born, users * per_user, days)
    lines = (f"u{u},{ids[p]},{kind},{START + t}" for t, u, p, kind in _events(rng, hidden, views))
    return [
        world.write_text(folder / "posts.jsonl", posts),
        world.write_text(folder / "events.csv", ["user,post,event,timestamp", *lines]),
    ]


def _text(rng: np.random.Generator, topic: int) -> str:
    name = NAMES[topic]
    text = sentence(rng, [*TOPICS[name], *CHAT], int(rng.integers(5, 14)))
    if rng.random() < 0.7:
        text += f" #{name if rng.random() < 0.6 else pick(rng, TOPICS[name])[0]}"
    if rng.random() < 0.3:
        text += f" https://links.example/{rng.integers(16**6):06x}"
    return text + " 🙂" if rng.random() < 0.1 else text


def _views(
    rng: np.random.Generator, hidden: World, born: Int64[np.ndarray, " I"], size: int, days: int
) -> Views:
    user = rng.integers(len(hidden.taste), size=size)
    time = rng.integers(days * DAY, size=size)
    bursts = max(1, size // 200)
    start, about = rng.integers(days * DAY, size=bursts), rng.integers(len(TOPICS), size=bursts)
    burst = rng.integers(3 * bursts, size=size)  # of these the first third exists
    within = burst < bursts
    later = rng.exponential(DAY / 48, size).astype(np.int64)
    time = np.where(within, start[burst % bursts] + later, time)
    topic = np.where(within, about[burst % bursts], -1)
    post = np.concatenate(
        [
            _seen(rng, hidden, born, user[part], time[part], topic[part])
            for part in np.array_split(np.arange(size), -(-size // CHUNK))
        ]
    )
    return Views(user, post, time)


def _seen(
    rng: np.random.Generator,
    hidden: World,
    born: Int64[np.ndarray, " I"],
    user: Int64[np.ndarray, " B"],
    time: Int64[np.ndarray, " B"],
    topic: Int64[np.ndarray, " B"],
) -> Int64[np.ndarray, " B"]:
    """The post of each view; topic: of the burst that the view is in, or -1."""
    age = (time[:, None] - born) / DAY
    score: Float64[np.ndarray, "B I"] = hidden.interest(user) - 2 * age
    score += 3.0 * (hidden.topic == topic[:, None])
    score[(age < 0) | (age > 3)] -= 50.0
    return np.argmax(score + rng.gumbel(size=score.shape), axis=1)


def _events(
    rng: np.random.Generator, hidden: World, views: Views
) -> list[tuple[int, int, int, str]]:
    """(time, user, post, kind) of all events in order of time."""
    found = []
    liking = hidden.taste[views.user, hidden.topic[views.post]] / world.FIRST
    chance = rng.random((3, len(views.user)))
    delay = rng.integers(1, 20_000, size=(3, len(views.user))).cumsum(axis=0)
    rows = zip(views.time, views.user, views.post, liking, chance.T, delay.T, strict=True)
    for time, user, post, likes, (like, unlike, reply), later in rows:
        event = int(time), int(user), int(post)
        found.append((*event, "view"))
        if like < 0.05 + 0.4 * likes:
            found.append((event[0] + int(later[0]), *event[1:], "like"))
            if unlike < 0.08:
                found.append((event[0] + int(later[1]), *event[1:], "unlike"))
        if reply < 0.02 + 0.1 * likes:
            found.append((event[0] + int(later[2]), *event[1:], "reply"))
    return sorted(found)
