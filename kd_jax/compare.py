"""What distillation bought: paired comparisons over users, averaged over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.metrics import paired_bootstrap

PerUser = Mapping[str, np.ndarray]


def gains(per_user: Mapping[str, Sequence[PerUser]], names: Sequence[str], resamples: int) -> dict[str, Any]:
    """Distilled over student, and over control (the language model's own share), for each metric in ``names``.

    per_user: model -> one mapping per seed of metric -> f32 [U] (NaN where a user has no value). The shape of what is
    returned is that of ``gain`` in report/metrics.json; a comparison whose models are missing is left out.
    """
    found: dict[str, Any] = {}
    for name in names:
        values = {m: np.stack([v[name] for v in seeds]) for m, seeds in per_user.items() if name in seeds[0]}
        if not {"student", "distilled"} <= values.keys():
            continue
        gain = paired_bootstrap(values["student"], values["distilled"], resamples=resamples)
        found[name] = {
            "student": gain.baseline,
            "distilled": gain.candidate,
            "relative": gain.relative,
            "ci95": gain.ci95,
            "p_value": gain.p_value,
        }
        for other, key in (("control", "lm_share"), ("trending", "over_trending")):
            if other in values:
                share = paired_bootstrap(values[other], values["distilled"], resamples=resamples)
                found[name] |= {
                    other: share.baseline,
                    key: {"relative": share.relative, "ci95": share.ci95, "p_value": share.p_value},
                }
    return found
