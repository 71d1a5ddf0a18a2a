"""Calibration of an existing router: what drifted, what holds, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from crossroads.artifacts import read_json, sha256_file
from crossroads.cli.calibrate import calibrate
from crossroads.dataset import CARD, LabelledDataset
from crossroads.errors import ConfigError, CrossroadsError, DataError
from crossroads.routing.checkpoint import (
    LoadedRouter,
    RouterCard,
    SmallModelId,
    load_router,
    save_router,
)
from crossroads.routing.features import FEATURES
from crossroads.routing.routers.neural import NeuralRouter, build_network
from crossroads.statistics import Interval
from crossroads.training.calibrate import (
    RECORD,
    Drift,
    Promise,
    calibrate_scores,
    card_target,
    recalibrate,
)
from crossroads.training.fit import score_rows
from crossroads.training.rows import Corpus
from crossroads.training.target import Target
from crossroads.training.threshold import operating_point, threshold_for_recall
from crossroads.types import Split

INPUTS = ("entropy", "margin")


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels without features: all that calibration needs."""

    label_N: np.ndarray
    problem_N: np.ndarray
    domain_N: np.ndarray
    domains: tuple[str, ...] = ("all",)

    def positive(self, objective: str) -> np.ndarray:
        return self.label_N >= (2 if objective == "divergent" else 1)


def made(
    seed: int, problems: int = 200, shift: float = 0.0, size: int = 40
) -> tuple[np.ndarray, Labels]:
    """Return scores and labels; `shift` moves the positives' scores, in log-odds."""
    generator = np.random.default_rng(seed)
    problem = np.repeat(np.arange(problems), size)
    label = generator.choice(3, len(problem), p=[0.85, 0.05, 0.1]).astype(np.uint8)
    logits = generator.normal(size=len(problem)) - 2 + (2 + shift) * (label == 2)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return scores, Labels(label, problem, np.zeros_like(problem))


def network() -> NeuralRouter:
    torch.manual_seed(0)
    widths = [FEATURES[name].width(40) for name in INPUTS]
    made_of = build_network("mlp", {"inputs": list(INPUTS), "widths": widths})
    return NeuralRouter("mlp", made_of, scale=2.0, bias=-0.5)


def loaded(card: dict, threshold: float = 0.5) -> LoadedRouter:
    small = SmallModelId("small", "scripted", "f" * 64, 40, 64)
    return LoadedRouter(network(), RouterCard(small, "large", "g", "pair", threshold, card))


def calibrated(seed: int, target: Target, **how: float) -> LoadedRouter:
    """Return a router as an earlier calibration left it."""
    found = calibrate_scores(*made(seed, **how), target, "divergent", 0)
    return loaded(found.record(), found.threshold)


RECALL = Target("recall", 0.9)


def test_the_record_is_what_the_threshold_does() -> None:
    scores, rows = made(0)
    found = calibrate_scores(scores, rows, RECALL, "divergent", 0)
    positive = rows.positive("divergent")
    assert found.threshold == threshold_for_recall(scores, positive, 0.9)
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["point"] == dataclasses.asdict(operating_point(scores, positive, found.threshold))
    assert (record["target"], record["target_recall"]) == ("recall=0.9", 0.9)
    assert record["problems"] == 200
    assert card_target(record) == RECALL
    assert card_target({"target": dataclasses.asdict(RECALL)}) == RECALL
    quantiles = record["score_quantiles"]
    assert len(quantiles) == 101
    assert quantiles == sorted(quantiles)


def test_other_data_of_the_same_kind_holds() -> None:
    router = calibrated(0, RECALL, problems=2000)  # so many that its recall is what it says
    found = [recalibrate(router, *made(seed), None) for seed in range(1, 21)]
    # 95 % intervals: one of twenty misses, six or more hardly ever.
    assert sum(f.drift is Drift.HOLDS for f in found) > 14
    holding = next(f for f in found if f.drift is Drift.HOLDS)
    assert holding.verdict.startswith("Holds: the card promises 90 %, and the old threshold's rec")
    for each in found:
        assert each.distance is not None
        assert each.distance < 0.05
        assert each.new.measured.point.recall >= 0.9 - 1e-9
        assert each.new.target == RECALL


def test_a_promise_made_on_few_data_is_called_that() -> None:
    scores, rows = made(1)
    card = {**calibrated(0, RECALL).card.calibration, "recall": {"low": 0.7, "high": 0.95}}
    threshold = float(np.quantile(scores[rows.label_N == 2], 0.2))
    found = recalibrate(loaded(card, threshold), scores, rows, None)
    assert found.drift is Drift.DRIFTED
    assert "own interval, [70.0, 95.0], reaches into this one" in found.verdict
    sure = {**card, "recall": {"low": 0.89, "high": 0.91}}
    assert "own interval" not in recalibrate(loaded(sure, threshold), scores, rows, None).verdict


@pytest.mark.parametrize(("shift", "way"), [(-1.0, "less"), (1.0, "more")])
def test_moved_scores_have_drifted(shift: float, way: str) -> None:
    found = recalibrate(calibrated(0, RECALL), *made(1, shift=shift), None)
    assert found.drift is Drift.DRIFTED
    assert f", {way} than promised (the card promises 90 %)" in found.verdict
    assert (found.new.threshold < found.old.point.threshold) == (shift < 0)


def test_few_positives_cannot_tell() -> None:
    found = recalibrate(calibrated(0, RECALL), *made(1, problems=4, size=60), None)
    assert found.drift is Drift.CANNOT_TELL
    assert "label more problems" in found.verdict
    # Caught one and all, and yet too few to say that more is caught than was promised.
    scores, rows = made(1, problems=3, size=20)
    everything = loaded(calibrated(0, RECALL).card.calibration, threshold=0.0)
    found = recalibrate(everything, scores, rows, None)
    assert found.old.recall == Interval(1.0, 1.0)
    assert found.drift is Drift.CANNOT_TELL


def test_a_guarantee_is_not_broken_by_more() -> None:
    router = calibrated(0, Target("guarantee", 0.9), problems=1000)
    assert recalibrate(router, *made(1), None).drift is Drift.HOLDS
    assert recalibrate(router, *made(1, shift=1.5), None).drift is Drift.HOLDS
    found = recalibrate(router, *made(1, shift=-1.5), None)
    assert found.drift is Drift.DRIFTED
    assert "at least 90 %" in found.verdict


def test_a_budget_promises_a_positive_rate() -> None:
    router = calibrated(0, Target("positive_rate", 0.2), problems=1000)
    found = recalibrate(router, *made(1), None)
    assert found.promise is not None
    assert found.promise.name == "positive_rate"
    assert found.drift is Drift.HOLDS
    moved = recalibrate(router, *made(1, shift=3.0), None)
    assert moved.drift is Drift.HOLDS or "more than promised" in moved.verdict
    scores, rows = made(1)
    assert recalibrate(router, np.sqrt(scores), rows, None).drift is Drift.DRIFTED


def test_a_card_of_an_earlier_version_still_promises_its_recall() -> None:
    scores, rows = made(1)
    found = recalibrate(
        loaded({"target_recall": 0.9, "objective": "divergent"}), scores, rows, None
    )
    assert found.promise == Promise("recall", 0.9)
    assert found.distance is None
    with pytest.raises(ConfigError, match="the router's card has no target; give one"):
        recalibrate(loaded({}), scores, rows, None)
    bare = recalibrate(loaded({}), scores, rows, RECALL)
    assert bare.drift is Drift.CANNOT_TELL
    assert "the router's card says of no number" in bare.verdict


def test_the_positive_class_is_the_cards() -> None:
    scores, rows = made(1)
    card = {"target_recall": 0.9, "objective": "mismatch"}
    found = recalibrate(loaded(card), scores, rows, None)
    assert found.old.point.positives == (rows.label_N > 0).sum()


def test_shuffling_tokens_changes_nothing() -> None:
    scores, rows = made(1)
    order = np.random.default_rng(0).permutation(len(scores))
    shuffled = Labels(rows.label_N[order], rows.problem_N[order], rows.domain_N[order])
    router = calibrated(0, RECALL)
    again = recalibrate(router, scores[order], shuffled, None)
    assert again.to_json() == recalibrate(router, scores, rows, None).to_json()


def test_data_that_cannot_calibrate_is_refused() -> None:
    scores, rows = made(1, problems=3)
    none = dataclasses.replace(rows, label_N=np.zeros_like(rows.label_N))
    with pytest.raises(DataError, match="no divergent token in the split"):
        calibrate_scores(scores, none, RECALL, "divergent", 0)
    alone = dataclasses.replace(rows, problem_N=np.zeros_like(rows.problem_N))
    with pytest.raises(DataError, match="one problem only"):
        calibrate_scores(scores, alone, RECALL, "divergent", 0)
    nothing = Labels(*(np.zeros(0, np.int64) for _ in range(3)))
    with pytest.raises(DataError, match="no position to calibrate on"):
        calibrate_scores(np.zeros(0), nothing, RECALL, "divergent", 0)


# The command


@pytest.fixture
def router(dataset: LabelledDataset, tmp_path: Path) -> Path:
    """Return a router folder, calibrated on the dataset's calibration split."""
    rows = Corpus.open([dataset], INPUTS).split(Split.CALIBRATION)
    scores = score_rows(network(), rows)
    found = calibrate_scores(scores, rows, RECALL, "divergent", 0)
    card = RouterCard(
        dataset.small, "large", "g" * 64, "scripted", found.threshold, found.record(), {"seed": 7}
    )
    save_router(tmp_path / "router", network(), card)
    return tmp_path / "router"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(calibrate, [str(a) for a in arguments])


def folder_hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def test_the_same_data_give_the_same_threshold(router: Path, dataset: LabelledDataset) -> None:
    before = folder_hashes(router)
    done = run(router, dataset.folder)
    assert done.exit_code == 0, done.exception
    threshold = load_router(router).card.threshold
    assert done.stdout.count(f"{threshold:.4f}") == 3
    assert "nothing was written" in done.stdout
    assert "The scores are 0.0" in done.stdout
    assert folder_hashes(router) == before


def test_a_new_folder_has_the_new_threshold_and_the_same_scores(
    router: Path, dataset: LabelledDataset, second_dataset: LabelledDataset, tmp_path: Path
) -> None:
    before = folder_hashes(router)
    out = tmp_path / "new" / "router"
    target = "cost=miss:10,call:1"
    done = run(router, second_dataset.folder, "--split", "train", "--target", target, "--out", out)
    assert done.exit_code == 0, done.exception
    assert folder_hashes(router) == before
    old, new = load_router(router), load_router(out)
    rows = Corpus.open([second_dataset], INPUTS).split(Split.TRAIN)
    scores = score_rows(new.router, rows)
    assert np.array_equal(scores, score_rows(old.router, rows))
    again = recalibrate(old, scores, rows, Target.parse(target))
    assert new.card.threshold == again.new.threshold
    assert new.card.calibration == json.loads(json.dumps(again.new.record()))
    assert new.card.provenance["seed"] == 7
    assert new.card.provenance["calibrated"]["split"] == "train"
    record = read_json(out / RECORD, "record")
    assert record["verdict"] == again.verdict
    assert record["card"] == old.card.calibration


def test_in_place_changes_the_card_alone(router: Path, second_dataset: LabelledDataset) -> None:
    before = folder_hashes(router)
    done = run(router, second_dataset.folder, "--split", "train", "--target", "f1", "--in-place")
    assert done.exit_code == 0, done.exception
    after = folder_hashes(router)
    assert after["router.safetensors"] == before["router.safetensors"]
    assert after["router.json"] != before["router.json"]
    assert load_router(router).card.calibration["target"] == "f1"


def test_several_datasets_are_one(
    router: Path, dataset: LabelledDataset, second_dataset: LabelledDataset
) -> None:
    done = run(router, dataset.folder, second_dataset.folder)
    assert done.exit_code == 0, done.exception
    both = Corpus.open([dataset, second_dataset], INPUTS).split(Split.CALIBRATION)
    assert f"{len(both)} tokens in {len(both.problem_ids)} problems" in done.stdout


def edited(dataset: LabelledDataset, folder: Path, small: dict[str, object]) -> Path:
    card = json.loads(json.dumps(dict(dataset.card)))
    card["small"].update(small)
    for name in card["sha256"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((dataset.folder / name).read_bytes())
    (folder / CARD).write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize(
    ("small", "message"),
    [
        ({"engine": "llamacpp", "name": "other"}, "engine scripted.*of other .engine llamacpp"),
        ({"fingerprint": "e" * 64, "name": "other"}, "of other .weights eeeeeeeeeeee.;"),
        ({"hidden_size": 12}, "hidden size 12"),
    ],
)
def test_data_of_another_small_model_are_refused_by_name(
    router: Path, dataset: LabelledDataset, tmp_path: Path, small: dict[str, object], message: str
) -> None:
    other = edited(dataset, tmp_path / "other", small)
    refused(run(router, other, "--out", tmp_path / "new"), message)
    assert not (tmp_path / "new").exists()


def refused(done: Result, message: str) -> None:
    assert isinstance(done.exception, CrossroadsError)
    with pytest.raises(CrossroadsError, match=message):
        raise done.exception


def test_what_is_refused_leaves_nothing_behind(
    router: Path, dataset: LabelledDataset, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    data = dataset.folder
    refused(run(router, data, "--target", "recall=2", "--out", out), "recall target")
    refused(run(router, data, "--target", "guarantee=0.999", "--out", out), "are needed even if")
    refused(run(tmp_path / "nowhere", data, "--out", out), "no router at")
    refused(run(router, tmp_path / "nowhere", "--out", out), "no finished dataset at")
    refused(run(router, data, "--out", out, "--in-place"), "exclude each other")
    assert not out.exists()
    before = folder_hashes(router)
    refused(run(router, data, "--out", router), "not empty; give a new folder, or --in-place")
    assert folder_hashes(router) == before
