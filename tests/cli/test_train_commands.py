"""`simulate`, `train`, `calibrate`, `diagnose` as a person types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crossroads.cli.main import run
from training.r2r_configs import default_config, write_config

RECIPE = ["--recipe", "distribution", "--epochs", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "data"
    command = ["simulate", str(folder), "--problems", "40", "--tokens", "60"]
    assert run([*command, "--hidden", "12", "--format", "r2r-parquet"]) == 0
    return folder


@pytest.fixture(scope="module")
def router(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "router"
    assert run(["train", str(data), str(out), *RECIPE]) == 0
    return out


def test_simulate_says_what_the_best_router_reaches(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", str(tmp_path / "x"), "--problems", "20", "--fault", "label_noise=0.2"]
    assert run(command) == 0
    out = capfd.readouterr().out
    assert "95 % recall" in out
    assert "label_noise=0.2" in out


def test_train_prints_the_router_beside_the_heuristics(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "router"
    target = ["--target", "guarantee=0.5,confidence=0.6", "--set", "network.width=16"]
    assert run(["train", str(data), str(out), *RECIPE, *target]) == 0
    said = capfd.readouterr().out
    for name in ("mlp", "entropy", "margin", "random"):
        assert name in said
    config = json.loads((out / "config.json").read_text())
    assert config["config"]["network"]["width"] == 16
    assert config["target"]["kind"] == "guarantee"
    assert len((out / "history.jsonl").read_text().splitlines()) == 2
    assert not (out / "state").exists()
    assert run(["train", str(data), str(out), *RECIPE]) == 2
    assert "holds a router of another run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "network.width=banana"], "router width must be a number (int), got 'banana'"),
        (["--set", "network.widht=16"], "no setting 'widht'; did you mean 'width'"),
        (["--target", "guarantee=0.999,confidence=0.999"], "no threshold guarantees 99.9 %"),
        (["--device", "cuda:99"], "'cuda:99' was asked for"),
        (["--target", "recall=1.2"], "must be in (0, 1], got 1.2"),
    ],
)
def test_a_refused_run_says_why_before_it_reads_the_data(
    options: list[str], sentence: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "router"
    assert run(["train", str(data), str(out), *RECIPE, *options]) == 2
    said = capfd.readouterr().err
    assert sentence in said
    assert "features" not in said
    assert not (out / "router.json").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"problem_id": "one", "split": "train"}, "the train split has one problem only"),
        ({"problem_id": "one", "split": "test"}, "the train split has no position"),
    ],
)
def test_data_that_cannot_be_trained_on_is_told_before_it_is_read(
    change: dict[str, str],
    sentence: str,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    card = json.loads((copied / "dataset.json").read_text())
    for row in card["responses"]:
        row.update(change)
    (copied / "dataset.json").write_text(json.dumps(card))
    assert run(["train", str(copied), str(tmp_path / "router"), *RECIPE]) == 2
    said = capfd.readouterr().err
    assert sentence in said
    assert "features" not in said


def test_r2rs_config_trains_as_it_is(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    values = default_config(f"local:{data / 'r2r'}", f"local:{data / 'r2r'}")
    values["model"]["model_type"] = "HiddenStatesLogitsClassifier"
    values["model"]["input_type"] = ["hidden_states", "logits"]
    config = write_config(tmp_path / "default_training_config.json", values)
    out = tmp_path / "out"
    more = ["--set", "training.params.num_epochs=2", "--protocol", "r2r"]
    assert run(["train", "--config", str(config), str(out), *more]) == 0
    said = capfd.readouterr()
    assert "valid_freq" in said.err  # a key that R2R reads nowhere
    (result,) = (p for p in out.rglob("*.json") if "result" in json.loads(p.read_text()))
    metrics = json.loads(result.read_text())["result"]["results"]["final_metrics"]
    assert {"accuracy", "precision", "recall", "f1", "positive_rate"} <= set(metrics)
    reference = ["--reference", "positive_rate=0.124,recall=0.95"]
    assert run(["diagnose", "--result", str(result), *reference]) == 0
    assert "In short" in capfd.readouterr().out


def test_calibrate_says_how_far_a_router_drifted(
    router: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    command = ["calibrate", str(router), str(data), "--target", "recall=0.8", "--out", str(out)]
    assert run(command) == 0
    assert (out / "router.json").exists()
    assert "threshold" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["DATA"], "at least one DATASET"),
        (["DATA", "OUT", "--recipe", "defaul"], "did you mean 'default'"),
        (["DATA", "OUT", "--set", "epoch=3"], "did you mean 'epochs'"),
        (["DATA", "OUT", "--set", "epochs"], "is not KEY=VALUE"),
        (["DATA", "OUT", "--device", "cuda"], "no CUDA device"),
        (["DATA", "OUT", "--target", "recall=2"], "recall target must be in"),
        (["DATA", "OUT", "--inputs", "hiden"], "unknown router input 'hiden'"),
        (["NONE", "OUT"], "no finished dataset at"),
        (["OUT", "--protocol", "r2r"], "--protocol goes with --config"),
        (["--config", "NONE"], "NONE"),
        (["--config", "NONE", "--epochs", "3"], "use --set"),
    ],
)
def test_mistakes_are_one_sentence(
    options: list[str], message: str, data: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    paths = {"DATA": str(data), "OUT": str(tmp_path / "out"), "NONE": str(tmp_path / "NONE")}
    assert run(["train", *(paths.get(option, option) for option in options)]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "router.json").exists()
