"""A result's numbers and what follows from them, in words; the same for terminal and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from crossroads.evaluation.families import ALONE
from crossroads.evaluation.kinds import SystemKind
from crossroads.evaluation.statistics import Comparison, Estimate
from crossroads.evaluation.summary import SystemResult, TaskResult
from crossroads.evaluation.trade_off import Gap
from crossroads.statistics import Interval

NONE = "\u2013"
_ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Against:
    """`system`'s accuracy minus `other`'s, on the same problems.

    adjusted_p takes account of all `pairs` of the task and decides whether the two are separated.
    """

    system: str
    other: str
    comparison: Comparison
    adjusted_p: float
    separated: bool
    pairs: int

    @property
    def verdict(self) -> str:
        """What `system` is, compared with `other`."""
        more = "more correct" if self.comparison.difference > 0 else "less correct"
        if self.separated:
            return more
        if self.comparison.p_value <= _ALPHA:
            return f"{more} alone, not among {self.pairs} pairs"
        return "not separated"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in percent without its sign; a dash for None."""
    return NONE if share is None else f"{100 * share:.{digits}f}"


def estimate(found: Estimate, digits: int = 1, scale: float = 100) -> str:
    """Return the value and its interval; a value known for certain stands alone."""
    interval = found.interval
    if interval.low == interval.high == found.value:
        return f"{scale * found.value:.{digits}f}"
    return f"{scale * found.value:.{digits}f} {bracketed(interval, digits, scale)}"


def bracketed(interval: Interval, digits: int = 1, scale: float = 100) -> str:
    """Return an interval in brackets."""
    return f"[{scale * interval.low:.{digits}f}, {scale * interval.high:.{digits}f}]"


def gap_percent(gap: Gap | None, digits: int = 1) -> str:
    """Return how much of the gap a system recovered; a dash where that means nothing."""
    if gap is None or gap.value is None:
        return NONE
    if gap.interval is None:
        return percent(gap.value, digits)
    return estimate(Estimate(gap.value, gap.interval), digits)


def points(found: Comparison, digits: int = 1) -> str:
    """Return a difference in points of accuracy, signed, with its interval."""
    low, high = (100 * end for end in (found.interval.low, found.interval.high))
    return f"{100 * found.difference:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def p_text(p_value: float) -> str:
    """Return a p value as it is usually written."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def parameters(count: float) -> str:
    """Return a number of parameters in billions."""
    return f"{count / 1e9:.2f} B"


def letters(result: TaskResult) -> Mapping[str, str]:
    """Return the compact letter display; systems without a common letter are separated."""
    return result.ranking.letters if result.ranking else {}


def first_router(result: TaskResult) -> SystemResult | None:
    """Return the system that the report is about, if a trained router was run."""
    return next((s for s in result.systems if s.kind is SystemKind.ROUTER), None)


def against(result: TaskResult, system: str) -> list[Against]:
    """Return a system compared with every other one, in the order of the run."""
    found = {}
    for pair in result.comparisons:
        if pair.first == system:
            other, comparison = pair.second, pair.comparison
        elif pair.second == system:
            other, comparison = pair.first, _reversed(pair.comparison)
        else:
            continue
        found[other] = Against(
            system, other, comparison, pair.adjusted_p, pair.separated, len(result.comparisons)
        )
    return [found[s.system] for s in result.systems if s.system in found]


def _reversed(found: Comparison) -> Comparison:
    # 0 - x, not -x: a difference of nothing is not shown as -0.0.
    interval = Interval(0 - found.interval.high, 0 - found.interval.low)
    return replace(found, difference=0 - found.difference, interval=interval)


def headline(result: TaskResult) -> list[str]:
    """Return the result in a few sentences, as far as the systems they need were run."""
    router = first_router(result)
    if router is None:
        return ["No trained router was run; the systems are compared below."]
    alone = [s for s in result.systems if s.kind in ALONE]
    sentence = (
        f"Over {router.problems} problems of {result.task} the large model wrote "
        f"{_share(router.large_fraction)} of the tokens and {router.system} answered "
        f"{_share(router.accuracy)} correctly"
    )
    if alone:
        each = (f"{_share(s.accuracy)} for the {s.kind.value} model alone" for s in alone)
        sentence += f", against {' and '.join(each)}"
    return [f"{sentence}.", *_doubts(result, router, alone), *_recovered(router)]


def _doubts(result: TaskResult, router: SystemResult, alone: Sequence[SystemResult]) -> list[str]:
    """Return whether the router differs from each model alone."""
    found = {pair.other: pair for pair in against(result, router.system)}
    return [
        _doubt(found[system.system], f"the {system.kind.value} model alone")
        for system in alone
        if system.system in found
    ]


def _doubt(pair: Against, name: str) -> str:
    comparison = pair.comparison
    numbers = f"{points(comparison)} points, p {p_text(comparison.p_value)}"
    numbers = numbers.replace(" ", "\u00a0")
    word = "more" if comparison.difference > 0 else "fewer"
    if pair.separated:
        return f"That is {word} than {name} ({numbers})."
    if comparison.p_value <= _ALPHA:
        return (
            f"Taken alone, that is {word} than {name} ({numbers}), but not once all {pair.pairs} "
            f"pairs of systems count (p\u00a0{p_text(pair.adjusted_p)})."
        )
    return f"These problems do not tell it from {name} ({numbers})."


def _recovered(router: SystemResult) -> list[str]:
    gap = router.recovered
    if gap is None:
        return []
    if gap.value is None:
        return [f"How much of the gap it recovers cannot be said: {_ended(gap.reason or '')}"]
    numbers = gap_percent(gap).replace(" ", "\u00a0")
    numbers = numbers.replace("\u00a0[", "\u00a0%\u00a0[", 1)
    return [f"It recovers {numbers} of the gap between the models alone."]


def ranking_sentences(result: TaskResult) -> list[str]:
    """Return the order of the systems in words, or the refusal to give one."""
    ranking = result.ranking
    if ranking is None:
        return []
    if ranking.order is None:
        return [f"The systems are not ranked: {_ended(ranking.reason or 'too few problems')}"]
    tiers = [" = ".join(tier) for tier in ranking.order]
    return [f"From best to worst, every step separated: {' > '.join(tiers)}."]


def _ended(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _share(found: Estimate) -> str:
    """Return a share and its interval for running text; the spaces do not break."""
    value, _, interval = estimate(found).partition(" ")
    return f"{value} % {interval}".strip().replace(" ", "\u00a0")
