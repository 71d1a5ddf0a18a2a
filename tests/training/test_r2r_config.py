"""R2R's config is taken as it is; what cannot be run is refused by one sentence with its key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crossroads.errors import ConfigError, DataError, RouterError
from crossroads.exchange.r2r_columns import NOT_JUDGED
from crossroads.routing.routers.neural import build_network
from crossroads.routing.routers.r2r import MODEL_TYPES, REFUSED_TYPES
from crossroads.training.losses import PER_BATCH
from crossroads.training.r2r.config import R2RConfig, TokenSplit
from crossroads.training.r2r.select import SourceRows, keep_rows, token_split
from crossroads.training.recipes import RECIPES
from training.r2r_configs import HIDDEN, default_config, write_config


def read(tmp_path: Path, *sets: str, **changes: Any) -> R2RConfig:
    """Read the default config; `a__b=value` changes it in the file, `sets` on the command line."""
    values = default_config()
    for name, value in changes.items():
        *parents, last = name.split("__")
        here = values
        for part in parents:
            here = here.setdefault(part, {})
        if value is DELETED:
            del here[last]
        else:
            here[last] = value
    return R2RConfig.read(write_config(tmp_path / "config.json", values), sets)


DELETED = object()
SHIPPED = {
    "model.init_args.hidden_states_size=1536",
    "model.init_args.hidden_dims=[1024,1024,1024,1024,1024,1024]",
    "model.init_args.expansion_factor=4",
    "training.params.num_epochs=50",
    "training.params.batch_size=1024",
    "training.optimizer.lr=5e-05",
    "optimizing.min_recall=0.95",
}


def test_the_shipped_values_are_the_recipe_r2r(tmp_path: Path) -> None:
    """The recipe and the config are two ways to say the same, but for the mean of the batches."""
    ours = read(tmp_path, *SHIPPED).to_fit_config("r2r")
    recipe = RECIPES["r2r"]
    for name in (
        "inputs", "architecture", "objective", "target_recall", "epochs", "batch_size",
        "learning_rate", "weight_decay", "schedule", "average", "clip", "normalise", "selection",
        "patience", "probabilities", "dtype", "soft_labels", "auxiliary",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(recipe, name), name
    assert ours.loss.name == recipe.loss.name
    assert dict(ours.loss.settings) == {**recipe.loss.settings, PER_BATCH: 1024}
    with torch.device("meta"):
        networks = [build_network("r2r", c.network_values(1536)) for c in (ours, recipe)]
    assert networks[0].config == networks[1].config


def test_protocols_differ_in_the_choice_of_the_epoch_only(tmp_path: Path) -> None:
    config = read(tmp_path)
    ours, replay = config.to_fit_config("default"), config.to_fit_config("r2r")
    assert (ours.selection, replay.selection) == ("positive_rate", "loss")
    assert PER_BATCH not in ours.loss.settings
    assert ours.network == replay.network
    assert ours.learning_rate == replay.learning_rate


def test_keys_that_r2r_reads_nowhere_are_named(tmp_path: Path) -> None:
    notes = "\n".join(read(tmp_path).notes)
    for path in (
        "model.model_specific_args", "data.train.type", "data.test.type", "training.validation",
        "training.dtype",
    ):  # fmt: skip
        assert f"{path}: " in notes
    assert "hidden_dims" not in notes
    assert "pretrained_model_name" not in notes


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"training__params__valid_freq": 2}, "leaves dropout off"),
        ({"training__loss__alpha": 0.5}, "BCEWithLogitsLoss does not read it"),
        ({"optimizing__metric": "f1"}, "R2R reads it with type objective only"),
        ({"model__init_args__dtype": "float32"}, "no longer take it"),
        ({"data__test__split_test_from_train": True}, "data.test.path: not read"),
        ({"data__test__process": [{"type": "mismatch_divergent_to_type"}]}, "binary router"),
        ({"result": {"results": {}}}, "of an earlier run"),
        (
            {
                "model__model_type": "LogitsClassifier",
                "model__input_type": ["logits"],
            },
            "pretrained_model_name: R2R's LogitsClassifier does not take it",
        ),
    ],
)
def test_what_may_surprise_is_noted(tmp_path: Path, changes: dict[str, Any], note: str) -> None:
    assert any(note in text for text in read(tmp_path, **changes).notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": {}}, r"unknown config key modle; did you mean model\?"),
        ({"training__lr": 1e-3}, "training.lr; did you mean training.optimizer.lr"),
        ({"training__params__epochs": 3}, "did you mean training.params.num_epochs"),
        ({"model__init_args__hidden_dim": [4]}, "did you mean model.init_args.hidden_dims"),
        ({"data__train__paths": "local:x"}, "did you mean data.train.path"),
        ({"training__optimizer__lr": "fast"}, "training.optimizer.lr must be a number > 0, got 'f"),
        ({"training__optimizer__lr": float("nan")}, "training.optimizer.lr must be a number > 0"),
        ({"training__params__num_epochs": 2.5}, "num_epochs must be a whole number >= 1, got 2.5"),
        ({"training__params__batch_size": True}, "batch_size must be a whole number"),
        ({"model__init_args__hidden_dims": []}, "hidden_dims must be a list of whole numbers"),
        ({"model__init_args__dropout_rate": 1.0}, r"dropout_rate must be a number in \[0, 1\)"),
        ({"optimizing__min_recall": 1.2}, r"min_recall must be a number in \(0, 1\]"),
        ({"optimizing__min_recall": 0}, r"min_recall must be a number in \(0, 1\]"),
        ({"data__train__path": []}, "data.train.path must be a text or a list of texts"),
        ({"training": 3}, "training must be an object"),
        ({"training__optimizer__weight_decay": DELETED}, "no training.optimizer.weight_decay"),
        ({"data__test__path": DELETED}, "no data.test.path"),
        ({"training__loss__recall_factor": DELETED}, "recall_factor is missing"),
        ({"training__loss__type": "FocalLoss"}, "training.loss.alpha is missing"),
        ({"training__loss__type": "FocalLos"}, "did you mean 'FocalLoss'"),
        ({"training__loss__type": "CrossEntropyLoss"}, "several classes"),
        ({"training__loss__label_column": "mismatch"}, "weights would be of other labels"),
        ({"data__train__label_column": "type"}, "label_column is 'type'; known"),
        ({"model__output_type": "multiclass"}, "only binary"),
        ({"model__input_type": ["logits"]}, "input_type is .*logits.* reads"),
        ({"model__init_args__freeze_lm_head": False}, "freeze_lm_head=true"),
        ({"model__init_args__use_position_embedding": True}, "use_position_embedding cannot be"),
        ({"optimizing__type": "treshold"}, "did you mean 'threshold'"),
        ({"optimizing__type": "objective"}, "optimizing.metric is None; known: f1"),
        ({"optimizing": {"type": "objective", "metric": "accuracy"}}, "R2R fails on accuracy"),
        ({"data__train__path": "labels"}, "neither local:FOLDER nor hf_datasets:path"),
        ({"data__train__path": "hf_datasets:path=a/b"}, "has no split="),
        ({"data__train__path": "hf_datasets:path"}, "is not key=value"),
        ({"data__train__process": [{"type": "similarity_to_divergent"}]}, "write the column"),
        ({"data__train__filter": [{"type": "is_mismach"}]}, "did you mean 'is_mismatch'"),
        ({"data__test__filter": [{"type": "downsample_match_data"}]}, "align must be mismatch or"),
        (
            {"data__test__filter": [{"type": "filter_data_id_critical", "max_critical_ratio": 1}]},
            "min_samples_per_data_id must be a number",
        ),
        ({"data__test__test_size": 0.0, "data__test__split_test_from_train": True}, "test_size"),
        ({"crossroads": {"dtype": "float8"}}, "unknown dtype 'float8'"),
        ({"crossroads": {"sed": 1}}, "did you mean crossroads.seed"),
        ({"training__params__device": "gpu"}, "training.params.device: unknown device 'gpu'"),
    ],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, **changes)
    assert "config.json: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(REFUSED_TYPES))
def test_a_type_that_nobody_can_train_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot be used: "):
        read(tmp_path, model__model_type=name)


@pytest.mark.parametrize("name", list(MODEL_TYPES))
def test_every_other_type_is_taken_by_its_name(tmp_path: Path, name: str) -> None:
    kind = MODEL_TYPES[name]
    given = {"model__model_type": name, "model__input_type": list(kind.inputs)}
    fit_config = read(tmp_path, **given).to_fit_config()
    network = build_network("r2r", fit_config.network_values(HIDDEN))
    assert network.config.inputs == kind.features
    assert fit_config.inputs == kind.features


def test_a_gpu_that_is_not_there_is_refused_before_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"no CUDA device; --set training\.params\.device=cpu"):
        read(tmp_path, training__params__device="cuda")
    config = read(tmp_path, "training.params.device=cpu", training__params__device="cuda")
    assert config.to_fit_config().device == "cpu"


def test_changes_on_the_command_line(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "training.params.num_epochs=7",
        "data.train.path=local:elsewhere",
        'data.test.path=["local:a", "local:b"]',
        "crossroads.seed=5",
        "training.loss.recall_factor=null",
    )
    fit_config = config.to_fit_config()
    assert (fit_config.epochs, fit_config.seed) == (7, 5)
    assert fit_config.loss.settings == {"recall_factor": None}
    assert config.data("train").paths == ("local:elsewhere",)
    assert config.data("test").paths == ("local:a", "local:b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.params.epochs=3", "did you mean training.params.num_epochs"),
        ("training.params.num_epochs", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("training.params.num_epochs=many", "must be a whole number"),
    ],
)
def test_changes_that_cannot_be_made(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("text", ["", "[1]", "{", '"x"'])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"not valid JSON|not an R2R config"):
        R2RConfig.read(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="no R2R config at"):
        R2RConfig.read(tmp_path / "missing.json")


def test_reading_changes_nothing_in_the_values(tmp_path: Path) -> None:
    values = default_config()
    before = copy.deepcopy(values)
    config = R2RConfig.read(write_config(tmp_path / "c.json", values))
    config.to_fit_config()
    assert config.values == before


# R2R's split and filters


@st.composite
def source_rows(draw: st.DrawFn) -> SourceRows:
    """Draw rows as R2R has them: prompts, matches, mismatches with and without a verdict."""
    kinds = st.sampled_from([(0, 0, 0), (0, 0, 1), (0, 0, 1), (1, 0, 1), (1, 1, 1), (1, -1, 1)])
    rows = np.array(draw(st.lists(kinds, min_size=30, max_size=60)))
    data_id = np.sort(np.arange(len(rows)) % draw(st.integers(1, 6)))
    return SourceRows(data_id, rows[:, 0], rows[:, 1], rows[:, 2], np.arange(len(rows)))


@settings(max_examples=60, deadline=None)
@given(rows=source_rows(), steps=st.permutations(["is_mismatch", "has_divergent"]))
def test_filters_keep_what_they_say(rows: SourceRows, steps: list[str]) -> None:
    everything = np.arange(len(rows))
    generator = np.random.default_rng(0)

    def kept(*filters: dict[str, Any]) -> set[int]:
        try:
            return set(keep_rows(rows, everything, filters, generator).tolist())
        except DataError:
            return set()

    scored = {
        i for i in everything.tolist() if rows.mask_S[i] == 1 and rows.divergent_S[i] in (0, 1)
    }
    assert kept() == scored
    assert kept({"type": "has_divergent"}) == scored
    mismatches = {i for i in scored if rows.mismatch_S[i] == 1}
    assert kept(*({"type": step} for step in steps)) == mismatches
    for ratio, least in ((0.2, 1), (0.5, 8), (1.0, 15)):
        step = {
            "type": "filter_data_id_critical", "max_critical_ratio": ratio,
            "min_samples_per_data_id": least,
        }  # fmt: skip
        expected = set()
        for data_id in set(rows.data_id_S.tolist()):
            own = [i for i in everything.tolist() if rows.data_id_S[i] == data_id]
            critical = sum(rows.divergent_S[i] == 1 for i in own)
            if len(own) >= least and critical / len(own) <= ratio:
                expected |= set(own) & scored
        assert kept(step) == expected


@settings(max_examples=40, deadline=None)
@given(rows=source_rows(), align=st.sampled_from(["mismatch", "divergent"]))
def test_downsampling_keeps_all_mismatches_and_as_many_matches(
    rows: SourceRows, align: str
) -> None:
    assume((rows.mismatch_S == 1).any())
    everything = np.arange(len(rows))
    wanted = int((rows.mismatch_S == 1).sum() if align == "mismatch" else
                 (rows.divergent_S == 1).sum())  # fmt: skip
    matches = int((rows.mismatch_S == 0).sum())
    step = {"type": "downsample_match_data", "align": align}
    if wanted > matches:
        with pytest.raises(DataError, match="wants"):
            keep_rows(rows, everything, [step], np.random.default_rng(0))
        return
    # Without prompts and open verdicts, the mask drops nothing that was drawn.
    whole = SourceRows(
        rows.data_id_S, rows.mismatch_S, np.maximum(rows.divergent_S, 0),
        np.ones_like(rows.mask_S), rows.at_S,
    )  # fmt: skip
    wanted = wanted if align == "mismatch" else int((whole.divergent_S == 1).sum())
    kept = keep_rows(whole, everything, [step], np.random.default_rng(0))
    assert (whole.mismatch_S[kept] == 1).sum() == (whole.mismatch_S == 1).sum()
    assert (whole.mismatch_S[kept] == 0).sum() == wanted
    assert len(set(kept.tolist())) == len(kept)


def test_nothing_left_is_an_error() -> None:
    zeros = np.zeros(5, np.int64)
    rows = SourceRows(zeros, zeros, zeros, zeros + 1, np.arange(5))
    with pytest.raises(DataError, match="no row is left of 5"):
        keep_rows(rows, np.arange(5), [{"type": "is_mismatch"}], np.random.default_rng(0))


def test_the_token_split_is_the_one_that_datasets_draws() -> None:
    """R2R casts `divergent` to a class label and lets the package split; so must ours come out."""
    datasets = pytest.importorskip("datasets")
    generator = np.random.default_rng(0)
    divergent = (generator.random(200) < 0.2).astype(np.int64)
    zeros = np.zeros(200, np.int64)
    rows = SourceRows(zeros, divergent, divergent, zeros + 1, np.arange(200))
    train, test = token_split(rows, TokenSplit(0.2, 42))
    features = datasets.Features(
        {
            "divergent": datasets.ClassLabel(names=["non-critical", "critical"]),
            "token_id": datasets.Value("int64"),
        }
    )
    theirs = datasets.Dataset.from_dict(
        {"divergent": divergent.tolist(), "token_id": list(range(200))}, features=features
    ).train_test_split(test_size=0.2, seed=42, stratify_by_column="divergent")
    assert train.tolist() == list(theirs["train"]["token_id"])
    assert test.tolist() == list(theirs["test"]["token_id"])
    assert divergent[test].mean() == pytest.approx(divergent.mean(), abs=0.02)


def test_too_few_rows_to_split_by_token() -> None:
    pytest.importorskip("datasets")
    zeros = np.zeros(10, np.int64)
    divergent = zeros.copy()
    divergent[3] = 1
    rows = SourceRows(zeros, divergent, divergent, zeros + 1, np.arange(10))
    with pytest.raises(DataError, match="split_test_from_train: "):
        token_split(rows, TokenSplit(0.2, 42))


def test_sources_are_joined_with_their_positions() -> None:
    part = SourceRows(*(np.array(v) for v in ([0, 0, 1], [0, 1, 0], [0, NOT_JUDGED, 0], [1, 1, 1])),
                      np.array([0, -1, 1]))  # fmt: skip
    both = SourceRows.joined([part, part])
    assert both.at_S.tolist() == [0, -1, 1, 2, -1, 3]
    assert len(both) == 6


def test_errors_of_the_network_name_the_config(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, RouterError), match=r"config\.json: "):
        read(tmp_path, model__init_args__output_dim=3, model__model_type="LogitsClassifier",
             model__input_type=["logits"])  # fmt: skip
