"""What a judging model's endpoint replied: read without trust, and kept for later runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossroads.artifacts import ResumableLog, canonical_hash
from crossroads.errors import DataError

FIELD = "divergent"
"""The one field of a structured reply."""

_ANSWER = re.compile(r"[\s\"'`*]*([01])[\s\"'`*.]*")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered, and the log-probabilities of "0" and "1" where it did."""

    text: str | None
    top: tuple[tuple[str, float], ...] = ()

    def digit(self, structured: bool) -> int | None:
        """Return the answer, or None for anything but a clear one."""
        if self.text is None:
            return None
        if not structured:
            match = _ANSWER.fullmatch(self.text)
            return int(match[1]) if match else None
        try:
            value = json.loads(self.text)
        except ValueError:
            return None
        digit = value.get(FIELD) if isinstance(value, dict) else None
        return digit if type(digit) is int and digit in (0, 1) else None

    @property
    def probability(self) -> float | None:
        """Return P(1) / (P(0) + P(1)), or None where nothing is known of either."""
        mass = {"0": 0.0, "1": 0.0}
        for token, logprob in self.top:
            mass[token] += math.exp(min(logprob, 0.0))
        total = mass["0"] + mass["1"]
        return mass["1"] / total if total else None


def read_reply(completion: Any) -> Reply:
    """Return what matters of a completion; a server may send anything, so nothing is trusted."""
    if isinstance(completion, str):  # what the client returns for a body that is not JSON
        return Reply(completion)
    try:
        choice = completion.to_dict(warnings=False)["choices"][0]
        text = choice["message"]["content"]
    except (AttributeError, LookupError, TypeError):
        return Reply(None)
    return Reply(text, _top(choice)) if isinstance(text, str) else Reply(None)


def _top(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return the log-probabilities of "0" and "1" at the first token that is one of them."""
    try:
        tokens = choice["logprobs"]["content"]
        entries = next(t["top_logprobs"] for t in tokens if t["token"].strip() in ("0", "1"))
        found = [(entry["token"].strip(), float(entry["logprob"])) for entry in entries]
    except (AttributeError, LookupError, TypeError, ValueError, StopIteration):
        return ()
    return tuple((t, value) for t, value in found if t in ("0", "1") and math.isfinite(value))


class Replies:
    """Replies by their request's hash: in memory and, with a folder, in a log that outlives us."""

    def __init__(self, folder: Path | None, url: str, model: str) -> None:
        """Read what earlier runs kept for this endpoint and model.

        Raises:
            DataError: the log is damaged.
        """
        self._found: dict[str, Reply] = {}
        self._log: ResumableLog | None = None
        if folder is None:
            return
        name = canonical_hash([url.rstrip("/"), model])[:16]
        self._log = ResumableLog(folder / f"llm-{name}.jsonl")
        for number, record in enumerate(self._log, start=1):
            try:
                top = tuple((str(token), float(logprob)) for token, logprob in record["top"])
                self._found[record["key"]] = Reply(record["text"], top)
            except (LookupError, TypeError, ValueError) as error:
                raise DataError(
                    f"{self._log.path} line {number} is no reply of a judge; delete the file, and "
                    "what it held is asked again"
                ) from error

    def get(self, key: str) -> Reply | None:
        """Return the reply to the request with this hash, if there is one."""
        return self._found.get(key)

    def keep(self, key: str, reply: Reply) -> None:
        """Remember a reply."""
        self._found[key] = reply
        if self._log is not None:
            self._log.append({"key": key, "text": reply.text, "top": reply.top})
