"""Training of a neural router on labelled positions.

Selection follows what we are after: the positive_rate at the target recall on the calibration
split, not a loss (`selection="loss"` is R2R's). Test is never touched here. Shapes: N positions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from crossroads.routing.routers.base import Router
from crossroads.routing.routers.neural import NeuralRouter
from crossroads.training.checks import check_auxiliary, check_corpus
from crossroads.training.config import FitConfig
from crossroads.training.losses import build_loss
from crossroads.training.rows import Corpus, Rows
from crossroads.training.threshold import operating_point, threshold_for_recall
from crossroads.training.tracking import NoTracker, Tracker
from crossroads.training.trainer import Saved, Trainer
from crossroads.training.workers import Workers
from crossroads.types import Progress, Split

_SCORE_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch: mean training loss; on calibration, positive_rate at the target and loss."""

    epoch: int
    loss: float
    positive_rate: float
    calibration_loss: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """The best epoch's router, with the history that chose it."""

    router: NeuralRouter
    best_epoch: int
    history: tuple[Epoch, ...]


def score_rows(router: Router, rows: Rows) -> np.ndarray:
    """Return a router's scores [N], float32."""
    parts = [
        router.score(rows.features(slice(start, start + _SCORE_ROWS), router.inputs)).numpy()
        for start in range(0, len(rows), _SCORE_ROWS)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def targets(rows: Rows, config: FitConfig) -> np.ndarray:
    """Return what the loss aims at [N], float32: 0 and 1, or the judge's probabilities."""
    hard_N = rows.positive(config.objective).astype(np.float32)
    if not config.soft_labels or config.objective != "divergent":
        return hard_N
    soft_N: np.ndarray = np.where(np.isnan(rows.probability_N), hard_N, rows.probability_N)
    return soft_N


def fit(
    corpus: Corpus,
    config: FitConfig,
    progress: Progress,
    *,
    checkpoint: Path | None = None,
    tracker: Tracker | None = None,
) -> FitResult:
    """Train a router on the train split, select on the calibration split.

    Deterministic for a seed on one machine and thread count; with `checkpoint` (a folder) a run
    that was killed goes on from its last state and ends bit by bit as if it had not been.

    Raises:
        DataError: data that cannot be trained on; nothing was trained then.
    """
    train, calibration = corpus.split(Split.TRAIN), corpus.split(Split.CALIBRATION)
    check_corpus(corpus, config.inputs, config.objective)
    with torch.random.fork_rng(devices=[]):
        run = _Run(corpus, config, train, calibration, checkpoint, tracker or NoTracker())
        return run.to_the_end(progress)


class _Run:
    """One training run: epochs, selection, early stop."""

    def __init__(
        self,
        corpus: Corpus,
        config: FitConfig,
        train: Rows,
        calibration: Rows,
        checkpoint: Path | None,
        tracker: Tracker,
    ) -> None:
        self.config, self.calibration, self.tracker = config, calibration, tracker
        self.positive = calibration.positive(config.objective)
        aims = targets(train, config)
        positives = float(train.positive(config.objective).sum())
        self.loss = build_loss(config.loss, positives, len(train) - positives)
        self.calibration_targets = torch.from_numpy(targets(calibration, config))
        self.trainer = Trainer(
            train, aims, config, config.network_values(corpus.small.hidden_size), self.loss,
            Workers.of_environment(config.device),
        )  # fmt: skip
        if config.auxiliary:
            check_auxiliary(corpus, self.trainer.network)
        self.saved = None if checkpoint is None else Saved(checkpoint)
        self.history: list[Epoch] = []

    def to_the_end(self, progress: Progress) -> FitResult:
        config, trainer = self.config, self.trainer
        if self.saved is not None:
            self.history = [Epoch(**epoch) for epoch in self.saved.restore(trainer)]
        progress.start("router trains", config.epochs, "epochs")
        progress.advance(len(self.history))
        while len(self.history) < config.epochs and not self._patience_is_over():
            loss = trainer.epoch(len(self.history) + 1, self._save)
            self._close_epoch(loss)
            progress.advance()
            best = self.history[self._best() - 1].positive_rate
            progress.describe(
                f"positive_rate {100 * self.history[-1].positive_rate:.1f} % at "
                f"{100 * config.target_recall:g} % recall, best {100 * best:.1f} %"
            )
        progress.finish()
        if self.saved is not None:
            # The last state stays until the caller has written what came of it.
            self._save(now=True)
        router = trainer.best_router()
        if config.probabilities:
            router = to_probabilities(router, self.calibration, self.positive)
        return FitResult(router, self._best(), tuple(self.history))

    def _close_epoch(self, loss: float) -> None:
        """Measure the epoch on calibration, keep it if it is the best, write it down."""
        logits_N = self.trainer.logits(self.calibration)
        self.history.append(
            Epoch(
                len(self.history) + 1,
                loss,
                _rate_at_recall(logits_N, self.positive, self.config.target_recall),
                float(self.loss(torch.from_numpy(logits_N), self.calibration_targets)),
            )
        )
        if self._best() == len(self.history):
            self.trainer.keep()
        self.tracker.log(len(self.history), asdict(self.history[-1]))
        self._save()

    def _save(self, *, now: bool = False) -> None:
        if self.saved is not None:
            self.saved.store(self.trainer, [asdict(epoch) for epoch in self.history], now=now)

    def _best(self) -> int:
        """Return the best epoch's number, the first of equals."""
        by_rate = self.config.selection == "positive_rate"
        values = [e.positive_rate if by_rate else e.calibration_loss for e in self.history]
        return 1 + min(range(len(values)), key=values.__getitem__)

    def _patience_is_over(self) -> bool:
        if self.config.patience is None or not self.history:
            return False
        return len(self.history) - self._best() >= self.config.patience


def _rate_at_recall(scores: np.ndarray, positive: np.ndarray, recall: float) -> float:
    return operating_point(
        scores, positive, threshold_for_recall(scores, positive, recall)
    ).positive_rate


def to_probabilities(router: NeuralRouter, rows: Rows, positive: np.ndarray) -> NeuralRouter:
    """Return the router with its scores fitted to probabilities: sigmoid(scale * logit + bias).

    Platt, "Probabilistic outputs for support vector machines", 1999, with his smoothed targets.
    The scale is kept positive, so that no ranking changes.
    """
    scores_N = torch.from_numpy(score_rows(router, rows)).double()
    logits_N = torch.logit(scores_N, eps=1e-12)
    positives = int(positive.sum())
    high, low = (positives + 1) / (positives + 2), 1 / (len(rows) - positives + 2)
    aims_N = torch.where(torch.from_numpy(positive), high, low).double()
    parameters = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = parameters[0].exp() * logits_N + parameters[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, aims_N)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    log_scale, bias = parameters.detach().tolist()
    if not (math.isfinite(log_scale) and math.isfinite(bias)):
        return router
    return router.rescaled(math.exp(min(max(log_scale, -5.0), 5.0)), bias)
