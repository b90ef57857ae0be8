"""Reviews, metadata and 5-core splits in the formats of Amazon Reviews 2023 (Hou et al. 2024)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kd_jax.data.synthetic import world
from kd_jax.data.synthetic.world import World, pick, sentence, words

CATEGORY = "All_Beauty"
CORE = 5
TOPICS = {
    "Hair Care": words(
        "shampoo conditioner curls frizz keratin scalp comb styling hairspray braid"
    ),
    "Nail Care": words("nail polish lacquer cuticle gel manicure glitter topcoat file acrylic"),
    "Skin Care": words("moisturizer serum retinol acne toner sunscreen wrinkle collagen cleanser"),
    "Fragrance": words("perfume cologne eau spray vanilla musk jasmine scent sandalwood"),
    "Makeup": words("lipstick mascara eyeliner foundation blush palette concealer brow primer"),
    "Shave": words("razor blade aftershave beard trimmer foam clipper stubble mustache"),
    "Bath": words("soap shower bubble loofah scrub towel lavender salt lotion bathtub"),
    "Oral Care": words("toothbrush toothpaste floss whitening mouthwash enamel gum dental"),
}
NAMES = tuple(TOPICS)
BRANDS = ("Aldera", "Boreo", "Clarin", "Dovra", "Elwin", "Farrow", "Gilda", "Hesper")
PRAISE = words("love great works nice perfect happy buy again recommend gift quality")
BLAME = words("broke cheap returned disappointed smell weak leaked waste refund poor")
START, SPAN = 1_420_070_400_000, 8 * 365 * 86_400_000  # 2015, eight years, in ms
HEADER = "user_id,parent_asin,rating,timestamp"


def write(
    folder: Path, seed: int = 0, users: int = 600, items: int = 300, per_user: int = 9
) -> list[Path]:
    """Writes the files of one category and returns their paths.

    Raw: <category>.jsonl.gz, with rows in no order, variants (asin) of one product (parent_asin)
    and repeated reviews; meta_<category>.jsonl.gz, in which a few products are missing. Splits:
    5core/rating_only, last_out, last_out_w_his. users, items: how many there are before the 5-core.
    per_user: mean number of products that a user reviews.
    """
    world.enough("items", items, 40)
    world.enough("per_user", per_user, 3)
    rng = np.random.default_rng([seed, 1])
    hidden = world.make(rng, users, items, len(TOPICS))
    asins = world.codes(rng, "B0", 8, items)
    reviews = _reviews(rng, hidden, asins, per_user)
    lines = [json.dumps(row) for row in reviews]
    known = np.flatnonzero(rng.random(items) > 0.02)
    meta = (json.dumps(_product(rng, hidden.topic[item], asins[item])) for item in known)
    written = [
        world.write_text(folder / f"{CATEGORY}.jsonl.gz", lines),
        world.write_text(folder / f"meta_{CATEGORY}.jsonl.gz", meta),
    ]
    columns = HEADER.split(",")
    rows = _core(pl.DataFrame([{name: row[name] for name in columns} for row in reviews]))
    path = folder / f"{CORE}core/rating_only/{CATEGORY}.csv.gz"
    written.append(world.write_text(path, [HEADER, *map(_csv, rows.rows())]))
    for name in ("last_out", "last_out_w_his"):
        for part, found in _last_out(rows, with_history=name.endswith("_w_his")).items():
            path = folder / f"{CORE}core/{name}/{CATEGORY}.{part}.csv.gz"
            written.append(world.write_text(path, found))
    return written


def _reviews(
    rng: np.random.Generator, hidden: World, asins: list[str], per_user: int
) -> list[dict[str, Any]]:
    users = len(hidden.taste)
    names = world.codes(rng, "AE", 26, users)
    sizes = 2 + rng.poisson(per_user - 2, users)
    first = rng.integers(SPAN, size=users)
    found = []
    for user, bought in enumerate(world.draw(rng, hidden.interest(slice(None)), sizes)):
        again = bought[rng.random(len(bought)) < 0.03]  # another variant of the same product
        bought = np.concatenate([bought, again])
        gaps = rng.exponential(20 * 86_400_000, len(bought)).astype(np.int64)
        gaps[rng.random(len(bought)) < 0.02] = 0  # reviews of the same moment
        for item, time in zip(bought, START + first[user] + np.cumsum(gaps), strict=True):
            topic = hidden.topic[item]
            liked = rng.random() < 0.5 + 0.11 * hidden.taste[user, topic]
            found.append(_review(rng, topic, liked, asins[item], names[user], int(time)))
    return [found[place] for place in rng.permutation(len(found))]


def _review(
    rng: np.random.Generator, topic: int, liked: bool, asin: str, user: str, time: int
) -> dict[str, Any]:
    known = [*TOPICS[NAMES[topic]], *(PRAISE if liked else BLAME)]
    photo = f"https://images.example/{asin}.jpg"
    image = {
        "small_image_url": photo,
        "medium_image_url": photo,
        "large_image_url": photo,
        "attachment_type": "IMAGE",
    }
    return {
        "rating": float(rng.integers(4, 6) if liked else rng.integers(1, 4)),
        "title": sentence(rng, known, 3),
        "text": f"{sentence(rng, known, 8)}<br />{sentence(rng, known, 6)}",
        "images": [image] if rng.random() < 0.1 else [],
        "asin": f"{asin[:-1]}{rng.integers(10)}",
        "parent_asin": asin,
        "user_id": user,
        "timestamp": time,
        "helpful_vote": int(rng.poisson(0.5)),
        "verified_purchase": bool(rng.random() < 0.9),
    }


def _product(rng: np.random.Generator, topic: int, asin: str) -> dict[str, Any]:
    name = NAMES[topic]
    known = TOPICS[name]
    brand = pick(rng, BRANDS)[0]
    kind = " ".join(word.title() for word in pick(rng, known, 2))
    look, size = pick(rng, world.ADJECTIVES)[0].title(), rng.integers(1, 17)
    photo = f"https://images.example/{asin}.jpg"
    details = {"Brand": brand, "Item Form": pick(rng, known)[0].title(), "UPC": str(10**11 + topic)}
    kept = rng.random(len(details)) < 0.8
    return {
        "main_category": CATEGORY.replace("_", " "),
        "title": f"{brand} {look} {kind}, {size} oz",
        "average_rating": round(float(rng.uniform(2, 5)), 1),
        "rating_number": int(rng.integers(1, 5000)),
        "features": [sentence(rng, known, 5) for _ in range(rng.integers(4))],
        "description": [sentence(rng, known, 9) for _ in range(rng.integers(3))],
        "price": round(float(rng.uniform(2, 60)), 2) if rng.random() < 0.5 else None,
        "images": [{"thumb": photo, "large": photo, "variant": "MAIN", "hi_res": None}],
        "videos": [],
        "store": brand if rng.random() < 0.9 else None,
        "categories": ["Beauty & Personal Care", name] if rng.random() < 0.9 else [],
        "details": {key: x for (key, x), keep in zip(details.items(), kept, strict=True) if keep},
        "parent_asin": asin,
        "bought_together": None,
    }


def _core(reviews: pl.DataFrame) -> pl.DataFrame:
    """The earliest review of each pair, user by user in order of time; then the 5-core."""
    rows = reviews.sort("timestamp", maintain_order=True)
    rows = rows.unique(["user_id", "parent_asin"], keep="first", maintain_order=True)
    rows = rows.sort("user_id", maintain_order=True)
    before = -1
    while rows.height != before:
        before = rows.height
        rows = rows.filter(pl.len().over("user_id") >= CORE, pl.len().over("parent_asin") >= CORE)
    return rows


def _csv(row: tuple[Any, ...]) -> str:
    return ",".join(map(str, row))


def _last_out(rows: pl.DataFrame, with_history: bool) -> dict[str, list[str]]:
    """The lines of train, valid and test: each user's last row is test, the one before valid."""
    header = f"{HEADER},history" if with_history else HEADER
    found = {part: [header] for part in ("train", "valid", "test")}
    for _, group in rows.group_by("user_id", maintain_order=True):
        for place, row in enumerate(group.iter_rows()):
            left = group.height - place
            part = "test" if left == 1 else "valid" if left == 2 else "train"
            earlier = " ".join(group["parent_asin"][:place])
            found[part].append(_csv((*row, earlier) if with_history else row))
    return found
