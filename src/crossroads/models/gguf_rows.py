"""Single rows of one tensor of a GGUF file, dequantised, without reading the rest.

The `gguf` package's reader builds an object for every vocabulary entry, which takes seconds; this
walks the header once and maps the one tensor.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.errors import EngineError, WeightsError
from crossroads.models.llamacpp_native import INSTALL

_STRING, _ARRAY = 8, 9
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_DEFAULT_ALIGNMENT = 32


class TensorRows:
    """A memory-mapped matrix of a GGUF file."""

    def __init__(self, path: Path, name: str) -> None:
        """Find tensor `name`.

        Raises:
            EngineError: the `gguf` package is missing, or the file has no such matrix.
            WeightsError: the file is damaged.
        """
        try:
            import gguf  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise EngineError(f"gguf is not installed; run: {INSTALL}") from error
        try:
            shape, kind, offset = _Header(path).find(name)
        except (struct.error, KeyError, OSError) as error:
            raise WeightsError(f"the header of {path} is damaged; fetch the file again") from error
        if len(shape) != 2:
            raise EngineError(f"{path} has no matrix {name}; its tokens cannot be embedded")
        columns, self._rows = shape  # GGUF counts the fastest dimension first
        self._kind = gguf.GGMLQuantizationType(kind)
        self._dequantize: Any = gguf.dequantize
        block, block_bytes = gguf.GGML_QUANT_SIZES[self._kind]
        stored = {"F32": np.float32, "F16": np.float16}.get(self._kind.name, np.uint8)
        row_bytes = columns // block * block_bytes
        self._data_RC = np.memmap(
            path, stored, "r", offset, (self._rows, row_bytes // np.dtype(stored).itemsize)
        )

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Return rows as float32 [N, E]."""
        values: np.ndarray = self._dequantize(self._data_RC[list(rows)], self._kind)
        return values.astype(np.float32)


def count_parameters(path: Path) -> int:
    """Return how many numbers a GGUF file's tensors hold.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        return sum(prod(shape) for _, shape, _, _ in _Header(path).tensors())
    except (struct.error, KeyError, OSError) as error:
        raise WeightsError(f"the header of {path} is damaged; fetch the file again") from error


class _Header:
    """A walk over a GGUF file's header: scalars, arrays, then the table of tensors."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 8  # behind the magic number and the version
        self._alignment = _DEFAULT_ALIGNMENT

    def find(self, name: str) -> tuple[tuple[int, ...], int, int]:
        """Return a tensor's shape (fastest first), type and offset; shape () if there is none."""
        found: tuple[tuple[int, ...], int, int] = ((), 0, 0)
        for this, shape, kind, offset in self.tensors():
            if this == name.encode():
                found = (shape, kind, offset)
        start = -(-self._at // self._alignment) * self._alignment
        shape, kind, offset = found
        if start + offset + prod(shape, start=0) > len(self._bytes):
            raise struct.error("the tensor ends behind the file")
        self._bytes.close()
        return shape, kind, start + offset

    def tensors(self) -> Iterator[tuple[bytes, tuple[int, ...], int, int]]:
        """Yield every tensor's name, shape (fastest first), type and offset; once."""
        tensors, values = self._take("QQ")
        for _ in range(values):
            key = self._string()
            (kind,) = self._take("I")
            if key == b"general.alignment":
                (self._alignment,) = self._take("I")
            else:
                self._skip(kind)
        for _ in range(tensors):
            this = self._string()
            (dimensions,) = self._take("I")
            shape = self._take(f"{dimensions}Q")
            kind, offset = self._take("IQ")
            yield this, shape, kind, offset

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self._bytes, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def _string(self) -> bytes:
        (size,) = self._take("Q")
        self._at += size
        return self._bytes[self._at - size : self._at]

    def _skip(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            element, count = self._take("IQ")
            if element in _SCALAR_BYTES:
                self._at += count * _SCALAR_BYTES[element]
                return
            for _ in range(count):
                self._skip(element)
        else:
            self._at += _SCALAR_BYTES[kind]
