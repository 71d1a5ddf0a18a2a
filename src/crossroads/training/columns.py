"""Feature files: plain .npy arrays, written front to back and read by row, whatever their size.

Shapes: N rows, n rows that are asked for, W the column's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from crossroads.artifacts import atomic_path
from crossroads.errors import DataError

_DTYPES: Mapping[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.int64: np.dtype(np.int64),
}


class Column:
    """One input of many rows, in one or several files, one after the other."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        """Take the parts [N_i, W], memory-mapped."""
        self._parts = [part for part in parts if len(part)] or list(parts[:1])
        lengths = [len(part) for part in self._parts]
        self._ends = torch.tensor(lengths).cumsum(0)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._ends[-1])

    @classmethod
    def joined(cls, columns: Sequence[Column]) -> Column:
        """Return the rows of several columns of one input, one after the other."""
        return cls([part for column in columns for part in column._parts])

    def select(self, index_n: Tensor) -> Tensor:
        """Return the rows [n, W] in the order asked for, in the column's own dtype."""
        if len(self._parts) == 1:
            return self._parts[0].index_select(0, index_n)
        part_n = torch.bucketize(index_n, self._ends, right=True)
        out_nW = self._parts[0].new_empty((len(index_n), self._parts[0].shape[1]))
        for number, part in enumerate(self._parts):
            here = part_n == number
            start = 0 if number == 0 else int(self._ends[number - 1])
            out_nW[here] = part.index_select(0, index_n[here] - start)
        return out_nW

    def values(self) -> np.ndarray:
        """Return the only number of every row [N]; it is read into memory."""
        whole: np.ndarray = torch.cat([part[:, 0] for part in self._parts]).numpy()
        return whole


class ColumnWriter:
    """Writes one column front to back; memory does not grow with it."""

    def __init__(self, file: BinaryIO, rows: int, width: int, dtype: torch.dtype) -> None:
        """Begin a column of exactly `rows` rows."""
        self._file, self._rows, self._width, self._dtype = file, rows, width, dtype
        self._written = 0
        np.lib.format.write_array_header_1_0(
            file,
            {
                "descr": np.lib.format.dtype_to_descr(_DTYPES[dtype]),
                "fortran_order": False,
                "shape": (rows, width),
            },
        )

    def append(self, value_nW: Tensor) -> None:
        """Add rows.

        Raises:
            DataError: they have another width than the column.
        """
        if value_nW.shape[1] != self._width:
            raise DataError(
                f"a router input has width {value_nW.shape[1]} where {self._width} was expected; "
                "the dataset is of another model than its card says"
            )
        self._file.write(value_nW.to(self._dtype).contiguous().numpy().tobytes())
        self._written += len(value_nW)

    def check(self) -> None:
        """Refuse a column with too few or too many rows: a caller's bug."""
        if self._written != self._rows:
            raise ValueError(f"{self._written} rows written, {self._rows} announced")


@contextmanager
def write_columns(
    paths: Mapping[str, Path], rows: int, shapes: Mapping[str, tuple[int, torch.dtype]]
) -> Iterator[dict[str, ColumnWriter]]:
    """Yield a writer per name; the files appear when the block ends, whole or not at all."""
    with ExitStack() as stack:
        writers = {}
        for name, path in paths.items():
            temporary = stack.enter_context(atomic_path(path))
            file = stack.enter_context(temporary.open("wb"))
            width, dtype = shapes[name]
            writers[name] = ColumnWriter(file, rows, width, dtype)
        yield writers
        for writer in writers.values():
            writer.check()


def open_column(path: Path) -> Tensor:
    """Return a column [N, W], memory-mapped.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        # Copy-on-write: torch wants memory that it could write to, and the file stays as it is.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except ValueError as error:
        return _empty(path, error)
    except OSError as error:
        raise DataError(f"the prepared features {path} cannot be read: {error}") from error
    return torch.from_numpy(array)


def _empty(path: Path, error: ValueError) -> Tensor:
    """Return a column without rows, which cannot be mapped."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError):
        raise DataError(
            f"the prepared features {path} are damaged ({error}); delete the folder to make them "
            "again"
        ) from error
    return torch.from_numpy(array)
