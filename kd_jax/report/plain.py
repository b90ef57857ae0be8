"""The result of a run without the name of a metric: who finds something, and what that costs."""

from __future__ import annotations

from typing import Any

from kd_jax.evaluation.names import LOWER_IS_BETTER
from kd_jax.report.headline import main_gain
from kd_jax.report.legend import Legend
from kd_jax.report.summary import (
    Models,
    by_model,
    decimals,
    has_text,
    human_bytes,
    human_time,
    mean_std,
    metric_label,
    model_means,
    scaled,
    share,
    spoken,
)
from kd_jax.report.transfer import teacher_of

FOUND = "hit_rate@"
NUMBERS = {1: "first item", 5: "first five", 10: "first ten", 20: "first twenty"}
# Slices of items, in words that need no explanation.
PARTS = {"cold": "items that nobody had chosen before", "tail": "seldom chosen items"}
NEXT_TO_NOTHING = 0.05  # of the value for all items
WORDS = ("", " thousand", " million", " billion")


def plain(metrics: dict[str, Any], legend: Legend) -> str:
    """What the candidate finds, beside the other models, and its size and speed; '' if unknown."""
    return " ".join(paragraphs(metrics, legend))


def paragraphs(metrics: dict[str, Any], legend: Legend) -> list[str]:
    """The words of ``plain``: whether this was a trial, what is found, and what it costs."""
    models = by_model(metrics, legend)
    found = [part(metrics, models, legend) for part in (_found, _limits, _as_served)]
    words = " ".join(part for part in found if part)
    return [part for part in (_trial(metrics), words, _cost(metrics, models, legend)) if part]


def _found(metrics: dict[str, Any], models: Models, legend: Legend) -> str:
    cuts = sorted(
        (int(name.removeprefix(FOUND)), name)
        for entry in models.get(legend.candidate, ())[:1]
        for name in entry.get("test") or {}
        if name.startswith(FOUND) and name.removeprefix(FOUND).isdigit()
    )
    if not cuts:
        return ""
    k, name = next((cut for cut in cuts if cut[0] == 10), cuts[0])
    shares = {model: mean for model, (mean, _) in model_means(models, name, "").items()}
    data = metrics.get("dataset") or {}
    count = ((data.get("judged") or {}).get("test") or {}).get("users")
    judged = f" ({count:,} of {data.get('users', count):,} users were judged)" if count else ""
    simple = sorted((model for model in legend.simple if model in shares), key=shares.__getitem__)
    large = teacher_of(main_gain(metrics)[1], legend.large)
    others = [model for model in (legend.baseline, large, *simple[-1:]) if model in shares]
    others = list(dict.fromkeys(others))
    every = [shares[model] for model in (legend.candidate, *others)]
    exact = len({round(100 * value) for value in every}) < len(every)  # two would look the same
    first = (
        f"{_of_hundred(every[0], exact)} of 100 users find something that they chose later among"
        f" the {NUMBERS.get(k, f'first {k}')} of the"
        f" {spoken(legend.candidate)} student{judged}."
    )
    names = {legend.baseline: "the same student trained on its own"} | {
        large: f"the {spoken(large)}" + ("" if large == legend.large else " of its teachers")
    }
    phrases = [
        f"{_of_hundred(value, exact)} with {names.get(model) or legend.simple[model].name}"
        for model, value in zip(others, every[1:], strict=True)
    ]
    if not phrases:
        return first
    last = f" and {phrases[-1]}" if len(phrases) > 1 else phrases[-1]
    return f"{first} It is {', '.join(phrases[:-1])}{last}."


def _limits(metrics: dict[str, Any], models: Models, legend: Legend) -> str:
    """For which items the candidate finds next to nothing, and how many items anybody is shown."""
    metric, _, _ = main_gain(metrics)
    rows = models.get(legend.candidate, ())
    every = mean_std(rows, "test", metric)[0]
    if not every or metric.partition("/")[0] in LOWER_IS_BETTER:
        return ""
    phrases = []
    for part, words in PARTS.items():
        mean = mean_std(rows, "slices", part, metric)[0]
        if mean is not None and mean < NEXT_TO_NOTHING * every:
            phrases.append(words)
    found = ""
    if phrases:
        found = f"The student finds next to nothing among {' and '.join(phrases)}"
    shown = mean_std(rows, "test", f"coverage@{metric.rpartition('@')[2]}")[0]
    if shown is None:
        return f"{found}." if found else ""
    lists = f"the lists of all users together show {share(shown)} of the catalogue"
    return f"{found}, and {lists}." if found else f"{lists[0].upper()}{lists[1:]}."


def _as_served(metrics: dict[str, Any], models: Models, legend: Legend) -> str:
    """What is different about the candidate as it is served; '' where nothing is."""
    rows = models.get(legend.candidate, ())
    if not any(row.get("served") for row in rows):
        return ""
    metric = main_gain(metrics)[0].partition("/")[0]
    before, after = mean_std(rows, "test", metric)[0], mean_std(rows, "served", "test", metric)[0]
    phrases = []
    if before is not None and after is not None:
        phrases.append(f"{metric_label(metric)} is {decimals(after)} instead of {decimals(before)}")
    names = next(iter(rows)).get("test") or {}
    cuts = [int(name.removeprefix("recall@")) for name in names if name.startswith("recall@")]
    k = max(cuts, default=0)
    path = "slices", "cold", f"recall@{k}"
    trained, now = mean_std(rows, *path)[0], mean_std(rows, "served", *path)[0]
    if trained is not None and now is not None:
        phrases.append(
            f"{share(now)} of what users choose among new items is in their"
            f" {NUMBERS.get(k, f'first {k}')} instead of {share(trained)}"
        )
    if not phrases:
        return ""
    return f"As it is served, with the newest clicks of known users, {', and '.join(phrases)}."


def _trial(metrics: dict[str, Any]) -> str:
    data = metrics.get("dataset") or {}
    left_out = data.get("beyond_max_users")
    if not left_out:
        return ""
    return (
        f"A trial: data.max_users keeps {data['users']:,} users, and {left_out:,} interactions of"
        " others are left out. Do not compare these figures with those of all data."
    )


def _of_hundred(share: float, exact: bool) -> str:
    """A whole number; one decimal below ten, or if ``exact``."""
    value = 100 * share
    return f"{value:.0f}" if value >= 9.95 and not exact else f"{value:.1f}"


def _cost(metrics: dict[str, Any], models: Models, legend: Legend) -> str:
    def cost(model: str, key: str) -> float | None:
        return mean_std(models.get(model, ()), key)[0]

    teacher = teacher_of(main_gain(metrics)[1], legend.large)
    size, large = cost(legend.candidate, "bytes"), cost(teacher, "bytes")
    if not size:
        return ""
    beside = f" (the {spoken(teacher)}’s: {human_bytes(large)})" if large else ""
    found = f"The parameters of the {spoken(legend.candidate)} student take {human_bytes(size)}"
    found += beside
    if rate := cost(legend.candidate, "users_per_core_second"):
        found += f", and one core makes the lists of {scaled(rate, WORDS)} users a second"
    elif rate := cost(legend.candidate, "users_per_second"):
        found += f", and this machine ranked {scaled(rate, WORDS)} users a second"
    return f"{found}. {_new(models, legend, has_text(metrics))}".strip()


def _new(models: Models, legend: Legend, text: bool) -> str:
    """What a new item and a new user cost, where the student has a map for them."""
    ways = {
        "new_item_seconds": "a new item costs {time}, by the words of its text",
        "new_user_seconds": "a new user costs {time}, by what they chose",
    }
    if not text:
        del ways["new_item_seconds"]  # its text would be its id
    known = {key: mean_std(models.get(legend.candidate, ()), key)[0] for key in ways}
    phrases = [way.format(time=human_time(known[key])) for key, way in ways.items() if known[key]]
    if not phrases:
        return ""
    return f"{phrases[0][:1].upper()}{', and '.join(phrases)[1:]}; nothing is trained for that."
