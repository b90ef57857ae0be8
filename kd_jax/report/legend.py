"""The appearance of models in a report: order, colours, markers, and comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from kd_jax.evaluation.significance import Comparison

# Of text, axes and lines, on a light and on a dark page.
BASE = {"ink": "#1b2027", "muted": "#5a6470", "line": "#dde1e6"}
BASE_DARK = {"ink": "#e7eaee", "muted": "#9da7b3", "line": "#2d343d"}
OTHER = "other"
MARKERS = "*HPd8"  # of lists of other systems


@dataclasses.dataclass(frozen=True)
class Appearance:
    """The appearance of a model in the report.

    colour, dark: on a light and on a dark page; no two models share a ``colour`` unless they share
    both. marker: matplotlib's. description: what the model learns from, as the rest of a sentence
    that starts with its name. in_console: whether the console's table has it.
    """

    colour: str = "#a8558a"
    dark: str = "#d68fbd"
    marker: str = "P"
    description: str = ""
    in_console: bool = True


@dataclasses.dataclass(frozen=True)
class Simple:
    """A simple baseline in a sentence.

    name: with its article. kind: what it is, to stand after the name. same: whether its list is the
    same for everybody.
    """

    name: str
    kind: str
    same: bool = False


@dataclasses.dataclass(frozen=True)
class Legend:
    """Models in the order of tables and charts, and their comparisons, the headline's first.

    large: the model that ``candidate`` is to replace in serving; '' for none. simple: the simple
    baselines in a sentence. Models that are not here come last and look alike.
    """

    models: Mapping[str, Appearance]
    comparisons: tuple[Comparison, ...] = ()
    large: str = ""
    simple: Mapping[str, Simple] = dataclasses.field(default_factory=dict)

    @property
    def candidate(self) -> str:
        """The model that the headline is about."""
        return self.comparisons[0].candidate if self.comparisons else ""

    @property
    def baseline(self) -> str:
        """The model that the headline compares it with."""
        return self.comparisons[0].baseline if self.comparisons else ""

    def with_lists(self, names: Collection[str]) -> Legend:
        """With lists of other systems, which come after the simple baselines."""
        if not names:
            return self
        first = {name: look for name, look in self.models.items() if name in self.simple}
        looks = {name: Appearance(marker=MARKERS[place % len(MARKERS)])
                 for place, name in enumerate(names)}  # fmt: skip
        models = first | looks | dict(self.models)
        compared = tuple(comparison.with_lists(names) for comparison in self.comparisons)
        return dataclasses.replace(self, models=models, comparisons=compared)

    def same_for_all(self, name: str) -> bool:
        """Whether a model is a baseline with the same list for everybody."""
        return name in self.simple and self.simple[name].same

    def order(self, name: str) -> tuple[int, str]:
        """A key to sort names by."""
        known = list(self.models)
        return (known.index(name) if name in self.models else len(known)), name

    def variable(self, name: str) -> str:
        """The CSS variable that holds the colour of a model."""
        return name if name in self.models else OTHER

    def colour(self, name: str) -> str:
        return self.models.get(name, Appearance()).colour

    def marker(self, name: str) -> str:
        return self.models.get(name, Appearance()).marker

    def palette(self, dark: bool = False) -> dict[str, str]:
        """CSS variable -> colour, of everything on the page."""
        models = {**self.models, OTHER: Appearance()}
        colours = {name: model.dark if dark else model.colour for name, model in models.items()}
        return (BASE_DARK if dark else BASE) | colours
