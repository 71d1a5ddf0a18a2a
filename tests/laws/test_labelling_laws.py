"""Law 4 (stored features are the live ones) and law 8 (a killed run ends as an undisturbed one)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crossroads.artifacts import ResumableLog
from crossroads.dataset import LabelledDataset
from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.request import Request
from crossroads.errors import ConfigError, DataError
from crossroads.labelling.build import LabelConfig, label
from crossroads.labelling.judges.likelihood import LikelihoodJudge
from crossroads.models.pairs import Pair
from crossroads.routing.features import FEATURES
from crossroads.types import Label, Message, Problem, SilentProgress, Split
from laws.pairs import scripted_pair
from laws.spy import Spy

JUDGE = LikelihoodJudge(0.1)
CONFIG = LabelConfig(max_tokens=300, max_rows=4)


def problems(count: int = 15) -> list[Problem]:
    texts = [f"PROBLEM {i * i}" for i in range(count)]
    return [Problem(f"p{i}", (Message("user", t),), "1", "d") for i, t in enumerate(texts)]


def label_all(pair: Pair, folder: Path, count: int = 15) -> LabelledDataset:
    label(pair, problems(count), JUDGE, folder, SilentProgress(), CONFIG)
    return LabelledDataset.open(folder)


def live_features(pair: Pair, dataset: LabelledDataset, problem_id: str) -> dict[str, Tensor]:
    """Return the features of one problem, seen while decoding along the large model's path."""
    spy = Spy(tuple(FEATURES))
    problem = next(p for p in problems() if p.id == problem_id)
    request = Request(tuple(pair.tokenizer.render(problem.messages)), max_tokens=300)
    models = MixedModels(pair.small, pair.large, spy, pair.tokenizer, 0.0)
    list(generate(models, [request]))
    return {name: torch.cat([seen[name] for seen in spy.seen]) for name in FEATURES}


def test_stored_features_are_the_live_ones(tmp_path: Path) -> None:
    pair = scripted_pair()
    dataset = label_all(pair, tmp_path)
    for split in Split:
        positions = dataset.split(split)
        stored = positions.features(tuple(FEATURES))
        for index, problem_id in enumerate(positions.problem_ids):
            mine = positions.problem_N == index
            for name, live in live_features(pair, dataset, problem_id).items():
                assert torch.equal(stored[name][mine], live), name


def test_labels_say_what_the_models_did(tmp_path: Path) -> None:
    dataset = label_all(scripted_pair(), tmp_path)
    positions = dataset.split(Split.TRAIN)
    counts = torch.bincount(positions.label_N.long(), minlength=3)
    assert bool((counts > 0).all()), "the example must have all three labels"
    log = ResumableLog(tmp_path / "responses.jsonl")
    stored = {record["problem_id"]: record["response_ids"] for record in log}
    for index, problem_id in enumerate(positions.problem_ids):
        mine = positions.problem_N == index
        differs = positions.proposed_N[mine] != torch.tensor(stored[problem_id])
        assert torch.equal(differs, positions.label_N[mine] != Label.IDENTICAL)
    rates = dataset.card["base_rates"]["all"]
    assert rates["identical"] + rates["neutral"] + rates["divergent"] == pytest.approx(1)


class Interrupter:
    """A model that is interrupted at its n-th extend."""

    def __init__(self, model, after: int) -> None:
        self._model, self._left = model, after

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def extend(self, *arguments, **keywords):
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._model.extend(*arguments, **keywords)


def without_provenance(folder: Path) -> dict[str, object]:
    card = json.loads((folder / "dataset.json").read_text())
    del card["provenance"]
    return card


def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    label_all(scripted_pair(), tmp_path / "whole")
    pair, interruptions, compared = scripted_pair(), 0, set()
    # The large model answers first; the small one works in the comparisons alone.
    for role, after in [("large", 3), ("large", 60), ("large", 100), *[("small", 8)] * 30]:
        hurried = dataclasses.replace(pair, **{role: Interrupter(getattr(pair, role), after)})
        try:
            label(hurried, problems(), JUDGE, tmp_path / "cut", SilentProgress(), CONFIG)
        except KeyboardInterrupt:
            interruptions += 1
            compared.add(len(list((tmp_path / "cut").glob("compare/*.safetensors"))))
            with pytest.raises(DataError, match="no finished dataset"):
                LabelledDataset.open(tmp_path / "cut")
        else:
            break
    assert interruptions >= 6, "the example must be interrupted often"
    assert len(compared) >= 3, "the example must be interrupted within the comparisons"
    label_all(pair, tmp_path / "cut")
    assert without_provenance(tmp_path / "cut") == without_provenance(tmp_path / "whole")
    answered = [r["problem_id"] for r in ResumableLog(tmp_path / "cut" / "responses.jsonl")]
    assert sorted(answered) == sorted(p.id for p in problems())


def test_a_finished_dataset_is_not_made_again(tmp_path: Path) -> None:
    pair = scripted_pair()
    label_all(pair, tmp_path)
    pair.small.calls.clear()
    pair.large.calls.clear()
    label_all(pair, tmp_path)
    assert pair.small.calls == pair.large.calls == []


def test_a_resumed_run_of_other_problems_is_refused(tmp_path: Path) -> None:
    label_all(scripted_pair(), tmp_path)
    with pytest.raises(ConfigError, match="problems: was"):
        label(scripted_pair(), problems(14), JUDGE, tmp_path, SilentProgress(), CONFIG)
    judge = LikelihoodJudge(0.5)
    with pytest.raises(ConfigError, match="judge: was"):
        label(scripted_pair(), problems(), judge, tmp_path, SilentProgress(), CONFIG)


def test_an_altered_dataset_is_refused(tmp_path: Path) -> None:
    label_all(scripted_pair(), tmp_path)
    path = tmp_path / "labels.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"labels.safetensors is missing or was altered"):
        LabelledDataset.open(tmp_path)


def test_bad_problems_are_refused_before_any_work(tmp_path: Path) -> None:
    pair = scripted_pair()
    for bad, message in (([], "no problem"), (problems(3) + problems(1), "'p0' occurs more than")):
        with pytest.raises(DataError, match=message):
            label(pair, bad, JUDGE, tmp_path / "x", SilentProgress(), CONFIG)
    assert pair.large.calls == []
    assert not (tmp_path / "x").exists()


def test_responses_that_never_end_are_said_so(tmp_path: Path) -> None:
    config = LabelConfig(max_tokens=1)
    with pytest.raises(DataError, match="none of 15 responses ended within 1 tokens"):
        label(scripted_pair(), problems(), JUDGE, tmp_path, SilentProgress(), config)
