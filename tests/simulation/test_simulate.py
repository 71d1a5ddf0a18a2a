"""The simulated world: its truth is true, and each fault changes what it says and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from crossroads.artifacts import sha256_file
from crossroads.dataset import CARD, LabelledDataset
from crossroads.errors import ConfigError
from crossroads.exchange.audit import audit_dataset, audit_r2r
from crossroads.exchange.r2r_export import export_r2r
from crossroads.exchange.r2r_import import import_r2r
from crossroads.routing.features import stored_logprobs
from crossroads.simulation.faults import FAULTS
from crossroads.simulation.simulate import Simulated, load_truth, simulate
from crossroads.simulation.world import SimulationConfig, World
from crossroads.types import Label, Split

CONFIG = SimulationConfig(problems=40, tokens_per_problem=100)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return simulate(CONFIG, tmp_path_factory.mktemp("simulated") / "clean")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    config = dataclasses.replace(CONFIG, problems=200, tokens_per_problem=200)
    return simulate(config, tmp_path_factory.mktemp("simulated") / "large")


def with_fault(folder: Path, name: str) -> Simulated:
    return simulate(dataclasses.replace(CONFIG, faults=(name,)), folder / name)


def labels(simulated: Simulated) -> np.ndarray:
    return simulated.dataset.labels().label_N.numpy()


def test_a_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = simulate(dataclasses.replace(CONFIG, seed=seed), tmp_path / name).dataset
        hashes.append(dict(done.card["sha256"]))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_finished_simulation_is_opened_and_another_refused(clean: Simulated) -> None:
    folder = clean.dataset.folder
    before = sha256_file(folder / CARD)
    assert simulate(CONFIG, folder).dataset.card == clean.dataset.card
    assert sha256_file(folder / CARD) == before
    with pytest.raises(ConfigError, match="holds something other"):
        simulate(dataclasses.replace(CONFIG, seed=3), folder)


def test_rates_are_those_asked_for(large: Simulated) -> None:
    rates = large.dataset.card["base_rates"]["all"]
    # 200 problems with levels of their own: about a tenth of the rate is chance.
    assert 1 - rates["identical"] == pytest.approx(0.11, rel=0.15)
    assert rates["divergent"] == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize("objective", ["divergent", "mismatch"])
def test_the_posterior_is_the_probability(large: Simulated, objective: str) -> None:
    truth, label_N = large.truth, labels(large)
    positive_N = label_N == Label.DIVERGENT if objective == "divergent" else label_N > 0
    posterior_N = truth.posterior_N if objective == "divergent" else truth.posterior_mismatch_N
    order = np.argsort(posterior_N)
    for part in np.array_split(order, 12):
        expected = posterior_N[part].astype(float)
        error = np.sqrt((expected * (1 - expected)).sum())
        # Given the inputs labels are independent, so the sum's error is exact.
        assert abs(positive_N[part].sum() - expected.sum()) < 4 * error + 1


def test_no_other_score_beats_the_posterior(large: Simulated) -> None:
    positions = large.dataset.split(Split.TRAIN)
    features = positions.features(("entropy", "margin"))
    divergent = positions.divergent_N.numpy()
    best = large.truth.scores(Split.TRAIN)

    def rate(scores: np.ndarray, recall: float) -> float:
        threshold = np.quantile(scores[divergent], 1 - recall, method="inverted_cdf")
        return float((scores >= threshold).mean())

    for recall in (0.5, 0.8, 0.9, 0.95):
        for others in (features["entropy"][:, 0], -features["margin"][:, 0]):
            assert rate(best, recall) < rate(others.numpy(), recall)
        expected = large.truth.positive_rate(Split.TRAIN, recall)
        assert rate(best, recall) == pytest.approx(expected, rel=0.25)


def test_the_truth_can_be_read_off_what_is_stored(clean: Simulated) -> None:
    world = World(CONFIG)
    for row in clean.dataset.responses[:5]:
        comparison = clean.dataset.comparison(row)
        assert comparison.step.hidden_NH is not None
        hidden_NH = comparison.step.hidden_NH.float().numpy()
        _, divergent_N = world.probabilities(
            *world.read(stored_logprobs(comparison.step), hidden_NH)
        )
        part = slice(row.start, row.start + row.positions)
        assert np.allclose(divergent_N, clean.truth.posterior_N[part], rtol=1e-5)


@pytest.mark.parametrize("name", ["clean", *FAULTS])
def test_every_simulation_keeps_the_laws_of_a_dataset(
    clean: Simulated, tmp_path: Path, name: str
) -> None:
    simulated = clean if name == "clean" else with_fault(tmp_path, name)
    assert audit_dataset(simulated.dataset).summary.endswith("keeps every law")
    assert len(load_truth(simulated.dataset.folder).posterior_N) == len(labels(simulated))


def test_r2rs_format_holds_the_same_labels(clean: Simulated, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    export_r2r(clean.dataset, tmp_path / "r2r")
    assert audit_r2r(tmp_path / "r2r").ok
    back = LabelledDataset.open(import_r2r(tmp_path / "r2r", tmp_path / "back"))
    for split in Split:
        ours, theirs = clean.dataset.split(split), back.split(split)
        assert torch.equal(ours.label_N, theirs.label_N)


def hidden(simulated: Simulated, number: int) -> torch.Tensor:
    found = simulated.dataset.comparison(simulated.dataset.responses[number]).step.hidden_NH
    assert found is not None
    return found.float()


def test_shifted_features_move_hidden_states_alone(clean: Simulated, tmp_path: Path) -> None:
    faulty = with_fault(tmp_path, "shifted_features")
    assert np.array_equal(labels(faulty), labels(clean))
    assert torch.equal(hidden(faulty, 3)[1:], hidden(clean, 3)[:-1])
    rows = zip(faulty.dataset.responses, clean.dataset.responses, strict=True)
    for ours, theirs in rows:
        mine, other = faulty.dataset.comparison(ours), clean.dataset.comparison(theirs)
        assert torch.equal(mine.step.top_logits_NK, other.step.top_logits_NK)


def test_label_noise_is_false_positives_where_the_small_model_is_certain(
    clean: Simulated, tmp_path: Path
) -> None:
    faulty = with_fault(tmp_path, "label_noise")
    changed = np.flatnonzero(labels(faulty) != labels(clean))
    assert len(changed) == pytest.approx(0.1 * 0.05 * len(labels(clean)), rel=0.6)
    assert set(labels(clean)[changed]) == {Label.IDENTICAL}
    assert set(labels(faulty)[changed]) == {Label.DIVERGENT}
    assert np.array_equal(np.flatnonzero(faulty.truth.affected_N), changed)
    assert np.array_equal(faulty.truth.clean_label_N, labels(clean))
    entropy_N = np.concatenate(
        [faulty.dataset.comparison(r).step.entropy_N.numpy() for r in faulty.dataset.responses]
    )
    assert entropy_N[changed].max() < 0.1


def test_leaked_problems_are_in_train_by_other_ids(clean: Simulated, tmp_path: Path) -> None:
    faulty = with_fault(tmp_path, "leaked_problems").dataset
    held_out = {r.problem_id for r in clean.dataset.responses if r.split != Split.TRAIN}
    copies = [r for r in faulty.responses if r.problem_id.endswith("-again")]
    assert {r.split for r in copies} == {Split.TRAIN}
    assert len(copies) == round(0.5 * len(held_out))
    of = {r.problem_id: r for r in faulty.responses}
    for copy in copies:
        original = of[copy.problem_id.removesuffix("-again")]
        assert original.split != Split.TRAIN
        same = (faulty.comparison(row).real_N.tolist() for row in (copy, original))
        assert next(same) == next(same)


def test_duplicated_rows_are_samples_of_one_problem(clean: Simulated, tmp_path: Path) -> None:
    faulty = with_fault(tmp_path, "duplicated_rows").dataset
    repeated = {r.problem_id for r in faulty.responses if r.sample > 0}
    assert 0 < len(repeated) < len(clean.dataset.responses) / 4
    for problem in repeated:
        rows = [r for r in faulty.responses if r.problem_id == problem]
        assert len(rows) == 11
        assert len({tuple(faulty.comparison(r).real_N.tolist()) for r in rows}) == 1


def test_unscaled_features_leave_the_truth_readable(clean: Simulated, tmp_path: Path) -> None:
    faulty = with_fault(tmp_path, "unscaled_features")
    half = CONFIG.hidden_size // 2
    assert torch.equal(hidden(faulty, 2)[:, :half], hidden(clean, 2)[:, :half])
    assert float(hidden(faulty, 2)[:, half:].std() / hidden(clean, 2)[:, half:].std()) > 500
    assert np.array_equal(labels(faulty), labels(clean))


def test_a_changed_base_rate_is_the_test_splits_alone(clean: Simulated, tmp_path: Path) -> None:
    faulty = with_fault(tmp_path, "changed_base_rate").dataset
    rates, before = (d.card["base_rates"] for d in (faulty, clean.dataset))
    for split in ("train", "calibration"):
        assert rates[f"split {split}"] == before[f"split {split}"]
    assert rates["split test"]["divergent"] > 1.5 * before["split test"]["divergent"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faults": ("label_nois",)}, "did you mean 'label_noise'"),
        ({"faults": ("label_noise=much",)}, "must be a number, got 'much'"),
        ({"faults": ("label_noise=-1",)}, "must be a positive number"),
    ],
)
def test_bad_faults_are_named(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(dataclasses.replace(CONFIG, **change), tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problems": 3}, "at least 10 problems"),
        ({"vocab_size": 50}, "more than 101 tokens"),
        ({"divergent_rate": 0.2}, "0 < divergent < mismatch"),
        ({"domains": {}}, "positive share"),
    ],
)
def test_worlds_that_cannot_be_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)
