"""A search goes on where it was killed, never looks at test, and its best can be trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from crossroads.artifacts import exclusive, read_json
from crossroads.dataset import LabelledDataset
from crossroads.errors import ConfigError, DataError
from crossroads.routing.routers.neural import build_network
from crossroads.training import search as search_module
from crossroads.training import trainer as trainer_module
from crossroads.training.checks import empty_network
from crossroads.training.config import settings
from crossroads.training.losses import build_loss
from crossroads.training.recipes import read_recipe, recipe
from crossroads.training.rows import Corpus, Rows
from crossroads.training.search import search
from crossroads.training.search_space import (
    SPACES,
    Choice,
    Range,
    SearchConfig,
    Space,
)
from crossroads.training.trainer import Trainer
from crossroads.types import SilentProgress, Split

optuna = pytest.importorskip("optuna")

TRIALS = 7
CONFIG = SearchConfig(
    "default",
    TRIALS,
    changes={"epochs": 3, "inputs": ("entropy", "margin"), "batch_size": 512},
)


class KilledError(Exception):
    """Stands for a SIGKILL: nothing after it runs."""


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TPE and the pruner begin within a few trials."""
    monkeypatch.setattr(search_module, "STARTUP_TRIALS", 3)
    monkeypatch.setattr(search_module, "PRUNE_AFTER_TRIALS", 2)
    monkeypatch.setattr(search_module, "PRUNE_AFTER_EPOCHS", 1)


def result_of(folder: Path) -> dict[str, object]:
    found = read_json(folder / "search.json", "search")
    del found["provenance"]
    return {**found, "best": read_json(folder / "best.json", "config")}


@pytest.fixture(scope="module")
def undisturbed(dataset: LabelledDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "STARTUP_TRIALS", 3)
        patch.setattr(search_module, "PRUNE_AFTER_TRIALS", 2)
        patch.setattr(search_module, "PRUNE_AFTER_EPOCHS", 1)
        search([dataset], folder, CONFIG, SilentProgress())
    return folder


def test_a_search_tries_the_recipe_first_and_prunes(undisturbed: Path) -> None:
    found = result_of(undisturbed)
    assert sum(found["states"].values()) == TRIALS
    assert set(found["states"]) == {"complete", "pruned"}
    ranked = found["best_trials"]
    assert [t["positive_rate"] for t in ranked] == sorted(t["positive_rate"] for t in ranked)
    (first,) = (t for t in ranked if t["number"] == 0)
    own = settings(recipe("default"))
    assert first["settings"]["learning_rate"] == own["learning_rate"]
    assert first["settings"]["loss"] == "recipe"
    assert len({t["settings"]["learning_rate"] for t in ranked}) == len(ranked)
    assert not (undisturbed / "state").exists()


def test_a_killed_search_ends_as_an_undisturbed_one(
    dataset: LabelledDataset, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "_SAVE_SECONDS", -1.0)
    update = Trainer._update
    generator, left = np.random.default_rng(1), {"steps": 3, "kills": 6}

    def mortal(self: Trainer, *arguments):
        left["steps"] -= 1
        if left["kills"] and left["steps"] <= 0:
            left.update(kills=left["kills"] - 1, steps=int(generator.integers(1, 16)))
            raise KilledError
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", mortal)
    for _ in range(20):
        try:
            search([dataset], tmp_path, CONFIG, SilentProgress())
            break
        except KilledError:
            with (tmp_path / "journal.log").open("a") as journal:
                journal.write('{"op_code": 4, "torn')  # a kill may tear a line and leave a lock
            (tmp_path / "journal.log.lock").symlink_to("journal.log")
    assert left["kills"] == 0
    assert result_of(tmp_path) == result_of(undisturbed)
    assert epochs_of(tmp_path) == epochs_of(undisturbed)


def epochs_of(folder: Path) -> list[dict[int, float]]:
    """Return what the study was told of the finished trials, epoch by epoch."""
    journal = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
    study = optuna.load_study(
        study_name="crossroads", storage=optuna.storages.JournalStorage(journal)
    )
    known = {"COMPLETE", "PRUNED", "FAIL"}
    assert {trial.state.name for trial in study.trials} <= known
    return [t.intermediate_values for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]


def test_a_finished_search_fits_nothing_and_a_longer_one_goes_on(
    dataset: LabelledDataset, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = result_of(undisturbed)
    with monkeypatch.context() as patch:
        patch.setattr(search_module, "fit", None)
        search([dataset], undisturbed, CONFIG, SilentProgress())
    assert result_of(undisturbed) == before
    fits, fit = [], search_module.fit

    def counted(*arguments, **options):
        fits.append(1)
        return fit(*arguments, **options)

    monkeypatch.setattr(search_module, "fit", counted)
    longer = search(
        [dataset], undisturbed, SearchConfig("default", TRIALS + 1, changes=CONFIG.changes),
        SilentProgress(),
    )  # fmt: skip
    assert len(fits) == 1
    assert sum(longer["states"].values()) == TRIALS + 1


def test_the_test_split_is_never_looked_at(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, split = set(), Corpus.split

    def spy(self: Corpus, which: Split) -> Rows:
        asked.add(which)
        return split(self, which)

    monkeypatch.setattr(Corpus, "split", spy)
    config = SearchConfig("default", 1, seeds=2, changes=CONFIG.changes)
    found = search([dataset], tmp_path, config, SilentProgress())
    assert asked == {Split.TRAIN, Split.CALIBRATION}
    for trial in found["best_trials"]:
        assert len(trial["rates"]) == 2
        assert trial["positive_rate"] == pytest.approx(np.mean(trial["rates"]))


def test_a_wild_trial_does_not_end_the_search(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, calls = search_module.fit, []

    def wild(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise DataError("7 scores are not finite numbers")
        return fit(*arguments, **options)

    monkeypatch.setattr(search_module, "fit", wild)
    found = search([dataset], tmp_path, SearchConfig("default", 3, changes=CONFIG.changes),
                   SilentProgress())  # fmt: skip
    assert found["states"] == {"complete": 2, "pruned": 1}
    assert found["errors"] == ["7 scores are not finite numbers"]
    monkeypatch.setattr(search_module, "fit", lambda *_, **__: wild_always())
    with pytest.raises(ConfigError, match="no trial of the search came to its end: all are wild"):
        search([dataset], tmp_path / "b", SearchConfig("default", 2, changes=CONFIG.changes),
               SilentProgress())  # fmt: skip


def wild_always() -> None:
    raise DataError("all are wild")


def test_a_time_limit_stops_between_epochs_and_the_search_goes_on(
    dataset: LabelledDataset, undisturbed: Path, tmp_path: Path
) -> None:
    short = SearchConfig("default", 2, minutes=1e-6, changes=CONFIG.changes)
    with pytest.raises(ConfigError, match="give more time, the same command goes on"):
        search([dataset], tmp_path, short, SilentProgress())
    search([dataset], tmp_path, dataclasses.replace(short, minutes=None), SilentProgress())
    trials = [t["settings"] for t in result_of(tmp_path)["best_trials"]]
    known = [t["settings"] for t in result_of(undisturbed)["best_trials"] if t["number"] < 2]
    assert trials == known


def test_other_settings_and_a_second_process_are_refused(
    dataset: LabelledDataset, undisturbed: Path
) -> None:
    other = SearchConfig("default", TRIALS, seed=1, changes=CONFIG.changes)
    with pytest.raises(ConfigError, match="holds a search of another run"):
        search([dataset], undisturbed, other, SilentProgress())
    with (
        exclusive(undisturbed),
        pytest.raises(ConfigError, match="another process is working in"),
    ):
        search([dataset], undisturbed, CONFIG, SilentProgress())


@pytest.mark.parametrize("name", SPACES)
def test_every_corner_of_a_space_is_a_config(name: str) -> None:
    space = Space.of(SearchConfig(name))
    for key, parameter in space.parameters.items():
        values = parameter.options if isinstance(parameter, Choice) else ends(parameter)
        for value in values:
            config = space.config_of({key: value})
            assert set(config.inputs) <= set(space.names())
            empty_network(config)
            if "." not in key and key not in ("inputs", "loss"):
                assert getattr(config, key) == value
            build_loss(config.loss, 1.0, 1.0)
    defaults = space.config_of(space.defaults())
    for key in ("inputs", "loss", "learning_rate", "weight_decay", "batch_size"):
        assert getattr(defaults, key) == getattr(recipe(name), key)
    build_network(defaults.architecture, {**defaults.network_values(4)})


def ends(parameter: Range) -> tuple[float, float]:
    convert = int if parameter.whole else float
    return convert(parameter.low), convert(parameter.high)


def test_what_is_fixed_does_not_vary() -> None:
    fixed = {"learning_rate": 1e-3, "network": {"width": 32}, "loss": "bce"}
    space = Space.of(SearchConfig("default", changes=fixed))
    assert not {"learning_rate", "network.width", "loss"} & set(space.parameters)
    assert space.base.network["width"] == 32
    assert "network.depth" in space.parameters


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"trials": 0}, "trials >= 1"),
        ({"seeds": 0}, "seeds >= 1"),
        ({"minutes": 0.0}, "minutes"),
        ({"changes": {"seed": 1}}, "seed"),
    ],
)
def test_bad_searches_are_named(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig(**bad)  # type: ignore[arg-type]


def test_the_verb_prints_and_its_best_can_be_trained(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    from crossroads.cli.search import search as verb

    arguments = ["--trials", "2", "--epochs", "1", "--inputs", "entropy+margin"]
    done = CliRunner().invoke(verb, [str(dataset.folder), str(tmp_path), *arguments])
    assert done.exit_code == 0, done.output
    assert "space of the recipe default" in done.output
    best = read_recipe(tmp_path / "best.json")
    assert json.loads(json.dumps(settings(best))) == read_json(tmp_path / "best.json", "config")
    assert best.inputs == ("entropy", "margin")
    assert CliRunner().invoke(verb, [str(dataset.folder)]).exit_code == 2
