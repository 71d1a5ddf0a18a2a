"""The training line: fit, calibrate, report, save."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossroads.artifacts import ensure_writable, pin_config, read_json, write_json
from crossroads.dataset import LabelledDataset
from crossroads.errors import EngineError
from crossroads.provenance import provenance
from crossroads.routing.checkpoint import RouterCard, load_router, save_router
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import entropy, margin, max_probability, random
from crossroads.routing.routers.neural import NeuralRouter
from crossroads.training.calibrate import calibrate_scores
from crossroads.training.checks import check_before
from crossroads.training.config import FitConfig, settings
from crossroads.training.fit import FitResult, fit, score_rows
from crossroads.training.report import RECALLS, scored, training_report
from crossroads.training.report_page import write_page
from crossroads.training.rows import Corpus
from crossroads.training.target import Target
from crossroads.training.tracking import NoTracker, open_trackers
from crossroads.training.workers import Workers
from crossroads.types import Progress, Split

REPORT, PAGE = "report.json", "report.html"
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
    target = target or Target("recall", config.target_recall)
    workers = Workers.of_environment(config.device)
    identity = {
        "datasets": [dict(dataset.card["sha256"]) for dataset in datasets],
        "config": settings(config),
        "target": asdict(target),
    }
    with workers.first_before_others():
        ensure_writable(folder)
        pin_config(folder / "config.json", identity, "a router")
        done = (folder / REPORT).exists()
    if not done:
        _train(datasets, config, target, folder, progress, trackers, workers)
        workers.wait()
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
    workers: Workers,
) -> None:
    state = folder / "state"
    names = tuple(dict.fromkeys((*config.inputs, *BASELINE_INPUTS)))
    check_before(datasets, config, target)
    with workers.first_before_others():
        corpus = Corpus.open(datasets, names, state / "features", progress)
    with closing(open_trackers(trackers, folder) if workers.first else NoTracker()) as tracker:
        result = fit(corpus, config, progress, checkpoint=state, tracker=tracker)
    if workers.first:
        _write(corpus, result, config, target, folder)
        shutil.rmtree(state)


def _write(
    corpus: Corpus, result: FitResult, config: FitConfig, target: Target, folder: Path
) -> None:
    calibration = corpus.split(Split.CALIBRATION)
    chosen = calibrate_scores(
        score_rows(result.router, calibration), calibration, target, config.objective, config.seed
    )
    card = corpus.card
    found = training_report(
        scored([result.router, *baselines(corpus, config.seed)], corpus),
        {split: corpus.split(split) for split in Split},
        config.objective,
        sorted({*RECALLS, config.target_recall}),
        config.seed,
        target,
    )
    content = {
        **found.to_json(),
        "best_epoch": result.best_epoch,
        "history": [asdict(epoch) for epoch in result.history],
        "base_rates": card["base_rates"],
        "provenance": provenance(seed=config.seed),
    }
    save_router(
        folder,
        result.router,
        RouterCard(
            small=corpus.small,
            large_name=card["large"]["name"],
            large_fingerprint=card["large"]["fingerprint"],
            pair=card["pair"],
            threshold=chosen.threshold,
            calibration=chosen.record(),
            provenance=provenance(seed=config.seed, config=settings(config), judge=card["judges"]),
        ),
    )
    with suppress(EngineError):  # without matplotlib there is no page; the report is whole
        write_page(folder / PAGE, content)
    write_json(folder / REPORT, content)


def baselines(corpus: Corpus, seed: int) -> Sequence[Router]:
    """Return the heuristics that every report shows, for the corpus's small model."""
    size = corpus.small.vocab_size
    return [entropy(size), margin(size), max_probability(size), random(size, seed)]
