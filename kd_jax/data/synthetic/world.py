"""What all shapes share: hidden topics of items, tastes of users, words, ids and files."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic

FIRST, SECOND = 4.0, 2.5  # log odds of a user's two favourite topics
LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))


@dataclasses.dataclass(frozen=True)
class World:
    """The hidden structure.

    topic: of each item. appeal: log of each item's popularity, which falls like a power of its
    rank. taste: log odds of each topic for each user.
    """

    topic: Int64[np.ndarray, " I"]
    appeal: Float64[np.ndarray, " I"]
    taste: Float64[np.ndarray, "U T"]

    def interest(self, users: Int64[np.ndarray, " B"] | slice) -> Float64[np.ndarray, "B I"]:
        """The log odds of every item for some users."""
        return self.taste[users][:, self.topic] + self.appeal


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


ADJECTIVES = words("new classic daily gentle simple rich light bold fresh warm clear small")


def make(rng: np.random.Generator, users: int, items: int, topics: int) -> World:
    """A World; every user has two favourite topics, which may be the same."""
    taste = np.zeros((users, topics))
    first, second = rng.integers(topics, size=(2, users))
    taste[np.arange(users), second] = SECOND
    taste[np.arange(users), first] = FIRST
    appeal = -0.8 * np.log(rng.permutation(items) + 5.0)
    return World(rng.integers(topics, size=items), appeal, taste)


def draw(
    rng: np.random.Generator, interest: Float64[np.ndarray, "B I"], sizes: Int64[np.ndarray, " B"]
) -> list[Int64[np.ndarray, " n"]]:
    """For each row so many different items, in proportion to exp(interest), in order of drawing.

    Adding Gumbel noise and sorting draws without replacement (Vieira 2014).
    """
    order = np.argsort(-(interest + rng.gumbel(size=interest.shape)), axis=1, kind="stable")
    return [row[:size] for row, size in zip(order, sizes, strict=True)]


def pick(rng: np.random.Generator, words: Sequence[str], size: int = 1) -> list[str]:
    """Some of the words, which may repeat."""
    return [words[index] for index in rng.integers(len(words), size=size)]


def sentence(rng: np.random.Generator, words: Sequence[str], size: int) -> str:
    """Words in random order, with a capital letter and a full stop."""
    text = " ".join(pick(rng, words, size))
    return f"{text[0].upper()}{text[1:]}."


def codes(rng: np.random.Generator, start: str, length: int, size: int) -> list[str]:
    """Different ids: ``start`` and so many random letters and digits."""
    found: dict[str, None] = {}
    while len(found) < size:
        letters = LETTERS[rng.integers(len(LETTERS), size=(size, length))]
        found |= dict.fromkeys(start + "".join(row) for row in letters)
    return list(found)[:size]


def write_text(path: Path, lines: Iterable[str]) -> Path:
    """Writes lines, compressed where the name ends in .gz; returns the path."""
    data = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as part:
        # Name and time of the gzip header are left out: the bytes depend on the content alone.
        part.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def enough(name: str, value: int, least: int) -> None:
    """Raises InputError for a size too small to fill the format."""
    if value < least:
        raise InputError(f"--{name}={value} must be {least} or more")
