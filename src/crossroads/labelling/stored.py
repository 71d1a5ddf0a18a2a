"""What labelling keeps beside a dataset, read for people: texts, problems, futures, verdicts.

Works from the files alone, without a model, and writes nothing: a run that is still going on may
be looked at. What a folder lacks is said, never guessed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from crossroads.artifacts import read_json
from crossroads.dataset import TOKENS
from crossroads.errors import DataError
from crossroads.labelling.judges.base import Verdict
from crossroads.labelling.records import case_id
from crossroads.labelling.sentences import SentenceRule, cut
from crossroads.tasks.jsonl import read_problems
from crossroads.types import FinishReason, Problem

CONTEXT = 160
"""Characters before a mismatch that are shown with it."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# A terminal would obey these; a line break and a tab are all that a text needs of them.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """Return `text` with its line breaks marked and kept, and control characters replaced."""
    return text.translate(_CONTROLS).replace("\n", "\u21b5\n")


def one_line(text: str) -> str:
    """Return `text` as `visible` does, in one line."""
    return visible(text).replace("\n", "")


def future(text: str) -> str:
    """Return a future as `visible` does, or in words that there is none: the answer ended."""
    return visible(text) or "(the answer ends)"


def reason_kind(reason: str) -> str:
    """Return a reason without its numbers, so that equal mistakes are counted together."""
    return _NUMBER.sub("\u2026", reason)


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """What one judge made of a mismatch."""

    judge: str
    verdict: Verdict

    @property
    def word(self) -> str:
        """The verdict in a word."""
        words = {None: "failed", True: "divergent", False: "neutral"}
        return words[self.verdict.divergent]


@dataclass(frozen=True, slots=True)
class MismatchView:
    """One mismatch with what judges look at.

    `context` is the end of the text before it. `reference` is what the large model wrote from
    there on, and `continuations` what it wrote after the small model's token, none where they are
    not stored.
    """

    case: str
    context: str
    reference: str
    continuations: tuple[str, ...]
    verdicts: tuple[JudgeVerdict, ...]


class TokenTexts:
    """The texts of token ids as a dataset keeps them; an id without one is shown as itself."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """Take texts by id, as TOKENS holds them."""
        self._texts = texts

    def __bool__(self) -> bool:
        """Return whether there is any text."""
        return bool(self._texts)

    def shown(self, token_id: int) -> str:
        """Return the text, or the id in angle brackets for a token without any."""
        return self._texts.get(str(token_id)) or f"\u27e8{token_id}\u27e9"

    def text_bytes(self, token_id: int) -> bytes:
        """Return the text as the sentence rule reads it."""
        return self._texts.get(str(token_id), self.shown(token_id)).encode()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the texts, joined."""
        return b"".join(self.text_bytes(token_id) for token_id in token_ids).decode()


def _every(_key: str) -> bool:
    return True


def read_log(path: Path, wanted: Callable[[str], bool] = _every) -> dict[str, dict[str, Any]]:
    """Return the newest record of every wanted key of a log; nothing if there is no log.

    The log stays as it is. A last line without its end is skipped: it may be half written yet.

    Raises:
        DataError: a line is not a record, or the log cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            record = json.loads(line)
            key = record["key"]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} line {number} is not a record of a labelling run") from error
        if wanted(key):
            found[key] = record
    return found


def _whole_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


class RunFiles:
    """What labelling keeps beside a dataset; a dataset from elsewhere may have none of it."""

    def __init__(self, folder: Path) -> None:
        """Look at `folder`; files are read when they are asked for."""
        self.folder = folder

    @cached_property
    def texts(self) -> TokenTexts:
        """The texts of the tokens."""
        path = self.folder / TOKENS
        return TokenTexts(read_json(path, "token texts") if path.exists() else {})

    @cached_property
    def rule(self) -> SentenceRule:
        """Where futures are cut: as the run cut them, else as one does by default."""
        path = self.folder / "continue" / "config.json"
        if not path.exists():
            return SentenceRule()
        return SentenceRule(**read_json(path, "continuation settings")["rule"])

    @cached_property
    def problems(self) -> Mapping[str, Problem]:
        """The problems by id."""
        path = self.folder / "problems.jsonl"
        return {p.id: p for p in read_problems(path)} if path.exists() else {}

    @cached_property
    def judges(self) -> Mapping[str, Path]:
        """The judges with verdicts: name, and where they are.

        Judges of one name and different settings have the hash of their settings in theirs.
        """
        paths = sorted(p.parent for p in (self.folder / "judges").glob("*/verdicts.jsonl"))
        short = [path.name.rpartition("-")[0] or path.name for path in paths]
        many = {name for name, count in Counter(short).items() if count > 1}
        return {
            path.name if name in many else name: path
            for name, path in zip(short, paths, strict=True)
        }

    def verdicts(self, judge: str, wanted: Callable[[str], bool] = _every) -> dict[str, Verdict]:
        """Return one judge's verdicts by case."""
        return {
            case: Verdict(record["divergent"], record["probability"], record["reason"])
            for case, record in read_log(self.judges[judge] / "verdicts.jsonl", wanted).items()
        }

    def ended(self, keys: Collection[str]) -> frozenset[str]:
        """Return which of the responses are known to end in an eos token."""
        path = self.folder / "respond" / "responses.jsonl"
        records = read_log(path, lambda key: key in keys)
        return frozenset(k for k, r in records.items() if r["finish_reason"] == FinishReason.EOS)

    def continuations(self, keys: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Return the texts of every continuation in the responses, by case, in order."""
        path = self.folder / "continue" / "continuations.jsonl"
        records = read_log(path, lambda key: _response_of(key) in keys)
        samples: dict[str, dict[int, str]] = {}
        for key, record in records.items():
            case, _, number = key.rpartition("/")
            samples.setdefault(case, {})[int(number)] = record["text"]
        return {
            case: tuple(texts[number] for number in sorted(texts))
            for case, texts in samples.items()
        }

    def missing(self) -> tuple[str, ...]:
        """Return in sentences what cannot be shown, and why."""
        said = {
            f"no {TOKENS}: tokens are shown by their ids": bool(self.texts),
            "no problems.jsonl: what was asked is not known": bool(self.problems),
            "no continue/continuations.jsonl: what the large model writes after the small "
            "model's token is not known": (
                self.folder / "continue" / "continuations.jsonl"
            ).exists(),
            "no judges/*/verdicts.jsonl: only the labels that came of the verdicts are known": bool(
                self.judges
            ),
        }
        return tuple(sentence for sentence, there in said.items() if not there)


def _response_of(case: str) -> str:
    """Return the key of the response that a case, or a continuation of one, belongs to."""
    return case.rpartition("@")[0]


@dataclass(frozen=True, slots=True)
class MismatchReader:
    """Shows the mismatches of some responses; what the logs say of these is in memory."""

    texts: TokenTexts
    rule: SentenceRule
    ended: frozenset[str]
    continuations: Mapping[str, tuple[str, ...]]
    verdicts: Mapping[str, Mapping[str, Verdict]]

    @classmethod
    def of(cls, files: RunFiles, keys: Collection[str]) -> MismatchReader:
        """Return the reader of the responses with these keys."""

        def wanted(case: str) -> bool:
            return _response_of(case) in keys

        return cls(
            files.texts,
            files.rule,
            files.ended(keys),
            files.continuations(keys),
            {judge: files.verdicts(judge, wanted) for judge in files.judges},
        )

    def read(self, key: str, real_ids: Sequence[int], position: int) -> MismatchView:
        """Return the mismatch at `position` of the response `key`, whose tokens are `real_ids`."""
        case = case_id(key, position)
        # An ending eos is no text: no judge saw one.
        ahead = real_ids[position : len(real_ids) - (key in self.ended)]
        return MismatchView(
            case=case,
            context=self.texts.decode(real_ids[max(0, position - CONTEXT) : position])[-CONTEXT:],
            reference=cut(ahead, self.rule, self.texts, ()).text,
            continuations=self.continuations.get(case, ()),
            verdicts=tuple(
                JudgeVerdict(judge, verdicts.get(case, Verdict(None, None, "not judged")))
                for judge, verdicts in self.verdicts.items()
            ),
        )
