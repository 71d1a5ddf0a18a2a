"""Answers as a page carries them: by column, packed, and unpacked when a reader opens a problem."""

from __future__ import annotations

import base64
import codecs
import gzip
import json
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from crossroads.evaluation.columns import Columns
from crossroads.evaluation.stored import StoredAnswer

SCORE_UNIT, ENTROPY_UNIT = 10_000, 100  # a packed score is in 1/10000, an entropy in 1/100 nat
LARGE_LETTERS = frozenset("kca")  # of an answer's writers: those of the large model
_CAUSES = {None: "-", "router": "r", "max_lag": "m", "revision": "v", "final": "f"}


def packed(value: Any) -> str:
    """Return JSON, gzip, base64: what a browser's DecompressionStream reads. No clock in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def packed_pieces(pieces: Mapping[int, bytes]) -> dict[str, Any]:
    """Return the bytes of token ids as JSON: one character per byte."""
    ids = sorted(pieces)
    return {"ids": ids, "bytes": [pieces[i].decode("latin-1") for i in ids]}


def page_answer(
    answer: StoredAnswer, columns: Columns, system: int, pieces: Mapping[int, bytes]
) -> dict[str, Any]:
    """Return what the page shows of an answer, as JSON values.

    writers has a letter per token: s, the small model wrote it; t, it did, and the large model was
    asked and let it stand; k, the large model wrote what was proposed; c, it wrote another token;
    a, it wrote alone. proposals are those of the c's. lags and causes are of all but the s's.
    text is there where what was graded is not simply the tokens' bytes: a stop string was cut off.
    """
    trace, grade = answer.trace, answer.grade
    found: dict[str, Any] = {
        "system": system,
        "sample": answer.sample,
        "correct": grade.correct,
        "parsed": grade.parsed,
        "reason": grade.reason,
        "finish": trace.finish_reason.value,
        "threshold": trace.threshold,
        "seconds": round(answer.seconds, 2),
        "ids": columns.token_ids,
        "writers": _writers(columns),
        "proposals": [
            p for p, new in zip(columns.proposed_ids, columns.replaced, strict=True) if new
        ],
        "lags": [n for n, asked in zip(columns.lags, columns.asked, strict=True) if asked],
        "causes": "".join(
            _CAUSES[c] for c, asked in zip(columns.causes, columns.asked, strict=True) if asked
        ),
    }
    if any(score is not None for score in columns.scores):
        found["scores"] = _scaled(columns.scores, SCORE_UNIT)
    if any(entropy is not None for entropy in columns.entropies):
        found["entropies"] = _scaled(columns.entropies, ENTROPY_UNIT)
    if trace.text != text_of(columns.token_ids, pieces):
        found["text"] = trace.text
    return found


def text_of(token_ids: list[int], pieces: Mapping[int, bytes]) -> str:
    """Return the text of tokens; bytes that are no UTF-8 become replacement characters."""
    return b"".join(pieces.get(i, b"") for i in token_ids).decode("utf-8", "replace")


def token_texts(token_ids: list[int], pieces: Mapping[int, bytes]) -> list[str]:
    """Return each token's text; a character whose bytes several tokens share is the last one's."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(pieces.get(i, b"")) for i in token_ids]


class Spool:
    """JSON values by key, on the disk until they are asked for; gone when it is closed."""

    def __init__(self) -> None:
        """Open a temporary file."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `__exit__`
        self._places: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the file."""
        self._file.close()

    def add(self, key: tuple[str, str], value: Any) -> None:
        """Add a value to those of a key."""
        data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        start = self._file.seek(0, 2)
        self._file.write(data)
        self._places.setdefault(key, []).append((start, len(data)))

    def values(self, key: tuple[str, str]) -> list[Any]:
        """Return the values of a key in the order in which they were added."""
        found = []
        for start, length in self._places.get(key, []):
            self._file.seek(start)
            found.append(json.loads(self._file.read(length)))
        return found


def _writers(columns: Columns) -> str:
    letters = []
    for large, asked, replaced, proposed in zip(
        columns.large, columns.asked, columns.replaced, columns.proposed_ids, strict=True
    ):
        if not large:
            letters.append("t" if asked else "s")
        elif replaced:
            letters.append("c")
        else:
            letters.append("a" if proposed is None else "k")
    return "".join(letters)


def _scaled(values: list[float | None], unit: int) -> list[int | None]:
    return [None if value is None else round(value * unit) for value in values]
