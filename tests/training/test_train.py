"""The training line on the scripted pair: it learns, it is reproducible, its numbers add up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from crossroads.artifacts import read_json, sha256_file
from crossroads.dataset import LabelledDataset, Positions
from crossroads.errors import ConfigError, DataError, RouterError
from crossroads.labelling.judges.likelihood import LikelihoodJudge
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import LabelConfig, label
from crossroads.routing.checkpoint import load_router
from crossroads.routing.policy import sends_to_large
from crossroads.training.fit import FitConfig, fit, score_positions
from crossroads.training.report import measure
from crossroads.training.train import train
from crossroads.types import Label, Message, Problem, SilentProgress, Split
from laws.pairs import scripted_pair

CONFIG = FitConfig(inputs=("entropy", "margin", "hidden"), epochs=8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    folder = tmp_path_factory.mktemp("labels")
    problems = [Problem(f"p{i}", (Message("user", f"Q{i}" * 3),), "1") for i in range(60)]
    config = LabelConfig(RespondConfig(max_tokens=300))
    label(scripted_pair(), problems, [LikelihoodJudge(0.1)], folder, SilentProgress(), config)
    return LabelledDataset.open(folder)


def test_training_beats_chance_and_its_report_adds_up(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    trained = train(dataset, CONFIG, tmp_path, SilentProgress())
    rows = {(r["router"], r["target_recall"]): r for r in trained.report["rows"]}
    assert {"mlp", "entropy", "margin", "max-probability", "random"} == {name for name, _ in rows}
    ours, chance = rows["mlp", 0.8]["test"]["point"], rows["random", 0.8]["test"]["point"]
    assert ours["positive_rate"] < 0.85 * chance["positive_rate"]
    for row in trained.report["rows"]:
        on_calibration = row["calibration"]["point"]
        assert on_calibration["recall"] >= row["target_recall"] - 1e-9
        assert on_calibration["threshold"] == row["test"]["point"]["threshold"]
        for name in ("recall", "positive_rate"):
            interval = row["test"][name]
            assert interval["low"] <= row["test"]["point"][name] <= interval["high"]


def test_report_is_what_the_saved_router_does(dataset: LabelledDataset, tmp_path: Path) -> None:
    trained = train(dataset, CONFIG, tmp_path, SilentProgress())
    loaded = load_router(tmp_path)
    test = dataset.split(Split.TEST)
    sent = sends_to_large(score_positions(loaded.router, test), loaded.card.threshold)
    divergent = test.divergent_N.numpy()
    (row,) = (
        r for r in trained.report["rows"] if r["router"] == "mlp" and r["target_recall"] == 0.95
    )
    assert row["test"]["point"]["positive_rate"] == pytest.approx(sent.mean())
    assert row["test"]["point"]["recall"] == pytest.approx(sent[divergent].mean())


def test_a_seed_gives_the_same_router_and_another_seed_another(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = dataclasses.replace(CONFIG, seed=seed, epochs=2)
        train(dataset, config, tmp_path / name, SilentProgress())
        hashes.append(sha256_file(tmp_path / name / "router.safetensors"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_finished_router_is_not_trained_again(dataset: LabelledDataset, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    train(dataset, config, tmp_path, SilentProgress())
    created = read_json(tmp_path / "router.json", "router")["provenance"]["created"]
    progress = SilentProgress()
    train(dataset, config, tmp_path, progress)
    assert progress.stages == {}
    assert read_json(tmp_path / "router.json", "router")["provenance"]["created"] == created
    with pytest.raises(ConfigError, match="config: was"):
        train(dataset, CONFIG, tmp_path, progress)


def test_the_test_split_is_not_touched_by_training(
    dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    split = LabelledDataset.split

    def spy(self: LabelledDataset, which: Split) -> Positions:
        asked.append(which)
        return split(self, which)

    monkeypatch.setattr(LabelledDataset, "split", spy)
    fit(dataset, dataclasses.replace(CONFIG, epochs=1), SilentProgress())
    assert set(asked) == {Split.TRAIN, Split.CALIBRATION}


def test_no_positive_token_is_refused_before_training(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = LabelledDataset.split

    def without(self: LabelledDataset, which: Split) -> Positions:
        positions = split(self, which)
        return dataclasses.replace(
            positions, label_N=positions.label_N.masked_fill(positions.divergent_N, Label.NEUTRAL)
        )

    monkeypatch.setattr(LabelledDataset, "split", without)
    with pytest.raises(DataError, match="no divergent token in the train split"):
        train(dataset, CONFIG, tmp_path, SilentProgress())
    assert not (tmp_path / "router.json").exists()


def test_features_that_are_not_numbers_are_refused(
    dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Positions.features

    def broken(self: Positions, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        values = features(self, names)
        values["hidden"][3, 2] = torch.nan
        return values

    monkeypatch.setattr(Positions, "features", broken)
    with pytest.raises(DataError, match="'hidden' has values that are not finite"):
        fit(dataset, CONFIG, SilentProgress())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"objective": "hard"}, "unknown objective 'hard'; known: divergent, mismatch"),
        ({"target_recall": 1.2}, "recall target"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning rate"),
    ],
)
def test_bad_settings_are_named(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FitConfig(**bad)  # type: ignore[arg-type]


def test_unknown_inputs_list_the_known_ones() -> None:
    with pytest.raises(RouterError, match="unknown router input 'hiden'; known: hidden"):
        FitConfig(inputs=("hiden",))


def test_intervals_do_not_depend_on_the_order_of_tokens() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random(500).astype(np.float32)
    divergent, problem = generator.random(500) < 0.1, generator.integers(0, 20, 500)
    order = generator.permutation(500)
    assert measure(scores, divergent, problem, 0.4, seed=0) == measure(
        scores[order], divergent[order], problem[order], 0.4, seed=0
    )
