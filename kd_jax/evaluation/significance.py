"""Paired comparisons of models over users, averaged over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from kd_jax.core.errors import InputError


@dataclass(frozen=True)
class Gain:
    """The gain of a candidate over a baseline; None where it is undefined (a baseline of 0)."""

    baseline: float
    candidate: float
    relative: float | None
    ci95: tuple[float | None, float | None]
    p_value: float


def paired_bootstrap(
    baseline: Float[np.ndarray, "*S U"],
    candidate: Float[np.ndarray, "*S U"],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Gain:
    """The relative gain of the candidate's mean over the baseline's, with a 95 % interval.

    The interval is the percentile interval of the paired bootstrap (Efron & Tibshirani 1993).
    Values are per user, optionally for several training seeds (leading axis, averaged first; the
    two sides may have different numbers of them). Users are resampled, the same ones on both sides,
    and users without a value (NaN) are left out. p_value is two-sided, for the null hypothesis of
    no difference: twice the share of resamples on the rarer side of zero, with one added to count
    and total. The same seed gives the same numbers.

    Raises InputError if the two sides have different users or none.
    """
    a, b = (np.atleast_2d(np.asarray(v, np.float64)).mean(axis=0) for v in (baseline, candidate))
    if a.shape != b.shape:
        raise InputError(
            f"paired bootstrap: {len(a)} users in the baseline, {len(b)} in the candidate; use the"
            " same"
        )
    both = ~np.isnan(a + b)
    a, b = a[both], b[both]
    if not len(a):
        raise InputError(
            "paired bootstrap: no user has a value on both sides; evaluate on a split with targets"
        )
    mean_a, mean_b = _resampled((a, b), resamples, seed)
    rarer = min(int(np.sum(mean_b <= mean_a)), int(np.sum(mean_b >= mean_a)))
    base, cand = float(a.mean()), float(b.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = (
            mean_b / mean_a - 1
        )  # inf where a resample holds none of the users that the baseline serves
    return Gain(
        baseline=base,
        candidate=cand,
        relative=cand / base - 1 if base > 0 else None,
        ci95=_interval(relative) if base > 0 else (None, None),
        p_value=min(1.0, 2 * (rarer + 1) / (resamples + 1)),
    )


def _resampled(
    values: Sequence[Float[np.ndarray, " U"]], resamples: int, seed: int
) -> Float[np.ndarray, "N R"]:
    """The means of each array over the same drawn users, for each resample."""
    rng = np.random.default_rng(seed)
    users = len(values[0])
    means = np.empty((len(values), resamples))
    at_once = max(1, 500_000 // users)  # the drawn indices stay in cache
    for start in range(0, resamples, at_once):
        part = slice(start, min(start + at_once, resamples))
        drawn = rng.integers(0, users, (part.stop - part.start, users))
        for found, of_users in zip(means, values, strict=True):
            found[part] = np.take(of_users, drawn).mean(axis=1)
    return means


def _interval(values: Float[np.ndarray, " R"]) -> tuple[float | None, float | None]:
    """The percentile interval of 95 %; None for an end that is infinite."""
    known = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
    ends = np.quantile(known, [0.025, 0.975], method="inverted_cdf")
    low, high = (float(end) if np.isfinite(end) else None for end in ends)
    return low, high


@dataclass(frozen=True)
class Transfer:
    """What a student has of its teacher's lead over the same student trained without it.

    lead: teacher - student. ratio: (candidate - student) / (teacher - student); None, as is ci95,
    where lead_ci95 contains 0.
    """

    ratio: float | None
    ci95: tuple[float | None, float | None]
    lead: float
    lead_ci95: tuple[float | None, float | None]


def transfer(
    student: Float[np.ndarray, "*S U"],
    teacher: Float[np.ndarray, "*S U"],
    candidate: Float[np.ndarray, "*S U"],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Transfer:
    """The transfer ratio of ``candidate``, with paired bootstrap intervals as in that function.

    In each resample it is the ratio of the differences of the means. Up to one resample in forty
    may have a lead of the other sign, where the lead's interval ends near 0; the interval of the
    ratio is then wide. Raises InputError as ``paired_bootstrap``.
    """
    sides = [np.atleast_2d(np.asarray(v, np.float64)).mean(axis=0)
             for v in (student, teacher, candidate)]  # fmt: skip
    if len({side.shape for side in sides}) > 1:
        raise InputError(
            f"transfer ratio: {', '.join(str(len(side)) for side in sides)} users in the student,"
            " the teacher and the candidate; use the same"
        )
    stacked = np.stack(sides)
    stacked = stacked[:, ~np.isnan(stacked).any(axis=0)]
    if not stacked.shape[1]:
        raise InputError(
            "transfer ratio: no user has a value of all three; evaluate on a split with targets"
        )
    base, large, small = _resampled(tuple(stacked), resamples, seed)
    lead_ci95 = low, high = _interval(large - base)
    means = stacked.mean(axis=1)
    lead = float(means[1] - means[0])
    if low is None or high is None or low <= 0 <= high:
        return Transfer(None, (None, None), lead, lead_ci95)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (small - base) / (large - base)
    return Transfer(float(means[2] - means[0]) / lead, _interval(ratios), lead, lead_ci95)


@dataclass(frozen=True)
class Comparison:
    """The baselines that one model is compared with.

    over: baseline -> the field of ``gain`` in report/metrics.json that holds the comparison; ''
    for those fields that stand beside the means. The first is that of the headline. teacher: the
    model whose lead over the first the candidate is to take over (``transfer``); '' for none.
    """

    candidate: str
    over: Mapping[str, str]
    teacher: str = ""

    @property
    def baseline(self) -> str:
        return next(iter(self.over))

    def with_lists(self, names: Iterable[str]) -> Comparison:
        """With the lists of other systems, called ``names``, among the baselines."""
        return replace(self, over=dict(self.over) | {name: f"over_{name}" for name in names})


TRANSFER = "transfer"  # the field of ``gain`` that holds a ``Transfer``
PerUser = Mapping[str, np.ndarray]


def gains(
    per_user: Mapping[str, Sequence[PerUser]],
    names: Sequence[str],
    comparisons: Sequence[Comparison],
    resamples: int,
) -> dict[str, Any]:
    """The comparisons for each metric in ``names``, as field ``gain`` of report/metrics.json.

    per_user: model -> one mapping per seed of metric -> f32 [U] (NaN where a user has no value).
    A candidate is compared with the baselines that are there.
    """
    found: dict[str, Any] = {}
    for name in names:
        values = {
            model: np.stack([metrics[name] for metrics in seeds])
            for model, seeds in per_user.items()
            if name in seeds[0]
        }
        entry: dict[str, Any] = {}
        for comparison in comparisons:
            if comparison.candidate in values:
                more = _compared(values, comparison, resamples)
                entry |= {field: more[field] for field in more if field not in entry}
        if entry:
            found[name] = entry
    return found


def _compared(
    values: Mapping[str, np.ndarray], comparison: Comparison, resamples: int
) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for baseline, field in comparison.over.items():
        if baseline not in values:
            continue
        gain = paired_bootstrap(values[baseline], values[comparison.candidate], resamples=resamples)
        entry.setdefault(baseline, gain.baseline)
        entry.setdefault(comparison.candidate, gain.candidate)
        change = {"relative": gain.relative, "ci95": gain.ci95, "p_value": gain.p_value}
        entry |= {field: change} if field else change
    three = (comparison.baseline, comparison.teacher, comparison.candidate)
    if all(name in values for name in three):
        found = transfer(*(values[name] for name in three), resamples=resamples)
        entry[TRANSFER] = {"taught_by": comparison.teacher} | dataclasses.asdict(found)
    return entry
