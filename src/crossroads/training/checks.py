"""What is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from crossroads.dataset import UNJUDGED, LabelledDataset
from crossroads.errors import ConfigError, DataError
from crossroads.routing.routers.neural import build_network
from crossroads.training.config import FitConfig
from crossroads.training.rows import Corpus, positive_of
from crossroads.training.statistics import input_statistics
from crossroads.training.target import Target, choose_threshold
from crossroads.types import Split


def check_before(datasets: Sequence[LabelledDataset], config: FitConfig, target: Target) -> None:
    """Refuse by labels and settings alone, before any feature is computed.

    Raises:
        DataError: what `check_split` says of any split, or a guarantee that even a perfect router
            could not have on so few problems.
        RouterError: the settings make no network.
    """
    empty_network(config, datasets[0].small.hidden_size)
    for split in Split:
        problem_N, positive_N = _labels(datasets, split, config.objective)
        _check(split, tuple(dict.fromkeys(problem_N.tolist())), positive_N, config.objective)
        if split == Split.CALIBRATION and target.kind == "guarantee":
            perfect_N = positive_N.astype(np.float64)
            choose_threshold(target, perfect_N, positive_N, problem_N, config.seed)


def empty_network(config: FitConfig, hidden_size: int = 1) -> nn.Module:
    """Return the network of a config without its numbers: no memory, no time.

    Raises:
        RouterError: the settings make no network.
    """
    with torch.device("meta"):
        return build_network(config.architecture, config.network_values(hidden_size))


def _labels(
    datasets: Sequence[LabelledDataset], split: Split, objective: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the problem ids [N] and the positive class [N] of a split's judged positions."""
    problems: list[np.ndarray] = [np.zeros(0, dtype=str)]
    values: list[np.ndarray] = [np.zeros(0, dtype=np.uint8)]
    for dataset in datasets:
        labels = dataset.labels()
        for row in dataset.responses:
            if row.split == split:
                label_N = labels.of(row).label_N.numpy()
                values.append(label_N[label_N != UNJUDGED])
                problems.append(np.full(len(values[-1]), row.problem_id))
    return np.concatenate(problems), positive_of(np.concatenate(values), objective)


def check_corpus(corpus: Corpus, names: Sequence[str], objective: str) -> None:
    """Refuse data that no router can be trained and calibrated on. Test is not looked at.

    Raises:
        DataError: what `check_split` says of train and calibration; an input is constant.
    """
    for split in (Split.TRAIN, Split.CALIBRATION):
        check_split(corpus, split, objective)
    input_statistics(corpus.split(Split.TRAIN), names)


def check_split(corpus: Corpus, split: Split, objective: str) -> None:
    """Refuse a split that says nothing about recall.

    Raises:
        DataError: it is empty, of one problem, without positives or without negatives.
    """
    rows = corpus.split(split)
    _check(split, rows.problem_ids, rows.positive(objective), objective)


def _check(split: Split, problem_ids: Sequence[str], positive: np.ndarray, objective: str) -> None:
    if not len(positive):
        raise DataError(f"the {split} split has no position; label more problems")
    if len(problem_ids) < 2:
        raise DataError(
            f"the {split} split has one problem only ({problem_ids[0]!r}); what holds for "
            "it may hold for no other, so label more problems"
        )
    if not positive.any():
        raise DataError(f"no {objective} token in the {split} split; label more problems")
    if positive.all():
        raise DataError(
            f"every token of the {split} split is {objective}; a router needs both kinds"
        )


def check_auxiliary(corpus: Corpus, network: object) -> None:
    """Refuse an auxiliary aim that the data or the network does not have.

    Raises:
        DataError: the dataset has no outputs of the large model.
        ConfigError: the architecture has one output only.
    """
    if not np.isfinite(corpus.split(Split.TRAIN).large_probability_N).any():
        raise DataError(
            "the dataset does not have the large model's probabilities that `auxiliary` aims at; "
            "set auxiliary=0, or label the problems here"
        )
    if not hasattr(network, "outputs"):
        raise ConfigError("this architecture has one output; set auxiliary=0 or architecture=mlp")
