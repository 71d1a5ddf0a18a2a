"""Every kind of corruption is found, by its own check and by no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.artifacts import load_tensors, save_tensors
from crossroads.cli.main import run
from crossroads.dataset import LABELS, UNJUDGED, LabelledDataset
from crossroads.errors import DataError
from crossroads.exchange.audit import AuditReport, audit_dataset, audit_r2r
from crossroads.exchange.r2r_export import export_r2r
from crossroads.exchange.r2r_import import import_r2r
from crossroads.types import Label
from labelling.dataset_folder import with_step, write_card, write_dataset

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Columns = dict[str, list[Any]]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the rows of an export, all splits in one table."""
    folder = tmp_path_factory.mktemp("audit")
    dataset = write_dataset(folder / "labels", positions=(20, 40))
    export_r2r(dataset, folder / "out")
    return pa.concat_tables(
        [pq.read_table(path) for path in sorted((folder / "out" / "data").iterdir())]
    )


def write(table: Any, path: Path, change: Callable[[Columns], None]) -> Path:
    """Write the table with its columns changed as lists."""
    columns = table.to_pydict()
    change(columns)
    schema = pa.schema([field for field in table.schema if field.name in columns])
    pq.write_table(pa.table(columns, schema=schema), path)
    return path


def violated(report: AuditReport) -> set[str]:
    return {check.name for check in report.checks if check.violations}


def sequence(columns: Columns, number: int = 2) -> list[int]:
    """Return the row numbers of one sequence."""
    wanted = list(dict.fromkeys(columns["data_id"]))[number]
    return [i for i, data_id in enumerate(columns["data_id"]) if data_id == wanted]


def scored(columns: Columns, number: int = 2) -> list[int]:
    return [i for i in sequence(columns, number) if columns["mask"][i] == 1]


def reorder(columns: Columns, order: list[int]) -> None:
    for name, values in columns.items():
        columns[name] = [values[i] for i in order]


def shift_labels(columns: Columns) -> None:
    rows = sequence(columns)[:-1]
    for name in ("mismatch", "divergent", "mask"):
        values = [columns[name][i] for i in rows]
        for i, value in zip(rows, np.roll(values, 1).tolist(), strict=True):
            columns[name][i] = value


def shuffle(columns: Columns) -> None:
    rows = sequence(columns)
    order = np.random.default_rng(0).permutation(rows).tolist()
    everything = list(range(len(columns["data_id"])))
    everything[rows[0] : rows[-1] + 1] = order
    reorder(columns, everything)


def drop_row(columns: Columns) -> None:
    gone = sequence(columns)[5]
    reorder(columns, [i for i in range(len(columns["data_id"])) if i != gone])


def duplicate_row(columns: Columns) -> None:
    twice = sequence(columns)[5]
    order = list(range(len(columns["data_id"])))
    order.insert(twice, twice)
    reorder(columns, order)


def tear_apart(columns: Columns) -> None:
    rows, everything = sequence(columns), range(len(columns["data_id"]))
    tail = rows[len(rows) // 2 :]
    reorder(columns, [i for i in everything if i not in tail] + tail)


def change_small_token(columns: Columns) -> None:
    row = next(i for i in scored(columns) if columns["mismatch"][i])
    real, small = columns["real_token"][row + 1], columns["small_token"][row]
    columns["small_token"][row] = next(t for t in range(200) if t not in {real, small})


def unsorted_logits(columns: Columns) -> None:
    logits = columns["small_logits"][scored(columns)[0]]
    logits[3], logits[7] = logits[7], logits[3]


def nan_logit(columns: Columns) -> None:
    columns["small_logits"][scored(columns)[0]][4] = float("nan")


def infinite_hidden(columns: Columns) -> None:
    columns["small_last_hidden_states"][scored(columns)[0]][0] = 1e6


def short_list(columns: Columns) -> None:
    columns["small_indices"][scored(columns)[0]].pop()


def wrong_mask(columns: Columns) -> None:
    columns["mask"][scored(columns)[3]] = 2


def divergent_identical(columns: Columns) -> None:
    row = next(i for i in scored(columns) if not columns["mismatch"][i])
    columns["divergent"][row] = 1


def unknown_verdict(columns: Columns) -> None:
    columns["divergent"][scored(columns)[0]] = 3


def change_real_token(columns: Columns) -> None:
    row = next(i for i in scored(columns) if not columns["mismatch"][i])
    columns["real_token"][row + 1] += 1


CORRUPTIONS: dict[str, tuple[Callable[[Columns], None], set[str]]] = {
    "shift labels": (shift_labels, {"mismatch"}),
    "shuffle rows": (shuffle, {"token_id"}),
    "drop a row": (drop_row, {"token_id"}),
    "duplicate a row": (duplicate_row, {"token_id"}),
    "tear a sequence apart": (tear_apart, {"sequence"}),
    "another small token": (change_small_token, {"proposal"}),
    "unsorted logits": (unsorted_logits, {"sorted"}),
    "a nan": (nan_logit, {"finite"}),
    "too large for half precision": (infinite_hidden, {"finite"}),
    "a short list": (short_list, {"lists"}),
    "a wrong mask": (wrong_mask, {"mask"}),
    "a divergent identical": (divergent_identical, {"divergent"}),
    "an unknown verdict": (unknown_verdict, {"divergent"}),
    "another real token": (change_real_token, {"mismatch"}),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_found_by_its_check_alone(table: Any, tmp_path: Path, name: str) -> None:
    change, expected = CORRUPTIONS[name]
    path = write(table, tmp_path / "bad.parquet", change)
    report = audit_r2r(path)
    assert violated(report) == expected
    (check,) = (check for check in report.checks if check.violations)
    assert check.first is not None
    assert check.first.got != check.first.expected
    with pytest.raises(DataError, match=f"check '{check.name}'.* in {check.violations} of"):
        import_r2r(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_misaligned_positions_become_unjudged_and_no_others(
    table: Any, tmp_path: Path, name: str
) -> None:
    path = write(table, tmp_path / "bad.parquet", CORRUPTIONS[name][0])
    clean = write(table, tmp_path / "clean.parquet", lambda _: None)
    kept = LabelledDataset.open(import_r2r(clean, tmp_path / "kept"))
    out = import_r2r(path, tmp_path / "out", allow_misaligned=True)
    dataset = LabelledDataset.open(out)
    counted = dataset.card["import"]
    assert sum(counted["violations"].values()) > 0
    assert 0 < counted["misaligned_positions"] <= 40
    before = {row.problem_id: kept.labels().of(row).label_N for row in kept.responses}
    damaged = set()
    for row in dataset.responses:
        label_N = dataset.labels().of(row).label_N
        if row.positions != len(before[row.problem_id]):
            damaged.add(row.problem_id)
        elif not torch.equal(label_N, before[row.problem_id]):
            damaged.add(row.problem_id)
            if name not in {"shift labels", "shuffle rows", "tear a sequence apart"}:
                changed_N = label_N != before[row.problem_id]
                assert (label_N[changed_N] == UNJUDGED).all()
    assert len(damaged) == 1
    assert torch.isfinite(torch.cat([
        dataset.comparison(row).step.top_logits_NK.sum(dim=1) for row in dataset.responses
    ])).all()  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_one_changed_label_anywhere_is_found(table: Any, tmp_path_factory: Any, data: Any) -> None:
    """A mismatch flipped in any scored row is found at exactly that row."""
    columns = table.select(["mask", "data_id", "token_id", "mismatch"]).to_pydict()
    rows = [i for i, mask in enumerate(columns["mask"]) if mask == 1]
    row = data.draw(st.sampled_from(rows))

    def flip(changed: Columns) -> None:
        changed["mismatch"][row] = 1 - changed["mismatch"][row]
        changed["divergent"][row] = 0

    report = audit_r2r(write(table, tmp_path_factory.mktemp("flip") / "x.parquet", flip))
    assert violated(report) == {"mismatch"}
    (check,) = (check for check in report.checks if check.violations)
    assert check.violations == 1
    assert check.first is not None
    assert check.first.sequence == str(columns["data_id"][row])
    assert check.first.token_id == columns["token_id"][row]


def test_equal_largest_logits_may_stand_in_any_order(table: Any, tmp_path: Path) -> None:
    at: list[int] = []

    def tie(columns: Columns) -> None:
        row = scored(columns, 0)[0]
        at.append(columns["small_token"][row])
        logits, indices = columns["small_logits"][row], columns["small_indices"][row]
        logits[1] = logits[0]
        indices[0], indices[1] = indices[1], indices[0]

    path = write(table, tmp_path / "tie.parquet", tie)
    dataset = LabelledDataset.open(import_r2r(path, tmp_path / "out"))
    comparison = dataset.comparison(dataset.responses[0])
    assert at[0] in comparison.proposed_N[:2].tolist()
    assert audit_dataset(dataset).ok


@pytest.mark.parametrize("column", ["mask", "small_logits", "token_id"])
def test_a_missing_column_is_named_with_those_that_are_there(
    table: Any, tmp_path: Path, column: str
) -> None:
    path = write(table, tmp_path / "bad.parquet", lambda columns: columns.pop(column))
    with pytest.raises(DataError, match=f"has no column '{column}', it has data_id"):
        audit_r2r(path)


def test_wrong_types_empty_entries_and_other_files_are_refused(table: Any, tmp_path: Path) -> None:
    position = table.schema.get_field_index("mask")
    floats = table.set_column(position, "mask", table["mask"].cast(pa.float64()))
    pq.write_table(floats, tmp_path / "type.parquet")
    with pytest.raises(DataError, match=r"column 'mask' of .* is double, wanted int64"):
        audit_r2r(tmp_path / "type.parquet")
    empty = write(table, tmp_path / "null.parquet", lambda c: c["mask"].__setitem__(3, None))
    with pytest.raises(DataError, match=r"column 'mask' of .* has empty entries"):
        audit_r2r(empty)
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="has no row"):
        audit_r2r(tmp_path / "none.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"cannot read .*damaged"):
        audit_r2r(tmp_path / "damaged.parquet")
    for path in (tmp_path / "nowhere", tmp_path / "folder"):
        with pytest.raises(DataError, match="no R2R data at"):
            audit_r2r(path)


def test_nothing_scored_is_refused(table: Any, tmp_path: Path) -> None:
    def unmask(columns: Columns) -> None:
        columns["mask"] = [0] * len(columns["mask"])
        columns["divergent"] = [0] * len(columns["mask"])

    path = write(table, tmp_path / "x.parquet", unmask)
    with pytest.raises(DataError, match=r"no row of .* is scored"):
        import_r2r(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompt_rows_are_no_positions(table: Any, tmp_path: Path) -> None:
    """R2R's files begin with the prompt, mask 0, and end with a scored row."""

    def as_r2r(columns: Columns) -> None:
        rows = sequence(columns, 0)
        for i in rows[:4]:
            columns["mask"][i], columns["divergent"][i] = 0, 0
        columns["mask"][rows[-1]] = 1
        columns["mask"][rows[8]], columns["divergent"][rows[8]] = 0, 0

    columns = table.to_pydict()
    length = len(sequence(columns, 0))
    path = write(table, tmp_path / "x.parquet", as_r2r)
    dataset = LabelledDataset.open(import_r2r(path, tmp_path / "out"))
    first = dataset.responses[0]
    comparison = dataset.comparison(first)
    assert first.positions == length - 4 - 1
    assert int(comparison.position_N[0]) == columns["token_id"][4] + 1
    assert comparison.real_N.tolist() == columns["real_token"][5:length]
    assert dataset.labels().label_N[4] == UNJUDGED  # not scored, in the middle of the response


def test_beside_a_dropped_row_nothing_is_judged(table: Any, tmp_path: Path) -> None:
    """The row above a gap has a label, and the token that it is about is gone."""
    gone: list[int] = []

    def drop(columns: Columns) -> None:
        gone.append(sequence(columns, 0)[6])
        reorder(columns, [i for i in range(len(columns["data_id"])) if i != gone[0]])

    judged = table.set_column(
        table.schema.get_field_index("mask"), "mask", pa.array([1] * len(table))
    )
    path = write(judged, tmp_path / "x.parquet", drop)
    dataset = LabelledDataset.open(import_r2r(path, tmp_path / "out", allow_misaligned=True))
    label_N = dataset.labels().of(dataset.responses[0]).label_N
    assert label_N[5] == label_N[6] == UNJUDGED
    assert dataset.card["import"]["misaligned_positions"] == 2


def test_files_that_count_from_zero_each_are_not_mixed(table: Any, tmp_path: Path) -> None:
    """R2R's train and test files both have a data_id 0; its own splits are none of ours."""
    bare = table.drop_columns(["problem_id", "sample", "split", "domain"])
    for name in ("train", "test"):
        pq.write_table(bare, tmp_path / f"{name}.parquet")
    assert audit_r2r(tmp_path).ok
    dataset = LabelledDataset.open(import_r2r(tmp_path, tmp_path / "out"))
    names = {row.problem_id for row in dataset.responses}
    ids = set(table["data_id"].to_pylist())
    assert names == {f"{part}/{data_id}" for part in ("train", "test") for data_id in ids}


def test_shards_of_one_name_are_read_as_one(table: Any, tmp_path: Path) -> None:
    middle = len(table) // 2 + 1
    assert table["data_id"][middle] == table["data_id"][middle - 1]
    for number, part in enumerate((table.slice(0, middle), table.slice(middle))):
        pq.write_table(part, tmp_path / f"train-{number:05d}-of-00002.parquet")
    report = audit_r2r(tmp_path)
    assert report.ok
    assert report.sequences == len(set(table["data_id"].to_pylist()))
    narrow = table.slice(middle).drop_columns(["mask"])
    pq.write_table(narrow, tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match="are not those of"):
        audit_r2r(tmp_path)


def test_a_problem_in_two_splits_and_an_unknown_split_are_refused(
    table: Any, tmp_path: Path
) -> None:
    def same_problem(columns: Columns) -> None:
        columns["problem_id"] = ["p"] * len(columns["problem_id"])

    def validation(columns: Columns) -> None:
        columns["split"] = ["validation"] * len(columns["split"])

    for change, message in (
        (same_problem, "problem 'p' is in the splits"),
        (validation, "column 'split' has 'validation'"),
    ):
        path = write(table, tmp_path / "x.parquet", change)
        with pytest.raises(DataError, match=message):
            import_r2r(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


# Our own dataset


def changed_dataset(folder: Path, **changes: Callable[[Any], Any]) -> LabelledDataset:
    """Return a dataset whose third response has some outputs changed."""

    def change(number: int, comparison: Any) -> Any:
        if number != 2:
            return comparison
        return with_step(
            comparison,
            **{name: edit(getattr(comparison.step, name)) for name, edit in changes.items()},
        )

    return write_dataset(folder, change=change, positions=(20, 40))


def test_a_dataset_with_shifted_labels_is_found(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, unjudged=0.0)
    stored = load_tensors(tmp_path / LABELS, "labels")
    save_tensors(tmp_path / LABELS, {**stored, "label": stored["label"].roll(1)}, {})
    write_card(tmp_path, list(dataset.responses))
    report = audit_dataset(LabelledDataset.open(tmp_path))
    assert violated(report) == {"label"}
    wrong = (stored["label"] != Label.IDENTICAL) != (stored["label"].roll(1) != Label.IDENTICAL)
    assert report.checks[4].violations == int(wrong.sum())


def test_other_faults_of_a_dataset_are_found(tmp_path: Path) -> None:
    def swapped(logits_NK: torch.Tensor) -> torch.Tensor:
        logits_NK = logits_NK.clone()
        logits_NK[3, [10, 90]] = logits_NK[3, [90, 10]]
        return logits_NK

    def with_nan(hidden_NH: torch.Tensor) -> torch.Tensor:
        return hidden_NH.index_fill(0, torch.tensor([4]), torch.nan)

    dataset = changed_dataset(tmp_path / "sorted", top_logits_NK=swapped)
    assert violated(audit_dataset(dataset)) == {"sorted"}
    dataset = changed_dataset(tmp_path / "finite", hidden_NH=with_nan)
    report = audit_dataset(dataset)
    assert violated(report) == {"finite"}
    assert "sequence p2#0, token_id" in report.summary


@pytest.mark.parametrize(
    ("column", "edit", "check"),
    [
        ("large_logprob_small", lambda column: column + 30, "large"),
        ("large_logprob_real", lambda column: column + torch.nan, "large"),
        ("position", lambda column: column.flip(0), "position"),
    ],
)
def test_stored_columns_are_checked(
    tmp_path: Path, column: str, edit: Callable[[torch.Tensor], torch.Tensor], check: str
) -> None:
    dataset = write_dataset(tmp_path)
    path = tmp_path / dataset.responses[1].file
    stored = load_tensors(path, "comparison")
    save_tensors(path, {**stored, column: edit(stored[column])}, {})
    write_card(tmp_path, list(dataset.responses))
    assert violated(audit_dataset(LabelledDataset.open(tmp_path))) == {check}


def test_lengths_probabilities_and_embeddings_of_a_dataset_are_checked(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    path = tmp_path / dataset.responses[1].file
    stored = load_tensors(path, "comparison")
    save_tensors(path, {name: column[:-1] for name, column in stored.items()}, {})
    labels = load_tensors(tmp_path / LABELS, "labels")
    save_tensors(tmp_path / LABELS, {**labels, "probability": labels["probability"] + 2}, {})
    table = load_tensors(tmp_path / "embeddings.safetensors", "embeddings")
    save_tensors(tmp_path / "embeddings.safetensors", {n: t[1:] for n, t in table.items()}, {})
    write_card(tmp_path, list(dataset.responses))
    report = audit_dataset(LabelledDataset.open(tmp_path))
    assert violated(report) == {"length", "probability", "embedding"}


# The command line


def test_the_verbs_work_together(
    tmp_path: Path, table: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(tmp_path / "labels")
    lengths = {row.problem_id: int(dataset.comparison(row).position_N[0]) for row in dataset.responses}  # fmt: skip  # noqa: E501
    (tmp_path / "labels" / "respond").mkdir()
    (tmp_path / "labels" / "respond" / "responses.jsonl").write_text(
        "".join(
            f'{{"key": "{problem}#0", "prompt_ids": {[7] * length}}}\n'
            for problem, length in lengths.items()
        )
    )
    paths = {name: str(tmp_path / name) for name in ("labels", "out", "saved", "again", "no")}
    assert run(["export", paths["labels"], paths["out"]]) == 0
    assert run(["export", paths["labels"], paths["saved"], "--format", "r2r-datasets"]) == 0
    assert pq.read_table(tmp_path / "out" / "data")["real_token"][0].as_py() == 7
    assert run(["import-r2r", paths["saved"], paths["again"]]) == 0
    for name in ("labels", "out", "saved", "again"):
        assert run(["audit", paths[name]]) == 0
    capfd.readouterr()
    bad = str(write(table, tmp_path / "bad.parquet", shift_labels))
    assert run(["audit", bad]) == 2
    out, err = capfd.readouterr()
    assert "mismatch" in out
    assert "fails the check 'mismatch'" in err
    assert "Traceback" not in err
    assert run(["import-r2r", bad, paths["no"]]) == 2
    assert "import with --allow-misaligned" in capfd.readouterr().err
    assert not (tmp_path / "no").exists()
    assert run(["import-r2r", bad, paths["no"], "--allow-misaligned"]) == 0
