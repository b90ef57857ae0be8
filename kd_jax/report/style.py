"""The style sheet of the pages, with the colours of the models."""

from __future__ import annotations

from pathlib import Path
from string import Template

from kd_jax.report.legend import Legend

TEMPLATES = Path(__file__).parent / "templates"


def style(legend: Legend) -> str:
    """The rules for light and dark screens and for print."""
    return Template((TEMPLATES / "page.css").read_text(encoding="utf-8")).substitute(
        colours=_variables(legend.palette()), dark=_variables(legend.palette(dark=True))
    )


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
