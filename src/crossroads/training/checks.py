"""What is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossroads.errors import ConfigError, DataError
from crossroads.training.rows import Corpus
from crossroads.training.statistics import input_statistics
from crossroads.types import Split


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
    if not len(rows):
        raise DataError(f"the {split} split has no position; label more problems")
    if len(rows.problem_ids) < 2:
        raise DataError(
            f"the {split} split has one problem only ({rows.problem_ids[0]!r}); what holds for "
            "it may hold for no other, so label more problems"
        )
    positive = rows.positive(objective)
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
