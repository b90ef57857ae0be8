"""Losses of candidates by their definition, one row at a time, in NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np


class Row(SimpleNamespace):
    """The candidates of a row: arrays [K], as in ``Candidates``.

    fixed: the student's scores that decide on weights and draws, which have no gradient.
    """

    def at(self, columns):
        return [int(i) for i in columns if self.valid[i]]

    @property
    def best(self):
        """The teacher's columns that take part."""
        return self.at(range(self.num_top))


def log_softmax(x):
    x = np.asarray(x, np.float64) - np.max(x)
    return x - np.log(np.exp(x).sum())


def softplus(x):
    return np.logaddexp(0.0, x)


def plackett_luce(student, ordered, behind):
    """-log of the chance that ``ordered`` come first, in this order, before those ``behind``."""
    total = 0.0
    for place in range(len(ordered)):
        left = [*ordered[place:], *behind]
        total += np.log(np.exp(student[left]).sum()) - student[ordered[place]]
    return total


def of_rd(loss, key, rows):
    def one(number, student, row):
        weights = np.zeros(len(student))
        for i in row.best:
            drawn = row.at(range(row.num_top, len(student)))
            above = sum(row.fixed[j] >= row.fixed[i] for j in drawn)
            rank = 1 + np.floor(above * (row.num_items - 1) / loss.drawn)
            weights[i] = np.exp(-(i + 1) / loss.rank_scale)
            if loss.mu:
                weights[i] *= np.tanh(max(loss.mu * (rank - (i + 1)), 0))
        if not weights.sum():
            return 0.0
        return np.sum(weights / weights.sum() * softplus(-student))

    return one


def of_rrd(loss, key, rows):
    """Equation 9 of DE-RRD: the interesting items in order, and the drawn ones behind them."""
    noise = np.asarray(jax.random.gumbel(key, (rows, loss.top)))

    def one(number, student, row):
        chance = {i: noise[number][i] - i / loss.rank_scale for i in row.best}
        picked = sorted(sorted(chance, key=chance.get)[-loss.interesting :])
        drawn = row.at(range(row.num_top, len(student)))
        return plackett_luce(student, picked, drawn)

    return one


def of_listmle(loss, key, rows):
    return lambda number, student, row: plackett_luce(student, row.best, [])


def of_dcd(loss, key, rows):
    keys, noise = jax.random.split(key), {}

    def one(number, student, row):
        columns = row.at(range(len(student)))
        ranks = {}
        for name, scores in (("student", row.fixed), ("teacher", row.teacher)):
            order = sorted(columns, key=lambda i: -scores[i])
            ranks[name] = {i: place for place, i in enumerate(order)}
        picked = []
        for sign, one_key in zip((1, -1), keys, strict=True):
            if sign not in noise:
                noise[sign] = np.asarray(jax.random.gumbel(one_key, (rows, len(student))))
            gaps = {i: sign * (ranks["student"][i] - ranks["teacher"][i]) for i in columns}
            chance = {
                i: noise[sign][number][i] + np.log(np.tanh(loss.mu * gap))
                for i, gap in gaps.items()
                if gap > 0
            }
            picked.append(sorted(chance, key=chance.get)[-loss.picked :])
        low = sorted(picked[0], key=lambda i: ranks["teacher"][i])
        return plackett_luce(student, low, picked[1])

    return one


def of_rce(loss, key, rows):
    def cross_entropy(student, row, inside, counted):
        log_q, log_p = (log_softmax(scores[inside]) for scores in (student, row.teacher))
        return -sum(
            np.exp(p) * q for i, p, q in zip(inside, log_p, log_q, strict=True) if i in counted
        )

    def one(number, student, row):
        everything = row.at(range(len(student)))
        own = [i for i in everything if row.own[i]]
        shared = [i for i in row.best if i in own]
        rest = [i for i in row.best if i not in own]
        if not row.best:
            return 0.0
        second = np.exp(-loss.beta * len(shared) / len(row.best))
        first = cross_entropy(student, row, own, shared) if shared else 0.0
        return (1 - second) * first + second * cross_entropy(student, row, everything, rest)

    return one


def of_dllm2rec(loss, key, rows):
    def one(number, student, row):
        every = np.exp(-np.arange(1, row.num_top + 1) / loss.rank_scale)
        weights = np.zeros(len(student))
        for i in row.best:
            weights[i] = loss.position * every[i] / every.sum()
            weights[i] += loss.confidence * np.exp(row.teacher[i] - row.teacher[0])
            weights[i] += loss.consistency * row.own[i]
        return np.sum(weights * softplus(-student)) / max(weights.sum(), 1e-30)

    return one


def of_on_policy_kl(loss, key, rows):
    def one(number, student, row):
        columns = row.at(range(len(student)))
        if not columns:
            return 0.0
        log_q, log_p = (log_softmax(scores[columns]) for scores in (student, row.teacher))
        return np.sum(np.exp(log_p) * (log_p - log_q))

    return one


# Name -> (loss, key, number of rows) -> (number of a row, student's scores [K], row) -> its loss.
CANDIDATES = {
    "rd": of_rd,
    "rrd": of_rrd,
    "listmle": of_listmle,
    "dcd": of_dcd,
    "rce": of_rce,
    "dllm2rec": of_dllm2rec,
    "on_policy_kl": of_on_policy_kl,
}
# Their weights or sets depend on the student's ranks and jump where these change.
STEPWISE = ("rd", "dcd", "rce", "dllm2rec", "on_policy_kl")
# Hyper-parameters where the defaults do not suit a toy catalogue.
HYPER: dict = {
    "rd": {"top": 9, "drawn": 12},
    "rrd": {"top": 20, "drawn": 12, "interesting": 7},
    "dcd": {"top": 20, "own": 15, "drawn": 12, "picked": 6},
    "rce": {"top": 20, "own": 60, "drawn": 12},
    "dllm2rec": {"own": 60},
    "on_policy_kl": {"own": 25, "drawn": 12},
}
