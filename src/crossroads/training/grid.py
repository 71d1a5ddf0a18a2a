"""Many fits as one job, and what their routers are worth, seed by seed and problem by problem.

A cell is fitted once and leaves its scores; whatever a table shows is computed from stored scores,
by the same code for trained routers and for heuristics. A killed job goes on: finished cells are
not fitted again, the one that was interrupted goes on from its last state.

Shapes: N positions of a split, C its problems, R draws of problems (the first is "every problem
once"), K seeds, T recall targets, M = T + 2 numbers of a ranking.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossroads.artifacts import atomic_path, canonical_hash, read_json, write_json
from crossroads.errors import DataError
from crossroads.routing.policy import sends_to_large
from crossroads.routing.routers.neural import build_network
from crossroads.statistics import Interval
from crossroads.training.checks import check_corpus
from crossroads.training.config import FitConfig, names_of, settings
from crossroads.training.fit import fit, score_rows
from crossroads.training.losses import build_loss
from crossroads.training.metrics import RESAMPLES, draw_problems, rank
from crossroads.training.ranking import interval_of
from crossroads.training.rows import Corpus, Rows
from crossroads.training.threshold import threshold_for_recall
from crossroads.types import Progress, Split

FORMAT = 1
RECALLS = (0.8, 0.9, 0.95, 0.99)
AUROC, AVERAGE_PRECISION = len(RECALLS), len(RECALLS) + 1
"""Columns of a ranking's numbers, after the positive_rate at each recall."""
SCORED = (Split.CALIBRATION, Split.TEST)


@dataclass(frozen=True, slots=True)
class Cell:
    """One fit. problems: how many training problems it sees, drawn by its seed; None for all."""

    name: str
    config: FitConfig
    problems: int | None = None


class Grid:
    """The cells of one corpus in a folder: `cells/KEY/` with scores and `cell.json`."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        """Look into `folder`; nothing is read yet."""
        self.corpus, self.folder = corpus, folder

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse, before anything is fitted, what some cell would stumble over.

        Raises:
            DataError: a split that cannot be trained on, calibrated on or tested on.
            ConfigError, RouterError: a network or a loss that cannot be built.
        """
        for objective in dict.fromkeys(cell.config.objective for cell in cells):
            check_corpus(self.corpus, names_of([cell.config for cell in cells]), objective)
            check_test(self.corpus.split(Split.TEST), objective)
        seen = set()
        for cell in cells:
            values = cell.config.network_values(self.corpus.small.hidden_size)
            made_of = canonical_hash([cell.config.architecture, values, asdict(cell.config.loss)])
            if made_of not in seen:
                seen.add(made_of)
                with torch.device("meta"):  # no memory, no time: only whether it fits together
                    build_network(cell.config.architecture, values)
                build_loss(cell.config.loss, 1.0, 1.0)

    def fit(self, cells: Sequence[Cell], progress: Progress) -> None:
        """Fit the cells that are not there; cells of one key are one fit.

        Effects: `cells/KEY/` per fitted cell; a kill loses seconds of one cell.
        """
        missing: dict[str, Cell] = {}
        for cell in cells:
            if self.fitted(cell):
                shutil.rmtree(self._at(cell) / "state", ignore_errors=True)  # a kill left it
            else:
                missing.setdefault(self.key(cell), cell)
        if not missing:
            return
        epochs = sum(cell.config.epochs for cell in missing.values())
        progress.start(f"{len(missing)} routers train", epochs, "epochs")
        for number, cell in enumerate(missing.values(), start=1):
            label = f"{number} of {len(missing)}, {cell.name}, seed {cell.config.seed}"
            self._fit(cell, Within(progress, label, cell.config.epochs))
        progress.finish()

    def _fit(self, cell: Cell, progress: Progress) -> None:
        folder, corpus = self._at(cell), self._seen_by(cell)
        resumed = (folder / "state").exists()
        started = time.monotonic()
        result = fit(corpus, cell.config, progress, checkpoint=folder / "state")
        seconds = time.monotonic() - started
        for split in SCORED:
            _save_scores(folder / f"{split}.npy", score_rows(result.router, corpus.split(split)))
        train = corpus.split(Split.TRAIN)
        record = {
            "format": FORMAT,
            "config": settings(cell.config),
            "corpus": dict(corpus.identity),
            "train": {
                "problems": len(np.unique(train.problem_N)),
                "tokens": len(train),
                "positives": int(train.positive(cell.config.objective).sum()),
            },
            "parameters": result.router.parameters,
            "best_epoch": result.best_epoch,
            "history": [asdict(epoch) for epoch in result.history],
            # A fit that was cut in two was not timed as a whole.
            "seconds": None if resumed else seconds,
        }
        write_json(folder / "cell.json", record)  # last: its presence means a finished cell
        shutil.rmtree(folder / "state", ignore_errors=True)

    def _seen_by(self, cell: Cell) -> Corpus:
        problems = self._problems(cell)
        if problems is None:
            return self.corpus
        train = self.corpus.split(Split.TRAIN)
        return self.corpus.with_train(train.of_problems(problems, cell.config.seed))

    def _problems(self, cell: Cell) -> int | None:
        every = len(self.corpus.split(Split.TRAIN).problem_ids)
        return None if cell.problems is None or cell.problems >= every else cell.problems

    def key(self, cell: Cell) -> str:
        """Return what the cell's fit depends on, as a short hash; its name is no part of it."""
        content = {
            "format": FORMAT,
            "config": settings(cell.config),
            "problems": self._problems(cell),
            "corpus": dict(self.corpus.identity),
        }
        return canonical_hash(content)[:16]

    def _at(self, cell: Cell) -> Path:
        return self.folder / "cells" / self.key(cell)

    def fitted(self, cell: Cell) -> bool:
        """Whether the cell is there."""
        return (self._at(cell) / "cell.json").exists()

    def record(self, cell: Cell) -> Mapping[str, Any]:
        """Return the cell's `cell.json`.

        Raises:
            DataError: it is missing or damaged.
        """
        values: Mapping[str, Any] = read_json(self._at(cell) / "cell.json", "fitted cell")
        return values

    def scores(self, cell: Cell, split: Split) -> np.ndarray:
        """Return the cell's scores [N] on calibration or test, float32.

        Raises:
            DataError: they are missing, damaged or of another length than the split.
        """
        path = self._at(cell) / f"{split}.npy"
        try:
            scores_N: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"the scores {path} are damaged; delete {path.parent}") from error
        if scores_N.shape != (len(self.corpus.split(split)),):
            raise DataError(f"the scores {path} are of other rows; delete {path.parent}")
        return scores_N


def _save_scores(path: Path, scores_N: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, scores_N.astype(np.float32), allow_pickle=False)


def check_test(rows: Rows, objective: str) -> None:
    """Refuse a test split that nothing can be measured on.

    Raises:
        DataError: it has fewer than two problems, no positive or no negative.
    """
    positive_N = rows.positive(objective)
    if len(np.unique(rows.problem_N)) < 2 or not positive_N.any() or positive_N.all():
        raise DataError(
            f"the test split has {len(np.unique(rows.problem_N))} problems and "
            f"{int(positive_N.sum())} {objective} tokens of {len(rows)}; two problems and both "
            "kinds of tokens are needed, so label more problems"
        )


class Within:
    """The progress of one fit as a part of a longer stage; its words get a label.

    epochs: how many of the outer stage's units it is, also if it stops early; 0 if it is none.
    """

    def __init__(self, outer: Progress, label: str, epochs: int = 0) -> None:
        """Count `epochs` of the outer stage."""
        self._outer, self._label, self._left = outer, label, float(epochs)

    def start(self, name: str, total: float, unit: str) -> None:
        """Say which fit it is."""
        del name, total, unit
        self._outer.describe(self._label)

    def advance(self, amount: float = 1.0) -> None:
        """Count epochs."""
        counted = min(amount, self._left)
        self._left -= counted
        if counted:
            self._outer.advance(counted)

    def describe(self, text: str) -> None:
        """Show the words after which fit it is."""
        self._outer.describe(f"{self._label}: {text}")

    def finish(self) -> None:
        """Count the epochs that an early stop saved."""
        self.advance(self._left)


# What scores are worth


@dataclass(frozen=True, slots=True)
class Spread:
    """A number of several seeds.

    interval: 95 %, of the mean over these seeds, whole problems resampled; it says what other
    problems could have given. deviation (None of one seed), least and most are over the seeds.
    """

    mean: float
    interval: Interval
    deviation: float | None
    least: float
    most: float

    @classmethod
    def of(cls, values_KR: np.ndarray) -> Spread:
        """Return the spread of values whose first column is of all problems, once each."""
        own_K, count = values_KR[:, 0], len(values_KR)
        return cls(
            mean=float(own_K.mean()),
            interval=interval_of(values_KR.mean(axis=0)[1:]),
            deviation=float(own_K.std(ddof=1)) if count > 1 else None,
            least=float(own_K.min()),
            most=float(own_K.max()),
        )


@dataclass(frozen=True, slots=True)
class Bench:
    """One objective's positions, and the draws of test problems that every router is put to.

    The draws (of a seed, in `metrics`) are the same for all routers, so that what is hard for both
    cancels in a ratio.
    """

    calibration_N: np.ndarray
    test_N: np.ndarray
    problem_N: np.ndarray
    seed: int
    weights_RC: np.ndarray

    @classmethod
    def of(cls, corpus: Corpus, objective: str, seed: int = 0, resamples: int = RESAMPLES) -> Bench:
        """Return the bench of a corpus."""
        test = corpus.split(Split.TEST)
        known, problem_N = np.unique(test.problem_N, return_inverse=True)
        drawn_Cr = list(draw_problems(len(known), seed, resamples, resamples))
        return cls(
            calibration_N=corpus.split(Split.CALIBRATION).positive(objective),
            test_N=test.positive(objective),
            problem_N=problem_N,
            seed=seed,
            weights_RC=np.concatenate([np.ones((len(known), 1)), *drawn_Cr], axis=1).T,
        )

    def measure(self, scores: Iterable[tuple[np.ndarray, np.ndarray]]) -> Measured:
        """Return what routers are worth; `scores` are each seed's on calibration and test."""
        ranking, calibrated, thresholds, on_calibration = [], [], [], []
        for calibration_N, test_N in scores:
            cuts = [threshold_for_recall(calibration_N, self.calibration_N, r) for r in RECALLS]
            thresholds.append(cuts)
            on_calibration.append([sends_to_large(calibration_N, cut).mean() for cut in cuts])
            ranking.append(self._ranked(test_N))
            calibrated.append([self._at(test_N, cut) for cut in cuts])
        return Measured(
            np.stack(ranking),
            np.array(calibrated).transpose(0, 3, 1, 2),
            np.array(thresholds),
            np.array(on_calibration, dtype=np.float64),
        )

    def _ranked(self, scores_N: np.ndarray) -> np.ndarray:
        """Return positive_rate at each recall, AUROC and average precision [R, M] on test."""
        resamples = len(self.weights_RC) - 1
        found = rank(scores_N, self.test_N, self.problem_N, RECALLS, self.seed, resamples)
        numbers = [*(found.rate[r] for r in RECALLS), found.auroc, found.average_precision]
        return np.stack([np.append(n.value, n.values_R) for n in numbers], axis=1)

    def _at(self, scores_N: np.ndarray, threshold: float) -> np.ndarray:
        """Return recall and positive_rate [2, R] of a threshold on test."""
        sent_N = sends_to_large(scores_N, threshold)

        def total(chosen_N: np.ndarray) -> np.ndarray:
            count_C = np.bincount(self.problem_N[chosen_N], minlength=self.weights_RC.shape[1])
            sums: np.ndarray = self.weights_RC @ count_C
            return sums

        everything = np.ones(len(sent_N), bool)
        return np.stack(
            [
                _ratio(total(sent_N & self.test_N), total(self.test_N)),
                _ratio(total(sent_N), total(everything)),
            ]
        )


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)
    return shares


@dataclass(frozen=True, slots=True)
class Measured:
    """Some seeds' numbers: every draw of the test problems, and how they were calibrated.

    ranking_KRM: at equal recall on test. calibrated_KRT2 (stored as [K, R, T, 2]): recall and
    positive_rate on test of each seed's own threshold. thresholds_KT: those thresholds.
    calibration_KT: their positive_rate on calibration.
    """

    ranking_KRM: np.ndarray
    calibrated_KRT2: np.ndarray
    thresholds_KT: np.ndarray
    calibration_KT: np.ndarray

    @classmethod
    def over_folds(cls, folds: Sequence[Measured]) -> Measured:
        """Return the mean over folds, draw by draw, of seeds that each was measured with.

        Thresholds, which have no mean, are those of every fold and seed.
        """
        return cls(
            np.mean([fold.ranking_KRM for fold in folds], axis=0),
            np.mean([fold.calibrated_KRT2 for fold in folds], axis=0),
            np.concatenate([fold.thresholds_KT for fold in folds]),
            np.concatenate([fold.calibration_KT for fold in folds]),
        )

    def values(self) -> dict[str, Any]:
        """Return the numbers as plain values."""
        return {
            "seeds": len(self.ranking_KRM),
            "auroc": asdict(Spread.of(self.ranking_KRM[:, :, AUROC])),
            "average_precision": asdict(Spread.of(self.ranking_KRM[:, :, AVERAGE_PRECISION])),
            "at": [self._values_at(number) for number in range(len(RECALLS))],
        }

    def _values_at(self, number: int) -> dict[str, Any]:
        return {
            "recall": RECALLS[number],
            "positive_rate": asdict(Spread.of(self.ranking_KRM[:, :, number])),
            "calibrated": {
                "thresholds": self.thresholds_KT[:, number].tolist(),
                "calibration_positive_rate": float(self.calibration_KT[:, number].mean()),
                "recall": asdict(Spread.of(self.calibrated_KRT2[:, :, number, 0])),
                "positive_rate": asdict(Spread.of(self.calibrated_KRT2[:, :, number, 1])),
            },
        }

    def rates(self, number: int) -> np.ndarray:
        """Return the seeds' mean positive_rate [R] at a recall target on test."""
        means: np.ndarray = self.ranking_KRM[:, :, number].mean(axis=0)
        return means

    def ratio(self, other: Measured, number: int) -> dict[str, Any]:
        """Return this positive_rate over another's at equal recall, paired by draw."""
        ratio_R = _ratio(self.rates(number), other.rates(number))
        return {"value": float(ratio_R[0]), "interval": asdict(interval_of(ratio_R[1:]))}
