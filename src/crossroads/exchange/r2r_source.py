"""Reading R2R's format from a parquet file, a folder of them, or a folder of `save_to_disk`.

One sequence is in memory at a time, beside one batch of rows.
Shapes: T rows of a sequence, K stored top entries, H hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import read_json
from crossroads.errors import DataError
from crossroads.exchange.r2r_columns import (
    INTEGERS,
    LISTS,
    NOT_JUDGED,
    check_columns,
    import_datasets,
    import_pyarrow,
)

BATCH_ROWS = 512
_SHARD = re.compile(r"(?P<name>.+)-\d{5}-of-\d{5}")


@dataclass(frozen=True, slots=True, eq=False)
class SequenceRows:
    """The T rows of one sequence, in the order of the file.

    part: which of several parts (splits) of the source it is in; data_id counts within one.
    whole_T: the row's lists have the lengths that the source's first row has; lists of other rows
    are zeros here. again: rows of this data_id came before, with others in between.
    problem_id, sample, domain, split, probability_T: of the columns that only we write; None
    where there is none.
    """

    part: str
    data_id: int
    token_T: np.ndarray
    real_T: np.ndarray
    small_T: np.ndarray
    mismatch_T: np.ndarray
    divergent_T: np.ndarray
    mask_T: np.ndarray
    logits_TK: np.ndarray
    indices_TK: np.ndarray
    hidden_TH: np.ndarray
    whole_T: np.ndarray
    again: bool
    problem_id: str | None
    sample: int | None
    domain: str | None
    split: str | None
    probability_T: np.ndarray | None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.token_T)

    @property
    def name(self) -> str:
        """What names the sequence in the source."""
        return f"{self.part}/{self.data_id}" if self.part else str(self.data_id)

    @property
    def read_T(self) -> np.ndarray:
        """Rows whose prediction counts: scored ones, and those that the judge left open."""
        read_T: np.ndarray = (self.mask_T == 1) | (self.divergent_T == NOT_JUDGED)
        return read_T


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that share one numbering of sequences; `tables` reads them, a batch at a time."""

    name: str
    rows: int
    schema: Any
    tables: Callable[[Sequence[str]], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class R2RSource:
    """An opened source; top_k and hidden_size are those of its first row."""

    path: Path
    parts: tuple[Part, ...]
    extras: frozenset[str]
    top_k: int
    hidden_size: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(part.rows for part in self.parts)

    def sequences(self) -> Iterator[SequenceRows]:
        """Yield every sequence, one in memory at a time.

        Raises:
            DataError: a file is damaged, or a column has empty entries.
        """
        columns = (*INTEGERS, *LISTS, *sorted(self.extras))
        for part in self.parts:
            seen: set[int] = set()
            for table in _runs(part.tables(columns)):
                rows = self._sequence(part.name, table, seen)
                seen.add(rows.data_id)
                yield rows

    def _sequence(self, part: str, table: Any, seen: set[int]) -> SequenceRows:
        integers = {name: self._integers(table[name], name) for name in INTEGERS}
        logits_TK, logits_whole_T = _matrix(table["small_logits"], self.top_k)
        indices_TK, indices_whole_T = _matrix(table["small_indices"], self.top_k)
        hidden_TH, hidden_whole_T = _matrix(table["small_last_hidden_states"], self.hidden_size)
        data_id = int(integers["data_id"][0])
        has = self.extras
        return SequenceRows(
            part=part,
            data_id=data_id,
            token_T=integers["token_id"],
            real_T=integers["real_token"],
            small_T=integers["small_token"],
            mismatch_T=integers["mismatch"],
            divergent_T=integers["divergent"],
            mask_T=integers["mask"],
            logits_TK=logits_TK,
            indices_TK=indices_TK,
            hidden_TH=hidden_TH,
            whole_T=logits_whole_T & indices_whole_T & hidden_whole_T,
            again=data_id in seen,
            problem_id=table["problem_id"][0].as_py() if "problem_id" in has else None,
            sample=table["sample"][0].as_py() if "sample" in has else None,
            domain=table["domain"][0].as_py() if "domain" in has else None,
            split=table["split"][0].as_py() if "split" in has else None,
            probability_T=_floats(table["divergent_probability"])
            if "divergent_probability" in has
            else None,
        )

    def _integers(self, column: Any, name: str) -> np.ndarray:
        if column.null_count:
            raise DataError(f"column {name!r} of {self.path} has empty entries")
        values: np.ndarray = column.to_numpy().astype(np.int64)
        return values


def open_r2r(path: Path) -> R2RSource:
    """Open R2R's format at `path` and check its columns.

    Raises:
        DataError: nothing there that can be read, a column is missing or of another type, no row.
        EngineError: a package that reads it is not installed.
    """
    parts = [part for part in _parts(path) if part.rows]
    if not parts:
        raise DataError(f"{path} has no row; give data in R2R's column format")
    extras = [check_columns(part.schema, f"{path} {part.name}".strip()) for part in parts]
    first = next(parts[0].tables(tuple(LISTS)))
    widths = {name: len(first[name][0].as_py() or ()) for name in LISTS}
    return R2RSource(
        path,
        tuple(parts),
        frozenset.intersection(*extras),
        widths["small_logits"],
        widths["small_last_hidden_states"],
    )


def _parts(path: Path) -> list[Part]:
    if (path / "dataset_dict.json").exists():
        names = read_json(path / "dataset_dict.json", "list of splits")["splits"]
        return [_saved_part(path / name, name) for name in names]
    if (path / "state.json").exists():
        return [_saved_part(path, "")]
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files or any(file.suffix != ".parquet" for file in files):
        raise DataError(
            f"no R2R data at {path}; give a parquet file, a folder of them, or a folder that "
            "save_to_disk of the package datasets wrote"
        )
    return _parquet_parts(files)


def _parquet_parts(files: Sequence[Path]) -> list[Part]:
    """Return a part per file; shards of one name (`train-00000-of-00004`) are one part."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        name = shard["name"] if shard else file.stem
        groups.setdefault((file.parent, name), []).append(file)
    several = len(groups) > 1
    return [_parquet_part(own, name if several else "") for (_, name), own in groups.items()]


def _parquet_part(files: Sequence[Path], name: str) -> Part:
    pa, pq = import_pyarrow()

    def tables(columns: Sequence[str]) -> Iterator[Any]:
        for path in files:
            with _readable(path), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                    yield pa.Table.from_batches([batch])

    rows, schemas = 0, []
    for path in files:
        with _readable(path):
            metadata = pq.read_metadata(path)
        rows += metadata.num_rows
        schemas.append(metadata.schema.to_arrow_schema())
    different = [path for path, one in zip(files, schemas, strict=True) if one != schemas[0]]
    if different:
        raise DataError(f"the columns of {different[0]} are not those of {files[0]}")
    return Part(name, rows, schemas[0], tables)


def _saved_part(folder: Path, name: str) -> Part:
    datasets = import_datasets()
    with _readable(folder):
        saved = datasets.load_from_disk(str(folder), keep_in_memory=False)

    def tables(columns: Sequence[str]) -> Iterator[Any]:
        with _readable(folder):
            chosen = saved.select_columns(list(columns)).with_format("arrow")
            yield from chosen.iter(BATCH_ROWS)

    return Part(name, saved.num_rows, saved.features.arrow_schema, tables)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow and datasets raise about a damaged file into a DataError."""
    try:
        yield
    except (ValueError, OSError, KeyError) as error:  # pyarrow's own errors are among these
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"cannot read {path}: {lines[0]}") from error


def _runs(tables: Iterator[Any]) -> Iterator[Any]:
    """Yield one table for each run of rows with one data_id."""
    pa, _ = import_pyarrow()
    pending: list[Any] = []
    current: int | None = None
    for table in tables:
        ids_T = table["data_id"].to_numpy()
        cuts = [0, *(np.flatnonzero(np.diff(ids_T)) + 1).tolist(), len(ids_T)]
        for start, stop in pairwise(cuts):
            if pending and ids_T[start] != current:
                yield pa.concat_tables(pending)
                pending = []
            current = ids_T[start]
            pending.append(table.slice(start, stop - start))
    if pending:
        yield pa.concat_tables(pending)


def _matrix(column: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a list column as [T, width] and whether each row had that length; others are 0."""
    import pyarrow.compute as pc  # noqa: PLC0415  optional; open_r2r has found pyarrow

    array = column.combine_chunks()
    length_T = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    items = array.flatten()
    is_float = np.issubdtype(items.type.to_pandas_dtype(), np.floating)
    flat = items.fill_null(np.nan if is_float else -1).to_numpy(zero_copy_only=False)
    flat = flat.astype(np.float32 if is_float else np.int64, copy=False)
    whole_T = length_T == width
    if whole_T.all():
        return flat.reshape(-1, width), whole_T
    values_TW = np.zeros((len(length_T), width), flat.dtype)
    end_T = np.cumsum(length_T)
    for row in np.flatnonzero(whole_T):
        values_TW[row] = flat[end_T[row] - width : end_T[row]]
    return values_TW, whole_T


def _floats(column: Any) -> np.ndarray:
    values: np.ndarray = column.to_numpy().astype(np.float32)
    return values
