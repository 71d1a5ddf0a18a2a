"""Law 4 (stored features are the live ones) and law 8 (a killed run ends as an undisturbed one)."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from crossroads.artifacts import ResumableLog
from crossroads.dataset import LabelledDataset
from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.request import Request
from crossroads.errors import ConfigError, DataError
from crossroads.labelling.build import BuildConfig
from crossroads.labelling.judges.base import Judge
from crossroads.labelling.judges.convergence import ConvergenceJudge
from crossroads.labelling.judges.likelihood import LikelihoodJudge
from crossroads.labelling.judges.outcome import OutcomeJudge
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import LabelConfig, label
from crossroads.models.pairs import Pair
from crossroads.routing.features import FEATURES
from crossroads.types import Label, Message, Problem, SilentProgress, Split
from laws.pairs import scripted_pair
from laws.spy import Spy

CONFIG = LabelConfig(RespondConfig(max_tokens=300), max_rows=4)
TESTS = Path(__file__).parents[1]


def problems(count: int = 15) -> list[Problem]:
    texts = [f"PROBLEM {i * i}" for i in range(count)]
    return [Problem(f"p{i}", (Message("user", t),), "1", "d") for i, t in enumerate(texts)]


def every_judge(pair: Pair) -> list[Judge]:
    """Return judges that need nothing, continuations, and the model itself."""
    return [LikelihoodJudge(0.1), ConvergenceJudge(), OutcomeJudge(pair, 4, max_tokens=60)]


def label_all(
    pair: Pair, folder: Path, count: int = 15, judges: Sequence[Judge] = (LikelihoodJudge(0.1),)
) -> LabelledDataset:
    label(pair, problems(count), judges, folder, SilentProgress(), CONFIG)
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
    log = ResumableLog(tmp_path / "respond" / "responses.jsonl")
    stored = {record["problem_id"]: record["response_ids"] for record in log}
    for index, problem_id in enumerate(positions.problem_ids):
        mine = positions.problem_N == index
        differs = positions.proposed_N[mine] != torch.tensor(stored[problem_id])
        assert torch.equal(differs, positions.label_N[mine] != Label.IDENTICAL)
    rates = dataset.card["base_rates"]["all"]
    assert rates["identical"] + rates["neutral"] + rates["divergent"] == pytest.approx(1)


class Interrupter:
    """A model that is interrupted when `left` extends of it and its partner are over."""

    def __init__(self, model, left: list[int]) -> None:
        self._model, self._left = model, left

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def extend(self, *arguments, **keywords):
        self._left[0] -= 1
        if self._left[0] < 0:
            raise KeyboardInterrupt
        return self._model.extend(*arguments, **keywords)


def hurried(pair: Pair, extends: int) -> Pair:
    """Return a pair that is interrupted after so many extends."""
    left = [extends]
    return dataclasses.replace(
        pair, small=Interrupter(pair.small, left), large=Interrupter(pair.large, left)
    )


def without_provenance(folder: Path) -> dict[str, object]:
    card = json.loads((folder / "dataset.json").read_text())
    del card["provenance"]
    return card


def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    pair, generator = scripted_pair(), np.random.default_rng(7)
    label_all(pair, tmp_path / "whole", 6, judges=every_judge(pair))
    stages_cut: Counter[str] = Counter()
    for attempt in range(200):
        most = 60 + 15 * attempt  # the first ones end in the first stages
        short = hurried(pair, int(generator.integers(most // 2, most)))
        progress = SilentProgress()
        try:
            label(short, problems(6), every_judge(short), tmp_path / "cut", progress, CONFIG)
        except KeyboardInterrupt:
            stages_cut[progress.current] += 1
            with pytest.raises(DataError, match="no finished dataset"):
                LabelledDataset.open(tmp_path / "cut")
        else:
            break
    assert len(stages_cut) == 4, f"only cut in {stages_cut}"
    assert pair.small.alive == pair.large.alive == 0, "an interrupted run must give its rows back"
    assert without_provenance(tmp_path / "cut") == without_provenance(tmp_path / "whole")
    for name in ("respond/responses.jsonl", "continue/continuations.jsonl"):
        assert records(tmp_path / "cut" / name) == records(tmp_path / "whole" / name), name
    verdicts = sorted((tmp_path / "whole" / "judges").glob("*/verdicts.jsonl"))
    assert len(verdicts) == 3
    for path in verdicts:
        mine = tmp_path / "cut" / path.relative_to(tmp_path / "whole")
        assert records(mine) == records(path), path.parent.name


def records(path: Path) -> dict[str, object]:
    """Return a log's records by key; a key that was written twice is work done twice."""
    found = list(ResumableLog(path))
    assert len({record["key"] for record in found}) == len(found), "something was done twice"
    return {record["key"]: record for record in found}


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from laws.test_labelling_laws import CONFIG, every_judge, problems
from laws.pairs import scripted_pair
from crossroads.labelling.run import label
from crossroads.types import SilentProgress

class Slow:
    def __init__(self, model): self._model = model
    def __getattr__(self, name): return getattr(self._model, name)
    def extend(self, *arguments):
        time.sleep(0.004)
        return self._model.extend(*arguments)

pair = scripted_pair()
object.__setattr__(pair, "large", Slow(pair.large))
object.__setattr__(pair, "small", Slow(pair.small))
print("go", flush=True)
label(pair, problems(), every_judge(pair), Path(sys.argv[1]), SilentProgress(), CONFIG)
"""


@pytest.mark.slow
def test_sigkill_at_random_points_changes_nothing(tmp_path: Path) -> None:
    pair = scripted_pair()
    label_all(pair, tmp_path / "whole", judges=every_judge(pair))
    generator, killed = np.random.default_rng(3), 0
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "cut"), str(TESTS)]
    while True:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "go\n"
            try:
                # Longer and longer, so that a slow machine gets somewhere, too.
                process.wait(timeout=float(generator.uniform(0.2, 1.0)) * (1 + killed / 4))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
                assert killed < 40, "the run gets nowhere"
            else:
                assert process.returncode == 0
                break
    assert killed >= 3
    assert without_provenance(tmp_path / "cut") == without_provenance(tmp_path / "whole")
    for path in sorted((tmp_path / "whole").rglob("*.jsonl")):
        if path.name != "problems.jsonl":
            mine = tmp_path / "cut" / path.relative_to(tmp_path / "whole")
            assert records(mine) == records(path), path


def test_a_finished_dataset_is_not_made_again(tmp_path: Path) -> None:
    pair = scripted_pair()
    label_all(pair, tmp_path)
    pair.small.calls.clear()
    pair.large.calls.clear()
    label_all(pair, tmp_path)
    assert pair.small.calls == pair.large.calls == []


def test_a_resumed_run_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    pair = scripted_pair()
    label_all(pair, tmp_path)
    judge, silent = LikelihoodJudge(0.1), SilentProgress()
    with pytest.raises(ConfigError, match="problems: was"):
        label(pair, problems(14), [judge], tmp_path, silent, CONFIG)
    changed = dataclasses.replace(CONFIG, respond=RespondConfig(max_tokens=200))
    with pytest.raises(ConfigError, match="max_tokens: was 300, now 200"):
        label(pair, problems(), [judge], tmp_path, silent, changed)
    with pytest.raises(ConfigError, match="judges: was"):
        label(pair, problems(), [LikelihoodJudge(0.5)], tmp_path, silent, CONFIG)
    other = dataclasses.replace(pair, large=pair.small)
    with pytest.raises(ConfigError, match="large: was 'scripted-large', now 'scripted-small'"):
        label(other, problems(), [judge], tmp_path, silent, CONFIG)


def test_another_judge_joins_a_finished_run(tmp_path: Path) -> None:
    pair = scripted_pair()
    first = label_all(pair, tmp_path)
    pair.large.calls.clear()
    judges = [LikelihoodJudge(0.1), LikelihoodJudge(0.9)]
    silent = SilentProgress()
    label(pair, problems(), judges[1:], tmp_path, silent, CONFIG, stages=["judge"])
    assert pair.large.calls == []
    assert LabelledDataset.open(tmp_path).card == first.card
    rebuilt = dataclasses.replace(CONFIG, build=BuildConfig(combine="any", rebuild=True))
    label(pair, problems(), judges, tmp_path, silent, rebuilt, stages=["build"])
    wider = LabelledDataset.open(tmp_path).card["base_rates"]["all"]
    assert wider["divergent"] > first.card["base_rates"]["all"]["divergent"]
    assert wider["identical"] == first.card["base_rates"]["all"]["identical"]


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
            label(pair, bad, [LikelihoodJudge()], tmp_path / "x", SilentProgress(), CONFIG)
    assert pair.large.calls == []
    assert not (tmp_path / "x").exists()


def test_responses_that_never_end_are_said_so(tmp_path: Path) -> None:
    config = LabelConfig(RespondConfig(max_tokens=1))
    with pytest.raises(DataError, match="none of the 15 responses ended"):
        label(scripted_pair(), problems(), [LikelihoodJudge()], tmp_path, SilentProgress(), config)
