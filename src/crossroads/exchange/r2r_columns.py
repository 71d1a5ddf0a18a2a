"""R2R's column format: one row per input position of a sequence.

Row i's `real_token` is the input token at `token_id`; every other column is about the token after
it: the small model's proposal (`small_token`), its largest logits there, its hidden state, and the
label. So a row's `mismatch` is about the `real_token` of the row below it.

What this project writes: a response of N tokens is N + 1 rows. The first has the prompt's last
token (-1 where nobody kept it), row k > 0 has response token k - 1. The last row has the last
response token and no prediction, since nothing was compared beyond the text: mask 0, small_token
and small_indices -1, zeros elsewhere. It is there because the row above it could not be checked,
nor the response read back, without it. Prompt rows before that are not written: they would hold no
outputs of the small model. Positions that the judge left open have divergent -1 and mask 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossroads.errors import DataError, EngineError

INTEGERS = ("data_id", "token_id", "real_token", "small_token", "mismatch", "divergent", "mask")
LISTS: Mapping[str, str] = {
    "small_logits": "float32",
    "small_indices": "int64",
    "small_last_hidden_states": "float32",
}
EXTRAS: Mapping[str, str] = {
    "problem_id": "string",
    "sample": "int64",
    "domain": "string",
    "split": "string",
    "divergent_probability": "float32",
}
"""Columns of ours; R2R takes columns by name and passes them over."""

NO_TOKEN = -1
"""Stands for a token that is not known, and for the proposals of a sequence's last row."""
NOT_JUDGED = -1
"""`divergent` where the judge gave no verdict; R2R's own mark for one that it cannot read."""


def import_pyarrow() -> tuple[Any, Any]:
    """Return `pyarrow` and `pyarrow.parquet`.

    Raises:
        EngineError: the package is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415  optional, and slow to import
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise EngineError(
            'R2R\'s format needs the package pyarrow; `pip install "crossroads-lm[data]"`'
        ) from error
    return pa, pq


def import_datasets() -> Any:
    """Return the package `datasets`.

    Raises:
        EngineError: it is not installed.
    """
    try:
        import datasets  # noqa: PLC0415  optional, and takes a second to import
    except ImportError as error:
        raise EngineError(
            'folders of save_to_disk need the package datasets; `pip install "crossroads-lm[data]"`'
        ) from error
    return datasets


def schema() -> Any:
    """Return the pyarrow schema of what is written."""
    pa, _ = import_pyarrow()
    return pa.schema(
        [
            *((name, pa.int64()) for name in INTEGERS),
            *((name, pa.list_(pa.type_for_alias(item))) for name, item in LISTS.items()),
            *((name, pa.type_for_alias(kind)) for name, kind in EXTRAS.items()),
        ]
    )


def check_columns(found: Any, where: str) -> frozenset[str]:
    """Return which of EXTRAS a pyarrow schema has, after its required columns were checked.

    Raises:
        DataError: a column is missing or of another type.
    """
    for name in (*INTEGERS, *LISTS):
        if name not in found.names:
            raise DataError(
                f"{where} has no column {name!r}, it has {', '.join(found.names)}; "
                "give data in R2R's column format"
            )
    extras = frozenset(EXTRAS) & frozenset(found.names)
    for name in (*INTEGERS, *LISTS, *sorted(extras)):
        kind = found.field(name).type
        if not _fits(kind, name):
            raise DataError(f"column {name!r} of {where} is {kind}, wanted {_wanted(name)}")
    return extras


def _wanted(name: str) -> str:
    if name in LISTS:
        return f"a list of {LISTS[name]}"
    return EXTRAS.get(name, "int64")


def _fits(kind: Any, name: str) -> bool:
    """Return whether a type can stand for the wanted one; widths of numbers do not matter."""
    types = import_pyarrow()[0].types
    if name in LISTS:
        a_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        return a_list and _same_kind(types, kind.value_type, LISTS[name])
    return _same_kind(types, kind, EXTRAS.get(name, "int64"))


def _same_kind(types: Any, kind: Any, wanted: str) -> bool:
    if wanted == "string":
        return bool(types.is_string(kind) or types.is_large_string(kind))
    if wanted == "int64":
        return bool(types.is_integer(kind))
    return bool(types.is_floating(kind))
