"""From a labelled dataset to R2R's column format, for R2R's trainer and for the hub.

One response is in memory at a time, beside one group of rows.
Shapes: N positions of a response, T = N + 1 rows, W entries of a list column.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from crossroads.artifacts import canonical_hash, read_json, write_json, write_text
from crossroads.dataset import UNJUDGED, Comparison, LabelledDataset, Labels, ResponseRow
from crossroads.errors import ConfigError, DataError
from crossroads.exchange.folders import atomic_folder, is_filled
from crossroads.exchange.r2r_card import ExportReport, card_text
from crossroads.exchange.r2r_columns import (
    NO_TOKEN,
    NOT_JUDGED,
    import_datasets,
    import_pyarrow,
    schema,
)
from crossroads.types import Label, Progress, SilentProgress, Split

Kind = Literal["parquet", "datasets"]
Prompts = Callable[[str], Sequence[int] | None]
"""A response's prompt ids by its key `problem_id#sample`, None where they are not known."""

RECORD = "export.json"
GROUP_ROWS = 2048
SHARD_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class _PromptEnd:
    """A prompt's length, None where it is not known, and its last token."""

    length: int | None
    token_id: int


@dataclass(frozen=True, slots=True)
class _Item:
    """One response to write; data_id is its index in the whole dataset."""

    data_id: int
    row: ResponseRow
    labels: Labels
    prompt: _PromptEnd


def export_r2r(
    dataset: LabelledDataset,
    out: Path,
    *,
    kind: Kind = "parquet",
    prompts: Prompts | None = None,
    splits: Sequence[Split] = tuple(Split),
    progress: Progress | None = None,
) -> ExportReport:
    """Write `dataset` to the folder `out` in R2R's columns; see r2r_columns for every row.

    Effects: `out` appears whole or not at all. The same export again is returned as it is.

    Raises:
        ConfigError: `out` holds something else or cannot be written; an unknown kind.
        DataError: a damaged dataset, no response in `splits`, prompts of other lengths.
        EngineError: pyarrow or datasets is not installed.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"unknown kind {kind!r}; known: {', '.join(get_args(Kind))}")
    items = _items(dataset, prompts, splits)
    ends = [asdict(item.prompt) for item in items]
    identity = canonical_hash([dict(dataset.card), kind, [str(s) for s in splits], ends])
    if is_filled(out):
        return _earlier(out, identity)
    report = _report(items, kind)
    progress = progress or SilentProgress()
    progress.start("export", sum(report.rows.values()), "rows")
    with atomic_folder(out) as folder:
        (_write_parquet if kind == "parquet" else _write_saved)(dataset, items, folder, progress)
        write_text(folder / "README.md", card_text(dataset, report, schema()))
        write_json(folder / RECORD, {"identity": identity, "report": asdict(report)})
    progress.finish()
    return report


def _items(
    dataset: LabelledDataset, prompts: Prompts | None, splits: Sequence[Split]
) -> list[_Item]:
    labels = dataset.labels()
    items = [
        _Item(data_id, row, labels.of(row), _prompt_end(row, prompts))
        for data_id, row in enumerate(dataset.responses)
        if row.split in splits
    ]
    if not items:
        raise DataError(
            f"the dataset {dataset.folder} has no response in {', '.join(splits) or 'no split'}"
        )
    return items


def _prompt_end(row: ResponseRow, prompts: Prompts | None) -> _PromptEnd:
    ids = prompts(f"{row.problem_id}#{row.sample}") if prompts is not None else None
    return _PromptEnd(len(ids), int(ids[-1])) if ids else _PromptEnd(None, NO_TOKEN)


def _report(items: Sequence[_Item], kind: Kind) -> ExportReport:
    rows: dict[str, int] = {}
    for item in sorted(items, key=lambda item: list(Split).index(item.row.split)):
        split = str(item.row.split)
        rows[split] = rows.get(split, 0) + item.row.positions + 1
    unjudged = sum(int((item.labels.label_N == UNJUDGED).sum()) for item in items)
    return ExportReport(
        kind=kind,
        rows=rows,
        responses=len(items),
        scored=sum(item.row.positions for item in items) - unjudged,
        unjudged=unjudged,
        without_prompt=sum(item.prompt.length is None for item in items),
    )


def _earlier(out: Path, identity: str) -> ExportReport:
    """Return the report of the same export, which is there already."""
    record = read_json(out / RECORD, "export record") if (out / RECORD).exists() else {}
    if record.get("identity") != identity:
        raise ConfigError(
            f"{out} is not empty and holds something other than this export; give another folder"
        )
    return ExportReport(**record["report"])


# Files


def _shards(items: Sequence[_Item]) -> dict[Split, list[list[_Item]]]:
    """Return each split's shards: whole responses, about SHARD_ROWS rows."""
    shards: dict[Split, list[list[_Item]]] = {}
    for split in Split:
        rows = 0
        for item in items:
            if item.row.split != split:
                continue
            if rows == 0:
                shards.setdefault(split, []).append([])
            shards[split][-1].append(item)
            rows += item.row.positions + 1
            if rows >= SHARD_ROWS:
                rows = 0
    return shards


def _write_parquet(
    dataset: LabelledDataset, items: Sequence[_Item], folder: Path, progress: Progress
) -> None:
    """Write `data/SPLIT-00000-of-00002.parquet`, the names by which datasets finds splits."""
    _, pq = import_pyarrow()
    (folder / "data").mkdir()
    for split, shards in _shards(items).items():
        for number, shard in enumerate(shards):
            path = folder / "data" / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
            with pq.ParquetWriter(path, schema(), compression="zstd") as writer:
                for table in _groups(dataset, shard, progress):
                    writer.write_table(table, row_group_size=GROUP_ROWS)


def _write_saved(
    dataset: LabelledDataset, items: Sequence[_Item], folder: Path, progress: Progress
) -> None:
    """Write a DatasetDict as its `save_to_disk` does."""
    pa, _ = import_pyarrow()
    datasets = import_datasets()
    streams = folder / ".streams"
    streams.mkdir()
    parts = {}
    for split, shards in _shards(items).items():
        opened = []
        for number, shard in enumerate(shards):
            path = streams / f"{split}-{number}.arrow"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema()) as writer:
                for table in _groups(dataset, shard, progress):
                    writer.write_table(table)
            opened.append(datasets.Dataset.from_file(str(path)))
        parts[str(split)] = datasets.concatenate_datasets(opened)
    with _without_bars(datasets):
        datasets.DatasetDict(parts).save_to_disk(str(folder))
    del parts
    shutil.rmtree(streams)


@contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    """Keep the bars of datasets off the terminal, where our own progress is drawn."""
    bars = datasets.utils
    were_on = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            bars.enable_progress_bars()


# Rows


def _groups(dataset: LabelledDataset, items: Sequence[_Item], progress: Progress) -> Iterator[Any]:
    """Yield tables of about GROUP_ROWS rows: short responses must not make tiny row groups."""
    pa, _ = import_pyarrow()
    pending: list[Any] = []
    for item in items:
        pending.append(_table(item, dataset.comparison(item.row)))
        if sum(len(table) for table in pending) >= GROUP_ROWS:
            yield pa.concat_tables(pending)
            pending = []
        progress.advance(item.row.positions + 1)
    if pending:
        yield pa.concat_tables(pending)


def _table(item: _Item, comparison: Comparison) -> Any:
    """Return one response's rows, its last one without a prediction."""
    pa, _ = import_pyarrow()
    hidden_NH = comparison.step.hidden_NH
    assert hidden_NH is not None
    first = int(comparison.position_N[0]) - 1
    _check_prompt(item, first + 1)
    label_N = item.labels.label_N
    open_N = label_N == UNJUDGED
    rows = len(label_N) + 1
    scalars: Mapping[str, Any] = {
        "data_id": np.full(rows, item.data_id),
        "token_id": first + np.arange(rows),
        "real_token": np.concatenate([[item.prompt.token_id], comparison.real_N.numpy()]),
        "small_token": _ended(comparison.proposed_N, NO_TOKEN),
        "mismatch": _ended(comparison.mismatch_N.long(), 0),
        "divergent": _ended(torch.where(open_N, NOT_JUDGED, label_N == Label.DIVERGENT), 0),
        "mask": _ended((~open_N).long(), 0),
        "problem_id": [item.row.problem_id] * rows,
        "sample": np.full(rows, item.row.sample),
        "domain": [item.row.domain] * rows,
        "split": [str(item.row.split)] * rows,
        "divergent_probability": _ended(item.labels.probability_N.float(), torch.nan),
    }
    lists = {
        "small_logits": _lists(comparison.step.top_logits_NK.float(), 0.0),
        "small_indices": _lists(comparison.step.top_ids_NK, NO_TOKEN),
        "small_last_hidden_states": _lists(hidden_NH.float(), 0.0),
    }
    columns = {**scalars, **lists}
    return pa.table([columns[name] for name in schema().names], schema=schema())


def _check_prompt(item: _Item, length: int) -> None:
    if item.prompt.length not in {None, length}:
        raise DataError(
            f"the prompt of {item.row.problem_id}#{item.row.sample} has {item.prompt.length} "
            f"tokens, the dataset was made with one of {length}; give that labelling's prompts"
        )


def _ended(values_N: Tensor, last: float) -> np.ndarray:
    """Return values with the last row's appended."""
    return np.append(values_N.numpy(), np.asarray(last, values_N.numpy().dtype))


def _lists(values_NW: Tensor, last: float) -> Any:
    """Return a list column, its last list full of `last`."""
    pa, _ = import_pyarrow()
    last_1W = torch.full_like(values_NW[:1], last)
    values_TW = torch.cat([values_NW, last_1W]).contiguous().numpy()
    rows, width = values_TW.shape
    offsets = pa.array(np.arange(rows + 1) * width, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values_TW.reshape(-1)))
