"""positive_rate against the number of training tokens, and where that is going.

The parts are nested by problem and drawn anew by every seed. A power law a + b (n / m)^-c (Hestness
et al., arXiv 1712.00409) is fitted to the means of the seeds; its interval comes from drawing test
problems and seeds again and fitting again. That interval holds if the law does: nothing in a curve
tells whether it goes on as it began.

Shapes: P points, R draws (the first is all, once each), K seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import ensure_writable, write_json, write_text
from crossroads.dataset import LabelledDataset
from crossroads.errors import ConfigError, DataError
from crossroads.provenance import provenance
from crossroads.statistics import Interval
from crossroads.training.ablate import (
    best_heuristic,
    changes_for,
    check_changes,
    counts,
    measure_heuristics,
    open_corpus,
    parse_inputs,
)
from crossroads.training.config import FitConfig
from crossroads.training.grid import RECALLS, Bench, Cell, Grid, Measured
from crossroads.training.ranking import interval_of
from crossroads.training.recipes import recipe
from crossroads.training.rows import Rows
from crossroads.types import Progress, Split

LEAST_TOKENS = 1000
"""About how many tokens the smallest part has."""
SHOWN = (0.8, 0.95)
"""Recalls whose law is fitted."""
LAW_POINTS = 4
"""A law of three numbers needs more points than that."""
GOALS = (1.0, 0.8)
"""Shares of the best heuristic's positive_rate; asked is how many tokens reach them."""
AHEAD = (3, 10)
"""Multiples of the tokens at hand at which the law is read."""
_MIDDLE, _SPREAD = 0.4, 8.0  # exponents from 0.05 to 3.2
_LEARNT = 1.1  # of the heuristic's positive_rate: from here on a law may hold
_SHRINK = 0.1  # of the covariance towards its diagonal
_ROUNDS, _STEPS = 6, 41
_BAND_STEPS = 40
_FAR = 1e12  # tokens; more than that is as good as never


@dataclass(frozen=True, slots=True)
class CurveConfig:
    """What the curve has. inputs: one set joined by +; None for each recipe's own.

    same_steps: smaller parts get more epochs, so that all take as many steps as the whole;
    otherwise a small part is also trained less. least_tokens: size of the smallest part.
    """

    recipes: tuple[str, ...] = ("default",)
    points: int = 6
    objective: str = "divergent"
    inputs: str | None = None
    seeds: int = 3
    same_steps: bool = False
    least_tokens: int = LEAST_TOKENS
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a curve without points.

        Raises:
            ConfigError: names the field.
        """
        if self.points < 2 or self.seeds < 1 or not self.recipes:
            raise ConfigError(
                "a learning curve needs a recipe, at least 2 points and 1 seed, got "
                f"{self.points} points and {self.seeds} seeds"
            )
        check_changes(self.changes)

    def base(self, name: str) -> FitConfig:
        """Return a recipe's config with the changes."""
        changes = changes_for(name, self.changes)
        if self.inputs is not None:
            changes["inputs"] = parse_inputs(self.inputs, name)
        return recipe(name, **changes, objective=self.objective)


def learning_curve(
    datasets: Sequence[LabelledDataset], folder: Path, config: CurveConfig, progress: Progress
) -> dict[str, Any]:
    """Fit what is missing, measure, write `learning-curve.json`, `.md` and `.html` to `folder`.

    Raises:
        ConfigError: settings that cannot work. DataError: data that cannot be trained on.
        EngineError: matplotlib is not installed.
    """
    from crossroads.training.grid_page import write_curve_page  # noqa: PLC0415  optional parts
    from crossroads.training.grid_tables import curve_tables, markdown  # noqa: PLC0415

    bases = {name: config.base(name) for name in dict.fromkeys(config.recipes)}
    ensure_writable(folder)
    corpus = open_corpus(datasets, list(bases.values()), folder, progress)
    grid = Grid(corpus, folder)
    train = corpus.split(Split.TRAIN)
    grid.check([Cell(name, base) for name, base in bases.items()])
    parts = problem_counts(train, config)
    cells = {
        name: [_cells(name, base, train, count, config) for count in parts]
        for name, base in bases.items()
    }
    grid.fit([c for points in cells.values() for point in points for c in point], progress)
    result = {
        **curves(grid, cells, config.objective),
        "provenance": provenance(config=asdict(config)),
    }
    write_json(folder / "learning-curve.json", result)
    write_text(folder / "learning-curve.md", markdown(curve_tables(result)))
    write_curve_page(folder / "learning-curve.html", result)
    return result


def problem_counts(train: Rows, config: CurveConfig) -> list[int]:
    """Return how many problems each part has: evenly spread in the logarithm, the last has all.

    The smallest part of every seed has both kinds of tokens and two problems.

    Raises:
        DataError: there are too few problems for two parts.
    """
    total = len(train.problem_ids)
    first = max(2, math.ceil(config.least_tokens * total / max(len(train), 1)))
    while first < total and not all(
        _both_kinds(train.of_problems(first, config.base(name).seed + n), config.objective)
        for name in config.recipes
        for n in range(config.seeds)
    ):
        first += 1
    if first >= total:
        raise DataError(
            f"the train split has {total} problems and {len(train)} tokens, too few for a curve "
            f"from {config.least_tokens} tokens on; label more problems or ask for a smaller start"
        )
    spread = np.geomspace(first, total, config.points).round().astype(int)
    return [int(count) for count in np.unique(spread)]


def _both_kinds(rows: Rows, objective: str) -> bool:
    positive_N = rows.positive(objective)
    return bool(positive_N.any() and not positive_N.all())


def _cells(
    name: str, base: FitConfig, train: Rows, problems: int, config: CurveConfig
) -> list[Cell]:
    found = []
    for seed in range(base.seed, base.seed + config.seeds):
        times = 1.0
        if config.same_steps:
            tokens = len(train.of_problems(problems, seed))
            times = math.ceil(len(train) / base.batch_size) / math.ceil(tokens / base.batch_size)
        one = dataclasses.replace(base, seed=seed, epochs=math.ceil(times * base.epochs))
        found.append(Cell(f"{name}, {problems} problems", one, problems))
    return found


def curves(
    grid: Grid, cells: Mapping[str, Sequence[Sequence[Cell]]], objective: str
) -> dict[str, Any]:
    """Return the curves' numbers from stored scores alone."""
    bench = Bench.of(grid.corpus, objective)
    heuristics = measure_heuristics(grid.corpus, bench)
    return {
        "objective": objective,
        "counts": counts(grid.corpus),
        "recalls": list(RECALLS),
        "curves": [_curve(grid, bench, name, points, heuristics) for name, points in cells.items()],
        "heuristics": [{"name": name, **m.values()} for name, m in heuristics.items()],
    }


def _curve(
    grid: Grid,
    bench: Bench,
    name: str,
    points: Sequence[Sequence[Cell]],
    heuristics: Mapping[str, Measured],
) -> dict[str, Any]:
    found, measured = [], []
    for cells in points:
        trained = [grid.record(cell)["train"] for cell in cells]
        measured.append(
            bench.measure(
                (grid.scores(c, Split.CALIBRATION), grid.scores(c, Split.TEST)) for c in cells
            )
        )
        found.append(
            {
                "problems": trained[0]["problems"],
                "tokens": sum(part["tokens"] for part in trained) / len(trained),
                "positives": sum(part["positives"] for part in trained) / len(trained),
                "keys": [grid.key(cell) for cell in cells],
                **_set_against(measured[-1], heuristics),
            }
        )
    laws = []
    if len(points) >= LAW_POINTS:
        tokens_P = np.array([point["tokens"] for point in found])
        for recall in SHOWN:
            number = RECALLS.index(recall)
            best = best_heuristic(heuristics, number)
            means_RP, other_R = _drawn_means(measured, number), heuristics[best].rates(number)
            known_R = np.isfinite(means_RP).all(axis=1)  # a draw may have no positive
            start = law_start(means_RP[0], float(other_R[0]))
            law = Law.fit(tokens_P[start:], means_RP[known_R, start:])
            fitted = {"recall": recall, "fitted_from": float(tokens_P[start])}
            laws.append({**fitted, **law.values(best, other_R[known_R])})
    return {"recipe": name, "points": found, "laws": laws}


def law_start(rates_P: np.ndarray, heuristic: float) -> int:
    """Return the first point that a law is fitted to: the last ones, LAW_POINTS at least.

    Before it are the points that send clearly more than the best heuristic: with so few tokens the
    law does not hold yet (the small-data region of Hestness et al.).
    """
    learnt = np.flatnonzero(rates_P <= _LEARNT * heuristic)
    first = int(learnt[0]) if len(learnt) else len(rates_P)
    return max(min(first, len(rates_P) - LAW_POINTS), 0)


def _set_against(numbers: Measured, heuristics: Mapping[str, Measured]) -> dict[str, Any]:
    """Return a point's values, each recall with its share of the best heuristic's."""
    values = numbers.values()
    for number, at in enumerate(values["at"]):
        best = best_heuristic(heuristics, number)
        at["ratio"] = {"against": best, **numbers.ratio(heuristics[best], number)}
    return values


def _drawn_means(measured: Sequence[Measured], number: int) -> np.ndarray:
    """Return positive_rate [R, P] as the mean of drawn seeds on drawn problems.

    A seed is drawn for the whole curve: its parts hold each other, so its errors go together.
    """
    seeds, draws = measured[0].ranking_KRM.shape[:2]
    seed_KR = np.random.default_rng(1).integers(seeds, size=(seeds, draws))
    seed_KR[:, 0] = np.arange(seeds)
    every = np.arange(draws)
    means = [m.ranking_KRM[:, :, number][seed_KR, every].mean(axis=0) for m in measured]
    return np.stack(means, axis=1)


@dataclass(frozen=True, slots=True)
class Law:
    """positive_rate = asymptote + gain * (tokens / reference) ** -exponent, per draw [R].

    reference: the most tokens that were trained on. asymptote and gain are at least 0. The first
    draw is the data as it is.
    """

    reference: float
    asymptote_R: np.ndarray
    gain_R: np.ndarray
    exponent_R: np.ndarray

    @classmethod
    def fit(cls, tokens_P: np.ndarray, rates_RP: np.ndarray) -> Law:
        """Return the least-squares law of every draw; the exponent is searched ever more finely.

        Points are weighed by the inverse of their covariance over the draws (generalised least
        squares): the smallest parts are high and uncertain, and would bend the law away from the
        end that it is drawn on from; what all points share, the test problems, bends nothing.
        """
        reference, draws = float(tokens_P.max()), len(rates_RP)
        whitening_PP = _whitening(rates_RP)
        best_R = np.full(draws, np.inf)
        law = [np.zeros(draws), np.zeros(draws), np.full(draws, _MIDDLE)]
        width = _SPREAD
        for _ in range(_ROUNDS):
            middle_R = law[2].copy()
            for step in np.linspace(-1, 1, _STEPS):
                exponent_R = (middle_R * width**step).clip(_MIDDLE / _SPREAD, _MIDDLE * _SPREAD)
                power_RP = (tokens_P / reference) ** -exponent_R[:, None]
                asymptote_R, gain_R = _line(power_RP, rates_RP, whitening_PP)
                error_RP = asymptote_R[:, None] + gain_R[:, None] * power_RP - rates_RP
                error_R = np.square(error_RP @ whitening_PP).sum(axis=1)
                better_R = error_R < best_R
                best_R[better_R] = error_R[better_R]
                for kept, new in zip(law, (asymptote_R, gain_R, exponent_R), strict=True):
                    kept[better_R] = new[better_R]
            width **= 4 / _STEPS
        return cls(reference, *law)

    def at(self, tokens: float) -> np.ndarray:
        """Return positive_rate [R] after training on so many tokens; never more than all."""
        power_R = (tokens / self.reference) ** -self.exponent_R
        rates: np.ndarray = np.minimum(self.asymptote_R + self.gain_R * power_R, 1.0)
        return rates

    def tokens_for(self, rate_R: np.ndarray) -> np.ndarray:
        """Return how many tokens [R] bring positive_rate down to `rate_R`; inf where none do."""
        over_R = rate_R - self.asymptote_R
        reachable_R = (over_R > 0) & (self.gain_R > 0)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            tokens_R = self.reference * (self.gain_R / over_R) ** (1 / self.exponent_R)
        flat_R = (self.gain_R == 0) & (over_R >= 0)  # a curve that is there already
        found: np.ndarray = np.where(reachable_R, tokens_R, np.where(flat_R, 0.0, np.inf))
        return np.where(found > _FAR, np.inf, found)

    def values(self, heuristic: str, heuristic_R: np.ndarray) -> dict[str, Any]:
        """Return the law, where it leads, and when it beats the heuristic, as plain values."""
        steps = np.geomspace(self.reference / 100, self.reference * AHEAD[-1], _BAND_STEPS)
        return {
            "law": "asymptote + gain * (tokens / reference) ** -exponent",
            "reference": self.reference,
            "asymptote": _estimate(self.asymptote_R),
            "gain": _estimate(self.gain_R),
            "exponent": _estimate(self.exponent_R),
            "ahead": [
                {"tokens": times * self.reference, **_estimate(self.at(times * self.reference))}
                for times in AHEAD
            ],
            "goals": [self._goal(share, heuristic, heuristic_R) for share in GOALS],
            "band": [{"tokens": float(at), **_estimate(self.at(float(at)))} for at in steps],
        }

    def _goal(self, share: float, heuristic: str, heuristic_R: np.ndarray) -> dict[str, Any]:
        tokens_R = self.tokens_for(share * heuristic_R)
        low, high = (_order(tokens_R[1:], part) for part in (0.025, 0.975))
        return {
            "share": share,
            "of": heuristic,
            "positive_rate": float(share * heuristic_R[0]),
            "tokens": _finite(float(tokens_R[0])),
            "low": _finite(low),
            "high": _finite(high),
            "never": float(np.isinf(tokens_R[1:]).mean()),
        }


def _whitening(rates_RP: np.ndarray) -> np.ndarray:
    """Return the matrix [P, P] that gives deviations equal, independent weight.

    The covariance of the draws is drawn towards its diagonal: few seeds tell little of it. Where
    there are too few draws, or none differ, the identity.
    """
    points = rates_RP.shape[1]
    if len(rates_RP) <= 2 * points or not (rates_RP.var(axis=0) > 0).all():
        return np.eye(points)
    covariance_PP = np.cov(rates_RP, rowvar=False)
    covariance_PP = (1 - _SHRINK) * covariance_PP + _SHRINK * np.diag(np.diag(covariance_PP))
    whitening_PP: np.ndarray = np.linalg.cholesky(np.linalg.inv(covariance_PP))
    return whitening_PP


def _line(
    power_RP: np.ndarray, rates_RP: np.ndarray, whitening_PP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return asymptote and gain [R] of least squares of whitened deviations, neither below 0."""
    one_P = whitening_PP.sum(axis=0)
    power_RP, rates_RP = power_RP @ whitening_PP, rates_RP @ whitening_PP
    one, power_R = one_P @ one_P, np.square(power_RP).sum(axis=1)
    cross_R, one_rate_R = power_RP @ one_P, rates_RP @ one_P
    power_rate_R = (power_RP * rates_RP).sum(axis=1)
    gain_R = (one * power_rate_R - cross_R * one_rate_R) / (one * power_R - np.square(cross_R))
    asymptote_R = (one_rate_R - gain_R * cross_R) / one
    rising_R, below_R = gain_R < 0, asymptote_R < 0
    through_zero_R = np.maximum(power_rate_R / power_R, 0.0)
    gain_R = np.where(rising_R, 0.0, np.where(below_R, through_zero_R, gain_R))
    level_R = np.maximum(one_rate_R / one, 0.0)
    asymptote_R = np.where(rising_R, level_R, np.where(below_R, 0.0, asymptote_R))
    return asymptote_R, gain_R


def _estimate(values_R: np.ndarray) -> dict[str, Any]:
    interval: Interval = interval_of(values_R[1:])
    return {"value": float(values_R[0]), "interval": asdict(interval)}


def _order(values_R: np.ndarray, share: float) -> float:
    """Return an order statistic: infinities cannot be interpolated."""
    ordered = np.sort(values_R)
    return float(ordered[min(int(share * len(ordered)), len(ordered) - 1)])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
