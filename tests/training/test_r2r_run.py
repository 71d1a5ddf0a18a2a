"""R2R's command on data in both formats: its files, its numbers, and ours beside them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossroads.dataset import UNJUDGED, LabelledDataset
from crossroads.errors import ConfigError, DataError
from crossroads.exchange.r2r_export import export_r2r
from crossroads.models.scripted import ScriptedLM
from crossroads.routing.checkpoint import load_router
from crossroads.routing.policy import sends_to_large
from crossroads.training.fit import score_rows
from crossroads.training.r2r import run as runs
from crossroads.training.r2r import sources
from crossroads.training.r2r.config import R2RConfig
from crossroads.training.r2r.data import R2RData, open_data
from crossroads.training.r2r.protocol import RECALL_GRID, START, metrics, optimise, stop_epoch
from crossroads.training.r2r.result import R2RResult
from crossroads.training.r2r.run import R2RTrained, train_r2r
from crossroads.types import Label, SilentProgress, Split
from labelling.dataset_folder import HIDDEN, VOCAB, write_dataset
from training.r2r_configs import default_config, write_config

pytest.importorskip("pyarrow")
pytest.importorskip("datasets")

HIDDEN_AND_LOGITS = {
    "model.model_type": "HiddenStatesLogitsClassifier",
    "model.input_type": ["hidden_states", "logits"],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    return write_dataset(tmp_path_factory.mktemp("labels"), problems=40, positions=(10, 30))


@pytest.fixture(scope="module")
def exported(dataset: LabelledDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "r2r"
    export_r2r(dataset, folder)
    return folder


@pytest.fixture(scope="module")
def plain(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return train and test data with R2R's own columns and no others, as its users have them."""
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("plain")
    ours = ("problem_id", "sample", "domain", "split", "divergent_probability")
    for name, splits in (("train", ["train"]), ("test", ["calibration", "test"])):
        tables = [pq.read_table(f) for s in splits for f in exported.rglob(f"{s}-*.parquet")]
        (folder / name).mkdir()
        for number, table in enumerate(tables):
            pq.write_table(table.drop_columns(list(ours)), folder / name / f"{number}.parquet")
    return {name: folder / name for name in ("train", "test")}


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a scripted model of the right size be loaded by any name; return the names asked for."""
    asked: list[str] = []

    class Loaded:
        model = ScriptedLM(lambda _: np.zeros(VOCAB), VOCAB, hidden_size=HIDDEN)

        def close(self) -> None:
            asked.append("closed")

    def load(name: str, **_options: Any) -> Loaded:
        asked.append(name)
        return Loaded()

    monkeypatch.setattr(sources, "load_model", load)
    return asked


def config(
    tmp_path: Path, train: Any, test: Any, changes: dict[str, Any] | None = None
) -> R2RConfig:
    values = default_config(train, test)
    sets = [f"{key}={json.dumps(value)}" for key, value in (changes or {}).items()]
    return R2RConfig.read(write_config(tmp_path / "config.json", values), sets)


def local(path: Path | LabelledDataset) -> str:
    return f"local:{path.folder if isinstance(path, LabelledDataset) else path}"


def opened(given: R2RConfig, folder: Path, protocol: str = "r2r") -> R2RData:
    names = given.to_fit_config().inputs
    return open_data(given, names, protocol, folder / "data", folder / "features", SilentProgress())


def trained(given: R2RConfig, folder: Path, protocol: str) -> R2RTrained:
    return train_r2r(given, folder, protocol, SilentProgress())


# The command


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page, which takes longer than the training; the fixture `run` has it."""
    monkeypatch.setattr(runs, "write_page", lambda *_: None)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on our dataset: 3 epochs; and the rows that it was on, opened once more."""

    given: R2RConfig
    done: R2RTrained
    data: R2RData


@pytest.fixture(scope="module", params=["r2r", "default"])
def run(
    request: pytest.FixtureRequest,
    dataset: LabelledDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    given = config(folder, local(dataset), local(dataset), {"training.params.num_epochs": 3})
    done = trained(given, folder / "out", request.param)
    return Run(given, done, opened(given, folder / "again", request.param))


def test_a_run_writes_r2rs_result_with_the_numbers_of_its_protocol(run: Run) -> None:
    result = json.loads(run.done.result_path.read_text())
    assert {key: result[key] for key in run.given.values} == dict(run.given.values)
    assert set(result["result"]) == {"model_path", "results", "crossroads"}
    found = result["result"]["results"]
    assert set(found) == {
        "threshold", "best_epoch", "best_val_loss", "final_metrics", "pre_opt_metrics",
    }  # fmt: skip
    replay = run.done.report["protocol"] == "r2r"
    rows = run.data.held if replay else run.data.test
    loaded = load_router(run.done.folder)
    scores, positive = score_rows(loaded.router, rows), rows.positive("divergent")
    assert loaded.card.threshold == found["threshold"] == run.done.threshold
    for name, threshold in (("final_metrics", found["threshold"]), ("pre_opt_metrics", START)):
        again = dataclasses.asdict(metrics(scores, positive, threshold))
        wanted = {k: None if np.isnan(v) else pytest.approx(v) for k, v in again.items()}
        assert found[name] == wanted, name
    losses = [epoch["calibration_loss"] for epoch in run.done.report["history"]]
    assert found["best_val_loss"] == losses[found["best_epoch"] - 1]
    if replay:
        assert found["best_epoch"] == stop_epoch(losses, 10)[0]
        assert np.isclose(RECALL_GRID, found["threshold"], rtol=0, atol=1e-12).any()
        aim = run.given.values["optimizing"]
        assert found["threshold"] == optimise(aim, scores, positive).choice.threshold
    else:
        calibration = run.data.calibration
        sent = sends_to_large(score_rows(loaded.router, calibration), found["threshold"])
        assert sent[calibration.positive("divergent")].mean() >= 0.8 - 1e-9
        rates = [epoch["positive_rate"] for epoch in run.done.report["history"]]
        assert rates[found["best_epoch"] - 1] == min(rates)


def test_a_run_shows_both_protocols_and_the_baselines(run: Run) -> None:
    assert [line["protocol"] for line in run.done.lines][::2] == ["r2r", "default"]
    card = load_router(run.done.folder).card
    assert card.calibration["threshold"] == card.threshold == run.done.threshold
    page = (run.done.folder / "report.html").read_text(encoding="utf-8")
    assert "One router by R2R" in page
    assert len(run.done.tables()) == 2
    assert {"r2r", "entropy", "random"} < {row["router"] for row in run.done.report["rows"]}
    untouched = any("no line here is of untouched data" in note for note in run.done.notes)
    assert untouched == (run.done.report["protocol"] == "r2r")
    assert not (run.done.folder / "state").exists()
    if importlib.util.find_spec("matplotlib"):
        assert (run.done.folder / "report.html").exists()


def test_validation_loss_is_the_mean_of_the_batches_as_r2r_has_it(run: Run) -> None:
    import torch
    from torch.nn import functional

    rows = run.data.corpus(run.done.report["protocol"]).split(Split.CALIBRATION)
    logits = torch.logit(torch.from_numpy(score_rows(run.done.router, rows)).double())
    positive = run.data.train.positive("divergent")
    weight = torch.tensor((~positive).sum() / positive.sum())
    targets = torch.from_numpy(rows.positive("divergent").astype(np.float64))
    size = 64 if run.done.report["protocol"] == "r2r" else len(rows)
    means = [
        functional.binary_cross_entropy_with_logits(a, b, pos_weight=weight)
        for a, b in zip(logits.split(size), targets.split(size), strict=True)
    ]
    assert len(rows) % 64
    expected = float(torch.stack(means).mean())
    assert run.done.result.best_val_loss == pytest.approx(expected, rel=1e-4)


def test_a_finished_run_is_read_and_another_one_refused(run: Run, tmp_path: Path) -> None:
    protocol, progress = run.done.report["protocol"], SilentProgress()
    again = train_r2r(run.given, run.done.folder, protocol, progress)
    assert progress.stages == {}
    assert again.threshold == run.done.threshold
    with pytest.raises(ConfigError, match="of another run"):
        trained(run.given, run.done.folder, "default" if protocol == "r2r" else "r2r")
    with pytest.raises(ConfigError, match="unknown protocol 'ours'"):
        trained(run.given, tmp_path, "ours")


def test_a_result_is_read_back_as_it_was_written(run: Run) -> None:
    again = R2RResult.read(run.done.result_path)
    assert again == run.done.result
    assert dict(again.config) == dict(run.given.values)
    assert again.missing == ()


def test_the_same_seed_gives_the_same_run(
    run: Run, dataset: LabelledDataset, tmp_path: Path
) -> None:
    protocol = run.done.report["protocol"]
    for seed in (0, 1):
        changes = {"crossroads.seed": seed, "training.params.num_epochs": 3}
        given = config(tmp_path, local(dataset), local(dataset), changes)
        result = trained(given, tmp_path / str(seed), protocol).result
        assert (result.best_val_loss == run.done.result.best_val_loss) == (seed == 0)
        if seed == 0:
            assert result.final == run.done.result.final


def test_without_a_folder_r2rs_output_says_where(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = config(tmp_path, local(dataset), local(dataset), {"output.model_name": "mine.pt"})
    done = train_r2r(given, None, "default", SilentProgress())
    assert (done.folder, done.result_path) == (Path("out/mine"), Path("out/mine.json"))
    assert R2RResult.read(Path("out/mine.json")).model_path == "out/mine"
    unnamed = config(tmp_path, local(dataset), local(dataset))
    first = train_r2r(unnamed, None, "default", SilentProgress()).folder
    assert train_r2r(unnamed, None, "default", SilentProgress()).folder == first
    assert first.name.startswith("classifier_")


@pytest.mark.parametrize(
    ("optimizing", "threshold"),
    [({"type": "skip"}, START), ({"type": "objective", "metric": "f1"}, None)],
)
def test_other_aims_are_replayed(
    dataset: LabelledDataset, tmp_path: Path, optimizing: dict[str, Any], threshold: float | None
) -> None:
    changes = {"optimizing": optimizing}
    done = trained(config(tmp_path, local(dataset), local(dataset), changes), tmp_path / "o", "r2r")
    assert (done.result.before == {}) == (optimizing["type"] == "skip")
    assert done.result.missing == ()
    if threshold is not None:
        assert done.threshold == threshold


def test_a_recall_that_the_grid_does_not_have_gets_an_exact_threshold(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R2R would save the router with a threshold that misses the recall."""
    score = runs.score_rows
    monkeypatch.setattr(runs, "score_rows", lambda *args: score(*args) / 1000)
    done = trained(config(tmp_path, local(dataset), local(dataset)), tmp_path / "o", "r2r")
    assert done.result.threshold == pytest.approx(0.01)
    assert done.threshold < 0.01
    assert any("no threshold of R2R's grid" in note for note in done.notes)


def test_a_run_that_was_stopped_goes_on(
    plain: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data is not imported again, and it ends as an undisturbed one."""
    given = config(tmp_path, local(plain["train"]), local(plain["test"]), HIDDEN_AND_LOGITS)
    expected = trained(given, tmp_path / "whole", "default")
    fit = runs.fit

    def stopped(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(given, tmp_path / "out", "default")
    monkeypatch.setattr(runs, "fit", fit)
    monkeypatch.setattr(sources, "import_r2r", stopped)
    assert trained(given, tmp_path / "out", "default").result.final == expected.result.final


# The data


def truth(dataset: LabelledDataset, wanted: set[Split]) -> list[int]:
    """Return the judged labels of some splits."""
    labels = dataset.labels()
    found = [labels.of(row).label_N for row in dataset.responses if row.split in wanted]
    return sorted(int(v) for part in found for v in part if v != UNJUDGED)


def test_r2rs_columns_give_the_rows_that_its_mask_keeps(
    dataset: LabelledDataset, plain: dict[str, Path], tmp_path: Path, small_model: list[str]
) -> None:
    given = config(tmp_path, local(plain["train"]), local(plain["test"]))
    data = opened(given, tmp_path)
    assert small_model == ["some/small-model", "closed"]
    assert sorted(data.train.label_N.tolist()) == truth(dataset, {Split.TRAIN})
    assert sorted(data.held.label_N.tolist()) == truth(dataset, {Split.CALIBRATION, Split.TEST})
    assert set(data.train.problem_ids).isdisjoint(data.held.problem_ids)
    assert data.leaky is None
    # Halves by problem, which together are what R2R uses for everything.
    parts = [set(part.problem_ids) for part in (data.calibration, data.test)]
    assert parts[0].isdisjoint(parts[1])
    assert parts[0] | parts[1] == set(data.held.problem_ids)
    assert abs(len(parts[0]) - len(parts[1])) <= 1
    assert len(data.calibration) + len(data.test) == len(data.held)


def test_training_on_r2rs_columns(
    plain: dict[str, Path], tmp_path: Path, small_model: list[str]
) -> None:
    given = config(tmp_path, [local(plain["train"])], [local(plain["test"])])
    done = trained(given, tmp_path / "out", "r2r")
    assert done.result.missing == ()
    assert done.result.crossroads["protocol"] == "r2r"
    imported = list((tmp_path / "out" / "data").glob("imported-*/dataset.json"))
    assert len(imported) == 2
    assert small_model.count("some/small-model") == 1


def test_labels_stay_with_their_features(
    exported: Path, dataset: LabelledDataset, tmp_path: Path
) -> None:
    """The rows of an export that R2R keeps are, one by one, the positions of the dataset."""
    given = config(tmp_path, local(exported), local(exported), HIDDEN_AND_LOGITS)
    data = opened(given, tmp_path, "default")
    original = dataset.split(Split.TEST)
    assert data.test.problem_ids == original.problem_ids
    assert data.test.label_N.tolist() == original.label_N.tolist()
    found = data.test.features(slice(None), ["hidden"])["hidden"]
    assert np.array_equal(found, original.features(["hidden"])["hidden"])


@pytest.mark.parametrize("kind", ["parquet", "datasets"])
def test_hf_paths_of_local_folders_name_a_split(
    dataset: LabelledDataset, tmp_path: Path, kind: Any
) -> None:
    export_r2r(dataset, tmp_path / "export", kind=kind)
    paths = {s: f"hf_datasets:path={tmp_path / 'export'},split={s}" for s in ("train", "test")}
    given = config(tmp_path, paths["train"], paths["test"], HIDDEN_AND_LOGITS)
    # One split given alone is halved; two are calibration and test as they are.
    data = opened(given, tmp_path)
    assert len(data.held) == len(truth(dataset, {Split.TEST}))
    assert abs(len(data.calibration.problem_ids) - len(data.test.problem_ids)) <= 1
    both = [paths["test"], f"hf_datasets:path={tmp_path / 'export'},split=calibration"]
    data = opened(config(tmp_path, paths["train"], both, HIDDEN_AND_LOGITS), tmp_path)
    assert len(data.train) == len(truth(dataset, {Split.TRAIN}))
    assert data.calibration.label_N.tolist() == dataset.split(Split.CALIBRATION).label_N.tolist()
    assert data.test.label_N.tolist() == dataset.split(Split.TEST).label_N.tolist()
    missing = f"hf_datasets:path={tmp_path / 'export'},split=dev"
    with pytest.raises(ConfigError, match="split 'dev'"):
        opened(config(tmp_path, missing, paths["test"], HIDDEN_AND_LOGITS), tmp_path)


def test_several_paths_are_one_dataset(
    plain: dict[str, Path], dataset: LabelledDataset, tmp_path: Path
) -> None:
    paths = [local(plain["train"]), local(plain["test"])]
    data = opened(config(tmp_path, paths, local(plain["test"]), HIDDEN_AND_LOGITS), tmp_path)
    assert sorted(data.train.label_N.tolist()) == truth(dataset, set(Split))


def test_tokens_drawn_for_the_test_are_those_of_the_config(
    plain: dict[str, Path], dataset: LabelledDataset, tmp_path: Path
) -> None:
    changes = {"data.test.split_test_from_train": True, **HIDDEN_AND_LOGITS}
    given = config(tmp_path, local(plain["train"]), local(plain["test"]), changes)
    by_token = opened(given, tmp_path, "r2r")
    share = len(by_token.held) / (len(by_token.held) + len(by_token.train))
    assert share == pytest.approx(0.2, abs=0.05)
    assert set(by_token.train.problem_ids) & set(by_token.held.problem_ids)
    assert "neighbours" in str(by_token.leaky)
    by_problem = opened(given, tmp_path / "default", "default")
    assert set(by_problem.train.problem_ids).isdisjoint(by_problem.held.problem_ids)
    assert by_problem.leaky is None
    for data in (by_token, by_problem):
        together = [*data.train.label_N.tolist(), *data.held.label_N.tolist()]
        assert sorted(together) == truth(dataset, {Split.TRAIN})


def test_filters_change_the_rows_of_their_role_only(
    plain: dict[str, Path], dataset: LabelledDataset, tmp_path: Path
) -> None:
    changes = {"data.train.filter": [{"type": "is_mismatch"}], **HIDDEN_AND_LOGITS}
    data = opened(config(tmp_path, local(plain["train"]), local(plain["test"]), changes), tmp_path)
    assert set(data.train.label_N.tolist()) == {Label.NEUTRAL, Label.DIVERGENT}
    assert Label.IDENTICAL in data.held.label_N
    changes["data.train.filter"] = [{"type": "downsample_match_data", "align": "mismatch"}]
    data = opened(config(tmp_path, local(plain["train"]), local(plain["test"]), changes), tmp_path)
    matches = int((data.train.label_N == Label.IDENTICAL).sum())
    mismatches = len(data.train) - matches
    judged = truth(dataset, {Split.TRAIN})
    assert mismatches == sum(label != Label.IDENTICAL for label in judged)
    assert 0 < matches < sum(label == Label.IDENTICAL for label in judged)


def test_problems_in_both_are_left_out_or_said(
    exported: Path, dataset: LabelledDataset, tmp_path: Path
) -> None:
    """Train data whose problems are the test's: a file of the test split, given for training."""
    import pyarrow.parquet as pq

    leaked = tmp_path / "leaked"
    leaked.mkdir()
    for file in sorted(exported.rglob("*.parquet")):
        table = pq.read_table(file)
        as_train = table.set_column(
            table.schema.get_field_index("split"), "split", [["train"] * len(table)]
        )
        pq.write_table(as_train, leaked / file.name)
    given = config(tmp_path, local(leaked), local(exported), HIDDEN_AND_LOGITS)
    theirs, ours = opened(given, tmp_path, "r2r"), opened(given, tmp_path / "d", "default")
    shared = set(theirs.train.problem_ids) & set(theirs.held.problem_ids)
    assert len(shared) == len(theirs.held.problem_ids) > 0
    assert f"{len(shared)} problems" in str(theirs.leaky)
    assert set(ours.train.problem_ids).isdisjoint(ours.held.problem_ids)
    assert any("were left out of data.train" in note for note in ours.notes)
    assert sorted(ours.train.label_N.tolist()) == truth(dataset, {Split.TRAIN})


def test_another_input_prefix_names_other_columns(
    plain: dict[str, Path], dataset: LabelledDataset, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    for name, folder in plain.items():
        tables = [pq.read_table(file) for file in sorted(folder.glob("*.parquet"))]
        (tmp_path / name).mkdir()
        for number, table in enumerate(tables):
            renamed = [column.replace("small_", "quick_") for column in table.column_names]
            pq.write_table(table.rename_columns(renamed), tmp_path / name / f"{number}.parquet")
    prefixes = {f"data.{role}.input_prefix": "quick_" for role in ("train", "test")}
    paths = local(tmp_path / "train"), local(tmp_path / "test")
    data = opened(config(tmp_path, *paths, {**prefixes, **HIDDEN_AND_LOGITS}), tmp_path)
    assert sorted(data.train.label_N.tolist()) == truth(dataset, {Split.TRAIN})
    with pytest.raises(DataError, match=r"data\.train\.path\[0\]: .*no column 'small_token'"):
        opened(config(tmp_path, *paths, HIDDEN_AND_LOGITS), tmp_path)
    wrong = {**prefixes, "data.train.input_prefix": "fast_", **HIDDEN_AND_LOGITS}
    with pytest.raises(DataError, match="no column fast_token"):
        opened(config(tmp_path, *paths, wrong), tmp_path)


# What is refused before anything large is read


@pytest.fixture
def no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(*_args: Any, **_options: Any) -> None:
        raise AssertionError("data was imported")

    monkeypatch.setattr(sources, "import_r2r", imported)


@pytest.mark.parametrize("kind", ["ours", "theirs"])
@pytest.mark.usefixtures("no_import", "small_model")
def test_columns_of_another_width_are_refused_first(
    dataset: LabelledDataset, plain: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    data = local(dataset if kind == "ours" else plain["train"])
    changes = {"model.init_args.hidden_states_size": 1536}
    with pytest.raises(DataError, match=r"hidden states of size 12.*hidden_states_size=12$"):
        trained(config(tmp_path, data, data, changes), tmp_path / "out", "default")
    if kind == "theirs":
        changes = {"model.init_args.logits_size": 50}
        with pytest.raises(DataError, match=r"100 logits a row, and .* is 50"):
            trained(config(tmp_path, data, data, changes), tmp_path / "out", "default")


@pytest.mark.usefixtures("no_import")
def test_a_small_model_that_is_not_there_is_refused(plain: dict[str, Path], tmp_path: Path) -> None:
    data = local(plain["train"])
    with pytest.raises(ConfigError, match=r"token embeddings.*--set crossroads\.small=MODEL"):
        trained(config(tmp_path, data, data), tmp_path / "out", "default")


@pytest.mark.usefixtures("no_import")
def test_paths_that_are_not_there_are_refused(plain: dict[str, Path], tmp_path: Path) -> None:
    given = config(tmp_path, local(plain["train"]), "local:nowhere", HIDDEN_AND_LOGITS)
    with pytest.raises(ConfigError, match=r"data\.test\.path\[0\]: there is no nowhere"):
        opened(given, tmp_path)
    (tmp_path / "empty").mkdir()
    given = config(tmp_path, local(tmp_path / "empty"), local(plain["test"]), HIDDEN_AND_LOGITS)
    with pytest.raises(DataError, match=r"data\.train\.path\[0\]: no R2R data at"):
        opened(given, tmp_path)


def test_what_the_hub_does_not_give_is_one_sentence(
    plain: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def fails(*_args: Any, **_options: Any) -> None:
        raise ConnectionError("no network\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    given = config(
        tmp_path, "hf_datasets:path=some/data,split=train", local(plain["test"]), HIDDEN_AND_LOGITS
    )
    with pytest.raises(DataError, match=r"cannot be loaded \(no network\); download it") as caught:
        opened(given, tmp_path)
    assert "\n" not in str(caught.value)


def hub(plain: dict[str, Path], asked: list[Any]) -> Callable[..., Any]:
    """Return a stand-in for the hub that has the train data."""
    import datasets

    def load(path: str, split: str, streaming: bool = False) -> Any:
        asked.append((path, split, streaming))
        files = [str(file) for file in sorted(plain["train"].glob("*.parquet"))]
        loaded = datasets.Dataset.from_parquet(files)
        return loaded.to_iterable_dataset() if streaming else loaded

    return load


def test_data_of_the_hub_is_looked_at_before_it_is_downloaded(
    plain: dict[str, Path],
    dataset: LabelledDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", hub(plain, asked))
    path = "hf_datasets:path=some/data,split=train[:100%]"
    wide = {**HIDDEN_AND_LOGITS, "model.init_args.hidden_states_size": 99}
    with pytest.raises(DataError, match="hidden states of size 12"):
        opened(config(tmp_path, path, local(plain["test"]), wide), tmp_path)
    assert asked == [("some/data", "train", True)]
    given = config(tmp_path, path, local(plain["test"]), HIDDEN_AND_LOGITS)
    data = opened(given, tmp_path)
    assert sorted(data.train.label_N.tolist()) == truth(dataset, {Split.TRAIN})
    opened(given, tmp_path)
    assert asked[1:] == [("some/data", "train", True), ("some/data", "train[:100%]", False)]


@pytest.mark.parametrize("protocol", ["r2r", "default"])
def test_misaligned_data_is_refused_unless_allowed(
    plain: dict[str, Path], tmp_path: Path, protocol: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shifted = tmp_path / "shifted"
    shifted.mkdir()
    for file in plain["train"].glob("*.parquet"):
        table = pq.read_table(file)
        labels = np.array(table["mismatch"].to_pylist())
        labels[20] = 1 - labels[20]
        at = table.schema.get_field_index("mismatch")
        pq.write_table(table.set_column(at, "mismatch", pa.array(labels)), shifted / file.name)
    paths = local(shifted), local(plain["test"])
    with pytest.raises(DataError, match=r"--set crossroads\.allow_misaligned=true"):
        opened(config(tmp_path, *paths, HIDDEN_AND_LOGITS), tmp_path, protocol)
    allowed = {**HIDDEN_AND_LOGITS, "crossroads.allow_misaligned": True}
    data = opened(config(tmp_path, *paths, allowed), tmp_path, protocol)
    assert any("breaks a law" in note for note in data.notes)


# The result JSON


def test_a_result_is_a_config_again(run: Run, tmp_path: Path) -> None:
    values = json.loads(run.done.result_path.read_text())
    values["result"]["results"]["final_metrics"]["precision"] = float("nan")  # as R2R writes it
    again = R2RConfig.read(write_config(tmp_path / "c.json", values))
    assert again.values == run.given.values
    done = train_r2r(again, run.done.folder, run.done.report["protocol"], SilentProgress())
    assert done.threshold == run.done.threshold


def test_a_result_of_r2rs_with_holes_says_what_is_missing(tmp_path: Path) -> None:
    results = {"threshold": 0.3367, "final_metrics": {"recall": 0.95, "precision": float("nan")}}
    path = tmp_path / "r.json"
    path.write_text(
        json.dumps({"optimizing": {"type": "threshold"}, "result": {"results": results}})
    )
    found = R2RResult.read(path)
    assert found.threshold == 0.3367
    assert dict(found.final) == {"recall": 0.95}
    assert set(found.missing) == {
        "result.model_path", "result.results.best_epoch", "result.results.best_val_loss",
        "result.results.pre_opt_metrics", "result.results.final_metrics.accuracy",
        "result.results.final_metrics.f1", "result.results.final_metrics.positive_rate",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no result.results"),
        ([], "no result.results"),
        ({"result": {"results": 3}}, "no result.results"),
        ({"result": {"results": {"threshold": "high"}}}, "threshold must be a number"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        R2RResult.read(tmp_path / "r.json")
