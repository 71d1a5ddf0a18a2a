"""Answers as they are stored: one JSON line each, a trace's tokens by column.

A trace has a dozen values a token; written token by token, with their names, they take five times
the space. Columns whose every value is the default are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import numpy as np

from crossroads.grading import Grade
from crossroads.types import Cause, FinishReason, Role, TokenRecord, Trace

_SINGLE = ("score", "entropy")
_LETTER = {Role.SMALL: "s", Role.LARGE: "l"}
_ROLE = {letter: role for role, letter in _LETTER.items()}
_CAUSE = {None: None} | {cause.value: cause for cause in Cause}
_RECORD_FIELDS = fields(TokenRecord)
_DEFAULTS = {f.name: f.default for f in _RECORD_FIELDS if f.default is not MISSING}


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """One answer of one system to one problem.

    sample: which of the problem's answers, from 0. seconds: wall time since the answer that
    finished before it, so that the sum over all answers is the time they took together.
    """

    problem_id: str
    sample: int
    trace: Trace
    grade: Grade
    seconds: float

    @property
    def key(self) -> str:
        """What no other answer of this system has."""
        return answer_key(self.problem_id, self.sample)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "key": self.key,
            "problem": self.problem_id,
            "sample": self.sample,
            "grade": asdict(self.grade),
            "seconds": round(self.seconds, 4),
            "trace": trace_to_columns(self.trace),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StoredAnswer:
        """Return the answer that `to_json` wrote."""
        return cls(
            value["problem"],
            value["sample"],
            trace_from_columns(value["trace"]),
            Grade(**value["grade"]),
            value["seconds"],
        )


def answer_key(problem_id: str, sample: int) -> str:
    """Return the key of an answer."""
    return f"{problem_id}#{sample}"


def trace_to_columns(trace: Trace) -> dict[str, Any]:
    """Return a trace as plain JSON values, its token records as one list per field.

    Scores and entropies come from float32 and are written with the digits that a float32 needs;
    seconds to a tenth of a millisecond. Positions are the places in the lists.
    """
    columns: dict[str, Any] = {}
    for field in _RECORD_FIELDS:
        values = [getattr(record, field.name) for record in trace.records]
        if field.name == "position":
            continue
        if field.name in _DEFAULTS and all(value == _DEFAULTS[field.name] for value in values):
            continue
        if field.name == "writer":
            columns["writer"] = "".join(_LETTER[value] for value in values)
        elif field.name in _SINGLE:
            columns[field.name] = [None if v is None else _shortest(v) for v in values]
        elif field.name == "seconds":
            columns["seconds"] = [round(value, 4) for value in values]
        else:
            columns[field.name] = values
    return {
        "prompt_ids": list(trace.prompt_ids),
        "finish_reason": trace.finish_reason.value,
        "text": trace.text,
        "threshold": trace.threshold,
        "seed": trace.seed,
        "id": trace.id,
        "tokens": columns,
    }


def trace_from_columns(value: Mapping[str, Any]) -> Trace:
    """Return the trace that `trace_to_columns` wrote."""
    columns = dict(value["tokens"])
    count = len(columns.get("token_id", ()))
    columns["position"] = range(count)
    columns["writer"] = [_ROLE[letter] for letter in columns.get("writer", "")]
    for name in _SINGLE:
        if name in columns:
            columns[name] = _float32(columns[name])
    if "cause" in columns:
        columns["cause"] = [_CAUSE[value] for value in columns["cause"]]
    for name in {"top_logprobs", "proposals"} & columns.keys():
        columns[name] = [
            None if tops is None else tuple((i, p) for i, p in tops) for tops in columns[name]
        ]
    # By place: naming a dozen values for each of millions of tokens is most of reading a run.
    by_place = [
        columns[f.name] if f.name in columns else [f.default] * count for f in _RECORD_FIELDS
    ]
    records = tuple(TokenRecord(*values) for values in zip(*by_place, strict=True))
    return Trace(
        prompt_ids=tuple(value["prompt_ids"]),
        records=records,
        finish_reason=FinishReason(value["finish_reason"]),
        text=value["text"],
        threshold=value["threshold"],
        seed=value["seed"],
        id=value["id"],
    )


def _float32(values: Sequence[float | None]) -> list[float | None]:
    """Return the float32 numbers that `_shortest` wrote, as Python's floats."""
    if None in values:
        return [None if value is None else float(np.float32(value)) for value in values]
    found: list[float | None] = np.asarray(values, np.float32).tolist()
    return found


def _shortest(value: float) -> float:
    """Return the shortest decimal number that is `value` as a float32."""
    return float(str(np.float32(value)))
