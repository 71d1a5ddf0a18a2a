"""What a run tells while it trains, and that a resumed run tells nothing twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from crossroads.dataset import LabelledDataset
from crossroads.errors import ConfigError, EngineError
from crossroads.training.config import FitConfig
from crossroads.training.fit import fit
from crossroads.training.rows import Corpus
from crossroads.training.tracking import JSONLTracker, open_trackers
from crossroads.types import SilentProgress

CONFIG = FitConfig(inputs=("entropy", "margin"), epochs=3)


class Words(SilentProgress):
    """A progress that keeps what is said beside the bar."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def describe(self, text: str) -> None:
        self.words.append(text)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_every_epoch_is_told_once_even_after_a_resume(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    corpus = Corpus.open([dataset], CONFIG.inputs)
    done = fit(corpus, CONFIG, SilentProgress(), tracker=JSONLTracker(tmp_path))
    again = fit(corpus, CONFIG, SilentProgress(), tracker=JSONLTracker(tmp_path))
    assert lines(tmp_path) == [dataclasses.asdict(epoch) for epoch in done.history]
    assert again.history == done.history


def test_progress_says_the_positive_rate_at_the_target(dataset: LabelledDataset) -> None:
    words = Words()
    done = fit(Corpus.open([dataset], CONFIG.inputs), CONFIG, words)
    assert len(words.words) == CONFIG.epochs
    rate = f"{100 * done.history[0].positive_rate:.1f} % at 95 % recall"
    assert rate in words.words[0]


def test_tensorboard_has_its_scalars(dataset: LabelledDataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = open_trackers(["tensorboard"], tmp_path)
    fit(Corpus.open([dataset], CONFIG.inputs), CONFIG, SilentProgress(), tracker=tracker)
    tracker.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"training/positive_rate" in events.read_bytes()
    assert len(lines(tmp_path)) == CONFIG.epochs


def test_unknown_trackers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown tracker 'wandbb'; known: jsonl, tensorboard"):
        open_trackers(["wandbb"], tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(EngineError, match=r"pip install 'crossroads-lm\[tracking\]'"):
        open_trackers(["tensorboard"], tmp_path)
