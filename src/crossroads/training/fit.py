"""Training of a neural router on labelled positions.

Selection follows what we are after: the positive_rate at the target recall on the calibration
split, not a loss. Shapes: N positions, W a feature's width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.dataset import LabelledDataset, Positions
from crossroads.errors import ConfigError, DataError
from crossroads.routing.features import FEATURES, check_names
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.neural import NeuralRouter, build_network
from crossroads.training.threshold import operating_point, threshold_for_recall
from crossroads.types import Progress, Split

OBJECTIVES = ("divergent", "mismatch")
_SCORE_ROWS = 8192


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How a router is trained. `objective` is the positive class of the loss and of recall."""

    inputs: tuple[str, ...] = ("entropy", "margin", "proposed_logprob", "top_logprobs")
    architecture: str = "mlp"
    network: Mapping[str, Any] | None = None
    objective: str = "divergent"
    target_recall: float = 0.95
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    average: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: names the field and the range.
        """
        if self.objective not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise ConfigError(f"unknown objective {self.objective!r}; known: {known}")
        if not 0 < self.target_recall <= 1:
            raise ConfigError(f"the recall target must be in (0, 1], got {self.target_recall}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError("epochs and batch size must be >= 1")
        if self.learning_rate <= 0:
            raise ConfigError(f"the learning rate must be > 0, got {self.learning_rate}")
        check_names(self.inputs)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch's mean loss and the averaged weights' positive_rate at the target recall."""

    epoch: int
    loss: float
    positive_rate: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """The best epoch's router, with the history that chose it."""

    router: NeuralRouter
    best_epoch: int
    history: tuple[Epoch, ...]


def targets(positions: Positions, objective: str) -> Tensor:
    """Return the positive class [N], bool."""
    return positions.divergent_N if objective == "divergent" else positions.mismatch_N


def score_positions(router: Router, positions: Positions) -> np.ndarray:
    """Return a router's scores [N] on stored positions, float32."""
    features = positions.features(router.inputs)
    parts = [
        router.score({name: value[start : start + _SCORE_ROWS] for name, value in features.items()})
        for start in range(0, len(positions), _SCORE_ROWS)
    ]
    scores: np.ndarray = torch.cat(parts).numpy()
    return scores


def fit(dataset: LabelledDataset, config: FitConfig, progress: Progress) -> FitResult:
    """Train a router on the train split, select on the calibration split; test is not touched.

    Deterministic for a seed on one machine and thread count.

    Raises:
        DataError: a split without positives, or features that are not finite.
    """
    train, calibration = dataset.split(Split.TRAIN), dataset.split(Split.CALIBRATION)
    for name, part in (("train", train), ("calibration", calibration)):
        if not bool(targets(part, config.objective).any()):
            raise DataError(f"no {config.objective} token in the {name} split; label more problems")
    torch.manual_seed(config.seed)
    trainer = _Trainer(dataset, train, config)
    best, best_epoch, best_rate, history = trainer.router(), 0, float("inf"), []
    progress.start("router trains", config.epochs, "epochs")
    for epoch in range(1, config.epochs + 1):
        loss = trainer.epoch()
        router = trainer.router()
        rate = _rate_at_recall(router, calibration, config)
        history.append(Epoch(epoch, loss, rate))
        if rate < best_rate:
            best, best_epoch, best_rate = router, epoch, rate
        progress.advance()
    progress.finish()
    return FitResult(best, best_epoch, tuple(history))


class _Trainer:
    """A network, its running average and its optimizer over one set of positions."""

    def __init__(self, dataset: LabelledDataset, train: Positions, config: FitConfig) -> None:
        self.config = config
        self.features = train.features(config.inputs)
        self.labels_N = targets(train, config.objective).float()
        self.network = _network(dataset, config)
        _standardise(self.network, self.features)
        self.averaged = copy.deepcopy(self.network)
        self.steps = 0
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        batches = -(-len(train) // config.batch_size)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            config.learning_rate,
            total_steps=config.epochs * batches,
            pct_start=0.1,
        )

    def router(self) -> NeuralRouter:
        """Return the averaged weights as a router."""
        return NeuralRouter(self.config.architecture, self.averaged)

    def epoch(self) -> float:
        """Go once over the positions in a new order; return the mean loss."""
        order_N = torch.randperm(len(self.labels_N))
        size = self.config.batch_size
        losses = [
            self._update(order_N[start : start + size]) for start in range(0, len(order_N), size)
        ]
        return float(np.mean(losses))

    def _update(self, rows: Tensor) -> float:
        self.network.train()
        batch = {name: value[rows] for name, value in self.features.items()}
        loss = nn.functional.binary_cross_entropy_with_logits(
            self.network(batch), self.labels_N[rows]
        )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        # A young average forgets faster, so that it is not held back by the initial weights.
        self._average(min(self.config.average, (1 + self.steps) / (10 + self.steps)))
        return float(loss.detach())

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        """Move the average towards the network's weights (exponential Polyak averaging)."""
        pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
        for mean, current in pairs:
            mean.lerp_(current, 1 - decay)


def _network(dataset: LabelledDataset, config: FitConfig) -> nn.Module:
    small = dataset.small
    widths = [FEATURES[name].width(small.hidden_size) for name in config.inputs]
    values = {"inputs": list(config.inputs), "widths": widths, **(config.network or {})}
    return build_network(config.architecture, values)


def _standardise(network: nn.Module, features: Mapping[str, Tensor]) -> None:
    """Give the network the training split's statistics; a constant feature gets scale 1."""
    mean, scale = {}, {}
    for name, value_NW in features.items():
        if not bool(torch.isfinite(value_NW).all()):
            raise DataError(f"the input {name!r} has values that are not finite; label again")
        mean[name] = value_NW.float().mean(dim=0)
        deviation_W = value_NW.float().std(dim=0, correction=0)
        scale[name] = torch.where(deviation_W > 1e-6, deviation_W, 1.0)
    network.set_statistics(mean, scale)  # type: ignore[operator]


def _rate_at_recall(router: NeuralRouter, calibration: Positions, config: FitConfig) -> float:
    scores = score_positions(router, calibration)
    positive = targets(calibration, config.objective).numpy()
    threshold = threshold_for_recall(scores, positive, config.target_recall)
    return operating_point(scores, positive, threshold).positive_rate


def settings(config: FitConfig) -> dict[str, Any]:
    """Return the config as plain values."""
    return asdict(config)
