"""Every answer as a row of a Parquet file, for whoever wants to count something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crossroads.artifacts import atomic_path
from crossroads.evaluation.columns import Columns
from crossroads.evaluation.stored import StoredAnswer

FILE = "answers.parquet"
_ROWS = 256  # of a row group: what is held at once


def missing_note() -> str | None:
    """Return why there will be no table of answers; None where there will be one."""
    if find_spec("pyarrow") is not None:
        return None
    return f'{FILE} needs the package pyarrow and is left out; `pip install "crossroads-lm[data]"`'


class AnswersTable:
    """Collects rows and writes them group by group."""

    def __init__(self, writer: Any, schema: Any) -> None:
        """Take an open writer of that schema."""
        self._writer = writer
        self._schema = schema
        self._rows: list[dict[str, Any]] = []

    def add(self, task: str, system: str, answer: StoredAnswer, columns: Columns) -> None:
        """Add an answer."""
        self._rows.append(_row(task, system, answer, columns))
        if len(self._rows) == _ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        import pyarrow  # noqa: PLC0415

        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()


@contextmanager
def answers_table(path: Path) -> Iterator[AnswersTable | None]:
    """Yield a table that is at `path` when the block has ended; None without pyarrow."""
    if missing_note() is not None:
        yield None
        return
    from pyarrow import parquet  # noqa: PLC0415  half a second, and only reports need it

    schema = _schema()
    with (
        atomic_path(path) as temporary,
        parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        table = AnswersTable(writer, schema)
        yield table
        table.flush()


def _schema() -> Any:
    import pyarrow as pa  # noqa: PLC0415

    plain = {
        "task": pa.string(), "system": pa.string(), "problem": pa.string(), "sample": pa.int32(),
        "correct": pa.bool_(), "parsed": pa.string(), "reason": pa.string(), "text": pa.string(),
        "tokens": pa.int32(), "large_tokens": pa.int32(), "large_fraction": pa.float64(),
        "large_calls": pa.int32(), "lag_tokens": pa.int32(), "seconds": pa.float64(),
        "finish_reason": pa.string(), "threshold": pa.float64(), "seed": pa.int64(),
    }  # fmt: skip
    lists = {
        "prompt_ids": pa.int32(), "token_ids": pa.int32(), "writers": pa.string(),
        "scores": pa.float32(), "entropies": pa.float32(), "proposed_ids": pa.int32(),
        "lags": pa.int32(), "causes": pa.string(),
    }  # fmt: skip
    columns = {**plain, **{name: pa.list_(kind) for name, kind in lists.items()}}
    return pa.schema(list(columns.items()))


def _row(task: str, system: str, answer: StoredAnswer, columns: Columns) -> dict[str, Any]:
    trace, grade = answer.trace, answer.grade
    usage = trace.usage
    return {
        "task": task,
        "system": system,
        "problem": answer.problem_id,
        "sample": answer.sample,
        "correct": grade.correct,
        "parsed": grade.parsed,
        "reason": grade.reason,
        "text": trace.text,
        "tokens": usage.generated_tokens,
        "large_tokens": usage.large_tokens,
        "large_fraction": usage.large_fraction,
        "large_calls": usage.large_calls,
        "lag_tokens": usage.lag_tokens,
        "seconds": answer.seconds,
        "finish_reason": trace.finish_reason.value,
        "threshold": trace.threshold,
        "seed": trace.seed,
        "prompt_ids": trace.prompt_ids,
        "token_ids": columns.token_ids,
        "writers": ["large" if large else "small" for large in columns.large],
        "scores": columns.scores,
        "entropies": columns.entropies,
        "proposed_ids": columns.proposed_ids,
        "lags": columns.lags,
        "causes": columns.causes,
    }
