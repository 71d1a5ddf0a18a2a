"""Do labels, distributions and hidden states of a row belong together?

A column that slipped by a row or two trains a router without any error, on noise. In a sound
dataset a position's own entropy tells best whether it is a mismatch, and its own hidden state
tells best what its entropy is; where a neighbour's does better, a column has slipped.

Shapes: n positions that have all their neighbours, L lags.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crossroads.diagnosis.causes.base import LABELS, Cause, Kind, cannot_tell
from crossroads.diagnosis.criteria import FEWEST_POSITIVES, FEWEST_PROBLEMS, STRONG
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.plots import Plot, Series
from crossroads.diagnosis.resampling import Clusters, WeightedRanking
from crossroads.diagnosis.tokens import Tokens
from crossroads.diagnosis.verdict import Estimate, Status, Verdict, points_text
from crossroads.diagnosis.wide import cross_predicted, narrowed

NAME = "misalignment"
LAGS = (-2, -1, 0, 1, 2)
_OWN = LAGS.index(0)
_SCALAR = 3  # tests that need no hidden state
_BETTER_AUROC = 0.02
"""By how much a neighbour must do better before a column counts as slipped."""
_BETTER_FIT = 0.05
_ENTROPY, _HIDDEN = "entropy", "the hidden state"


@dataclass(frozen=True, slots=True)
class _Test:
    """How well a column tells something of the row, by lag; `apart`: best other lag less own."""

    column: str
    tells: str
    value_L: tuple[float, ...]
    apart: Estimate
    margin: float

    @property
    def best_lag(self) -> int:
        """The lag of the best other row."""
        others = [value if lag else -np.inf for lag, value in zip(LAGS, self.value_L, strict=True)]
        return LAGS[int(np.argmax(others))]

    @property
    def slipped(self) -> bool:
        """Whether a neighbour does better, beyond doubt."""
        return self.apart.z >= STRONG and self.apart.value >= self.margin

    @property
    def sound(self) -> bool:
        """Whether the own row does better, beyond doubt."""
        return self.apart.z <= -STRONG and self.apart.value <= -self.margin

    @property
    def text(self) -> str:
        """The test in a sentence."""
        own, other = (
            self.value_L[_OWN],
            max(v for v, lag in zip(self.value_L, LAGS, strict=True) if lag),
        )
        column = self.column[:1].upper() + self.column[1:]
        return (
            f"{column} of the own row tells {self.tells}, with {own:.3f}; that of the row "
            f"{self.best_lag:+d} with {other:.3f}."
        )


def examine(evidence: Evidence) -> Verdict:
    """Shift one column against the others and see where it fits best."""
    if evidence.data is None or evidence.tokens is None:
        return cannot_tell(NAME, "No rows are at hand.", LABELS)
    tokens = evidence.tokens
    inner_n = _inner(tokens)
    problems = len(np.unique(tokens.problem_N[inner_n]))
    if problems < FEWEST_PROBLEMS:
        return cannot_tell(NAME, f"{problems} problems are too few.", "labels of more problems")
    if tokens.positive("mismatch")[inner_n].sum() < FEWEST_POSITIVES:
        return cannot_tell(NAME, "There are too few mismatches.", "labels of more problems")
    tests = [*_scalar_tests(tokens, inner_n), *_hidden_tests(evidence)]
    return _verdict(evidence, tests, inner_n)


def _inner(tokens: Tokens) -> np.ndarray:
    """Return the judged positions all of whose neighbours are in the same response."""
    reach = max(LAGS)
    at = np.flatnonzero(tokens.judged_N)
    start_n = tokens.start_R[tokens.response_N[at]]
    end_n = tokens.start_R[tokens.response_N[at] + 1]
    inner: np.ndarray = at[(at - start_n >= reach) & (at + reach < end_n)]
    return inner


def _scalar_tests(tokens: Tokens, inner_n: np.ndarray) -> list[_Test]:
    clusters = Clusters(tokens.problem_N[inner_n], seed=0)
    mismatch_n = tokens.positive("mismatch")[inner_n]

    def agreement(lag: int) -> Callable[[np.ndarray | None], float]:
        equal_n = (tokens.proposed_N[inner_n + lag] == tokens.real_N[inner_n]).astype(float)
        return lambda w: float(np.average(equal_n, weights=w))

    def auroc(lag: int) -> Callable[[np.ndarray | None], float]:
        return WeightedRanking(tokens.entropy_N[inner_n + lag], mismatch_n).auroc

    label_N = tokens.positive("mismatch")
    differs_N = tokens.proposed_N != tokens.real_N

    def fits(lag: int) -> Callable[[np.ndarray | None], float]:
        equal_n = (differs_N[inner_n + lag] == label_N[inner_n]).astype(float)
        return lambda w: float(np.average(equal_n, weights=w))

    return [
        _compared("the comparison", "the label, as a share", fits, clusters, _BETTER_FIT),
        _compared("the proposal", "the real token, as a share", agreement, clusters, _BETTER_FIT),
        _compared(_ENTROPY, "mismatches, as an AUROC", auroc, clusters, _BETTER_AUROC),
    ]


def _hidden_tests(evidence: Evidence) -> list[_Test]:
    """Probe a sample's hidden states linearly for its entropy and for its mismatches."""
    wide, tokens = evidence.wide, evidence.tokens
    assert wide is not None
    assert tokens is not None
    inner_n, place_N = _sampled(evidence, _inner(tokens))
    problem_n = tokens.problem_N[inner_n]
    if len(np.unique(problem_n)) < FEWEST_PROBLEMS:
        return []
    clusters = Clusters(problem_n, seed=0)
    hidden_nD = narrowed(wide.hidden_nH)
    entropy_n = np.log(tokens.entropy_N[inner_n] + 1e-3)
    variance = float(((entropy_n - entropy_n.mean()) ** 2).mean())

    def fit(lag: int) -> Callable[[np.ndarray | None], float]:
        value_nD = hidden_nD[place_N[inner_n + lag]]
        wrong_n = (cross_predicted(value_nD, entropy_n, problem_n) - entropy_n) ** 2
        return lambda w: 1 - float(np.average(wrong_n, weights=w)) / max(variance, 1e-12)

    mismatch_n = tokens.positive("mismatch")[inner_n]

    def auroc(lag: int) -> Callable[[np.ndarray | None], float]:
        value_nD = hidden_nD[place_N[inner_n + lag]]
        score_n = cross_predicted(value_nD, mismatch_n.astype(float), problem_n)
        return WeightedRanking(score_n, mismatch_n).auroc

    return [
        _compared(_HIDDEN, "the entropy, as R2", fit, clusters, _BETTER_FIT),
        _compared(_HIDDEN, "mismatches, as an AUROC", auroc, clusters, _BETTER_AUROC),
    ]


def _compared(
    column: str,
    tells: str,
    at_lag: Callable[[int], Callable[[np.ndarray | None], float]],
    clusters: Clusters,
    margin: float,
) -> _Test:
    """Return the values at all lags, and the best other lag less the own one, over problems."""
    statistics = [at_lag(lag) for lag in LAGS]
    value_L = tuple(statistic(None) for statistic in statistics)
    others = [value if lag else -np.inf for lag, value in zip(LAGS, value_L, strict=True)]
    best, own = statistics[int(np.argmax(others))], statistics[_OWN]
    apart = clusters.estimate(lambda w: best(w) - own(w))
    return _Test(column, tells, value_L, apart, margin)


def _verdict(evidence: Evidence, tests: list[_Test], inner_n: np.ndarray) -> Verdict:
    text = " ".join(test.text for test in tests)
    plot, facts = _plot(tests), {f"{t.column}: {t.tells}": t.value_L for t in tests}
    slipped = [test for test in tests if test.slipped]
    if slipped:
        points = _points(evidence, inner_n, slipped)
        moved = (
            ""
            if points is None
            else f" Moved back into place, it would need {points_text(-points)} points."
        )
        columns = " and ".join(dict.fromkeys(test.column for test in slipped))
        said = f"The row {slipped[0].best_lag:+d} fits better than the own one: {columns} slipped."
        return Verdict(NAME, Status.FOUND, f"{said} {text}{moved}", points, plot=plot, facts=facts)
    if all(test.sound for test in tests[:_SCALAR]):
        placed = any(test.sound for test in tests[_SCALAR:])
        doubt = "" if placed else " The hidden state says too little here to be placed."
        return Verdict(NAME, Status.RULED_OUT, text + doubt, plot=plot, facts=facts)
    return Verdict(
        NAME,
        Status.CANNOT_TELL,
        text,
        needs="labels of more problems, or `crossroads audit` of where the data come from",
        plot=plot,
        facts=facts,
    )


def _points(evidence: Evidence, inner_n: np.ndarray, slipped: list[_Test]) -> Estimate | None:
    """Return by how much a rate falls when the slipped column is moved to where it fits best.

    The rate of entropy, if that slipped; else that of a linear probe of hidden state and entropy.
    """
    tokens = evidence.tokens
    assert tokens is not None
    lags = {test.column: test.best_lag for test in reversed(slipped)}
    if _ENTROPY in lags:
        scores = tokens.entropy_N[inner_n], tokens.entropy_N[inner_n + lags[_ENTROPY]]
    elif _HIDDEN in lags:
        inner_n, place_N = _sampled(evidence, inner_n)
        scores = (
            _probe(evidence, inner_n, place_N, 0),
            _probe(evidence, inner_n, place_N, lags[_HIDDEN]),
        )
    else:
        return None
    positive_n = tokens.positive(evidence.objective)[inner_n]
    if not positive_n.any():
        return None
    own, moved = (WeightedRanking(score, positive_n) for score in scores)
    recall = evidence.recall
    return Clusters(tokens.problem_N[inner_n], seed=0).estimate(
        lambda w: own.rate_at_recall(recall, w) - moved.rate_at_recall(recall, w)
    )


def _probe(evidence: Evidence, inner_n: np.ndarray, place_N: np.ndarray, lag: int) -> np.ndarray:
    """Return a linear probe's scores: hidden state of the row `lag` places on, own entropy."""
    tokens, wide = evidence.tokens, evidence.wide
    assert tokens is not None
    assert wide is not None
    log_entropy_n = np.log(tokens.entropy_N[inner_n] + 1e-3)
    hidden_nD = narrowed(wide.hidden_nH)[place_N[inner_n + lag]]
    value_nD = np.concatenate([hidden_nD, log_entropy_n[:, None]], axis=1)
    target_n = tokens.positive(evidence.objective)[inner_n].astype(float)
    return cross_predicted(value_nD, target_n, tokens.problem_N[inner_n])


def _sampled(evidence: Evidence, inner_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return those of the positions whose hidden states are at hand, and where each one's is."""
    assert evidence.wide is not None
    assert evidence.tokens is not None
    place_N = np.full(len(evidence.tokens), -1)
    place_N[evidence.wide.at_n] = np.arange(len(evidence.wide.at_n))
    return inner_n[place_N[inner_n] >= 0], place_N


def _plot(tests: list[_Test]) -> Plot:
    series = tuple(
        Series(f"{test.column}: {test.tells}", [float(lag) for lag in LAGS], test.value_L)
        for test in tests
    )
    return Plot(
        "Does each column belong to its row?",
        "How well a column tells another one of the row that stands so many places before it. A "
        "sound dataset peaks at 0.",
        "places between the two rows",
        "share, AUROC or R2",
        series,
    )


CAUSES = (
    Cause(
        NAME,
        Kind.DATA,
        "do a row's label, distribution and hidden state belong together?",
        examine,
    ),
)
