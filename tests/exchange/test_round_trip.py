"""What an export says is what the dataset says, and an import reads it back."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from crossroads.artifacts import read_json
from crossroads.dataset import UNJUDGED, LabelledDataset
from crossroads.errors import ConfigError, DataError, EngineError
from crossroads.exchange import r2r_export, r2r_source
from crossroads.exchange.audit import audit_dataset, audit_r2r
from crossroads.exchange.r2r_columns import EXTRAS, INTEGERS, LISTS, schema
from crossroads.exchange.r2r_export import export_r2r
from crossroads.exchange.r2r_import import import_r2r
from crossroads.exchange.r2r_source import R2RSource, SequenceRows
from crossroads.models.scripted import ScriptedLM
from crossroads.training.config import FitConfig
from crossroads.training.fit import fit
from crossroads.training.rows import Corpus
from crossroads.types import Label, SilentProgress, Split
from labelling.dataset_folder import HIDDEN, VOCAB, write_dataset

pq = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

Kind = Literal["parquet", "datasets"]
KINDS: tuple[Kind, ...] = ("parquet", "datasets")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    return write_dataset(tmp_path_factory.mktemp("labels"), problems=12, samples=2)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a cache folder; no network, no bars."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    return tmp_path / "cache"


def all_rows(folder: Path) -> dict[str, list[Any]]:
    """Return the columns of a parquet export as lists, splits one after the other."""
    names = [f"data/{split}-00000-of-00001.parquet" for split in Split]
    tables = [pq.read_table(folder / name).to_pydict() for name in names]
    return {name: [value for table in tables for value in table[name]] for name in tables[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_an_import_of_an_export_is_the_dataset(
    dataset: LabelledDataset, tmp_path: Path, kind: Kind
) -> None:
    report = export_r2r(dataset, tmp_path / "out", kind=kind)
    again = LabelledDataset.open(import_r2r(tmp_path / "out", tmp_path / "again"))
    assert again.small.hidden_size == HIDDEN
    assert report.unjudged > 0
    by_key = {(row.problem_id, row.sample): row for row in again.responses}
    assert len(by_key) == len(dataset.responses)
    labels, labels_again = dataset.labels(), again.labels()
    for row in dataset.responses:
        other = by_key[row.problem_id, row.sample]
        assert (other.domain, other.split, other.positions) == (
            row.domain, row.split, row.positions,
        )  # fmt: skip
        want, got = labels.of(row), labels_again.of(other)
        assert torch.equal(want.label_N, got.label_N)
        torch.testing.assert_close(
            want.probability_N, got.probability_N, rtol=0, atol=0, equal_nan=True
        )
        a, b = dataset.comparison(row), again.comparison(other)
        assert torch.equal(a.real_N, b.real_N)
        assert torch.equal(a.position_N, b.position_N)
        assert torch.equal(a.step.top_ids_NK, b.step.top_ids_NK)
        assert torch.equal(a.step.hidden_NH, b.step.hidden_NH)
        torch.testing.assert_close(a.step.top_logits_NK, b.step.top_logits_NK, rtol=0, atol=0.02)
        assert (b.step.logsumexp_N <= a.step.logsumexp_N + 0.02).all()
        assert (b.step.entropy_N <= a.step.entropy_N + 0.02).all()
        assert b.large is None
    assert again.card["approximate"] == ["logsumexp", "entropy"]


def test_with_a_vocabulary_below_100_nothing_is_approximate_in_the_numbers(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "labels", vocab=40)
    export_r2r(dataset, tmp_path / "out")
    again = LabelledDataset.open(import_r2r(tmp_path / "out", tmp_path / "again"))
    rows = {row.problem_id: row for row in again.responses}
    for row in dataset.responses:
        a, b = dataset.comparison(row).step, again.comparison(rows[row.problem_id]).step
        torch.testing.assert_close(a.logsumexp_N, b.logsumexp_N, rtol=0, atol=0.01)
        torch.testing.assert_close(a.entropy_N, b.entropy_N, rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_every_export_passes_both_audits(
    dataset: LabelledDataset, tmp_path: Path, kind: Kind
) -> None:
    export_r2r(dataset, tmp_path / "out", kind=kind)
    report = audit_r2r(tmp_path / "out")
    assert report.ok, report.summary
    assert all(check.checked > 0 for check in report.checks)
    assert report.rows == sum(row.positions + 1 for row in dataset.responses)
    ours = audit_dataset(dataset)
    assert ours.ok, ours.summary
    assert all(check.checked > 0 for check in ours.checks)


def test_rows_say_what_the_format_says(dataset: LabelledDataset, tmp_path: Path) -> None:
    """By a reader that knows only R2R's columns, and then by the dataset."""
    report = export_r2r(dataset, tmp_path / "out")
    rows = all_rows(tmp_path / "out")
    assert list(rows) == [*INTEGERS, *LISTS, *EXTRAS]
    count = len(rows["data_id"])
    for i in range(count):
        if rows["mask"][i] == 1:
            assert rows["data_id"][i + 1] == rows["data_id"][i]
            assert rows["token_id"][i + 1] == rows["token_id"][i] + 1
            assert rows["mismatch"][i] == (rows["small_token"][i] != rows["real_token"][i + 1])
            assert rows["small_token"][i] == rows["small_indices"][i][0]
        else:
            assert rows["divergent"][i] == -1 or rows["small_token"][i] == -1
    label_N = dataset.labels().label_N
    scored = [i for i in range(count) if rows["mask"][i]]
    assert len(scored) == report.scored == int((label_N != UNJUDGED).sum())
    assert sum(rows["divergent"][i] for i in scored) == int((label_N == Label.DIVERGENT).sum())
    assert sum(rows["mismatch"][i] for i in scored) == int((label_N > 0).sum()) - report.unjudged
    assert rows["divergent"].count(-1) == report.unjudged == int((label_N == UNJUDGED).sum())


def test_the_first_row_has_the_prompts_last_token_where_it_is_known(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    lengths = {
        f"{row.problem_id}#{row.sample}": int(dataset.comparison(row).position_N[0])
        for row in dataset.responses
    }
    prompts = {key: [*range(length - 1), 177] for key, length in lengths.items()}
    unknown = next(iter(prompts))
    del prompts[unknown]
    report = export_r2r(dataset, tmp_path / "out", prompts=prompts.get)
    assert report.without_prompt == 1
    rows = all_rows(tmp_path / "out")
    ids = rows["data_id"]
    first = [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1]]
    for i in first:
        key = f"{rows['problem_id'][i]}#{rows['sample'][i]}"
        assert rows["token_id"][i] == lengths[key] - 1
        assert rows["real_token"][i] == (-1 if key == unknown else 177)
    prompts[next(iter(prompts))] = [1]
    with pytest.raises(DataError, match="has 1 tokens, the dataset was made with one of"):
        export_r2r(dataset, tmp_path / "other", prompts=prompts.get)
    assert not (tmp_path / "other").exists()


def test_shards_hold_whole_responses_and_splits_are_chosen(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(r2r_export, "SHARD_ROWS", 40)
    monkeypatch.setattr(r2r_export, "GROUP_ROWS", 25)
    report = export_r2r(dataset, tmp_path / "out", splits=(Split.TRAIN,))
    assert set(report.rows) == {"train"}
    shards = sorted((tmp_path / "out" / "data").iterdir())
    assert len(shards) > 2
    assert {path.name.split("-")[-1] for path in shards} == {f"{len(shards):05d}.parquet"}
    ids = [set(pq.read_table(path)["data_id"].to_pylist()) for path in shards]
    assert sum(len(own) for own in ids) == len(set().union(*ids)) == report.responses
    assert pq.ParquetFile(shards[0]).num_row_groups == 2
    assert audit_r2r(tmp_path / "out").ok


def test_parquet_is_loaded_by_datasets_offline(
    dataset: LabelledDataset, tmp_path: Path, offline: Path
) -> None:
    report = export_r2r(dataset, tmp_path / "out")
    for arguments in (
        {"path": "parquet", "data_dir": str(tmp_path / "out")},
        {"path": str(tmp_path / "out")},  # reads the README's front matter
    ):
        loaded = datasets.load_dataset(**arguments, cache_dir=str(offline))
        assert {name: part.num_rows for name, part in loaded.items()} == report.rows
        assert loaded["test"].features.arrow_schema.equals(schema())
    part = loaded["train"].filter(lambda row: row["mask"] == 1)
    assert set(part["divergent"]) == {0, 1}


def test_saved_folders_are_loaded_by_datasets(
    dataset: LabelledDataset, tmp_path: Path, offline: Path
) -> None:
    del offline
    report = export_r2r(dataset, tmp_path / "out", kind="datasets")
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert {name: part.num_rows for name, part in loaded.items()} == report.rows
    train_part = datasets.Dataset.load_from_disk(str(tmp_path / "out" / "train"))
    assert np.shape(train_part[0]["small_last_hidden_states"]) == (HIDDEN,)
    assert not list((tmp_path / "out").glob(".*"))
    one = LabelledDataset.open(import_r2r(tmp_path / "out" / "train", tmp_path / "one"))
    assert {row.split for row in one.responses} == {Split.TRAIN}


def test_the_card_names_models_judge_rates_and_what_is_missing(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    report = export_r2r(dataset, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "license: other", "tiny-small", "f" * 64, "tiny-large", "e" * 64, '"name": "drawn"',
        "| split calibration |", "| domain words |", "| 89 | 6 | 5 |", "n<1K",
        f"{report.unjudged} of {report.scored + report.unjudged} positions have no verdict",
        "crossroads label out", '"commit"', '"versions"',
    ):  # fmt: skip
        assert part in text
    labels = dataset.labels().label_N
    judged = labels[labels != UNJUDGED]
    identical = 100 * float((judged == Label.IDENTICAL).float().mean())
    assert f"| all | {len(labels)} | {report.unjudged} | {identical:.2f} |" in text


def test_the_same_export_is_kept_and_another_one_refused(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = export_r2r(dataset, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert export_r2r(dataset, out) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    with pytest.raises(ConfigError, match="is not empty and holds something other"):
        export_r2r(dataset, out, kind="datasets")
    with pytest.raises(ConfigError, match="unknown kind 'csv'; known: parquet, datasets"):
        export_r2r(dataset, tmp_path / "x", kind="csv")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is not empty"):
        import_r2r(out, out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_in_the_middle_leaves_no_folder(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Neither while exporting nor while importing; what a hard kill left is removed later."""
    write = LabelledDataset.comparison
    calls: Iterator[int] = iter(range(10**6))

    def stop(self: LabelledDataset, row: Any) -> Any:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return write(self, row)

    monkeypatch.setattr(LabelledDataset, "comparison", stop)
    with pytest.raises(KeyboardInterrupt):
        export_r2r(dataset, tmp_path / "out", kind=kind)
    assert list(tmp_path.iterdir()) == []
    left = tmp_path / ".out.partial" / "data"
    left.mkdir(parents=True)
    (left / "train-00000-of-00001.parquet").write_text("half")
    export_r2r(dataset, tmp_path / "out", kind=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def stop_import(*_: object) -> None:
        assert next(calls) >= 0
        raise KeyboardInterrupt

    monkeypatch.setattr("crossroads.exchange.r2r_import._finish", stop_import)
    with pytest.raises(KeyboardInterrupt):
        import_r2r(tmp_path / "out", tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("package", "kind"), [("pyarrow", "parquet"), ("datasets", "datasets")])
def test_a_missing_package_is_named_with_what_installs_it(
    dataset: LabelledDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    kind: Kind,
) -> None:
    out = tmp_path / "out"
    export_r2r(dataset, out, kind=kind)
    monkeypatch.setitem(sys.modules, package, None)
    install = rf'package {package}; `pip install "crossroads-lm\[data\]"`'
    with pytest.raises(EngineError, match=install):
        audit_r2r(out)
    with pytest.raises(EngineError, match=install):
        export_r2r(dataset, tmp_path / "other", kind=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_embeddings_training_on_them_says_so(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    export_r2r(dataset, tmp_path / "out")
    again = LabelledDataset.open(import_r2r(tmp_path / "out", tmp_path / "again"))
    assert audit_dataset(again).ok
    config = FitConfig(inputs=("entropy", "token_embedding"), epochs=1)
    with pytest.raises(DataError, match="holds no token embeddings; choose router inputs"):
        fit(Corpus.open([again], config.inputs), config, SilentProgress())
    config = FitConfig(inputs=("entropy", "top_logprobs", "hidden"), epochs=1)
    corpus = Corpus.open([again], config.inputs)
    assert fit(corpus, config, SilentProgress()).best_epoch == 1


def test_a_small_model_gives_embeddings_and_its_identity(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    export_r2r(dataset, tmp_path / "out")
    small = ScriptedLM(lambda _: np.zeros(VOCAB), VOCAB, hidden_size=HIDDEN)
    again = LabelledDataset.open(import_r2r(tmp_path / "out", tmp_path / "again", small=small))
    assert again.small.fingerprint == small.info.fingerprint
    ids = [int(token) for token in again.split(Split.TEST).proposed_N]
    torch.testing.assert_close(again.embeddings()(ids), small.embed(ids).half().float())
    for wrong, message in (
        (ScriptedLM(lambda _: np.zeros(VOCAB), VOCAB, hidden_size=9), "hidden states of size 12"),
        (ScriptedLM(lambda _: np.zeros(30), 30, hidden_size=HIDDEN), "has token"),
    ):
        with pytest.raises(DataError, match=message):
            import_r2r(tmp_path / "out", tmp_path / "wrong", small=wrong)
        assert not (tmp_path / "wrong").exists()


def test_an_import_holds_one_sequence_at_a_time(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_r2r(dataset, tmp_path / "out")
    make, runs = R2RSource._sequence, r2r_source._runs
    made: list[weakref.ref[np.ndarray]] = []
    pulled = consumed = 0

    def counted_runs(tables: Iterator[Any]) -> Iterator[Any]:
        def counted() -> Iterator[Any]:
            nonlocal pulled
            for table in tables:
                pulled += len(table)
                yield table

        return runs(counted())

    def counted_sequence(self: Any, part: str, table: Any, seen: set[int]) -> SequenceRows:
        nonlocal consumed
        # The one alive is the one that this one takes the place of.
        assert sum(hidden() is not None for hidden in made) <= 1
        consumed += len(table)
        assert pulled - consumed <= r2r_source.BATCH_ROWS
        rows = make(self, part, table, seen)
        made.append(weakref.ref(rows.hidden_TH))
        return rows

    monkeypatch.setattr(r2r_source, "BATCH_ROWS", 8)
    monkeypatch.setattr(r2r_source, "_runs", counted_runs)
    monkeypatch.setattr(R2RSource, "_sequence", counted_sequence)
    import_r2r(tmp_path / "out", tmp_path / "again")
    assert len(made) == 2 * len(dataset.responses)  # the audit, then the import
    assert pulled == consumed > 100


def test_without_our_columns_sequences_are_problems_and_splits_are_drawn(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    """R2R's own file: the rows of prompts first, the last row scored, no column of ours."""
    export_r2r(dataset, tmp_path / "out")
    tables = [
        pq.read_table(path).select([*INTEGERS, *LISTS])
        for path in sorted((tmp_path / "out" / "data").iterdir())
    ]
    import pyarrow as pa

    (tmp_path / "r2r").mkdir()
    pq.write_table(pa.concat_tables(tables), tmp_path / "r2r" / "all.parquet")
    a = LabelledDataset.open(import_r2r(tmp_path / "r2r", tmp_path / "a", seed=1))
    b = LabelledDataset.open(import_r2r(tmp_path / "r2r", tmp_path / "b", seed=1))
    c = LabelledDataset.open(import_r2r(tmp_path / "r2r", tmp_path / "c", seed=2))
    splits = [[row.split for row in one.responses] for one in (a, b, c)]
    assert splits[0] == splits[1] != splits[2]
    assert {*splits[0]} == set(Split)
    assert len({row.problem_id for row in a.responses}) == len(dataset.responses)
    probability_N = a.labels().probability_N
    assert torch.equal(probability_N.isnan(), a.labels().label_N != Label.IDENTICAL)
    assert read_json(tmp_path / "a" / "dataset.json", "card")["large"]["name"] == "unknown"
