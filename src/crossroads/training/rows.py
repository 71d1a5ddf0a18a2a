"""Labelled positions as training reads them: any rows in any order, from disk.

Features are computed once per dataset, by the function that decoding calls, and kept as flat
arrays, one file per input and split. Batches are gathered from memory-mapped files, so memory does
not grow with the dataset, and several runs on one dataset (seeds, an ablation, a search) share the
files. Input embeddings are looked up, never stored per position.

Shapes: N positions of a split, n rows that are asked for, W a feature's width.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossroads.artifacts import atomic_path, canonical_hash
from crossroads.dataset import UNJUDGED, EmbeddingTable, LabelledDataset, Labels, ResponseRow
from crossroads.errors import DataError
from crossroads.routing.checkpoint import SmallModelId
from crossroads.routing.features import FEATURES, check_names
from crossroads.training.columns import Column, open_column, write_columns
from crossroads.types import Label, Progress, SilentProgress, Split

_ALWAYS = ("position", "proposed_id")
_EMBEDDING = "token_embedding"
LARGE_PROBABILITY = "large_probability"
"""Column: the large model's probability of the small model's token; nan where nobody knows it."""


def positive_of(label_N: np.ndarray, objective: str) -> np.ndarray:
    """Return the positive class [N], bool: `divergent`, or `mismatch` (neutral counts too)."""
    if objective == "divergent":
        divergent: np.ndarray = label_N == Label.DIVERGENT
        return divergent
    mismatch: np.ndarray = label_N != Label.IDENTICAL
    return mismatch


@dataclass(frozen=True, slots=True)
class Rows:
    """The judged positions of one split, of one or several datasets.

    label_N: values of types.Label. probability_N: the judge's probability of divergence, nan where
    there is none. large_probability_N: LARGE_PROBABILITY. problem_N, domain_N: indices into
    `problem_ids` and `domains`; a problem is the cluster of its positions. position_N: index of
    the token in its row. `columns` holds the features of all stored rows, `index_N` which of them
    these rows are.
    """

    label_N: np.ndarray
    probability_N: np.ndarray
    large_probability_N: np.ndarray
    problem_N: np.ndarray
    problem_ids: tuple[str, ...]
    domain_N: np.ndarray
    domains: tuple[str, ...]
    position_N: np.ndarray
    index_N: np.ndarray
    columns: Mapping[str, Column]
    embed: EmbeddingTable
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.label_N)

    def positive(self, objective: str) -> np.ndarray:
        """Return the positive class [N], bool."""
        return positive_of(self.label_N, objective)

    def features(
        self, rows: slice | np.ndarray, names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the named features [n, W] of the given rows: float32, ids int64."""
        index_n = torch.from_numpy(self.index_N[rows])
        return {name: self._gather(name, index_n) for name in names or self.names}

    def _gather(self, name: str, index_n: Tensor) -> Tensor:
        if name == _EMBEDDING and name not in self.columns:
            return self.embed(self._gather("proposed_id", index_n)[:, 0].tolist())
        if name not in self.columns:
            raise DataError(f"the input {name!r} was not prepared; open the corpus with it")
        value_nW = self.columns[name].select(index_n)
        return value_nW if value_nW.dtype == torch.int64 else value_nW.float()

    def take(self, keep: np.ndarray) -> Rows:
        """Return the rows at `keep` (a bool mask [N], or indices), sharing the files."""
        return replace(
            self,
            label_N=self.label_N[keep],
            probability_N=self.probability_N[keep],
            large_probability_N=self.large_probability_N[keep],
            problem_N=self.problem_N[keep],
            domain_N=self.domain_N[keep],
            position_N=self.position_N[keep],
            index_N=self.index_N[keep],
        )

    def of_problems(self, count: int, seed: int) -> Rows:
        """Return the rows of `count` problems, drawn by `seed`; larger draws hold smaller ones."""
        order = np.random.default_rng(seed).permutation(len(self.problem_ids))
        return self.take(np.isin(self.problem_N, order[:count]))


class Corpus:
    """One or several labelled datasets of one pair, as three splits of rows."""

    def __init__(
        self,
        small: SmallModelId,
        card: Mapping[str, Any],
        identity: Mapping[str, Any],
        splits: Mapping[Split, Rows],
    ) -> None:
        """Take what `open` has put together; `card` is the first dataset's."""
        self.small = small
        self.card = card
        self.identity = identity
        self._splits = splits

    @classmethod
    def open(
        cls,
        datasets: Sequence[LabelledDataset],
        names: Sequence[str],
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> Corpus:
        """Return the datasets' rows with the features `names`.

        Effects: features are computed where `cache` lacks them; without a cache they live in a
        temporary folder as long as the corpus does.

        Raises:
            DataError: no dataset, datasets of different models, a problem in two splits, a feature
                that is not finite.
            RouterError: an unknown feature.
        """
        check_names(names)
        _check_together(datasets)
        if cache is not None:
            return cls._prepared(datasets, tuple(names), cache, progress)
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            corpus = cls._prepared(datasets, tuple(names), Path(folder), progress)
            weakref.finalize(corpus, stack.pop_all().close)
        return corpus

    @classmethod
    def _prepared(
        cls,
        datasets: Sequence[LabelledDataset],
        names: tuple[str, ...],
        cache: Path,
        progress: Progress | None,
    ) -> Corpus:
        wanted = tuple(dict.fromkeys((*names, *_ALWAYS)))
        parts = [_Prepared(dataset, cache, wanted) for dataset in datasets]
        for part in parts:
            part.prepare(progress or SilentProgress())
        splits = {split: _split_rows(parts, split, names) for split in Split}
        identity = {"datasets": [dict(dataset.card["sha256"]) for dataset in datasets]}
        return cls(datasets[0].small, datasets[0].card, identity, splits)

    def split(self, split: Split) -> Rows:
        """Return the rows of one split; there may be none."""
        return self._splits[split]

    def with_train(self, rows: Rows) -> Corpus:
        """Return the corpus with another train split, such as a part of it."""
        return Corpus(self.small, self.card, self.identity, {**self._splits, Split.TRAIN: rows})


def _check_together(datasets: Sequence[LabelledDataset]) -> None:
    if not datasets:
        raise DataError("there is no dataset to train on; give at least one")
    first = datasets[0]
    split_of: dict[str, tuple[Split, Path]] = {}
    for dataset in datasets:
        for role in ("small", "large"):
            ours, theirs = first.card[role], dataset.card[role]
            if (ours["name"], ours["fingerprint"]) != (theirs["name"], theirs["fingerprint"]):
                raise DataError(
                    f"{first.folder} and {dataset.folder} are of different {role} models "
                    f"({ours['name']} and {theirs['name']}); train on one pair at a time"
                )
        for row in dataset.responses:
            before, where = split_of.setdefault(row.problem_id, (row.split, dataset.folder))
            if before != row.split:
                raise DataError(
                    f"problem {row.problem_id!r} is in {before} in {where} and in {row.split} in "
                    f"{dataset.folder}; a problem must be in one split"
                )


class _Prepared:
    """The feature files of one dataset."""

    def __init__(self, dataset: LabelledDataset, cache: Path, names: Sequence[str]) -> None:
        self.dataset = dataset
        self.embed = dataset.embeddings()
        # A file holds one split's rows in the card's order, so data, splits and order are the key.
        order = [[row.file, str(row.split)] for row in dataset.responses]
        key = {"files": dict(dataset.card["sha256"]), "order": order}
        self.folder = cache / canonical_hash(key)[:16]
        self.names = [n for n in (*names, LARGE_PROBABILITY) if n != _EMBEDDING]
        labels = dataset.labels()
        self.rows = {
            split: [row for row in dataset.responses if row.split == split] for split in Split
        }
        self.labels = {split: [labels.of(row) for row in self.rows[split]] for split in Split}

    def prepare(self, progress: Progress) -> None:
        """Compute the features that are not there."""
        missing = [name for name in self.names if not self._done(name).exists()]
        if not missing:
            return
        total = sum(row.positions for row in self.dataset.responses)
        progress.start("features", total, "positions")
        for split in Split:
            self._write(split, missing, progress)
        for name in missing:
            with atomic_path(self._done(name)) as temporary:
                temporary.write_text(json.dumps(_meaning(name)), encoding="utf-8")
        progress.finish()

    def column(self, split: Split, name: str) -> Tensor:
        """Return a memory-mapped feature [N, W]."""
        return open_column(self._path(split, name))

    def _path(self, split: Split, name: str) -> Path:
        return self.folder / f"{split}-{self._key(name)}.npy"

    def _done(self, name: str) -> Path:
        return self.folder / f"{self._key(name)}.json"

    def _shape(self, name: str) -> tuple[int, torch.dtype]:
        if name == LARGE_PROBABILITY:
            return 1, torch.float32
        feature = FEATURES[name]
        return feature.width(self.dataset.small.hidden_size), feature.dtype

    def _key(self, name: str) -> str:
        # Another meaning of a feature, in another version, is another file.
        return f"{name}-{canonical_hash(_meaning(name))[:8]}"

    def _write(self, split: Split, names: Sequence[str], progress: Progress) -> None:
        keep = [_judged(part) for part in self.labels[split]]
        count = int(sum(int(k.sum()) for k in keep))
        paths = {name: self._path(split, name) for name in names}
        with write_columns(paths, count, {n: self._shape(n) for n in names}) as writers:
            for row, keep_N in zip(self.rows[split], keep, strict=True):
                for name, value_NW in self._features(row, names).items():
                    writers[name].append(value_NW[keep_N])
                progress.advance(row.positions)

    def _features(self, row: ResponseRow, names: Sequence[str]) -> dict[str, Tensor]:
        comparison = self.dataset.comparison(row)
        features = [name for name in names if name != LARGE_PROBABILITY]
        values = comparison.features(features, self.embed)
        for name, value_NW in values.items():
            if not bool(torch.isfinite(value_NW).all()):
                raise DataError(
                    f"the input {name!r} of {self.dataset.folder / row.file} has values that are "
                    "not finite; label again"
                )
        if LARGE_PROBABILITY in names:
            large = comparison.large
            nothing_N = torch.full((row.positions,), torch.nan)
            known_N = nothing_N if large is None else large.logprob_small_N.float().exp()
            values[LARGE_PROBABILITY] = known_N[:, None]
        return values


def _meaning(name: str) -> dict[str, str]:
    if name == LARGE_PROBABILITY:
        return {"transform": LARGE_PROBABILITY, "dtype": str(torch.float32)}
    return {"transform": FEATURES[name].transform, "dtype": str(FEATURES[name].dtype)}


def _judged(labels: Labels) -> Tensor:
    judged_N: Tensor = labels.label_N != UNJUDGED
    return judged_N


def _split_rows(parts: Sequence[_Prepared], split: Split, names: tuple[str, ...]) -> Rows:
    """Return the rows of one split of several datasets, one after the other."""
    rows = [row for part in parts for row in part.rows[split]]
    labels = [own for part in parts for own in part.labels[split]]
    keep = [_judged(own) for own in labels]
    counts = [int(k.sum()) for k in keep]
    problem_ids = tuple(dict.fromkeys(row.problem_id for row in rows))
    domains = tuple(sorted({row.domain for row in rows}))

    def number(known: Sequence[str], values: Sequence[str]) -> np.ndarray:
        at = {name: i for i, name in enumerate(known)}
        return np.repeat(np.array([at[v] for v in values], dtype=np.int64), counts)

    def judged(tensors: Sequence[Tensor], dtype: np.dtype[Any]) -> np.ndarray:
        chosen = [t[k].numpy() for t, k in zip(tensors, keep, strict=True)]
        return np.concatenate(chosen).astype(dtype) if chosen else np.zeros(0, dtype)

    columns = {
        name: Column([part.column(split, name) for part in parts]) for name in parts[0].names
    }
    return Rows(
        label_N=judged([own.label_N for own in labels], np.dtype(np.uint8)),
        probability_N=judged([own.probability_N for own in labels], np.dtype(np.float32)),
        large_probability_N=columns[LARGE_PROBABILITY].values(),
        problem_N=number(problem_ids, [row.problem_id for row in rows]),
        problem_ids=problem_ids,
        domain_N=number(domains, [row.domain for row in rows]),
        domains=domains,
        position_N=columns["position"].values(),
        index_N=np.arange(sum(counts)),
        columns=columns,
        embed=EmbeddingTable.joined([part.embed for part in parts]),
        names=names,
    )
