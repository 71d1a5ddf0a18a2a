"""A diagnosis as one page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from crossroads.artifacts import write_text
from crossroads.diagnosis.causes import CAUSES, baseline
from crossroads.diagnosis.diagnose import Diagnosis
from crossroads.diagnosis.figures import plot_figure, points_figure
from crossroads.diagnosis.plots import Plot
from crossroads.diagnosis.summary import summary
from crossroads.diagnosis.verdict import Verdict, points_text

_STYLES = {"found": "found", "ruled out": "out", "cannot tell": "open"}


def write_page(path: Path, diagnosis: Diagnosis, provenance: Mapping[str, Any]) -> None:
    """Write the page: conclusion, numbers, causes with their plots, statements, provenance.

    Raises:
        EngineError: matplotlib is not installed. ConfigError: the file cannot be written.
    """
    source = resources.files("crossroads.diagnosis").joinpath("page.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(source.read_text(encoding="utf-8"))
    conclusion = summary(diagnosis)
    page = template.render(
        headline=conclusion[0],
        conclusion=conclusion[1:],
        populations=diagnosis.populations,
        curve=_curve(diagnosis),
        points=_points(diagnosis),
        causes=[_cause(verdict) for verdict in diagnosis.verdicts],
        statements=diagnosis.statements,
        notes=diagnosis.notes,
        provenance=provenance,
    )
    write_text(path, page)


def _points(diagnosis: Diagnosis) -> Markup | None:
    if all(verdict.points is None for verdict in diagnosis.verdicts):
        return None
    return Markup(points_figure(diagnosis.verdicts))  # noqa: S704  matplotlib escapes the names


def _curve(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """Return the curve of positive_rate against recall, which every cause is about."""
    for verdict in diagnosis.verdicts:
        if verdict.name == baseline.NAME and verdict.plot is not None:
            return {"figure": _figure(verdict.plot), "plot": verdict.plot}
    return None


def _cause(verdict: Verdict) -> dict[str, Any]:
    cause = CAUSES[verdict.name]
    return {
        "name": verdict.name,
        "kind": cause.kind.value,
        "question": cause.question,
        "status": verdict.status.value,
        "style": _STYLES[verdict.status.value],
        "points": points_text(verdict.points),
        "evidence": verdict.evidence,
        "needs": verdict.needs,
        "figure": None if verdict.name == baseline.NAME else _figure(verdict.plot),
        "plot": verdict.plot,
    }


def _figure(plot: Plot | None) -> Markup | None:
    return None if plot is None else Markup(plot_figure(plot))  # noqa: S704  as above
