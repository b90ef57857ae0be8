"""Courses with long descriptions and few participants, whose completion is the rating."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data.synthetic import world
from kd_jax.data.synthetic.world import pick, sentence, words

TOPICS = {
    "statistics": words("probability regression sampling variance hypothesis bayesian estimator"),
    "programming": words("python function loop compiler debugging algorithm recursion testing"),
    "history": words("empire revolution treaty dynasty archive medieval colonial monarch"),
    "biology": words("cell genome protein evolution enzyme ecology organism mutation"),
    "music": words("harmony rhythm chord melody orchestra notation counterpoint tempo"),
    "finance": words("portfolio bond equity interest derivative audit budget liability"),
    "design": words("typography layout colour wireframe prototype contrast grid usability"),
    "languages": words("grammar vocabulary pronunciation verb tense dialogue listening accent"),
}
NAMES = tuple(TOPICS)
LEVELS = ("beginner", "intermediate", "advanced")
COMMON = words(
    "students learn week lesson project quiz reading together example practice first then"
    " understand apply course videos homework discussion chapter"
)
START = datetime.datetime(2023, 1, 9, tzinfo=datetime.UTC)
SPAN = 600  # days


def write(
    folder: Path,
    seed: int = 0,
    users: int = 1000,
    items: int = 160,
    per_user: int = 6,
    length: int = 160,
) -> list[Path]:
    """Writes courses.jsonl and completions.csv, and returns their paths.

    completion: the share of a course that a participant finished, 0 to 1, with two digits; it is
    high where the course has a topic that the participant likes. per_user: mean number of courses
    that a user begins, two at least. length: words in a description.
    """
    world.enough("items", items, 20)
    world.enough("per_user", per_user, 3)
    world.enough("length", length, 20)
    rng = np.random.default_rng([seed, 2])
    hidden = world.make(rng, users, items, len(TOPICS))
    courses = [_course(rng, number, topic, length) for number, topic in enumerate(hidden.topic)]
    # A third of the interest: many begin what is not their subject, and give up.
    interest = hidden.appeal + (hidden.interest(slice(None)) - hidden.appeal) / 3
    rows = []
    for user, begun in enumerate(world.draw(rng, interest, 2 + rng.poisson(per_user - 2, users))):
        days = np.sort(rng.uniform(0, SPAN, len(begun)))
        for item, day in zip(begun, days, strict=True):
            liking = hidden.taste[user, hidden.topic[item]]
            done = rng.beta(1 + 1.5 * liking, 2)
            when = START + datetime.timedelta(seconds=int(day * 86_400))
            rows.append((when, f"s{user:05d}", courses[item]["course"], round(float(done), 2)))
    rows.sort()
    lines = (f"{user},{course},{when:%Y-%m-%dT%H:%M:%SZ},{x}" for when, user, course, x in rows)
    return [
        world.write_text(folder / "completions.csv", ["user,course,started,completion", *lines]),
        world.write_text(folder / "courses.jsonl", map(json.dumps, courses)),
    ]


def _course(rng: np.random.Generator, number: int, topic: int, length: int) -> dict[str, Any]:
    name = NAMES[topic]
    known = TOPICS[name]
    sentences: list[str] = []
    while sum(len(text.split()) for text in sentences) < length:
        sentences.append(sentence(rng, [*known, *COMMON], int(rng.integers(8, 16))))
    return {
        "course": f"{name[:3]}-{number:04d}",
        "title": f"{pick(rng, world.ADJECTIVES)[0].title()} {' and '.join(pick(rng, known, 2))}",
        "subject": name,
        "level": pick(rng, LEVELS)[0],
        "hours": int(rng.integers(4, 60)),
        "description": " ".join(sentences),
    }
