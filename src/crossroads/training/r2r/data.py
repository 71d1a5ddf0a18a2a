"""R2R's data as rows to train on, with its one held-out split and with our two.

Problems of `data.test` are halved into calibration and test, unless they come with splits of their
own (a dataset of ours, or an export of one). Shapes: N positions of a role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.dataset import LabelledDataset, ResponseRow
from crossroads.errors import DataError
from crossroads.routing.checkpoint import SmallModelId
from crossroads.splits import SplitShares, assign_splits
from crossroads.training.r2r.config import R2RConfig
from crossroads.training.r2r.select import (
    SourceRows,
    keep_rows,
    rows_of_dataset,
    rows_of_source,
    token_split,
)
from crossroads.training.r2r.sources import Opened, open_sources
from crossroads.training.rows import Corpus, Rows
from crossroads.types import Progress, Split

_HELD = (Split.CALIBRATION, Split.TEST)


@dataclass(frozen=True, slots=True)
class R2RData:
    """What a run trains on. held: all held-out rows, R2R's `test`; calibration and test: its parts.

    leaky: why the held-out rows know of the training ones; None where they do not. identity:
    hashes of the datasets, by role.
    """

    small: SmallModelId
    card: Mapping[str, Any]
    identity: Mapping[str, Any]
    train: Rows
    held: Rows
    calibration: Rows
    test: Rows
    notes: tuple[str, ...]
    leaky: str | None

    def corpus(self, protocol: str) -> Corpus:
        """Return the rows as a corpus; by R2R's protocol the calibration split is all of `held`."""
        calibration = self.held if protocol == "r2r" else self.calibration
        splits = {
            Split.TRAIN: self.train, Split.CALIBRATION: calibration, Split.TEST: self.test,
        }  # fmt: skip
        return Corpus(self.small, self.card, self.identity, splits)


@dataclass(frozen=True, slots=True)
class _Role:
    """The data of one role. split_of: the split that a problem brings along, by its id."""

    rows: Rows
    source: SourceRows
    split_of: Mapping[str, Split]
    corpus: Corpus


def open_data(
    config: R2RConfig,
    names: Sequence[str],
    protocol: str,
    folder: Path,
    cache: Path,
    progress: Progress,
) -> R2RData:
    """Return the rows of a config's data with the features `names`.

    Effects: imports lie in `folder`, features in `cache`; both are computed once.

    Raises:
        ConfigError: a path or a model that is not there. DataError: data that cannot be used.
    """
    split = config.token_split
    opened = open_sources(
        config, ("train", "test") if split is None else ("train",), folder, progress
    )
    generator = np.random.default_rng(config.seed)
    filters = {role: config.data(role).filters for role in ("train", "test")}
    if split is not None:
        role = _role(opened["train"], "train", None, names, cache, progress)
        if protocol == "r2r":
            chosen = dict(zip(filters, token_split(role.source, split), strict=True))
        else:
            chosen = _by_problem(role, config)
        kept = {r: keep_rows(role.source, chosen[r], filters[r], generator) for r in filters}
        leaky = _LEAK if protocol == "r2r" else None
        return _assembled(config, (role, role), kept, [], leaky)
    held = _role(opened["test"], "test", _HELD, names, cache, progress)
    shared, notes, leaky = _problems(opened["train"]) & set(held.rows.problem_ids), [], None
    if shared and protocol == "r2r":
        leaky = f"{len(shared)} problems are in data.train and in data.test"
    elif shared:
        notes.append(f"{len(shared)} problems that are in data.test were left out of data.train")
    drop = frozenset() if protocol == "r2r" else frozenset(shared)
    train = _role(opened["train"], "train", (Split.TRAIN,), names, cache, progress, drop)
    _check_models(train.corpus, held.corpus)
    roles = {"train": train, "test": held}
    kept = {
        r: keep_rows(roles[r].source, np.arange(len(roles[r].source)), filters[r], generator)
        for r in filters
    }
    return _assembled(config, (train, held), kept, notes, leaky)


_LEAK = (
    "split_test_from_train draws tokens: neighbours of test tokens, in the same problems, are "
    "trained on"
)


def _role(
    opened: Sequence[Opened],
    role: str,
    wanted: Sequence[Split] | None,
    names: Sequence[str],
    cache: Path,
    progress: Progress,
    drop: frozenset[str] = frozenset(),
) -> _Role:
    """Return the rows of a role's sources: of their own splits only the `wanted`, where given."""
    views, sources = [], []
    split_of: dict[str, Split] = {}
    for number, one in enumerate(opened):
        responses = one.dataset.responses
        used = [
            (wanted is None or not one.source.splits or row.split in wanted)
            and row.problem_id not in drop
            for row in responses
        ]
        chosen = [row for row, use in zip(responses, used, strict=True) if use]
        if not chosen:
            raise DataError(
                f"{one.source.where}: {one.source.path} has no problem for it (splits there: "
                f"{', '.join(sorted({row.split for row in responses}))})"
            )
        prefix = "" if one.source.ids else f"{role}{number}:"
        if one.source.splits:
            split_of |= {prefix + row.problem_id: row.split for row in chosen}
        view = _view(one.dataset, chosen, prefix)
        views.append(view)
        sources.append(
            rows_of_dataset(view) if one.source.own else rows_of_source(one.source.path, view, used)
        )
    corpus = Corpus.open(views, names, cache / role, progress)
    return _Role(corpus.split(Split.TRAIN), SourceRows.joined(sources), split_of, corpus)


def _view(dataset: LabelledDataset, rows: Sequence[ResponseRow], prefix: str) -> LabelledDataset:
    """Return the dataset with these responses only, all in one split, with other problem ids."""
    responses = [
        {**asdict(row), "problem_id": prefix + row.problem_id, "split": Split.TRAIN} for row in rows
    ]
    return LabelledDataset(dataset.folder, {**dataset.card, "responses": responses})


def _problems(opened: Sequence[Opened]) -> set[str]:
    """Return the problems of sources whose names of them hold in other sources, too."""
    return {
        row.problem_id
        for one in opened
        if one.source.ids
        for row in one.dataset.responses
        if not one.source.splits or row.split == Split.TRAIN
    }


def _check_models(train: Corpus, held: Corpus) -> None:
    for what in ("small", "large"):
        ours, theirs = train.card[what], held.card[what]
        if (ours["name"], ours["fingerprint"]) != (theirs["name"], theirs["fingerprint"]):
            raise DataError(
                f"data.train and data.test are of different {what} models ({ours['name']} and "
                f"{theirs['name']}); give data of one pair"
            )


def _by_problem(role: _Role, config: R2RConfig) -> dict[str, np.ndarray]:
    """Return the rows for training, and the held-out ones, by problem and not by token."""
    split = config.token_split
    assert split is not None
    split_of = dict(role.split_of)
    others = {p: "" for p in role.rows.problem_ids if p not in split_of}
    if others:
        half = split.test_size / 2
        split_of |= assign_splits(others, SplitShares(1 - 2 * half, half, half), config.seed)
    in_train = np.array([split_of[p] == Split.TRAIN for p in role.rows.problem_ids])
    train_N = in_train[role.rows.problem_N]
    at_S = role.source.at_S
    # Rows that are none of ours (prompts, unjudged ones) follow R2R's share, to no effect.
    train_S = np.where(at_S >= 0, train_N[at_S.clip(0)], True)
    return {"train": np.flatnonzero(train_S), "test": np.flatnonzero(~train_S)}


def _assembled(
    config: R2RConfig,
    roles: tuple[_Role, _Role],
    kept: Mapping[str, np.ndarray],
    notes: list[str],
    leaky: str | None,
) -> R2RData:
    rows, notes = {}, list(notes)
    for (name, chosen), role in zip(kept.items(), roles, strict=True):
        at = role.source.at_S[chosen]
        lost = int((at < 0).sum())
        if lost:
            notes.append(
                f"data.{name}: {lost} of R2R's {len(chosen)} rows are not used: the last row of a "
                "sequence, whose next token is not there to check it, or one that breaks a law"
            )
        rows[name] = _compressed(role.rows.take(np.sort(at[at >= 0])))
    held = rows["test"]
    calibration, test = _halves(held, roles[1].split_of, config.seed)
    identity = {
        "datasets": [
            sha256
            for corpus in dict.fromkeys(role.corpus for role in roles)
            for sha256 in corpus.identity["datasets"]
        ]
    }
    first = roles[0].corpus
    return R2RData(
        small=first.small,
        card=first.card,
        identity=identity,
        train=rows["train"],
        held=held,
        calibration=calibration,
        test=test,
        notes=tuple(notes),
        leaky=leaky,
    )


def _halves(held: Rows, split_of: Mapping[str, Split], seed: int) -> tuple[Rows, Rows]:
    """Return calibration and test rows: by the problems' own splits, the others by halves."""
    own = {p: split_of.get(p) for p in held.problem_ids}
    if not set(_HELD) <= set(own.values()):
        # One split of a dataset of ours, given alone: it is all held out, and halved like any data.
        own = {}
    drawn = sorted(p for p in held.problem_ids if own.get(p) not in _HELD)
    order = np.random.default_rng(seed).permutation(len(drawn))
    for_calibration = {drawn[i] for i in order[: (len(drawn) + 1) // 2]}
    for_calibration |= {p for p, split in own.items() if split == Split.CALIBRATION}
    is_calibration = np.array([p in for_calibration for p in held.problem_ids], bool)
    calibration_N = is_calibration[held.problem_N]
    parts = _compressed(held.take(calibration_N)), _compressed(held.take(~calibration_N))
    for part in parts:
        if not len(part):
            raise DataError(
                f"the held-out data has {len(held.problem_ids)} problems; calibration and test "
                "need at least one each"
            )
    return parts


def _compressed(rows: Rows) -> Rows:
    """Return the rows with the problems that they have, and no others, among `problem_ids`."""
    present, problem_N = np.unique(rows.problem_N, return_inverse=True)
    return replace(
        rows,
        problem_N=problem_N.astype(np.int64),
        problem_ids=tuple(rows.problem_ids[i] for i in present),
    )
