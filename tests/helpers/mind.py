"""A small folder of MIND's layout: users click news of their own category."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np

CATEGORIES = ("drama", "comedy", "horror", "western")
NEWS = 40


def write(folder: Path, days=(9, 10, 11, 12), users=range(24), seed=0) -> Path:
    """behaviors.tsv and news.tsv; each user has an impression of 6 news on each of the ``days``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    texts = [
        f"N{n}\t{CATEGORIES[n % 4]}\tfilm\tfilm {' '.join(str(n))}\t{CATEGORIES[n % 4]}\thttps://x\t[]\t[]"
        for n in range(NEWS)
    ]
    (folder / "news.tsv").write_text("\n".join(texts) + "\n")
    lines = []
    for day in days:
        for user in users:
            own = rng.permutation(np.arange(user % 4, NEWS, 4))
            other = rng.permutation(np.setdiff1d(np.arange(NEWS), own))[:4]
            history = " ".join(f"N{n}" for n in sorted(own[2:6]))
            shown = [f"N{own[0]}-1", f"N{own[1]}-{int(user % 3 == 0)}", *(f"N{n}-0" for n in other)]
            rng.shuffle(shown)
            time = datetime.datetime(2019, 11, day, 8, user % 60, day)
            stamp = f"{time.month}/{time.day}/{time.year} {time:%I:%M:%S %p}"
            lines.append(f"{len(lines) + 1}\tU{user}\t{stamp}\t{history}\t{' '.join(shown)}")
    (folder / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    return folder
