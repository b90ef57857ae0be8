"""What the terms of a report mean, in one sentence each."""

from __future__ import annotations

from collections.abc import Iterable

from kd_jax.report.summary import metric_label

METRICS = {
    "ndcg": "is 1 if what a user chose later comes first in the list of {k} items, 0 if none of it"
    " is there; the further down it is, the less it counts.",
    "recall": "is the share of what a user chose later that is in the list of {k} items.",
    "hit_rate": "is the share of users with something that they chose later in the list of {k}"
    " items.",
    "auc": "is the chance that a better rated pair has the higher score than a worse rated one.",
    "log_loss": "is the mean of −log of the probability that a model gave to what was true; lower"
    " is better.",
    "accuracy": "is the share of pairs for which the most probable rating was true.",
    "precision": "is the share of the pairs called good that were good.",
    "f1": "is the harmonic mean of precision and recall.",
    "rmse": "is the root of the mean squared error of the predicted rating; lower is better.",
    "mae": "is the mean error of the predicted rating, whatever its sign; lower is better.",
}
RATE_RECALL = "is the share of the good pairs that were called good."
SLICES = {
    "warm": "Warm items have interactions in the training data.",
    "cold": "Cold items have none, so only their text can tell anything about them; they compete"
    " with all items.",
    "cold_only": "Cold only (cold among cold): the same items, ranked among cold items alone, which"
    " is easier.",
    "head": "Head: the most popular fifth of the warm items.",
    "tail": "Tail: the other four fifths of the warm items.",
    "short": "Short histories: the half of the users who had chosen least.",
    "long": "Long histories: the other users.",
}


def meanings(metrics: Iterable[str], parts: Iterable[str]) -> str:
    """A sentence about each metric and slice that is known, as plain text."""
    found = []
    for metric in metrics:
        base, _, k = metric.partition("@")
        about = RATE_RECALL if base == "recall" and not k else METRICS.get(base, "")
        if about:
            found.append(f"{metric_label(metric)} {about.format(k=k)}")
    return " ".join([*found, *(SLICES[part] for part in dict.fromkeys(parts) if part in SLICES)])
