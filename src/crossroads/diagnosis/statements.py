"""What a bare result and a reference determine, sentence by sentence, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crossroads.diagnosis import arithmetic
from crossroads.diagnosis.reference import (
    PUBLISHED_ENTROPY_RATE,
    PUBLISHED_LIVE,
    SHIPPED_THRESHOLDS,
    Reference,
)
from crossroads.diagnosis.result import Result
from crossroads.diagnosis.verdict import percent

_EXCESS = 0.005
"""Recall above the target that a grid may leave without a word."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence. determined: it follows from the numbers; otherwise it needs the assumption
    that it names, or says what stays open.
    """  # noqa: D205

    text: str
    determined: bool


@dataclass(frozen=True, slots=True)
class _Point:
    """A result at one threshold, with the base rate that holds or is assumed."""

    rate: float
    recall: float
    base: float
    known: bool

    @property
    def false_rate(self) -> float:
        return arithmetic.false_rate(self.rate, self.recall, self.base)


def statements(result: Result, reference: Reference) -> list[Statement]:
    """Return what follows from the numbers of a result and a reference."""
    recall = result.final.recall
    if recall is None:
        return [
            Statement(
                "The result gives no recall, so its positive_rate alone says nothing.",
                determined=True,
            )
        ]
    known = arithmetic.base_rate(result.final)
    point = _Point(
        result.positive_rate,
        recall,
        reference.divergent if known is None else known,
        known is not None,
    )
    return [
        *_base(result, point),
        *_rankings(point, reference),
        *_base_alone(point, reference),
        *_denominators(point, reference),
        *_noise(point),
        *_entropy(point),
        *_live(reference),
        *_grid(result),
        *_shipped(result),
        *_second_point(result, point, reference),
    ]


def _base(result: Result, point: _Point) -> Iterator[Statement]:
    broken = arithmetic.contradiction(result.final)
    if broken is None and result.before is not None:
        broken = arithmetic.contradiction_between(result.final, result.before)
    if broken is not None:
        yield Statement(f"The result contradicts itself: {broken}.", determined=True)
    if point.known:
        named = ", ".join(arithmetic.base_rates(result.final))
        yield Statement(
            f"{percent(point.base)} of the scored tokens are positives (from its {named}), and "
            f"{percent(point.false_rate)} of the others are sent on.",
            determined=True,
        )
        return
    yield Statement(
        "The result's base rate is not determined: precision, f1 or accuracy at the same threshold "
        f"would tell it. It is at most {percent(min(1.0, point.rate / point.recall))}, since the "
        "positives that are sent are part of what is sent. Below, "
        f"{percent(point.base)} is assumed.",
        determined=False,
    )


def _rankings(point: _Point, reference: Reference) -> Iterator[Statement]:
    own = point.false_rate
    other = arithmetic.false_rate(reference.positive_rate, reference.recall, reference.divergent)
    if own < 0 or other < 0:
        whose = "the result" if own < 0 else "the reference"
        yield Statement(
            f"At that base rate {whose} sends fewer tokens than its recall needs: its base rate "
            "must be lower, or its recall is of another class.",
            determined=False,
        )
        return
    precision = point.base * point.recall / point.rate
    reference_precision = reference.divergent * reference.recall / reference.positive_rate
    text = (
        f"The result sends {percent(own)} of the harmless tokens (precision {percent(precision)}), "
        f"the reference {percent(other)} (precision {percent(reference_precision)}, with base rate "
        f"{percent(reference.divergent)}): {own / other:.1f} times as many."
        if other > 0
        else f"The result sends {percent(own)} of the harmless tokens, the reference none."
    )
    here = arithmetic.separation(point.recall, own)
    there = arithmetic.separation(reference.recall, other)
    if here is not None and there is not None:
        text += (
            f" If scores were normal, positives would stand {here:.2f} deviations above the rest "
            f"here and {there:.2f} there: the rankings differ, not only the counts."
        )
    yield Statement(text, determined=point.known and reference.own_rates)


def _base_alone(point: _Point, reference: Reference) -> Iterator[Statement]:
    """Say which base rates could make one ranking of the two numbers."""
    least = arithmetic.least_base(point.rate, reference.positive_rate, point.recall)
    if least is None or abs(point.recall - reference.recall) > 0.005:
        return
    text = (
        f"One ranking can give both {percent(point.rate)} and {percent(reference.positive_rate)} "
        f"only if at least {percent(least)} of the result's tokens are positives, whatever the "
        "reference's base rate is."
    )
    if point.known:
        ends = (
            f"They are {percent(point.base)}: base rates alone do not explain the difference."
            if point.base < least
            else f"They are {percent(point.base)}: the difference may be one of base rates."
        )
        yield Statement(f"{text} {ends}", determined=True)
        return
    other = arithmetic.false_rate(reference.positive_rate, reference.recall, reference.divergent)
    needed = arithmetic.base_for_rate(point.rate, reference.recall, other)
    if other >= 0 and needed is not None:
        text += (
            f" With {percent(reference.divergent)} there, {percent(needed)} would have to be here: "
            "a base rate like R2R's does not explain it."
        )
    yield Statement(text, determined=True)


def _denominators(point: _Point, reference: Reference) -> Iterator[Statement]:
    mismatch = reference.divergent + reference.neutral
    share = reference.divergent / mismatch if mismatch else 0.0
    if not point.known and share * point.recall > point.rate:
        yield Statement(
            f"If about {percent(share, 0)} of the mismatches are divergent "
            f"({reference.rates_source}), the result does not count mismatches only: "
            f"{percent(point.recall)} recall would send {percent(share * point.recall)} or more.",
            determined=False,
        )
    diluted = arithmetic.prompt_share(point.rate, reference.positive_rate)
    if diluted is not None:
        yield Statement(
            "Counting tokens that are never sent (a prompt) in the denominator would turn "
            f"{percent(point.rate)} into {percent(reference.positive_rate)} only if they were "
            f"{percent(diluted, 0)} of all tokens.",
            determined=True,
        )


def _noise(point: _Point) -> Iterator[Statement]:
    most = arithmetic.most_noise(point.rate, point.recall)
    yield Statement(
        f"Label noise: at {percent(point.recall, 0)} recall the last "
        f"{percent(1 - point.recall, 0)} of the positives decide. Positives labelled at random "
        "would be caught as rarely as any token; they can be at most "
        f"{percent(most)} of the positives, and as few as that would suffice to push a "
        f"faultless router to {percent(point.rate)}. Whether there are any, only the labels tell.",
        determined=True,
    )


def _entropy(point: _Point) -> Iterator[Statement]:
    if abs(point.recall - 0.95) > 0.005:
        return
    low, high = PUBLISHED_ENTROPY_RATE
    gain_low, gain_high = low - point.rate, high - point.rate
    if gain_high <= 0:
        said = "no better than entropy alone"
    elif gain_low <= 0:
        said = f"at best {100 * gain_high:.0f} points better than entropy alone"
    else:
        said = f"{100 * gain_low:.0f} to {100 * gain_high:.0f} points better than entropy alone"
    yield Statement(
        f"Entropy alone needs about {percent(low, 0)} to {percent(high, 0)} at that recall on "
        f"R2R's data, by its published histogram: the result is {said}. If it is the same "
        "data, the network learned little that entropy does not say.",
        determined=False,
    )


def _live(reference: Reference) -> Iterator[Statement]:
    low, high = PUBLISHED_LIVE
    if reference.population is None and low <= reference.positive_rate <= high:
        yield Statement(
            f"{percent(reference.positive_rate)} also lies where R2R's live runs do "
            f"({percent(low, 0)} to {percent(high, 0)} of generated tokens). If it is such a "
            "share, it counts another population, and the two numbers were never comparable. The "
            "numbers do not tell.",
            determined=False,
        )


def _grid(result: Result) -> Iterator[Statement]:
    if result.threshold is None:
        return
    index = arithmetic.grid_index(result.threshold)
    if index is None or result.final.recall is None:
        return
    target = 0.95 if result.target is None else result.target
    excess = result.final.recall - target
    said = f"The threshold {result.threshold:.4f} is number {index + 1} of R2R's grid."
    if abs(excess) <= _EXCESS:
        yield Statement(
            f"{said} Its recall is {100 * excess:+.2f} points from the {percent(target, 0)} asked "
            "for, all that an exact threshold could give up: the grid explains little.",
            determined=True,
        )
    elif excess > 0:
        yield Statement(
            f"{said} Its recall is {percent(excess)} above the {percent(target, 0)} asked for; "
            "what an exact threshold would save by giving that up, the numbers do not tell.",
            determined=False,
        )


def _shipped(result: Result) -> Iterator[Statement]:
    if result.threshold is None:
        return
    named = " and ".join(f"{value:.4f} on {task}" for task, value in SHIPPED_THRESHOLDS.items())
    yield Statement(
        f"R2R's shipped evaluation settings use {named}, not {result.threshold:.4f}. That the "
        "trainings differ does not follow: the weight on positives and the chance of a training "
        "without a seed move all scores, so thresholds of two trainings cannot be compared. That "
        "its live shares belong to thresholds chosen per task does.",
        determined=False,
    )


def _second_point(result: Result, point: _Point, reference: Reference) -> Iterator[Statement]:
    """Use the metrics before the threshold was chosen: a second point of the same curve."""
    before = result.before
    if before is None or before.recall is None or before.positive_rate is None:
        return
    ends = sorted([(before.positive_rate, before.recall), (point.rate, point.recall)])
    wanted = reference.positive_rate
    if wanted < ends[0][0]:
        low, high = 0.0, ends[0][1]
    elif wanted < ends[1][0]:
        low, high = ends[0][1], ends[1][1]
    else:
        low, high = ends[1][1], 1.0
    yield Statement(
        f"At the threshold before the choice it has {percent(before.recall)} recall at "
        f"{percent(before.positive_rate)}. So with {percent(wanted)} of the tokens sent its recall "
        f"lies between {percent(low)} and {percent(high)}.",
        determined=True,
    )
