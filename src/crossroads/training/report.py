"""What routers are worth, beside the heuristics, with intervals over problems.

Everything is measured on scores, so that any number of routers and seeds is reported without
training again. The test split is read here and nowhere else. Shapes: N tokens of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from crossroads.errors import DataError
from crossroads.routing.policy import sends_to_large
from crossroads.routing.routers.base import Router
from crossroads.statistics import Interval, ratio_interval
from crossroads.training.fit import score_rows
from crossroads.training.metrics import (
    Bin,
    Estimate,
    Ranked,
    clopper_pearson,
    compare,
    curve,
    probabilities,
    rank,
    share_of,
)
from crossroads.training.rows import Corpus
from crossroads.training.target import Target, choose_threshold
from crossroads.training.threshold import OperatingPoint, operating_point, threshold_for_recall
from crossroads.types import Label, Split

RECALLS = (0.8, 0.9, 0.95, 0.99)
HISTOGRAM_EDGES = (0.0, *(1 / (1 + np.exp(-np.linspace(-9, 9, 37)))), 1.0)
"""Score bins, even in log-odds: calibrated scores crowd near 0."""
Scored = Mapping[str, Mapping[Split, np.ndarray]]
"""Each router's scores [N] of the splits, by name; the first router is what the others are for."""


class Labelled(Protocol):
    """The labels of one split, such as `training.rows.Rows`."""

    @property
    def label_N(self) -> np.ndarray:
        """Values of types.Label."""

    @property
    def problem_N(self) -> np.ndarray:
        """The cluster of each token, integers from 0 on."""

    @property
    def domain_N(self) -> np.ndarray:
        """Index into `domains`."""

    @property
    def domains(self) -> Sequence[str]:
        """Names."""

    def positive(self, objective: str) -> np.ndarray:
        """Return the positive class, bool."""


@dataclass(frozen=True, slots=True)
class Measured:
    """An operating point with 95 % intervals; whole problems are resampled.

    recall_clopper_pearson: as if positives were independent of one another, to compare with.
    """

    point: OperatingPoint
    recall: Interval
    positive_rate: Interval
    recall_clopper_pearson: Interval


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One router at one recall target: chosen on calibration, measured there and on test.

    same_recall: positive_rate on test at a threshold that has the target recall on test: what the
    ranking is worth, without the error of the threshold.
    """

    router: str
    target_recall: float
    calibration: Measured
    test: Measured
    same_recall: Estimate


@dataclass(frozen=True, slots=True)
class Chosen:
    """One router at the threshold that the run's target chose on calibration."""

    router: str
    calibration: Measured
    test: Measured


@dataclass(frozen=True, slots=True)
class Quality:
    """One router's numbers that no threshold takes part in, on test."""

    router: str
    auroc: Estimate
    average_precision: Estimate
    brier: Estimate
    log_loss: Estimate
    calibration_error: Estimate
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Against:
    """The first router's positive_rate over, and minus, another's at one recall on test."""

    router: str
    other: str
    recall: float
    ratio: Estimate
    difference: Estimate


@dataclass(frozen=True, slots=True)
class DomainRow:
    """One router at its chosen threshold on one domain of test; no recall without positives."""

    router: str
    domain: str
    problems: int
    tokens: int
    positives: int
    recall: Estimate | None
    positive_rate: Estimate


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One router's exact curve on test, thinned, descending by threshold."""

    router: str
    threshold: tuple[float, ...]
    recall: tuple[float, ...]
    positive_rate: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many test tokens of each label have a score in each bin of HISTOGRAM_EDGES."""

    router: str
    identical: tuple[int, ...]
    neutral: tuple[int, ...]
    divergent: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SplitRates:
    """What a split is made of; the rates are shares of its tokens."""

    split: str
    problems: int
    tokens: int
    positives: int
    mismatch: Estimate
    divergent: Estimate


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is known of some routers after calibration, on test."""

    objective: str
    target: str
    splits: tuple[SplitRates, ...]
    rows: tuple[ReportRow, ...]
    chosen: tuple[Chosen, ...]
    quality: tuple[Quality, ...]
    comparisons: tuple[Against, ...]
    domains: tuple[DomainRow, ...]
    curves: tuple[CurveRow, ...]
    histograms: tuple[Histogram, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def measure(
    scores: np.ndarray, divergent: np.ndarray, problem: np.ndarray, threshold: float, seed: int
) -> Measured:
    """Return what a threshold does, with intervals clustered by problem."""
    sent = sends_to_large(scores, threshold)
    count = int(problem.max()) + 1

    def per_problem(values: np.ndarray) -> np.ndarray:
        sums: np.ndarray = np.bincount(problem, weights=values.astype(float), minlength=count)
        return sums

    return Measured(
        point=operating_point(scores, divergent, threshold),
        recall=ratio_interval(per_problem(sent & divergent), per_problem(divergent), seed=seed),
        positive_rate=ratio_interval(
            per_problem(sent), per_problem(np.ones(len(scores))), seed=seed
        ),
        recall_clopper_pearson=clopper_pearson(int((sent & divergent).sum()), int(divergent.sum())),
    )


def scored(routers: Sequence[Router], corpus: Corpus) -> dict[str, dict[Split, np.ndarray]]:
    """Return the routers' scores of calibration and test, by their names."""
    splits = (Split.CALIBRATION, Split.TEST)
    return {r.name: {s: score_rows(r, corpus.split(s)) for s in splits} for r in routers}


def report(
    routers: Sequence[Router],
    corpus: Corpus,
    objective: str,
    recalls: Sequence[float],
    seed: int,
) -> list[ReportRow]:
    """Return each router at each recall target."""
    splits = {split: corpus.split(split) for split in Split}
    return list(training_report(scored(routers, corpus), splits, objective, recalls, seed).rows)


def report_json(rows: Sequence[ReportRow]) -> list[dict[str, Any]]:
    """Return the rows as plain values."""
    return [asdict(row) for row in rows]


def training_report(
    scores: Scored,
    splits: Mapping[Split, Labelled],
    objective: str,
    recalls: Sequence[float] = RECALLS,
    seed: int = 0,
    target: Target | None = None,
) -> Report:
    """Return what the routers are worth. The one place that reads the test split.

    Args:
        scores: of calibration and test, by router; the first is compared with the others.
        splits: their labels; base rates are of all that are given.
        objective: the positive class, `divergent` or `mismatch`.
        recalls: targets of the rows.
        seed: of the resamples.
        target: what the run's threshold is chosen for, the recall 0.95 unless given.

    Raises:
        DataError: calibration or test has no positive, or nothing else.
    """
    target = target or Target("recall", 0.95)
    test = splits[Split.TEST]
    for split in (Split.CALIBRATION, Split.TEST):
        _check(splits[split].positive(objective), split, objective)
    positive_N, problem_N = test.positive(objective), test.problem_N
    ranked = {
        name: rank(of[Split.TEST], positive_N, problem_N, recalls, seed)
        for name, of in scores.items()
    }
    setting = _Setting(splits[Split.CALIBRATION], test, objective, seed)
    chosen = [c for name, of in scores.items() if (c := setting.chosen(name, of, target))]
    return Report(
        objective=objective,
        target=str(target),
        splits=tuple(
            _rates(split, rows, objective, seed)
            for split, rows in splits.items()
            if len(rows.label_N)
        ),
        rows=tuple(
            setting.row(name, of, recall, ranked[name])
            for name, of in scores.items()
            for recall in recalls
        ),
        chosen=tuple(chosen),
        quality=tuple(setting.quality(name, of, ranked[name]) for name, of in scores.items()),
        comparisons=tuple(_comparisons(ranked, recalls)),
        domains=tuple(
            row
            for c in chosen
            for row in setting.domains(c.router, scores[c.router], c.test.point.threshold)
        ),
        curves=tuple(_curve(name, of[Split.TEST], positive_N) for name, of in scores.items()),
        histograms=tuple(
            _histogram(name, of[Split.TEST], test.label_N) for name, of in scores.items()
        ),
    )


@dataclass(frozen=True, slots=True)
class _Setting:
    """The labels that every router is held against."""

    calibration: Labelled
    test: Labelled
    objective: str
    seed: int

    def measured(
        self, of: Mapping[Split, np.ndarray], threshold: float
    ) -> tuple[Measured, Measured]:
        """Return what a threshold does on calibration and on test."""
        first, second = (
            measure(of[split], rows.positive(self.objective), rows.problem_N, threshold, self.seed)
            for split, rows in ((Split.CALIBRATION, self.calibration), (Split.TEST, self.test))
        )
        return first, second

    def row(
        self, name: str, of: Mapping[Split, np.ndarray], recall: float, ranked: Ranked
    ) -> ReportRow:
        positive = self.calibration.positive(self.objective)
        threshold = threshold_for_recall(of[Split.CALIBRATION], positive, recall)
        return ReportRow(
            name, recall, *self.measured(of, threshold), ranked.rate[recall].estimate()
        )

    def chosen(self, name: str, of: Mapping[Split, np.ndarray], target: Target) -> Chosen | None:
        """Return the router at the run's target; None where it cannot meet it."""
        rows = self.calibration
        try:
            threshold = choose_threshold(
                target, of[Split.CALIBRATION], rows.positive(self.objective), rows.problem_N,
                self.seed,
            )  # fmt: skip
        except DataError:
            return None
        return Chosen(name, *self.measured(of, threshold))

    def quality(self, name: str, of: Mapping[Split, np.ndarray], ranked: Ranked) -> Quality:
        positive = self.test.positive(self.objective)
        found = probabilities(of[Split.TEST], positive, self.test.problem_N, self.seed)
        return Quality(
            name,
            ranked.auroc.estimate(),
            ranked.average_precision.estimate(),
            found.brier,
            found.log_loss,
            found.calibration_error,
            found.bins,
        )

    def domains(
        self, name: str, of: Mapping[Split, np.ndarray], threshold: float
    ) -> list[DomainRow]:
        sent, positive = (
            sends_to_large(of[Split.TEST], threshold),
            self.test.positive(self.objective),
        )
        problem, rows = self.test.problem_N, []
        for number in np.unique(self.test.domain_N):
            here = self.test.domain_N == number
            caught = here & positive
            rows.append(
                DomainRow(
                    router=name,
                    domain=self.test.domains[number],
                    problems=len(np.unique(problem[here])),
                    tokens=int(here.sum()),
                    positives=int(caught.sum()),
                    recall=share_of(sent[caught], problem[caught], self.seed)
                    if caught.any()
                    else None,
                    positive_rate=share_of(sent[here], problem[here], self.seed),
                )
            )
        return rows


def _check(positive: np.ndarray, split: Split, objective: str) -> None:
    if not positive.any() or positive.all():
        raise DataError(
            f"the {split} split has {int(positive.sum())} {objective} tokens of {len(positive)}; a "
            "report needs both kinds there, so label more problems"
        )


def _rates(split: Split, rows: Labelled, objective: str, seed: int) -> SplitRates:
    return SplitRates(
        split=split.value,
        problems=len(np.unique(rows.problem_N)),
        tokens=len(rows.label_N),
        positives=int(rows.positive(objective).sum()),
        mismatch=share_of(rows.label_N != Label.IDENTICAL, rows.problem_N, seed),
        divergent=share_of(rows.label_N == Label.DIVERGENT, rows.problem_N, seed),
    )


def _comparisons(ranked: Mapping[str, Ranked], recalls: Sequence[float]) -> list[Against]:
    first, *others = ranked
    found = []
    for other in others:
        for recall in recalls:
            pair = compare(ranked[first].rate[recall], ranked[other].rate[recall])
            found.append(Against(first, other, recall, pair.ratio, pair.difference))
    return found


def _curve(name: str, scores: np.ndarray, positive: np.ndarray) -> CurveRow:
    thin = curve(scores, positive).thinned()
    return CurveRow(
        name,
        tuple(thin.threshold_L.tolist()),
        tuple(thin.recall_L.tolist()),
        tuple(thin.positive_rate_L.tolist()),
    )


def _histogram(name: str, scores: np.ndarray, label_N: np.ndarray) -> Histogram:
    counts = [
        tuple(np.histogram(scores[label_N == label], HISTOGRAM_EDGES)[0].tolist())
        for label in Label
    ]
    return Histogram(name, *counts)


# Tables for the terminal, from the report's plain values
