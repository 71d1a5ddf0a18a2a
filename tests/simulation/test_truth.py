"""The truth is exact, complete, and about the rows it stands beside; the large model is sound."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.artifacts import load_tensors, read_json
from crossroads.dataset import Comparison
from crossroads.errors import ConfigError, DataError
from crossroads.routing.features import FEATURES
from crossroads.simulation.faults import FAULTS
from crossroads.simulation.simulate import Simulated, simulate
from crossroads.simulation.truth import TRUTH_CARD, load_truth, optimal_positive_rates
from crossroads.simulation.world import SimulationConfig
from crossroads.types import Label, Split

CONFIG = SimulationConfig(problems=40, tokens_per_problem=100)
RECALLS = (0.5, 0.8, 0.9, 0.95, 0.99)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return simulate(CONFIG, tmp_path_factory.mktemp("truth") / "clean")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    config = dataclasses.replace(CONFIG, problems=200, tokens_per_problem=200)
    return simulate(config, tmp_path_factory.mktemp("truth") / "large")


def with_fault(folder: Path, fault: str) -> Simulated:
    return simulate(dataclasses.replace(CONFIG, faults=(fault,)), folder / "faulty")


def comparisons(simulated: Simulated) -> Iterator[Comparison]:
    yield from (simulated.dataset.comparison(row) for row in simulated.dataset.responses)


def stored(simulated: Simulated) -> dict[str, torch.Tensor]:
    """Return the columns of all responses as they lie on the disk, by name."""
    files = [simulated.dataset.folder / row.file for row in simulated.dataset.responses]
    parts = [load_tensors(file, "comparison") for file in files]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("objective", ["divergent", "mismatch"])
def test_no_input_knows_more_than_the_posterior(large: Simulated, objective: str) -> None:
    """Score test: were the posterior not exact given an input, labels less posterior would go with
    it. Given the inputs labels are independent, so each statistic is a standard normal number.
    """
    positions = large.dataset.split(Split.TRAIN)
    positive_N = positions.divergent_N if objective == "divergent" else positions.mismatch_N
    posterior_N = large.truth.scores(Split.TRAIN, objective).astype(np.float64)
    residual_N = positive_N.numpy() - posterior_N
    variance_N = posterior_N * (1 - posterior_N)
    for name, value in positions.features(tuple(FEATURES)).items():
        value_NW = value.double().numpy()
        for power in (value_NW, value_NW**2):
            centred_NW = power - power.mean(axis=0)
            error_W = np.sqrt(variance_N @ centred_NW**2)
            # About 600 statistics: beyond 5 by chance once in 3000 runs.
            assert (np.abs(residual_N @ centred_NW) < 5 * error_W + 1e-9).all(), name


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), noise=st.sampled_from([0.0, 0.1, 1.0, 10.0]))
def test_the_curve_bounds_every_ranking(large: Simulated, seed: int, noise: float) -> None:
    """Whatever order positions are sent in, no more positives are expected to be caught."""
    score_N = large.truth.scores(Split.TEST).astype(np.float64)
    rate_N, recall_N = large.truth.curve(Split.TEST)
    generator = np.random.default_rng(seed)
    order = np.argsort(-np.log(score_N) + noise * generator.standard_normal(len(score_N)))
    caught_N = score_N[order].cumsum() / score_N.sum()
    assert (caught_N <= recall_N + 1e-9).all()
    assert rate_N[-1] == recall_N[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("objective", ["divergent", "mismatch"])
def test_a_large_dataset_is_near_its_population(large: Simulated, objective: str) -> None:
    config = dataclasses.replace(CONFIG, problems=200, tokens_per_problem=200)
    population = optimal_positive_rates(config, RECALLS, objective)
    assert population == sorted(population)
    here = [large.truth.positive_rate(Split.TRAIN, recall, objective) for recall in RECALLS]
    # 120 problems whose levels differ: their curve lies a few percent beside the population's.
    assert here == pytest.approx(population, rel=0.08)


def test_a_recall_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recall target must be in \(0, 1\], got 1.5"):
        optimal_positive_rates(CONFIG, (1.5,))


def test_a_folder_without_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no simulation truth at"):
        load_truth(tmp_path)


@pytest.mark.parametrize("name", ["clean", "label_noise"])
def test_the_large_models_list_holds_what_the_columns_say(
    clean: Simulated, tmp_path: Path, name: str
) -> None:
    simulated = clean if name == "clean" else with_fault(tmp_path, name)
    for comparison in comparisons(simulated):
        outputs = comparison.large
        assert outputs is not None
        ids_NK, logprobs_NK = outputs.top_ids_NK, outputs.top_logprobs_NK
        assert torch.equal(ids_NK[:, 0], comparison.real_N)
        assert all(len(set(ids)) == len(ids) for ids in ids_NK.tolist())
        assert bool((logprobs_NK.diff(dim=1) <= 0).all())
        assert bool((logprobs_NK.exp().sum(dim=1) <= 1.001).all())
        # The proposal is among the listed tokens unless all of them are likelier.
        proposed = ids_NK == comparison.proposed_N[:, None]
        listed = proposed.any(dim=1)
        at = proposed.float().argmax(dim=1, keepdim=True)
        found = logprobs_NK.gather(1, at)[:, 0]
        close = torch.isclose(found, outputs.logprob_small_N, rtol=2e-3, atol=2e-3)
        assert bool((close | ~listed).all())
        below = outputs.logprob_small_N <= logprobs_NK[:, -1] + 2e-3
        assert bool((listed | below).all())


def test_label_noise_changes_nothing_but_the_positions_it_names(
    clean: Simulated, tmp_path: Path
) -> None:
    faulty = with_fault(tmp_path, "label_noise")
    affected_N = torch.from_numpy(faulty.truth.affected_N)
    before, after = stored(clean), stored(faulty)
    for name, value in before.items():
        if name.startswith("large_"):
            assert torch.equal(after[name][~affected_N], value[~affected_N]), name
        elif name != "real":
            assert torch.equal(after[name], value), name
    assert torch.equal(after["real"] != before["real"], affected_N)
    assert bool((after["real"] != after["top_ids"][:, 0])[affected_N].all())
    assert np.array_equal(faulty.truth.posterior_N, clean.truth.posterior_N)
    assert (faulty.dataset.labels().label_N[affected_N] == Label.DIVERGENT).all()


@pytest.mark.parametrize("by", [1, 3])
def test_a_shift_touches_all_but_the_first_positions(
    clean: Simulated, tmp_path: Path, by: int
) -> None:
    faulty = with_fault(tmp_path, f"shifted_features={by}")
    affected_RT = faulty.truth.affected_N.reshape(-1, CONFIG.tokens_per_problem)
    assert not affected_RT[:, :by].any()
    assert affected_RT[:, by:].all()
    assert np.array_equal(faulty.truth.posterior_N, clean.truth.posterior_N)


@pytest.mark.parametrize("fault", ["leaked_problems", "duplicated_rows"])
def test_copies_are_named_with_their_originals(tmp_path: Path, fault: str) -> None:
    faulty = with_fault(tmp_path, fault)
    card = read_json(faulty.dataset.folder / TRUTH_CARD, "truth")
    assert list(card["faults"]) == [fault]
    rows = {f"{row.problem_id}#{row.sample}": row for row in faulty.dataset.responses}
    assert 0 < len(card["copies"]) < len(rows)
    affected_N = faulty.truth.affected_N
    assert card["affected"] == affected_N.sum() == 100 * len(card["copies"])
    for copy, original in card["copies"].items():
        assert original not in card["copies"]
        parts = [slice(r.start, r.start + r.positions) for r in (rows[copy], rows[original])]
        assert affected_N[parts[0]].all()
        assert not affected_N[parts[1]].any()
        first, second = (faulty.truth.posterior_N[part] for part in parts)
        assert np.array_equal(first, second)


def test_the_truth_of_a_changed_base_rate_knows_of_it(tmp_path: Path, clean: Simulated) -> None:
    faulty = with_fault(tmp_path, "changed_base_rate")
    for split in (Split.TRAIN, Split.CALIBRATION):
        assert np.array_equal(faulty.truth.scores(split), clean.truth.scores(split))
    posterior_N = faulty.truth.scores(Split.TEST).astype(np.float64)
    divergent = int(faulty.dataset.split(Split.TEST).divergent_N.sum())
    error = float(np.sqrt((posterior_N * (1 - posterior_N)).sum()))
    assert abs(divergent - posterior_N.sum()) < 5 * error
    assert posterior_N.mean() > 1.5 * clean.truth.scores(Split.TEST).mean()
    before, after = stored(clean), stored(faulty)
    for name in ("top_ids", "top_logprobs", "logsumexp", "entropy", "hidden", "position"):
        assert torch.equal(after[name], before[name]), name


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("leaked_problems=1.2", r"\(share of them\) must be a positive number up to 1, got '1.2'"),
        ("shifted_features=0.4", "must be a whole number, got '0.4'"),
        ("shifted_features=100", "needs longer problems than 100 tokens"),
        ("unscaled_features=nan", "must be a positive number up to 10000"),
    ],
)
def test_strengths_that_would_inject_nothing_are_refused(
    tmp_path: Path, fault: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_fault(tmp_path, fault)
    assert not (tmp_path / "faulty").exists()


def test_the_default_strengths_are_in_range() -> None:
    for fault in FAULTS.values():
        assert 0 < fault.strength <= fault.most
        assert (fault.plan is not None) + (fault.change is not None) + fault.shifts_test == 1


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    """Beyond the labels and the truth, 12 bytes for each position."""

    def peak(problems: int) -> int:
        tracemalloc.start()
        config = dataclasses.replace(CONFIG, problems=problems, tokens_per_problem=500)
        simulate(config, tmp_path / str(problems))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(10), peak(40)
    assert many < few + 30 * 500 * 40


def test_another_folders_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="holds something other than this simulation"):
        simulate(CONFIG, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
