"""Rows from disk are the dataset's own positions, whatever the order, number of files or cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from crossroads.artifacts import read_json, write_json
from crossroads.dataset import CARD, LabelledDataset
from crossroads.errors import DataError
from crossroads.routing.features import FEATURES
from crossroads.training.rows import Corpus
from crossroads.types import SilentProgress, Split

NAMES = tuple(FEATURES)


@pytest.mark.parametrize("split", list(Split))
def test_rows_are_the_positions_of_the_split(dataset: LabelledDataset, split: Split) -> None:
    rows, positions = Corpus.open([dataset], NAMES).split(split), dataset.split(split)
    assert rows.label_N.tolist() == positions.label_N.tolist()
    assert rows.problem_N.tolist() == positions.problem_N.tolist()
    assert rows.problem_ids == positions.problem_ids
    assert rows.position_N.tolist() == positions.position_N.tolist()
    stored, expected = rows.features(slice(None)), positions.features(NAMES)
    for name in NAMES:
        assert torch.equal(stored[name], expected[name]), name


def test_any_rows_in_any_order(dataset: LabelledDataset) -> None:
    rows = Corpus.open([dataset], NAMES).split(Split.TRAIN)
    whole = rows.features(slice(None))
    order = np.random.default_rng(0).integers(0, len(rows), 300)
    for name, value in rows.features(order).items():
        assert torch.equal(value, whole[name][torch.from_numpy(order)]), name
    odd = rows.take(np.arange(len(rows)) % 2 == 1)
    assert torch.equal(odd.features(slice(0, 5))["hidden"], whole["hidden"][1:11:2])


def test_several_datasets_are_one_after_the_other(
    dataset: LabelledDataset, second_dataset: LabelledDataset
) -> None:
    both = Corpus.open([dataset, second_dataset], NAMES).split(Split.TRAIN)
    parts = [d.split(Split.TRAIN) for d in (dataset, second_dataset)]
    assert len(both) == sum(map(len, parts))
    assert set(both.problem_ids) == {*parts[0].problem_ids, *parts[1].problem_ids}
    order = np.random.default_rng(1).permutation(len(both))
    for name, value in both.features(order).items():
        whole = torch.cat([part.features(NAMES)[name] for part in parts])
        assert torch.equal(value, whole[torch.from_numpy(order)]), name


def test_a_cache_is_computed_once(dataset: LabelledDataset, tmp_path: Path) -> None:
    first, second, third = SilentProgress(), SilentProgress(), SilentProgress()
    Corpus.open([dataset], ("entropy", "hidden"), tmp_path, first)
    Corpus.open([dataset], ("hidden",), tmp_path, second)
    Corpus.open([dataset], ("hidden", "margin"), tmp_path, third)
    assert first.stages["features"] > 0
    assert second.stages == {}
    assert third.stages["features"] == first.stages["features"]


def test_another_division_into_splits_reads_no_stale_columns(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    Corpus.open([dataset], ("entropy", "hidden"), tmp_path / "cache")
    copied = tmp_path / "copy"
    shutil.copytree(dataset.folder, copied)
    card = read_json(copied / CARD, "card")
    for row in card["responses"]:
        row["split"] = "train"
    write_json(copied / CARD, card)
    other = LabelledDataset.open(copied)
    cached = Corpus.open([other], ("entropy", "hidden"), tmp_path / "cache").split(Split.TRAIN)
    fresh = Corpus.open([other], ("entropy", "hidden")).split(Split.TRAIN)
    for name, value in fresh.features(slice(None)).items():
        assert torch.equal(cached.features(slice(None))[name], value), name


def test_a_temporary_cache_goes_with_the_corpus(
    dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    corpus = Corpus.open([dataset], ("entropy",))
    assert list(tmp_path.iterdir())
    del corpus
    assert not list(tmp_path.iterdir())


def test_nested_subsets_of_problems(dataset: LabelledDataset) -> None:
    rows = Corpus.open([dataset], ("entropy",)).split(Split.TRAIN)
    few, more = rows.of_problems(5, seed=1), rows.of_problems(12, seed=1)
    assert len(set(few.problem_N)) == 5
    assert set(few.problem_N) < set(more.problem_N)


def edited(dataset: LabelledDataset, folder: Path, change) -> LabelledDataset:
    card = json.loads(json.dumps(dict(dataset.card)))
    change(card)
    for name in card["sha256"]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((dataset.folder / name).read_bytes())
    (folder / CARD).write_text(json.dumps(card))
    return LabelledDataset.open(folder)


def test_a_problem_in_two_splits_is_refused(dataset: LabelledDataset, tmp_path: Path) -> None:
    def move(card) -> None:
        for row in card["responses"]:
            row["split"] = "test" if row["split"] == "train" else "train"

    with pytest.raises(DataError, match="must be in one split"):
        Corpus.open([dataset, edited(dataset, tmp_path, move)], ("entropy",))


def test_datasets_of_two_pairs_are_refused(dataset: LabelledDataset, tmp_path: Path) -> None:
    other = edited(dataset, tmp_path, lambda card: card["small"].update(fingerprint="other"))
    with pytest.raises(DataError, match="different small models"):
        Corpus.open([dataset, other], ("entropy",))


def test_a_damaged_cache_is_one_sentence(dataset: LabelledDataset, tmp_path: Path) -> None:
    Corpus.open([dataset], ("entropy",), tmp_path)
    for path in tmp_path.glob("*/train-entropy-*.npy"):
        path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="damaged"):
        Corpus.open([dataset], ("entropy",), tmp_path)
