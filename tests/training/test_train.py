"""The training line on the scripted pair: it learns, it is reproducible, its numbers add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from crossroads.artifacts import read_json, sha256_file
from crossroads.dataset import Comparison, LabelledDataset
from crossroads.errors import ConfigError, DataError, RouterError
from crossroads.routing.checkpoint import load_router
from crossroads.routing.policy import sends_to_large
from crossroads.training.config import FitConfig
from crossroads.training.fit import fit, score_rows
from crossroads.training.report import measure
from crossroads.training.rows import Corpus, Rows
from crossroads.training.train import train
from crossroads.types import Label, SilentProgress, Split

CONFIG = FitConfig(inputs=("entropy", "margin", "hidden"), epochs=8)


def test_the_report_adds_up(dataset: LabelledDataset, tmp_path: Path) -> None:
    trained = train([dataset], CONFIG, tmp_path, SilentProgress())
    names = {row["router"] for row in trained.report["rows"]}
    assert names == {"mlp", "entropy", "margin", "max-probability", "random"}
    for row in trained.report["rows"]:
        on_calibration = row["calibration"]["point"]
        assert on_calibration["recall"] >= row["target_recall"] - 1e-9
        assert on_calibration["threshold"] == row["test"]["point"]["threshold"]
        for name in ("recall", "positive_rate"):
            interval = row["test"][name]
            assert interval["low"] <= row["test"]["point"][name] <= interval["high"]


def test_report_is_what_the_saved_router_does(dataset: LabelledDataset, tmp_path: Path) -> None:
    trained = train([dataset], CONFIG, tmp_path, SilentProgress())
    loaded = load_router(tmp_path)
    test = Corpus.open([dataset], loaded.router.inputs).split(Split.TEST)
    sent = sends_to_large(score_rows(loaded.router, test), loaded.card.threshold)
    divergent = test.positive("divergent")
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
        train([dataset], config, tmp_path / name, SilentProgress())
        hashes.append(sha256_file(tmp_path / name / "router.safetensors"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_finished_router_is_not_trained_again(dataset: LabelledDataset, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    train([dataset], config, tmp_path, SilentProgress())
    created = read_json(tmp_path / "router.json", "router")["provenance"]["created"]
    progress = SilentProgress()
    train([dataset], config, tmp_path, progress)
    assert progress.stages == {}
    assert read_json(tmp_path / "router.json", "router")["provenance"]["created"] == created
    with pytest.raises(ConfigError, match="config: was"):
        train([dataset], CONFIG, tmp_path, progress)


def test_the_test_split_is_not_touched_by_training(
    dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus.open([dataset], CONFIG.inputs)
    asked = []
    split = Corpus.split

    def spy(self: Corpus, which: Split) -> Rows:
        asked.append(which)
        return split(self, which)

    monkeypatch.setattr(Corpus, "split", spy)
    fit(corpus, dataclasses.replace(CONFIG, epochs=1), SilentProgress())
    assert set(asked) == {Split.TRAIN, Split.CALIBRATION}


def changed(monkeypatch: pytest.MonkeyPatch, which: Split, change: Callable[[Rows], Rows]) -> None:
    """Let every corpus have another split."""
    split = Corpus.split

    def other(self: Corpus, asked: Split) -> Rows:
        rows = split(self, asked)
        return change(rows) if asked == which else rows

    monkeypatch.setattr(Corpus, "split", other)


def relabelled(label: Label) -> Callable[[Rows], Rows]:
    return lambda rows: dataclasses.replace(rows, label_N=np.full_like(rows.label_N, label))


def one_problem(rows: Rows) -> Rows:
    few = rows.take(rows.problem_N == 0)
    return dataclasses.replace(few, problem_ids=rows.problem_ids[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (relabelled(Label.NEUTRAL), "no divergent token in the train split; label more"),
        (relabelled(Label.DIVERGENT), "every token of the train split is divergent"),
        (one_problem, "the train split has one problem only .'p.*label more problems"),
        (lambda rows: rows.take(np.zeros(0, np.int64)), "the train split has no position"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_training(
    dataset: LabelledDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Rows], Rows],
    message: str,
) -> None:
    changed(monkeypatch, Split.TRAIN, change)
    with pytest.raises(DataError, match=message):
        train([dataset], CONFIG, tmp_path, SilentProgress())
    assert not (tmp_path / "router.json").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.nan, "'hidden' of .* has values that are not finite"),
        (0.25, "'hidden' has the same value in all .* training positions"),
    ],
)
def test_broken_features_are_refused_before_training(
    dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch, value: float, message: str
) -> None:
    features = Comparison.features

    def broken(self: Comparison, names: Sequence[str], embed: object) -> dict[str, torch.Tensor]:
        values = features(self, names, embed)
        if "hidden" in values:
            values["hidden"].fill_(value)
        return values

    monkeypatch.setattr(Comparison, "features", broken)
    with pytest.raises(DataError, match=message):
        fit(Corpus.open([dataset], CONFIG.inputs), CONFIG, SilentProgress())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"objective": "hard"}, "unknown objective 'hard'; known: divergent, mismatch"),
        ({"target_recall": 1.2}, "recall target"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"device": "cuda:7"}, "no CUDA device"),
        ({"device": "tpux"}, "unknown device"),
        ({"architecture": "mpl"}, "unknown architecture 'mpl'"),
        ({"average": 1.0}, "average"),
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
