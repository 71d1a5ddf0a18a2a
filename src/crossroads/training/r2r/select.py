"""Which tokens R2R's script trains and tests on: its splits and filters over all rows of its data.

Everything is decided on the rows of the source, prompts and unjudged rows included, since R2R
filters before it drops them; `at_S` then says which of our positions a row is. Shapes: S rows of
the source, N positions of the dataset that it was imported to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.dataset import UNJUDGED, LabelledDataset
from crossroads.errors import DataError
from crossroads.exchange.r2r_columns import NOT_JUDGED, import_datasets
from crossroads.exchange.r2r_source import open_r2r
from crossroads.training.r2r.config import TokenSplit
from crossroads.types import Label

# Small numbers in small types: all rows of a source are in memory.
_COLUMNS: Mapping[str, type] = {
    "data_id": np.int64, "mismatch": np.int8, "divergent": np.int8, "mask": np.int8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceRows:
    """R2R's integer columns, and where each row is among our judged positions (-1: nowhere)."""

    data_id_S: np.ndarray
    mismatch_S: np.ndarray
    divergent_S: np.ndarray
    mask_S: np.ndarray
    at_S: np.ndarray

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.data_id_S)

    @classmethod
    def joined(cls, sources: Sequence[SourceRows]) -> SourceRows:
        """Return several sources one after the other; their positions are, too."""
        shifted, start = [], 0
        for part in sources:
            shifted.append(replace(part, at_S=np.where(part.at_S >= 0, part.at_S + start, -1)))
            start += int(part.at_S.max(initial=-1)) + 1
        return _concatenated(shifted)


def _concatenated(parts: Sequence[SourceRows]) -> SourceRows:
    def column(name: str) -> np.ndarray:
        found = [getattr(part, name) for part in parts]
        values: np.ndarray = np.concatenate(found) if found else np.zeros(0, np.int64)
        return values

    return SourceRows(*(column(f"{name}_S") for name in (*_COLUMNS, "at")))


def rows_of_dataset(dataset: LabelledDataset) -> SourceRows:
    """Return the rows of a dataset of ours, one per position; a response is a data_id."""
    labels = dataset.labels()
    parts = [labels.of(row).label_N.numpy() for row in dataset.responses]
    label_S = np.concatenate([np.zeros(0, np.uint8), *parts])
    judged_S = label_S != UNJUDGED
    return SourceRows(
        data_id_S=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        mismatch_S=(label_S != Label.IDENTICAL).astype(np.int8),
        divergent_S=np.where(judged_S, label_S == Label.DIVERGENT, NOT_JUDGED).astype(np.int8),
        mask_S=np.ones(len(label_S), np.int8),
        at_S=np.where(judged_S, judged_S.cumsum() - 1, -1),
    )


def rows_of_source(source: Path, dataset: LabelledDataset, used: Sequence[bool]) -> SourceRows:
    """Return the rows of an imported source.

    `dataset` holds the responses that are used, `used` says which of all imported ones they are.
    Sequences without a scored row were not imported, and are among the rows all the same.

    Raises:
        DataError: the source is not what was imported.
    """
    labels, responses, wanted = dataset.labels(), iter(dataset.responses), iter(used)
    parts, start = [], 0
    for rows in _sequences(source):
        first = _first_read(rows)
        if first is not None:
            if not next(wanted, False):
                continue
            response = next(responses, None)
            if response is None or response.positions != len(rows) - 1 - first:
                raise DataError(f"{source} is not what was imported; give another output folder")
            judged_N = labels.of(response).label_N.numpy() != UNJUDGED
            rows.at_S[first:-1] = np.where(judged_N, start + judged_N.cumsum() - 1, -1)
            start += int(judged_N.sum())
        parts.append(rows)
    return _concatenated(parts)


def _sequences(source: Path) -> Iterator[SourceRows]:
    """Yield the rows of every run of one data_id, in the order in which they are imported."""
    for part in open_r2r(source).parts:
        batches: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
        for table in part.tables(tuple(_COLUMNS)):
            for name, kind in _COLUMNS.items():
                batches[name].append(table[name].to_numpy().astype(kind))
        columns = {name: np.concatenate(parts) for name, parts in batches.items()}
        ends = [*(np.flatnonzero(np.diff(columns["data_id"])) + 1).tolist(), part.rows]
        for start, end in zip([0, *ends], ends, strict=False):
            own = {f"{name}_S": column[start:end] for name, column in columns.items()}
            yield SourceRows(**own, at_S=np.full(end - start, -1))


def _first_read(rows: SourceRows) -> int | None:
    """Return the first row whose prediction is imported; a last row's never is."""
    read_S = (rows.mask_S == 1) | (rows.divergent_S == NOT_JUDGED)
    found = np.flatnonzero(read_S[:-1])
    return int(found[0]) if len(found) else None


# R2R's split and filters


def token_split(rows: SourceRows, split: TokenSplit) -> tuple[np.ndarray, np.ndarray]:
    """Return the train and the test rows of `split_test_from_train`, in R2R's own order.

    It shuffles tokens, stratified by `divergent`: a problem's tokens fall on both sides. The
    package `datasets` draws them, as it does for R2R, so that they are the same rows.

    Raises:
        DataError: too few rows of some label. EngineError: the package is not installed.
    """
    datasets = import_datasets()
    kinds, label_S = np.unique(rows.divergent_S, return_inverse=True)
    features = datasets.Features(
        {
            "row": datasets.Value("int64"),
            "divergent": datasets.ClassLabel(num_classes=len(kinds)),
        }
    )
    whole = datasets.Dataset.from_dict(
        {"row": np.arange(len(rows)), "divergent": label_S}, features=features
    )
    try:
        parts = whole.train_test_split(
            test_size=split.test_size, seed=split.seed, stratify_by_column="divergent"
        )
    except ValueError as error:
        raise DataError(f"split_test_from_train: {str(error).splitlines()[0]}") from error
    train, test = (np.asarray(parts[name].with_format("numpy")["row"]) for name in parts)
    return train, test


def keep_rows(
    rows: SourceRows,
    chosen: np.ndarray,
    filters: Sequence[Mapping[str, Any]],
    generator: np.random.Generator,
) -> np.ndarray:
    """Return those of the `chosen` rows that R2R keeps: its filters in order, then its mask.

    R2R draws what `downsample_match_data` keeps without a seed; here `generator` draws it.

    Raises:
        DataError: a filter asks for more matches than there are, or nothing is left.
    """
    for step in filters:
        kind = step["type"]
        if kind == "is_mismatch":
            chosen = chosen[rows.mismatch_S[chosen] == 1]
        elif kind == "has_divergent":
            chosen = chosen[rows.divergent_S[chosen] != NOT_JUDGED]
        elif kind == "downsample_match_data":
            chosen = _downsampled(rows, chosen, step["align"], generator)
        else:
            chosen = _by_data_id(rows, chosen, step)
    scored = (rows.mask_S[chosen] == 1) & np.isin(rows.divergent_S[chosen], (0, 1))
    kept: np.ndarray = chosen[scored]
    if not len(kept):
        raise DataError(
            f"no row is left of {len(rows)} after the filters; change `filter` in the config"
        )
    return kept


def _downsampled(
    rows: SourceRows, chosen: np.ndarray, align: str, generator: np.random.Generator
) -> np.ndarray:
    """Return all mismatches and as many matches as there are mismatches, or divergent rows."""
    mismatch = rows.mismatch_S[chosen] == 1
    counted = mismatch if align == "mismatch" else rows.divergent_S[chosen] == 1
    matches = chosen[rows.mismatch_S[chosen] == 0]
    wanted = int(counted.sum())
    if wanted > len(matches):
        raise DataError(
            f"downsample_match_data wants {wanted} matches and there are {len(matches)}; leave "
            "the filter out"
        )
    drawn = generator.choice(matches, size=wanted, replace=False)
    result: np.ndarray = np.sort(np.concatenate([chosen[mismatch], drawn]))
    return result


def _by_data_id(rows: SourceRows, chosen: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
    """Return the rows of data_ids with enough rows and not too large a share of divergent ones."""
    _, group, count = np.unique(rows.data_id_S[chosen], return_inverse=True, return_counts=True)
    critical = np.bincount(group, weights=rows.divergent_S[chosen] == 1, minlength=len(count))
    stays = (count >= step["min_samples_per_data_id"]) & (
        critical / count <= step["max_critical_ratio"]
    )
    result: np.ndarray = chosen[stays[group]]
    return result
