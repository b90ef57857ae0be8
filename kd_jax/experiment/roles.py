"""The roles of an experiment: the models that a run trains, and how they relate.

A further role is one row of ``ROLES``: it is then a stage of ``launch.py``, and training, labels,
evaluation, report, export and the search know it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any

from kd_jax.core.errors import InputError, nearest
from kd_jax.evaluation.significance import Comparison
from kd_jax.report.legend import Appearance, Legend, Simple


class Kind(Enum):
    """The sections of a configuration from which a role is trained."""

    TEACHER = "teacher"  # teacher.*
    STUDENT = "student"  # student.* and, where it learns from labels, distill.*


@dataclasses.dataclass(frozen=True)
class Role:
    """The role of a model in a run.

    labels_from: the role that a student's soft labels come from; '' for clicks alone. text: whether
    it may read text, or learn from teachers that may have a language model; roles without text show
    what the text contributes. overrides: a partial tree of the configuration, applied after the
    tuned values. over: the models it is compared with in ``gain`` of report/metrics.json, see
    ``Comparison``. place: its position in tables and charts. export: of the trained students, the
    one with the highest number is exported.
    """

    name: str
    kind: Kind
    appearance: Appearance
    place: int
    labels_from: str = ""
    text: bool = True
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    over: Mapping[str, str] = dataclasses.field(default_factory=dict)
    export: int = 0

    @property
    def is_teacher(self) -> bool:
        return self.kind is Kind.TEACHER

    @property
    def distilled(self) -> bool:
        """Whether it learns from soft labels."""
        return bool(self.labels_from)


# Of ``student.<name>.bias``: item biases start at those of the student's own teacher.
TEACHER_BIAS = "teacher"

# By item IDs instead of the language model; the rest is equal unless ``tuned`` changes it.
ID_ONLY = {
    "teacher": {
        "model": {
            "form": "bi",
            "item_features": "id",
            "context": "items",
            "softmax": "full",
            "hard_negatives": 0,
        },
        "lm": {"train": "head"},
    }
}

# What every model is compared with: lists that are the same for everybody, and models of clicks
# (``evaluation/baselines``). Their appearance, and how a sentence calls them.
_EVERYBODY = "the same for every user"
BASELINES: dict[str, tuple[Appearance, Simple]] = {
    "popularity": (
        Appearance("#7b848f", "#98a2ae", "X"),
        Simple("the popularity baseline", _EVERYBODY, same=True),
    ),
    "trending": (
        Appearance(),
        Simple("the recent-popularity baseline (trending)", _EVERYBODY, same=True),
    ),
    "item_knn": (
        Appearance("#8a7a4e", "#bcae84", "v", "adds up the items that the same users chose"),
        Simple("the item-kNN baseline", "a table of similar items"),
    ),
    "ease": (
        Appearance("#6f5b4b", "#ad9785", ">", "is the linear model of clicks in closed form"),
        Simple("the EASE baseline", "a linear model of clicks"),
    ),
    "bpr": (
        Appearance(
            "#6d7a52", "#a3b187", "<", "is a matrix factorisation of clicks by pairs of items"
        ),
        Simple("the BPR baseline", "a matrix factorisation of clicks"),
    ),
    "ials": (
        Appearance(
            "#5c6f7e",
            "#94a7b6",
            "p",
            "is a matrix factorisation of clicks by weighted least squares",
        ),
        Simple("the iALS baseline", "a matrix factorisation of clicks"),
    ),
}

# The plain students of all seeds, where a student learns from the mean of their logits.
ENSEMBLE = "ensemble"
_OF_ENSEMBLE = Appearance(
    "#7a5ea8", "#b39ddb", "h", "is the mean of the plain students of all seeds"
)

# Warm hues have a language model behind them, cool ones item IDs (after Okabe & Ito's
# colour-blind-safe palette).
_ROWS = (
    Role(
        "teacher",
        Kind.TEACHER,
        Appearance("#c98500", "#f0b445", "D", "reads text with a language model"),
        place=1,
    ),
    Role(
        "control_teacher",
        Kind.TEACHER,
        Appearance(
            "#3d9bd1",
            "#82cbf5",
            "d",
            "has learned item IDs in place of the language model",
            in_console=False,
        ),
        place=0,
        text=False,
        overrides=ID_ONLY,
    ),
    Role(
        "student",
        Kind.STUDENT,
        Appearance("#00916a", "#2fc79d", "s", "learns from clicks, without a teacher"),
        place=2,
        export=1,
    ),
    Role(
        "control",
        Kind.STUDENT,
        Appearance("#0068a6", "#4a9fe3", "^", "learns from the soft labels of the control teacher"),
        place=3,
        labels_from="control_teacher",
        text=False,
        export=2,
    ),
    Role(
        "distilled",
        Kind.STUDENT,
        Appearance("#d35400", "#ff7e38", "o", "learns from the soft labels of the teacher"),
        place=4,
        labels_from="teacher",
        over={
            "student": "",
            "control": "lm_share",
            **{name: f"over_{name}" for name in BASELINES},
        },
        export=3,
    ),
)
ROLES: dict[str, Role] = {role.name: role for role in _ROWS}  # in the order of training


def role_of(name: str, where: str) -> Role:
    """The role called ``name``; raises InputError, with ``where`` in front, if there is none."""
    if name not in ROLES:
        raise InputError(f"{where}{name!r} is unknown{nearest(name, ROLES)}")
    return ROLES[name]


def teachers() -> tuple[Role, ...]:
    return tuple(role for role in ROLES.values() if role.is_teacher)


def students() -> tuple[Role, ...]:
    return tuple(role for role in ROLES.values() if not role.is_teacher)


def main_teacher() -> Role:
    """The teacher with the language model of the run."""
    return next(role for role in teachers() if role.text)


def plain_student() -> Role:
    """The student that learns from clicks alone."""
    return next(role for role in students() if not role.distilled)


def by_export() -> tuple[Role, ...]:
    """The students in order of priority for the export."""
    return tuple(sorted(students(), key=lambda role: -role.export))


def in_tables() -> tuple[Role, ...]:
    """All roles in the order of tables and charts."""
    return tuple(sorted(ROLES.values(), key=lambda role: role.place))


def comparisons() -> tuple[Comparison, ...]:
    """The comparisons, with that of the headline first."""
    found = [
        Comparison(role.name, role.over, role.labels_from if "" in role.over.values() else "")
        for role in ROLES.values()
        if role.over
    ]
    return tuple(sorted(found, key=lambda comparison: comparison.over[comparison.baseline] != ""))


def legend() -> Legend:
    """The appearance of the models in the report."""
    models = {name: look for name, (look, _) in BASELINES.items()}
    for role in in_tables():
        models[role.name] = role.appearance
        if role == plain_student():
            models[ENSEMBLE] = _OF_ENSEMBLE
    simple = {name: words for name, (_, words) in BASELINES.items()}
    compared = comparisons()
    large = ROLES[compared[0].candidate].labels_from if compared else ""
    return Legend(models, compared, large, simple)
