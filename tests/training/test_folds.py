"""Folds test every problem once, by routers that never saw it, and mix nothing up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from crossroads.dataset import LabelledDataset
from crossroads.errors import DataError
from crossroads.training import grid as grid_module
from crossroads.training.ablate import AblationConfig, ablate
from crossroads.training.folds import folds, joined
from crossroads.training.grid import RECALLS, Bench, Measured
from crossroads.training.rows import Corpus, Rows
from crossroads.types import SilentProgress, Split

NAMES = ("entropy", "hidden", "token_embedding")


@pytest.fixture(scope="module")
def corpus(dataset: LabelledDataset) -> Corpus:
    return Corpus.open([dataset], (*NAMES, "margin", "top_probability"))


def facts(rows: Rows) -> dict[tuple[str, int], tuple[float, ...]]:
    """Return all that is known of each position, by problem and place."""
    features = rows.features(slice(None), NAMES)
    numbers = [rows.label_N, rows.large_probability_N, *(features[n].sum(1) for n in NAMES)]
    places = zip(rows.problem_N, rows.position_N, strict=True)
    keys = [(rows.problem_ids[problem], int(position)) for problem, position in places]
    domains = [rows.domains[d] for d in rows.domain_N]
    values = zip(*(np.asarray(n, np.float64) for n in numbers), domains, strict=True)
    return dict(zip(keys, values, strict=True))


def entropies(fold: Corpus) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return entropy as the scores of calibration and test."""
    splits = (fold.split(split) for split in (Split.CALIBRATION, Split.TEST))
    calibration, test = (rows.features(slice(None), ("entropy",)) for rows in splits)
    return [(calibration["entropy"][:, 0].numpy(), test["entropy"][:, 0].numpy())]


def test_every_problem_is_tested_once_and_never_on_both_sides(corpus: Corpus) -> None:
    every = facts(joined([corpus.split(split) for split in Split]))
    own = {key: value for split in Split for key, value in facts(corpus.split(split)).items()}
    assert every == own
    tested: list[tuple[str, int]] = []
    for fold in folds(corpus, 4):
        found = {split: facts(fold.split(split)) for split in Split}
        problems = {split: {name for name, _ in found[split]} for split in Split}
        assert sum(map(len, problems.values())) == len(set().union(*problems.values()))
        assert {k: v for part in found.values() for k, v in part.items()} == every
        tested += found[Split.TEST]
    assert sorted(tested) == sorted(every)


def test_folds_are_apart_in_the_store_and_drawn_by_seed(corpus: Corpus) -> None:
    identities = [str(fold.identity) for fold in (*folds(corpus, 3), *folds(corpus, 4))]
    assert len({*identities, str(corpus.identity)}) == 8
    first, again, other = (folds(corpus, 3, seed)[0].split(Split.TEST) for seed in (0, 0, 1))
    assert np.array_equal(first.index_N, again.index_N)
    assert not np.array_equal(first.index_N, other.index_N)


def test_more_folds_than_problems_are_refused(corpus: Corpus) -> None:
    with pytest.raises(DataError, match="1000 folds need at least 1000 problems"):
        folds(corpus, 1000)


def test_an_ablation_over_folds_is_the_mean_of_its_folds(
    corpus: Corpus, dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AblationConfig(
        recipes=("distribution",),
        objectives=("divergent",),
        inputs=("entropy+margin",),
        seeds=2,
        changes={"epochs": 1},
        folds=3,
    )
    result = ablate([dataset], tmp_path, config, SilentProgress())
    assert len(list((tmp_path / "cells").iterdir())) == 3 * 2
    assert (result["folds"], len(result["rows"][0]["keys"])) == (3, 6)
    total = sum(len(corpus.split(split)) for split in Split)
    assert result["counts"]["test"]["tokens"] == total
    assert result["counts"]["train"]["tokens"] < total
    each = [
        Bench.of(fold, "divergent", seed=n).measure(entropies(fold))
        for n, fold in enumerate(folds(corpus, 3))
    ]
    entropy = next(row for row in result["rows"] if row["name"] == "entropy")
    for found, own in zip(entropy["at"], Measured.over_folds(each).values()["at"], strict=True):
        assert found["positive_rate"] == own["positive_rate"]
    assert "3 folds" in (tmp_path / "ablation.md").read_text()
    assert "3 folds" in (tmp_path / "ablation.html").read_text()
    monkeypatch.setattr(grid_module, "fit", None)  # measured again from scores alone
    again = ablate([dataset], tmp_path, config, SilentProgress())
    assert again["rows"] == result["rows"]


def test_the_interval_of_a_mean_over_folds_is_narrower_than_a_folds(corpus: Corpus) -> None:
    each = [
        Bench.of(fold, "divergent", seed=n).measure(entropies(fold))
        for n, fold in enumerate(folds(corpus, 4))
    ]
    together = Measured.over_folds(each)
    number = RECALLS.index(0.8)
    spread = [float(m.rates(number)[1:].std()) for m in each]
    # Independent draws: the variance of a mean of four is a quarter of their mean variance.
    expected = np.sqrt(np.mean(np.square(spread)) / len(each))
    assert together.rates(number)[1:].std() == pytest.approx(expected, rel=0.15)
    assert dataclasses.asdict(together).keys() == dataclasses.asdict(each[0]).keys()
