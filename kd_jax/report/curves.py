"""Learning curves, read from metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd_jax.report.summary import as_number

VALID = "valid "  # before the name of a validation metric
LOSS = "loss"  # the sum of the terms

Curve = dict[Any, dict[float, float]]  # seed -> step -> value
Curves = dict[str, dict[str, Curve]]  # model -> what was measured -> its curve


def read_curves(path: Path) -> Curves:
    """The loss, its terms and the validation metric of every model in metrics.jsonl.

    A line that was cut off by a kill is skipped; a step that a resumed run logs again replaces the
    first.
    """
    curves: Curves = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            event = json.loads(line)
            model, seed, step = str(event["model"]), event.get("seed", 0), float(event["step"])
            measured = _measured(event)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in measured.items():
            if as_number(value) is not None:
                curves.setdefault(model, {}).setdefault(name, {}).setdefault(seed, {})[step] = value
    return curves


def _measured(event: dict[str, Any]) -> dict[str, Any]:
    valid = event.get("valid") or {}
    if valid:
        return {VALID + name: value for name, value in valid.items()}
    return {LOSS: event.get(LOSS), **(event.get("terms") or {})}


def highest(curves: Curves) -> float:
    """The highest of all validation scores; 1 if there is none."""
    scores = [
        value
        for measured in curves.values()
        for name, curve in measured.items()
        if name.startswith(VALID)
        for points in curve.values()
        for value in points.values()
    ]
    return max(scores, default=1.0)
