"""A threshold for a router: what it is chosen for, on which data, and whether it still holds.

Calibration touches no weight. On new data it also says how far the old threshold has drifted from
what its card promised. Shapes: N tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import ensure_writable, write_json
from crossroads.errors import ConfigError, DataError, RouterError
from crossroads.routing.checkpoint import LoadedRouter, SmallModelId, save_router
from crossroads.statistics import Interval
from crossroads.training.metrics import distance, score_quantiles
from crossroads.training.report import Labelled, Measured, measure
from crossroads.training.target import Target, choose_threshold

RECORD = "calibration.json"
TELLING: Mapping[str, float] = {"recall": 0.1, "positive_rate": 0.05}
"""A promise whose interval is wider than this may hold or not: nobody can tell."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold, what it was chosen for, and what it does on the data it was chosen on."""

    target: Target
    objective: str
    measured: Measured
    problems: int
    score_quantiles: tuple[float, ...]

    @property
    def threshold(self) -> float:
        """The threshold."""
        return self.measured.point.threshold

    def record(self) -> dict[str, Any]:
        """Return what a router's card keeps, as plain values."""
        recall = self.target.value if self.target.kind in ("recall", "guarantee") else None
        return {
            "target": str(self.target),
            "target_recall": recall,
            "objective": self.objective,
            **asdict(self.measured),
            "problems": self.problems,
            "score_quantiles": list(self.score_quantiles),
        }


def calibrate_scores(
    scores: np.ndarray, rows: Labelled, target: Target, objective: str, seed: int
) -> Calibration:
    """Return the threshold for a target on scored and labelled tokens.

    Raises:
        DataError: no token, one problem only, no positive, or a target out of reach.
    """
    positive = rows.positive(objective)
    problems = len(np.unique(rows.problem_N))
    if not len(scores):
        raise DataError("the split has no position to calibrate on; label more problems")
    if problems < 2:
        raise DataError(
            "the split has one problem only; what holds for it may hold for no other, so label "
            "more problems"
        )
    if not positive.any():
        raise DataError(
            f"no {objective} token in the split, so no threshold can be chosen; label more problems"
        )
    threshold = choose_threshold(target, scores, positive, rows.problem_N, seed)
    return Calibration(
        target,
        objective,
        measure(scores, positive, rows.problem_N, threshold, seed),
        problems,
        tuple(score_quantiles(scores)),
    )


class Drift(StrEnum):
    """Whether a card's promise holds on new data.

    DRIFTED says that it does not, not why: the data may be others, or the old ones were too few.
    """

    HOLDS = "holds"
    DRIFTED = "drifted"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class Promise:
    """What a card says that its threshold does. at_least: more than `value` breaks nothing."""

    name: str
    value: float
    at_least: bool = False

    def judged(self, interval: Interval) -> Drift:
        """Return whether the number, whose interval on new data is this, is as promised."""
        below, above = interval.high < self.value, interval.low > self.value
        if below or (above and not self.at_least):
            return Drift.DRIFTED
        wide = interval.high - interval.low > TELLING[self.name]
        return Drift.CANNOT_TELL if wide and not above else Drift.HOLDS


@dataclass(frozen=True, slots=True)
class Recalibration:
    """An existing router on new data: its old threshold there, and the one it should have.

    card: the calibration that the router came with. promise: None where the card has none.
    distance: Kolmogorov-Smirnov, of the scores to those of the old calibration; None without them.
    """

    card: Mapping[str, Any]
    promise: Promise | None
    old: Measured
    new: Calibration
    distance: float | None

    @property
    def drift(self) -> Drift:
        """Whether the card's promise holds on the new data."""
        if self.promise is None:
            return Drift.CANNOT_TELL
        return self.promise.judged(self._interval(self.promise.name))

    def _interval(self, name: str) -> Interval:
        """Return the old threshold's interval of a number on the new data.

        The bootstrap's shrinks to a point where every positive is caught; then, and wherever it is
        wider, that of independent tokens counts.
        """
        clustered: Interval = getattr(self.old, name)
        if name != "recall":
            return clustered
        exact = self.old.recall_clopper_pearson
        return Interval(min(clustered.low, exact.low), max(clustered.high, exact.high))

    @property
    def verdict(self) -> str:
        """Whether the promise holds, in a sentence or two."""
        positives, problems = self.old.point.positives, self.new.problems
        here = f"{positives} {self.new.objective} tokens in {problems} problems"
        if self.promise is None:
            return f"Cannot tell: the router's card says of no number what it should be ({here})."
        name, value = self.promise.name, getattr(self.old.point, self.promise.name)
        interval = self._interval(name)
        known = (
            f"the old threshold's {name} here is {100 * value:.1f} % [{100 * interval.low:.1f}, "
            f"{100 * interval.high:.1f}] ({here})"
        )
        least = "at least " if self.promise.at_least else ""
        promised = f"the card promises {least}{100 * self.promise.value:.4g} %"
        if self.drift is Drift.DRIFTED:
            way = "less" if interval.high < self.promise.value else "more"
            return f"Drifted: {known}, {way} than promised ({promised}).{self._doubt()}"
        if self.drift is Drift.HOLDS:
            return f"Holds: {promised}, and {known}."
        return (
            f"Cannot tell: {promised}, and {known}; the interval is too wide, label more problems."
        )

    def _doubt(self) -> str:
        """Return what else than other data explains a drift: a card that never knew its number."""
        assert self.promise is not None
        before, here = self.card.get(self.promise.name), self._interval(self.promise.name)
        if not isinstance(before, Mapping):
            return ""
        low, high = before["low"], before["high"]
        if here.high < low or high < here.low:
            return ""
        return (
            f" The card's own interval, [{100 * low:.1f}, {100 * high:.1f}], reaches into this "
            "one: its calibration data may have been too few rather than these data other."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "drift": self.drift.value,
            "verdict": self.verdict,
            "promise": None if self.promise is None else asdict(self.promise),
            "distance": self.distance,
            "card": dict(self.card),
            "old": asdict(self.old),
            "new": self.new.record(),
        }


def recalibrate(
    loaded: LoadedRouter, scores: np.ndarray, rows: Labelled, target: Target | None, seed: int = 0
) -> Recalibration:
    """Return a router's new threshold on new data, and what the old one does there.

    `target`: the card's own unless given; the card also says what the positive class is.

    Raises:
        DataError: data that nothing can be calibrated on, or an unreachable target.
        ConfigError: no target is given and the card has none.
    """
    card = loaded.card.calibration
    before = card_target(card)
    wanted = target or before
    if wanted is None:
        raise ConfigError("the router's card has no target; give one, such as --target recall=0.95")
    new = calibrate_scores(scores, rows, wanted, str(card.get("objective", "divergent")), seed)
    positive = rows.positive(new.objective)
    old = measure(scores, positive, rows.problem_N, loaded.card.threshold, seed)
    quantiles = card.get("score_quantiles")
    return Recalibration(
        card=card,
        promise=None if before is None else _promise(before, card),
        old=old,
        new=new,
        distance=distance(quantiles, scores) if quantiles else None,
    )


def card_target(card: Mapping[str, Any]) -> Target | None:
    """Return what a card's threshold was chosen for; None where the card does not say."""
    target = card.get("target")
    if target:
        return Target(**target) if isinstance(target, Mapping) else Target.parse(str(target))
    recall = card.get("target_recall")
    return None if recall is None else Target("recall", float(recall))


def _promise(target: Target, card: Mapping[str, Any]) -> Promise | None:
    if target.kind in ("recall", "guarantee"):
        return Promise("recall", target.value, at_least=target.kind == "guarantee")
    name = "positive_rate" if target.kind == "positive_rate" else "recall"
    point = card.get("point") or {}
    return Promise(name, float(point[name])) if name in point else None


def check_small(small: SmallModelId, data: SmallModelId, router: Path, dataset: Path) -> None:
    """Refuse data of another small model than the router's.

    Raises:
        RouterError: names the first difference: hidden size, vocabulary, engine or weights.
    """
    for what, key in (
        ("hidden size", "hidden_size"),
        ("vocabulary", "vocab_size"),
        ("engine", "engine"),
        ("weights", "fingerprint"),
    ):
        wanted, found = getattr(small, key), getattr(data, key)
        if wanted != found:
            raise RouterError(
                f"the router in {router} was trained for {small.name} ({what} {str(wanted)[:12]}), "
                f"but {dataset} holds outputs of {data.name} ({what} {str(found)[:12]}); give data "
                "of the router's own small model"
            )


def check_out(router: Path, out: Path | None, in_place: bool) -> Path | None:
    """Return the folder to write, None for none; refuse one that would be overwritten unasked.

    Raises:
        ConfigError: it holds something, is the router's own, or cannot be written.
    """
    if in_place:
        if out is not None:
            raise ConfigError("--out and --in-place exclude each other; give one")
        return router
    if out is None:
        return None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} is not empty; give a new folder, or --in-place to replace the router's own "
            "threshold"
        )
    ensure_writable(out.parent)  # the folder itself appears with the router
    return out


def save_recalibrated(
    loaded: LoadedRouter, found: Recalibration, folder: Path, origin: Mapping[str, Any]
) -> None:
    """Write the router with its new threshold, and `calibration.json`: how the old one did.

    The weights are those of the old folder, bit for bit. `origin`: the provenance of this step.
    """
    write_json(folder / RECORD, {**found.to_json(), "provenance": dict(origin)})
    card = dataclasses.replace(
        loaded.card,
        threshold=found.new.threshold,
        calibration=found.new.record(),
        provenance={**loaded.card.provenance, "calibrated": dict(origin)},
    )
    save_router(folder, loaded.router, card)
