"""The training line: fit, calibrate, report, save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossroads.artifacts import ensure_writable, pin_config, read_json, write_json
from crossroads.dataset import LabelledDataset
from crossroads.provenance import provenance
from crossroads.routing.checkpoint import RouterCard, load_router, save_router
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import entropy, margin, max_probability, random
from crossroads.routing.routers.neural import NeuralRouter
from crossroads.training.fit import FitConfig, fit, settings
from crossroads.training.report import RECALLS, calibrate, report, report_json
from crossroads.types import Progress, Split

REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Trained:
    """A router folder's content after training."""

    router: NeuralRouter
    threshold: float
    report: dict[str, Any]


def train(dataset: LabelledDataset, config: FitConfig, folder: Path, progress: Progress) -> Trained:
    """Train, calibrate and report into `folder`; a finished folder is read, not trained again.

    Raises:
        DataError: the dataset cannot be trained on. ConfigError: the folder holds another run.
    """
    ensure_writable(folder)
    identity = {"dataset": dict(dataset.card["sha256"]), "config": settings(config)}
    pin_config(folder / "config.json", identity, "a router")
    if not (folder / REPORT).exists():
        _train(dataset, config, folder, progress)
    loaded = load_router(folder)
    return Trained(
        loaded.router, loaded.card.threshold, read_json(folder / REPORT, "training report")
    )


def _train(dataset: LabelledDataset, config: FitConfig, folder: Path, progress: Progress) -> None:
    result = fit(dataset, config, progress)
    calibration = dataset.split(Split.CALIBRATION)
    chosen = calibrate(
        result.router, calibration, config.target_recall, config.objective, config.seed
    )
    card = dataset.card
    save_router(
        folder,
        result.router,
        RouterCard(
            small=dataset.small,
            large_name=card["large"]["name"],
            large_fingerprint=card["large"]["fingerprint"],
            pair=card["pair"],
            threshold=chosen.point.threshold,
            calibration={
                "target_recall": config.target_recall,
                "objective": config.objective,
                **asdict(chosen),
            },
            provenance=provenance(seed=config.seed, config=settings(config), judge=card["judges"]),
        ),
    )
    recalls = sorted({*RECALLS, config.target_recall})
    rows = report(
        [result.router, *baselines(dataset, config.seed)],
        dataset,
        config.objective,
        recalls,
        config.seed,
    )
    write_json(
        folder / REPORT,
        {
            "objective": config.objective,
            "best_epoch": result.best_epoch,
            "history": [asdict(epoch) for epoch in result.history],
            "base_rates": card["base_rates"],
            "rows": report_json(rows),
            "provenance": provenance(seed=config.seed),
        },
    )


def baselines(dataset: LabelledDataset, seed: int) -> Sequence[Router]:
    """Return the heuristics that every report shows, for the dataset's small model."""
    size = dataset.small.vocab_size
    return [entropy(size), margin(size), max_probability(size), random(size, seed)]
