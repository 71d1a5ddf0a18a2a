"""Plain JSON values as tables: any report's numbers, without knowing its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_INTERVAL = {"low", "high"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text. Without a header, rows are pairs of a name and a value."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables_of(value: Mapping[str, Any], title: str) -> list[Table]:
    """Return `value` as one table of its scalars, then one per list of records in it.

    Nested mappings become dotted names. A number and an interval `{"low", "high"}` of the same
    name become one cell.
    """
    scalars: list[tuple[str, str]] = []
    records: list[Table] = []
    for name, item in _flat(value).items():
        if isinstance(item, list) and item and all(isinstance(row, Mapping) for row in item):
            records.append(_record_table(item, _joined(title, name)))
        else:
            scalars.append((_words(name), cell(item)))
    first = [Table(title, (), tuple(scalars))] if scalars else []
    return first + records


def cell(value: Any) -> str:
    """Return one value as a reader wants it: four digits, lists in a line, bracketed intervals."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        if set(value) == _INTERVAL:
            return f"[{cell(value['low'])}, {cell(value['high'])}]"
        return ", ".join(f"{name}: {cell(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    if value is None or isinstance(value, bool):
        return {None: "\u2013", True: "yes", False: "no"}[value]
    return str(value)


def _record_table(rows: list[Mapping[str, Any]], title: str) -> Table:
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    body = tuple(tuple(cell(row.get(name)) for name in columns) for row in flat)
    return Table(title, tuple(map(_words, columns)), body)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one level; an interval joins the number of the same name."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        # `point` holds the numbers whose intervals stand beside it.
        name = prefix.removesuffix(".") if key == "point" else f"{prefix}{key}"
        if isinstance(item, Mapping) and set(item) != _INTERVAL and item:
            inner = _flat(item, f"{name}." if name else "")
        else:
            inner = {name: item}
        for inner_name, inner_item in inner.items():
            found[inner_name] = (
                _merged(found[inner_name], inner_item) if (inner_name in found) else inner_item
            )
    return found


def _merged(first: Any, second: Any) -> str:
    return f"{cell(first)} {cell(second)}"


def _joined(title: str, name: str) -> str:
    return f"{title}: {_words(name)}"


def _words(name: str) -> str:
    """Return a dotted name for reading; its parts stay the names that the code and docs use."""
    return name.replace(".", " \u203a ")
