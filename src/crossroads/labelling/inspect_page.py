"""A labelled dataset as one page that loads nothing: base rates, and responses in colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from crossroads.artifacts import write_text
from crossroads.labelling.inspect import (
    Alternative,
    DatasetSummary,
    ResponseView,
    TokenView,
    percent,
    rate_cells,
    verdict_text,
)
from crossroads.labelling.stored import CONTEXT, future, one_line, visible

_STYLES = {"identical": "i", "neutral": "n", "divergent": "d", "unjudged": "u"}
_DIGITS = 4  # of a probability or an entropy; more would only make the page larger
_RATE_COLUMNS = ("positions", "identical %", "neutral %", "divergent %", "unjudged")


@dataclass(frozen=True, slots=True)
class _Token:
    """One coloured token. `title` tells without a script what `details` tells with one."""

    text: str
    style: str
    title: str


@dataclass(frozen=True, slots=True)
class _Mismatch:
    """One row of the table of mismatches."""

    position: int
    context: str
    real: str
    small: str
    style: str
    label: str
    p_real: str
    p_small: str
    verdicts: tuple[tuple[str, str, str], ...]
    reference: str
    continuations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Response:
    name: str
    marks: str
    prompt: tuple[tuple[str, str], ...]
    gold: str | None
    tokens: tuple[_Token, ...]
    details: list[dict[str, Any]]
    mismatches: tuple[_Mismatch, ...]


def write_page(path: Path, summary: DatasetSummary, responses: Sequence[ResponseView]) -> None:
    """Write the page of the dataset and some of its responses, in their order.

    It is one file that loads nothing, and the same input gives the same bytes.

    Raises:
        ConfigError: the file cannot be written.
    """
    source = resources.files("crossroads.labelling").joinpath("inspect.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Compact, since there is some of it for every token; `tojson` escapes what HTML could read.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    template = environment.from_string(source.read_text(encoding="utf-8"))
    page = template.render(
        summary=summary,
        headline=_headline(summary),
        columns=_RATE_COLUMNS,
        rates=[(row.group, rate_cells(row)) for row in summary.rates],
        shown=len(responses),
        responses=[_response(response) for response in responses],
    )
    write_text(path, page)


def _headline(summary: DatasetSummary) -> str:
    """Return the dataset in a sentence."""
    size = (
        f"{summary.positions:,} tokens in {summary.responses} responses of {summary.large} "
        f"to {summary.problems} problems"
    )
    whole = next((row for row in summary.rates if row.group == "all"), None)
    if whole is None:
        return f"{size}."
    mismatch = whole.neutral + whole.divergent
    return (
        f"{size}: {summary.small} would have written another token at {100 * mismatch:.1f}\u00a0% "
        f"of them, {100 * whole.divergent:.1f}\u00a0% are divergent."
    )


def _response(response: ResponseView) -> _Response:
    row, counts, problem = response.row, response.counts, response.problem
    sample = f", sample {row.sample}" if row.sample else ""
    labels = [f"{counts[name]} {name}" for name in _STYLES if counts[name] and name != "identical"]
    return _Response(
        name=f"{row.problem_id}{sample}",
        marks=" \u00b7 ".join([row.domain, row.split, f"{row.positions} tokens", *labels]),
        prompt=tuple((message.role, message.content) for message in response.messages),
        gold=None if problem is None else problem.answer,
        tokens=tuple(map(_token, response.tokens)),
        details=[_details(token) for token in response.tokens],
        mismatches=tuple(map(_mismatch, response.mismatches)),
    )


def _token(token: TokenView) -> _Token:
    title = ""
    if token.mismatch is not None:
        title = f"{token.label} \u00b7 small model proposes {one_line(token.proposal)!r}"
    return _Token(visible(token.text), _STYLES[token.label], title)


def _mismatch(token: TokenView) -> _Mismatch:
    found = token.mismatch
    assert found is not None
    dots = "\u2026" if len(found.context) == CONTEXT else ""
    return _Mismatch(
        position=token.position,
        context=dots + one_line(found.context),
        real=one_line(token.text),
        small=one_line(token.proposal),
        style=_STYLES[token.label],
        label=token.label,
        p_real=percent(token.p_large_real),
        p_small=percent(token.p_large_small),
        verdicts=tuple(
            (v.judge, verdict_text(v), one_line(v.verdict.reason)) for v in found.verdicts
        ),
        reference=future(found.reference),
        continuations=tuple(map(future, found.continuations)),
    )


def _details(token: TokenView) -> dict[str, Any]:
    """Return what the script shows of a token; short names, since there are many tokens."""
    details: dict[str, Any] = {
        "e": round(token.entropy, _DIGITS),
        "s": _pairs(token.small),
        "g": _pairs(token.large),
    }
    if token.mismatch is not None:
        details["p"] = one_line(token.proposal)
        details["q"] = [percent(token.p_large_real), percent(token.p_large_small)]
        details["c"] = None if token.probability is None else round(token.probability, _DIGITS)
    return details


def _pairs(alternatives: Sequence[Alternative]) -> list[tuple[str, float]]:
    """Return what is likely enough to be shown as more than 0."""
    rounded = [(one_line(a.text), round(a.probability, _DIGITS)) for a in alternatives]
    return [(text, probability) for text, probability in rounded if probability]
