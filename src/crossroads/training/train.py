"""The training line: fit, calibrate, report, save."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import ensure_writable, pin_config, read_json, write_json
from crossroads.dataset import LabelledDataset
from crossroads.provenance import provenance
from crossroads.routing.checkpoint import RouterCard, load_router, save_router
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import entropy, margin, max_probability, random
from crossroads.routing.routers.neural import NeuralRouter
from crossroads.training.config import FitConfig, settings
from crossroads.training.fit import fit, score_rows
from crossroads.training.report import RECALLS, Measured, measure, report, report_json
from crossroads.training.rows import Corpus, Rows
from crossroads.training.threshold import Target, choose_threshold
from crossroads.training.tracking import open_trackers
from crossroads.types import Progress, Split

REPORT = "report.json"
QUANTILES = 101
"""Quantiles of the calibration scores that the router keeps: a later drift is measured by them."""
BASELINE_INPUTS = ("entropy", "margin", "top_probability")


@dataclass(frozen=True, slots=True)
class Trained:
    """A router folder's content after training."""

    router: NeuralRouter
    threshold: float
    report: dict[str, Any]


def train(
    datasets: Sequence[LabelledDataset],
    config: FitConfig,
    folder: Path,
    progress: Progress,
    *,
    target: Target | None = None,
    trackers: Sequence[str] = (),
) -> Trained:
    """Train, calibrate and report into `folder`; a finished folder is read, not trained again.

    target: what the threshold is chosen for; the config's recall unless given.

    Effects: a run that was killed goes on from its last state when it is started again.

    Raises:
        DataError: the datasets cannot be trained on. ConfigError: the folder holds another run.
    """
    ensure_writable(folder)
    target = target or Target("recall", config.target_recall)
    identity = {
        "datasets": [dict(dataset.card["sha256"]) for dataset in datasets],
        "config": settings(config),
        "target": asdict(target),
    }
    pin_config(folder / "config.json", identity, "a router")
    if not (folder / REPORT).exists():
        _train(datasets, config, target, folder, progress, trackers)
    loaded = load_router(folder)
    return Trained(
        loaded.router, loaded.card.threshold, read_json(folder / REPORT, "training report")
    )


def _train(
    datasets: Sequence[LabelledDataset],
    config: FitConfig,
    target: Target,
    folder: Path,
    progress: Progress,
    trackers: Sequence[str],
) -> None:
    state = folder / "state"
    names = tuple(dict.fromkeys((*config.inputs, *BASELINE_INPUTS)))
    corpus = Corpus.open(datasets, names, state / "features", progress)
    tracker = open_trackers(trackers, folder)
    result = fit(corpus, config, progress, checkpoint=state, tracker=tracker)
    tracker.close()
    calibration = corpus.split(Split.CALIBRATION)
    chosen, quantiles = _calibrated(result.router, calibration, target, config)
    card = corpus.card
    save_router(
        folder,
        result.router,
        RouterCard(
            small=corpus.small,
            large_name=card["large"]["name"],
            large_fingerprint=card["large"]["fingerprint"],
            pair=card["pair"],
            threshold=chosen.point.threshold,
            calibration={
                "target": asdict(target),
                "target_recall": config.target_recall,
                "objective": config.objective,
                "score_quantiles": quantiles,
                **asdict(chosen),
            },
            provenance=provenance(seed=config.seed, config=settings(config), judge=card["judges"]),
        ),
    )
    recalls = sorted({*RECALLS, config.target_recall})
    rows = report(
        [result.router, *baselines(corpus, config.seed)],
        corpus,
        config.objective,
        recalls,
        config.seed,
    )
    write_json(
        folder / REPORT,
        {
            "objective": config.objective,
            "target": str(target),
            "best_epoch": result.best_epoch,
            "history": [asdict(epoch) for epoch in result.history],
            "base_rates": card["base_rates"],
            "rows": report_json(rows),
            "provenance": provenance(seed=config.seed),
        },
    )
    shutil.rmtree(state)


def _calibrated(
    router: Router, calibration: Rows, target: Target, config: FitConfig
) -> tuple[Measured, list[float]]:
    """Return the target's threshold with what it does on calibration, and the scores' quantiles."""
    scores = score_rows(router, calibration)
    positive, problem = calibration.positive(config.objective), calibration.problem_N
    threshold = choose_threshold(target, scores, positive, problem, config.seed)
    quantiles = np.quantile(scores, np.linspace(0, 1, QUANTILES)).tolist()
    return measure(scores, positive, problem, threshold, config.seed), quantiles


def baselines(corpus: Corpus, seed: int) -> Sequence[Router]:
    """Return the heuristics that every report shows, for the corpus's small model."""
    size = corpus.small.vocab_size
    return [entropy(size), margin(size), max_probability(size), random(size, seed)]
