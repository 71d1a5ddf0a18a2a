"""The law of a diagnosis: it names each injected fault, and none where none was injected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from crossroads.dataset import LabelledDataset
from crossroads.diagnosis.causes import CAUSES
from crossroads.diagnosis.diagnose import Diagnosis, diagnose
from crossroads.diagnosis.evidence import Evidence, Options
from crossroads.diagnosis.reference import Reference, read_reference
from crossroads.diagnosis.result import typed_result
from crossroads.diagnosis.run import Run, open_run
from crossroads.diagnosis.tokens import Data
from crossroads.diagnosis.verdict import Status
from crossroads.simulation.faults import FAULTS
from crossroads.simulation.simulate import Simulated, simulate
from crossroads.simulation.world import SimulationConfig
from crossroads.training.config import FitConfig
from crossroads.training.train import train
from crossroads.types import SilentProgress, Split

NAMES = {
    "shifted_features": "misalignment",
    "label_noise": "label noise",
    "leaked_problems": "leakage between splits",
    "duplicated_rows": "duplicated rows",
    "unscaled_features": "normalisation",
    "changed_base_rate": "base rates",
}
QUICK = Options(quick=True)
REFERENCE = Reference(0.124)
Make = Callable[..., Simulated]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a maker of simulated datasets, each made once."""
    folder = tmp_path_factory.mktemp("simulated")

    @cache
    def make(seed: int = 0, *faults: str) -> Simulated:
        name = "-".join([str(seed), *faults])
        return simulate(SimulationConfig(seed=seed, faults=faults), folder / name)

    return make


@pytest.fixture(scope="module")
def run(simulated: Make, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a router trained on sound data, by the default inputs and the hidden state."""
    config = FitConfig(inputs=("entropy", "proposed_logprob", "hidden"), epochs=12)
    folder = tmp_path_factory.mktemp("router")
    train([simulated().dataset], config, folder, SilentProgress())
    return open_run(folder)


def found(dataset: LabelledDataset, options: Options = QUICK) -> set[str]:
    evidence = Evidence(reference=REFERENCE, data=Data([dataset]), options=options)
    return {verdict.name for verdict in diagnose(evidence).found()}


def test_every_fault_has_a_name() -> None:
    assert set(NAMES) == set(FAULTS)
    assert set(NAMES.values()) <= set(CAUSES)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_named_and_no_other(fault: str, simulated: Make) -> None:
    assert found(simulated(0, fault).dataset) == {NAMES[fault]}


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_found_where_nothing_is_wrong(seed: int, simulated: Make) -> None:
    assert found(simulated(seed).dataset) == set()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(1, 4))
def test_an_injected_fault_is_named_whatever_the_seed(
    fault: str, seed: int, tmp_path: Path
) -> None:
    config = SimulationConfig(seed=seed, faults=(fault,))
    assert found(simulate(config, tmp_path / "labels").dataset) == {NAMES[fault]}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 18))
def test_nothing_is_found_whatever_the_seed(seed: int, tmp_path: Path) -> None:
    config = SimulationConfig(seed=seed)
    assert found(simulate(config, tmp_path / "labels").dataset) == set()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_training_here_changes_no_verdict_on_the_data(fault: str | None, simulated: Make) -> None:
    """Overfitting, and other causes in what is trained here, are causes of their own."""
    faults = () if fault is None else (fault,)
    names = found(simulated(0, *faults).dataset, Options(seeds=2))
    assert names & set(NAMES.values()) == {NAMES[name] for name in faults}


@pytest.mark.slow
def test_two_faults_at_once_are_both_named(simulated: Make) -> None:
    both = ("label_noise", "shifted_features")
    assert found(simulated(0, *both).dataset) == {NAMES[fault] for fault in both}


def test_a_sound_run_has_every_verdict_and_no_fault(simulated: Make, run: Run) -> None:
    data = Data([simulated().dataset])
    diagnosis = diagnose(Evidence(run=run, data=data, reference=REFERENCE, options=QUICK))
    assert [verdict.name for verdict in diagnosis.verdicts] == list(CAUSES)
    assert {verdict.name for verdict in diagnosis.found()} == set()
    assert diagnosis.subject is not None
    assert diagnosis.verdict("normalisation").status is Status.RULED_OUT
    assert diagnosis.verdict("selection rule").status is Status.RULED_OUT
    assert diagnosis.verdict("threshold grid").status is Status.RULED_OUT
    assert diagnosis.notes == (
        "Nothing was trained (--quick), so causes in the training are left open.",
    )


def test_a_run_without_its_data_says_what_its_report_knows(run: Run) -> None:
    diagnosis = diagnose(Evidence(run=run, reference=REFERENCE))
    assert diagnosis.found() == []
    assert diagnosis.subject is not None
    assert diagnosis.subject.rate.interval is not None
    assert diagnosis.subject.recall == 0.95
    assert len(diagnosis.populations) == 4
    assert "its own report" in diagnosis.verdict("no better than entropy").evidence
    assert diagnosis.verdict("misalignment").status is Status.CANNOT_TELL


def test_the_subjects_rate_is_the_exact_thresholds(simulated: Make, run: Run) -> None:
    dataset = simulated().dataset
    evidence = Evidence(run=run, data=Data([dataset]), options=QUICK)
    scores, positive = [], []
    embed = dataset.embeddings()
    for row in dataset.responses:
        if row.split != Split.TRAIN:
            features = dataset.comparison(row).features(run.loaded.router.inputs, embed)
            scores.append(run.loaded.router.score(features).numpy())
            positive.append(dataset.labels().of(row).label_N.numpy() == 2)
    score, flag = np.concatenate(scores), np.concatenate(positive)
    threshold = np.sort(score[flag])[::-1][int(np.ceil(0.95 * flag.sum())) - 1]
    assert evidence.subject is not None
    assert evidence.subject.rate.value == pytest.approx((score >= threshold).mean())


def test_points_of_a_fault_are_about_what_it_costs(simulated: Make) -> None:
    """Label noise costs entropy about what the sound labels of the same rows need less."""
    noisy, sound = simulated(0, "label_noise").dataset, simulated(0).dataset
    diagnosis = diagnose(Evidence(data=Data([noisy]), options=QUICK))
    points = diagnosis.verdict("label noise").points
    clean = Evidence(data=Data([sound]), options=QUICK).subject
    assert points is not None
    assert points.interval is not None
    assert diagnosis.subject is not None
    assert clean is not None
    cost = diagnosis.subject.rate.value - clean.rate.value
    assert cost > 0.1
    assert points.interval.low <= cost <= points.interval.high


def test_points_of_base_rates_are_those_of_rows_with_the_references_shares(
    simulated: Make,
) -> None:
    reference = read_reference({"positive_rate": 0.3, "divergent": 0.02, "neutral": 0.1})
    evidence = Evidence(data=Data([simulated().dataset]), reference=reference, options=QUICK)
    verdict = diagnose(evidence).verdict("base rates")
    assert verdict.status is Status.FOUND
    assert evidence.tokens is not None
    assert evidence.gauge is not None
    label = evidence.tokens.label_N[evidence.gauge.rows_N]
    shares = np.bincount(label, minlength=3) / len(label)
    weight = np.array([0.88, 0.1, 0.02])[label] / shares[label]
    rate = evidence.gauge.ranking.rate_at_recall(0.95, weight)
    assert verdict.points is not None
    assert verdict.points.value == pytest.approx(evidence.gauge.rate.value - rate)


def test_the_order_of_the_responses_changes_no_verdict(simulated: Make) -> None:
    dataset = simulated(0, "label_noise").dataset
    rows = [*reversed(dataset.card["responses"])]
    turned = dataclasses.replace(dataset, card={**dataset.card, "responses": rows})
    verdicts: list[Diagnosis] = [
        diagnose(Evidence(data=Data([d]), reference=REFERENCE, options=QUICK))
        for d in (dataset, turned)
    ]
    first, second = ([v.status for v in diagnosis.verdicts] for diagnosis in verdicts)
    assert first == second
    assert verdicts[0].subject is not None
    assert verdicts[1].subject is not None
    assert verdicts[0].subject.rate == verdicts[1].subject.rate


def test_few_problems_give_no_verdict_but_cannot_tell(tmp_path: Path) -> None:
    config = SimulationConfig(problems=10, tokens_per_problem=20)
    dataset = simulate(config, tmp_path / "labels").dataset
    diagnosis = diagnose(Evidence(data=Data([dataset]), reference=REFERENCE, options=QUICK))
    assert diagnosis.found() == []
    assert diagnosis.verdict("label noise").status is Status.CANNOT_TELL
    assert diagnosis.verdict("small sample").status is Status.CANNOT_TELL


def test_too_many_positions_are_left_out_by_problem_and_said(simulated: Make) -> None:
    dataset = simulated().dataset
    data = Data([dataset], most_positions=3000)
    assert len(data.tokens) == 3000
    assert data.left_out == 40
    diagnosis = diagnose(Evidence(data=data, options=QUICK))
    assert any("40 responses were left out" in note for note in diagnosis.notes)
    assert sum(row.positions for d in data.datasets for row in d.responses) == 3000
    again = Data([dataset], most_positions=3000)
    assert [row.problem_id for row in again.tokens.responses] == [
        row.problem_id for row in data.tokens.responses
    ]


@pytest.mark.parametrize(("rate", "status"), [(0.95, Status.FOUND), (0.2, Status.RULED_OUT)])
def test_a_result_is_compared_with_entropy_on_its_rows(
    rate: float, status: Status, simulated: Make
) -> None:
    data = Data([simulated().dataset])
    result = typed_result({"positive_rate": rate, "recall": 0.95})
    diagnosis = diagnose(Evidence(result=result, data=data, reference=REFERENCE, options=QUICK))
    assert diagnosis.verdict("no better than entropy").status is status


@pytest.mark.slow
def test_a_result_that_training_here_beats_was_undertrained(simulated: Make) -> None:
    result = typed_result({"positive_rate": 0.9, "recall": 0.95, "threshold": 0.3367})
    data = Data([simulated().dataset])
    diagnosis = diagnose(
        Evidence(result=result, data=data, reference=REFERENCE, options=Options(seeds=2))
    )
    verdict = diagnosis.verdict("undertraining")
    assert verdict.status is Status.FOUND
    assert verdict.points is not None
    assert 0.1 < verdict.points.value < 0.9
