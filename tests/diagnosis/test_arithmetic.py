"""What a bare result determines: the identities hold, and the user's own numbers are read right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crossroads.diagnosis import arithmetic
from crossroads.diagnosis.diagnose import diagnose
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.reference import Reference, read_reference
from crossroads.diagnosis.result import Metrics, read_result, typed_result
from crossroads.diagnosis.statements import statements
from crossroads.diagnosis.verdict import Status
from crossroads.errors import ConfigError, DataError

SHARE = st.floats(0.02, 0.98)


def counted(tokens: int, base: float, recall: float, false: float) -> Metrics:
    """Return the metrics of an actual table of counts."""
    positives = round(base * tokens)
    caught, wrong = round(recall * positives), round(false * (tokens - positives))
    precision, share = caught / (caught + wrong), caught / positives
    return Metrics(
        positive_rate=(caught + wrong) / tokens,
        recall=share,
        precision=precision,
        accuracy=(caught + tokens - positives - wrong) / tokens,
        f1=2 * precision * share / (precision + share),
    )


@given(SHARE, SHARE, SHARE)
def test_every_metric_gives_the_base_rate_back(base: float, recall: float, false: float) -> None:
    metrics = counted(1_000_000, base, recall, false)
    assert metrics.recall is not None
    assume(abs(2 * metrics.recall - 1) > 0.1)
    found = arithmetic.base_rates(metrics)
    assert set(found) == {"precision", "f1", "accuracy"}
    assert list(found.values()) == pytest.approx([round(base * 1e6) / 1e6] * 3, abs=1e-9)
    assert arithmetic.contradiction(metrics) is None


@given(SHARE, SHARE, SHARE)
def test_false_rate_and_base_rate_invert_positive_rate(
    base: float, recall: float, false: float
) -> None:
    rate = arithmetic.positive_rate(base, recall, false)
    assert arithmetic.false_rate(rate, recall, base) == pytest.approx(false)
    assume(abs(recall - false) > 0.01)
    assert arithmetic.base_for_rate(rate, recall, false) == pytest.approx(base)


@given(SHARE, SHARE, SHARE, SHARE)
def test_no_ranking_gives_both_rates_below_the_least_base_rate(
    base: float, other_base: float, recall: float, false: float
) -> None:
    assume(recall > false)
    rate = arithmetic.positive_rate(base, recall, false)
    other = arithmetic.positive_rate(other_base, recall, false)
    least = arithmetic.least_base(rate, other, recall)
    assert (least is not None) == (other < rate)
    assert least is None or least <= base + 1e-9


def test_metrics_of_different_rows_contradict_each_other() -> None:
    honest = counted(100_000, 0.05, 0.95, 0.2)
    assert honest.precision is not None
    mixed = Metrics(honest.positive_rate, honest.recall, 2 * honest.precision, honest.accuracy)
    assert arithmetic.contradiction(mixed) is not None
    assert arithmetic.base_rate(mixed) is None


@given(st.floats(0.0, 0.3), st.floats(0.01, 0.9))
def test_noise_bound_is_what_a_faultless_router_needs(noise: float, rate: float) -> None:
    """A router that sends all sound positives and `rate` of the random ones has that recall."""
    recall = (1 - noise) + noise * rate
    assume(recall < 1)
    assert arithmetic.most_noise(rate, recall) == pytest.approx(noise)


def test_grid_knows_its_own_thresholds_and_no_others() -> None:
    grid = np.linspace(0.01, 0.99, 100)
    assert [arithmetic.grid_index(float(t)) for t in grid] == list(range(100))
    assert arithmetic.grid_index(0.3367) == 33
    assert arithmetic.grid_index(0.3400) is None


def test_the_reported_case_is_read_as_far_as_it_goes_and_no_further() -> None:
    """31.79 % at 95 % recall and threshold 0.3367 against 12.4 %, and nothing else known."""
    result = typed_result({"positive_rate": 0.3179, "recall": 0.95, "threshold": 0.3367})
    reference = Reference(0.124)
    said = {statement.text: statement.determined for statement in statements(result, reference)}
    text = " ".join(said)
    # By hand: f = (0.3179 - 0.05 * 0.95) / 0.95, and likewise for 0.124; b where 0.124's f needs
    # 0.3179, and (0.3179 - 0.124) / (0.95 - 0.124); (1 - 0.95) / (1 - 0.3179); 1 - 0.124 / 0.3179.
    for number in ("28.5 %", "8.1 %", "3.5 times", "23.5 %", "27.3 %", "7.3 %", "61 %", "33.5 %"):
        assert number in text
    assert not any(
        sure for said_text, sure in said.items() if "base rate is not determined" in said_text
    )
    diagnosis = diagnose(Evidence(result=result, reference=reference))
    assert diagnosis.found() == []
    assert diagnosis.gap is not None
    assert diagnosis.gap.value == pytest.approx(0.1939)
    assert diagnosis.verdict("threshold grid").status is Status.RULED_OUT
    assert diagnosis.verdict("loss weighting").status is Status.RULED_OUT
    for name in ("population", "base rates", "misalignment", "label noise", "live against offline"):
        assert diagnosis.verdict(name).status is Status.CANNOT_TELL
        assert diagnosis.verdict(name).needs


@pytest.mark.parametrize(("precision", "base"), [(0.05 * 0.95 / 0.3179, 0.05), (0.0897, 0.03)])
def test_a_known_precision_settles_the_base_rate(precision: float, base: float) -> None:
    result = typed_result({"positive_rate": 0.3179, "recall": 0.95, "precision": precision})
    verdict = diagnose(Evidence(result=result, reference=Reference(0.124))).verdict("base rates")
    assert verdict.facts["divergent"]["here"] == pytest.approx(base, abs=2e-4)
    assert verdict.status is (Status.RULED_OUT if base == 0.05 else Status.FOUND)
    assert verdict.points is not None
    assert abs(verdict.points.value) < 0.02  # neither comes near the 19 points


def test_a_result_over_mismatches_only_is_found_out() -> None:
    metrics = counted(100_000, 0.45, 0.95, 0.6)
    result = typed_result({
        "positive_rate": metrics.positive_rate, "recall": metrics.recall,
        "precision": metrics.precision,
    })  # fmt: skip
    verdict = diagnose(Evidence(result=result, reference=Reference(0.124))).verdict("population")
    assert verdict.status is Status.FOUND
    assert "mismatches only" in verdict.evidence


def test_a_live_reference_is_another_population() -> None:
    reference = read_reference({"large_fraction": 0.124})
    result = typed_result({"positive_rate": 0.3179, "recall": 0.95})
    verdict = diagnose(Evidence(result=result, reference=reference)).verdict("population")
    assert verdict.status is Status.FOUND


def write_result(path: Path, config: dict[str, Any], **changes: Any) -> Path:
    """Write a result as R2R's script does: the config, and what came of it."""
    numbers = {
        "threshold": 0.3367,
        "best_epoch": 47,
        "best_val_loss": 0.8,
        "final_metrics": {"recall": 0.95, "positive_rate": 0.3179, "precision": 0.1494},
        "pre_opt_metrics": {"recall": 0.8, "positive_rate": 0.17, "precision": 0.2353},
        **changes,
    }
    path.write_text(json.dumps({**config, "result": {"model_path": "x", "results": numbers}}))
    return path


CONFIG = {
    "model": {"init_args": {"normalize_input": False}},
    "data": {"test": {}},
    "training": {
        "params": {"num_epochs": 50, "patience": 10, "valid_freq": 1},
        "loss": {"type": "BCEWithLogitsLoss", "recall_factor": 1.0},
    },
    "optimizing": {"type": "threshold", "min_recall": 0.95},
}


def test_a_result_file_gives_its_numbers_and_its_second_point(tmp_path: Path) -> None:
    result = read_result(write_result(tmp_path / "result.json", CONFIG))
    assert (result.threshold, result.positive_rate, result.best_epoch) == (0.3367, 0.3179, 47)
    said = " ".join(s.text for s in statements(result, Reference(0.124)))
    assert "between 0.0 % and 80.0 %" in said
    diagnosis = diagnose(Evidence(result=result, reference=Reference(0.124)))
    assert diagnosis.found() == []
    assert diagnosis.verdict("base rates").status is Status.RULED_OUT
    assert "raw inputs" in diagnosis.verdict("normalisation").evidence
    assert "limit of epochs" in diagnosis.verdict("undertraining").evidence


def test_what_a_results_config_gives_away_is_found(tmp_path: Path) -> None:
    """Filters change the denominator, tokens are split one by one, the network learned nothing."""
    thinned = {"filter": [{"type": "is_mismatch"}], "split_test_from_train": True}
    config = {**CONFIG, "data": {"test": thinned}}
    constant = 2 * 0.95 * np.log(2)  # of the best constant at a base rate of 5 %, by hand
    path = write_result(tmp_path / "result.json", config, best_val_loss=0.995 * constant)
    diagnosis = diagnose(Evidence(result=read_result(path), reference=Reference(0.124)))
    found = {verdict.name for verdict in diagnosis.found()}
    assert found == {"population", "leakage between splits", "undertraining"}


def test_two_thresholds_of_other_rows_contradict_each_other(tmp_path: Path) -> None:
    before = {"recall": 0.8, "positive_rate": 0.17, "precision": 0.5}
    path = write_result(tmp_path / "result.json", CONFIG, pre_opt_metrics=before)
    said = [s.text for s in statements(read_result(path), Reference(0.124))]
    assert any("contradicts itself" in text for text in said)


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"result": {"results": {"final_metrics": {"recall": 1}}}}', "no json"],
)
def test_what_is_no_result_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"result\.json"):
        read_result(path)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"positive_rate": 0.1, "large_fraction": 0.1},
        {"positive_rate": 12.4},
        {"positive_rate": "much"},
        {"positive_rate": 0.1, "recal": 0.9},
        {"positive_rate": 0.1, "population": "elsewhere"},
        {"positive_rate": 0.1, "divergent": 0.6, "neutral": 0.6},
        {"positive_rate": 0.1, "domain": {"math": 0.4}},
    ],
)
def test_a_reference_that_makes_no_sense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        read_reference(values)


def test_nothing_at_hand_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to diagnose"):
        Evidence(reference=Reference(0.124))


@given(st.floats(0.01, 0.3), st.floats(0.55, 0.99), st.floats(0.02, 0.5), st.integers(2, 4))
def test_rounding_is_no_contradiction(base: float, recall: float, sent: float, digits: int) -> None:
    rate = arithmetic.positive_rate(base, recall, sent)
    precision = base * recall / rate
    exact = {
        "positive_rate": rate,
        "recall": recall,
        "precision": precision,
        "accuracy": 1 - rate - base + 2 * base * recall,
        "f1": 2 * precision * recall / (precision + recall),
    }
    rounded = {name: round(value, digits) for name, value in exact.items()}
    assume(all(rounded.values()))
    assert arithmetic.contradiction(Metrics(**rounded)) is None


def test_a_contradiction_beyond_rounding_is_told() -> None:
    numbers = {"positive_rate": 0.3, "recall": 0.95, "precision": 0.16}
    assert arithmetic.contradiction(Metrics(**numbers, accuracy=0.75)) is None
    assert arithmetic.contradiction(Metrics(**numbers, accuracy=0.9)) is not None
