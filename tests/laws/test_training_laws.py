"""Laws 7 and 8 of training: the order of tokens means nothing, and a killed run ends the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from crossroads.dataset import LabelledDataset
from crossroads.routing.routers.neural import NeuralRouter
from crossroads.training import trainer as trainer_module
from crossroads.training.config import FitConfig
from crossroads.training.fit import fit, score_rows
from crossroads.training.losses import LossConfig
from crossroads.training.rows import Corpus
from crossroads.training.trainer import Saved, Trainer
from crossroads.types import SilentProgress, Split

CONFIG = FitConfig(
    inputs=("entropy", "margin", "hidden", "previous_surprise"), epochs=5, batch_size=64
)


class KilledError(Exception):
    """Stands for a SIGKILL: nothing after it runs."""


def weights(router: NeuralRouter) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in router.network.state_dict().items()}


def fit_with_kills(
    corpus: Corpus, config: FitConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, kills: int
):
    """Fit while being killed at random steps; every state is written at once."""
    monkeypatch.setattr(trainer_module, "_SAVE_SECONDS", -1.0)
    generator = np.random.default_rng(kills)
    update = Trainer._update
    left = {"steps": 0, "kills": kills}

    def mortal(self: Trainer, *arguments):
        if left["kills"] and left["steps"] == 0:
            left["kills"] -= 1
            left["steps"] = int(generator.integers(1, 25))
            raise KilledError
        left["steps"] -= 1
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", mortal)
    left["steps"] = 7
    while True:
        try:
            return fit(corpus, config, SilentProgress(), checkpoint=folder)
        except KilledError:
            continue


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"average": 0.0, "schedule": "constant", "selection": "loss", "patience": 2},
        {"loss": LossConfig("FocalLoss"), "dtype": "bfloat16", "soft_labels": True},
    ],
)
def test_a_killed_run_ends_bit_by_bit_as_an_undisturbed_one(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change
) -> None:
    config = dataclasses.replace(CONFIG, **change)
    corpus = Corpus.open([dataset], config.inputs)
    undisturbed = fit(corpus, config, SilentProgress())
    with monkeypatch.context() as patch:
        killed = fit_with_kills(corpus, config, tmp_path, patch, kills=6)
    assert killed.history == undisturbed.history
    assert killed.best_epoch == undisturbed.best_epoch
    expected = weights(undisturbed.router)
    for name, value in weights(killed.router).items():
        assert torch.equal(value, expected[name]), name
    assert (killed.router.scale, killed.router.bias) == (
        undisturbed.router.scale, undisturbed.router.bias,
    )  # fmt: skip


def test_training_leaves_the_callers_random_stream_alone(
    dataset: LabelledDataset,
) -> None:
    corpus = Corpus.open([dataset], CONFIG.inputs)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(corpus, dataclasses.replace(CONFIG, epochs=1), SilentProgress())
    assert torch.equal(torch.rand(3), expected)


def test_probabilities_change_no_ranking(dataset: LabelledDataset) -> None:
    corpus = Corpus.open([dataset], CONFIG.inputs)
    raw = fit(corpus, dataclasses.replace(CONFIG, probabilities=False), SilentProgress()).router
    fitted = fit(corpus, CONFIG, SilentProgress()).router
    rows = corpus.split(Split.CALIBRATION)
    before, after = score_rows(raw, rows), score_rows(fitted, rows)
    assert not np.array_equal(before, after)
    order = np.argsort(before, kind="stable")
    assert bool((np.diff(after[order]) >= 0).all())
    positive = rows.positive("divergent")
    # What Platt's fit makes true: the mean score is the base rate (up to its smoothing).
    assert after.mean() == pytest.approx(positive.mean(), rel=0.1)


def test_the_state_survives_on_disk_only_as_tensors(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    corpus = Corpus.open([dataset], CONFIG.inputs)
    fit(corpus, dataclasses.replace(CONFIG, epochs=2), SilentProgress(), checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["state-0.safetensors"]
    assert Saved(tmp_path) is not None
