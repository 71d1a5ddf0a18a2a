"""Every number at hand, with what it counts: the first thing to read before comparing any two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from crossroads.dataset import UNJUDGED
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.gauge import Gauge
from crossroads.diagnosis.verdict import Estimate, percent, percent_interval, plain
from crossroads.statistics import Interval
from crossroads.types import Split


@dataclass(frozen=True, slots=True)
class Population:
    """One number and what it counts.

    path: whose tokens stand before the counted ones. tokens: the denominator, as text.
    """

    what: str
    value: str
    recall: str
    counts: str
    path: str
    tokens: str
    chosen_on: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(plain(asdict(self)))


_OFFLINE = "the large model's own text"
_MIXED = "what both models wrote together"


def populations(evidence: Evidence) -> list[Population]:
    """Return a row per number."""
    return [
        *_reference(evidence),
        *_result(evidence),
        *_report(evidence),
        *_here(evidence),
        *_live(evidence),
    ]


def _reference(evidence: Evidence) -> Iterator[Population]:
    reference = evidence.reference
    if reference is None:
        return
    live = reference.population == "live"
    known = reference.population is not None
    yield Population(
        "reference large_fraction" if live else "reference positive_rate",
        percent(reference.positive_rate),
        percent(reference.recall),
        ("generated tokens" if live else "scored tokens") if known else "not said",
        (_MIXED if live else _OFFLINE) if known else "not said",
        "not said",
        "not said",
    )


def _result(evidence: Evidence) -> Iterator[Population]:
    result = evidence.result
    if result is None:
        return
    recall = result.final.recall
    threshold = "" if result.threshold is None else f", threshold {result.threshold:.4f}"
    yield Population(
        f"result positive_rate{threshold}",
        percent(result.positive_rate, 2),
        "not said" if recall is None else percent(recall, 2),
        "rows with mask 1: response tokens, mismatches and others (R2R's script)",
        _OFFLINE,
        "not said",
        "the rows that measure it (R2R's script has one split for epoch, threshold and report)",
    )


def _report(evidence: Evidence) -> Iterator[Population]:
    row = None if evidence.run is None else evidence.run.reported(evidence.recall)
    if row is None:
        return
    for name, chosen in (("calibration", "itself"), ("test", "calibration")):
        point = row[name]["point"]
        yield Population(
            f"run positive_rate on {name}, threshold {point['threshold']:.4f}",
            percent(point["positive_rate"]),
            percent(point["recall"]),
            "judged response tokens",
            _OFFLINE,
            f"{point['tokens']:,}, {point['positives']:,} positive",
            chosen,
        )
    own = row["same_recall"]
    yield Population(
        "run positive_rate on test, at its own threshold of the recall",
        percent_interval(Estimate(own["value"], Interval(**own["interval"]))),
        percent(evidence.recall),
        "judged response tokens",
        _OFFLINE,
        f"{row['test']['point']['tokens']:,}, {row['test']['point']['positives']:,} positive",
        "itself: the ranking, without the error of the threshold",
    )


def _here(evidence: Evidence) -> Iterator[Population]:
    gauge, entropy, tokens = evidence.gauge, evidence.entropy, evidence.tokens
    if tokens is None:
        return
    if gauge is not None and entropy is not None:
        rows = "calibration and test" if gauge.trained else "all splits"
        for ranked in (gauge, entropy) if gauge.trained else (gauge,):
            yield _gauge(ranked, rows)
    unjudged = int((tokens.label_N == UNJUDGED).sum())
    if unjudged:
        yield Population(
            "unjudged positions, in no number here", percent(unjudged / len(tokens)), "",
            "response tokens whose judge failed", _OFFLINE, f"{unjudged:,}", "",
        )  # fmt: skip
    if not tokens.in_split(Split.TRAIN).any():
        yield Population(
            "train rows", "none", "", "the data hold no train split", _OFFLINE, "0", ""
        )


def _gauge(gauge: Gauge, rows: str) -> Population:
    return Population(
        f"{gauge.name}, positive_rate here",
        percent_interval(gauge.rate),
        percent(gauge.recall),
        f"judged response tokens of {rows}",
        _OFFLINE,
        f"{len(gauge.score_n):,}, {gauge.positives:,} positive, {gauge.clusters.count} problems",
        "themselves: the exact threshold of that recall, so the ranking is compared and no choice",
    )


def _live(evidence: Evidence) -> Iterator[Population]:
    live = evidence.live
    if live is None:
        return
    usage = live.usage
    thresholds = ", ".join(f"{threshold:.4f}" for threshold in live.thresholds) or "not said"
    yield Population(
        f"live large_fraction, threshold {thresholds}",
        percent(usage.large_fraction),
        "unknown: nobody labels a live path",
        "generated tokens",
        _MIXED,
        f"{usage.generated_tokens:,} of {len(live.traces)} traces, {usage.prompt_tokens:,} prompt "
        "tokens aside",
        "given",
    )
