"""Neutral = the continuation comes back to the reference's path."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossroads.errors import ConfigError
from crossroads.labelling.judges.base import Judgement, Verdict, failed
from crossroads.labelling.records import Case, Span

WAYS = ("token", "text", "quantities")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"\w+|[-+/=<>^%]")  # 3 + 4 is not 3 - 4


@dataclass(frozen=True, slots=True)
class ConvergenceJudge:
    """Neutral if the continuation rejoins the reference, in one of the ways that `by` allows.

    token: from some token on, the rest of both spans is the same, at least `tail` tokens of it, and
    what was passed over on either side holds the same quantities. text: equal words and
    operators, in order, case, spacing and punctuation apart. quantities: both spans hold the same
    numbers, equally often, and at least one.

    It needs no model beside the continuations and errs to both sides: a paraphrase without a number
    is divergent for it, two different arguments over the same numbers are neutral. With several
    continuations, divergent if at least half of them are; the share is the probability.
    """

    by: str = "token+text+quantities"
    tail: int = 4
    name: str = "convergence"
    needs_continuations: bool = True

    def __post_init__(self) -> None:
        """Refuse unknown ways.

        Raises:
            ConfigError: names the known ones.
        """
        unknown = [way for way in self.by.split("+") if way not in WAYS]
        if unknown or self.tail < 1:
            raise ConfigError(
                f"the convergence judge's `by` joins some of {', '.join(WAYS)} with +, and its "
                f"tail is at least 1; got by={self.by}, tail={self.tail}"
            )

    @property
    def settings(self) -> Mapping[str, Any]:
        """The ways and the tail."""
        return {"by": self.by, "tail": self.tail}

    def judge(self, cases: Iterable[Case]) -> Iterator[Judgement]:
        """Yield one judgement per case."""
        for case in cases:
            if not case.continuations:
                yield failed(case, "there is no continuation; run the continue stage first")
                continue
            ways = [self._way(case.reference, span) for span in case.continuations]
            share = sum(way is None for way in ways) / len(ways)
            reason = f"rejoins by {ways[0]}" if ways[0] else "does not rejoin"
            yield Judgement(case.id, Verdict(share >= 0.5, share, reason))

    def _way(self, reference: Span, continuation: Span) -> str | None:
        """Return how the continuation rejoins the reference, None if it does not."""
        checks = {"token": self._by_token, "text": _by_text, "quantities": _by_quantities}
        ways = self.by.split("+")
        return next((way for way in ways if checks[way](reference, continuation)), None)

    def _by_token(self, reference: Span, continuation: Span) -> bool:
        common = _common_tail(reference.token_ids, continuation.token_ids)
        if common < self.tail:
            return False
        # Without the common tail's text; a token's text alone may be part of a number.
        return quantities(reference.text) == quantities(continuation.text)


def _by_text(reference: Span, continuation: Span) -> bool:
    if reference.text == continuation.text:
        return True
    words = _words(reference.text)
    return bool(words) and words == _words(continuation.text)


def _by_quantities(reference: Span, continuation: Span) -> bool:
    found = quantities(reference.text)
    return bool(found) and found == quantities(continuation.text)


def quantities(text: str) -> Counter[str]:
    """Return the numbers in `text`, thousands separators and trailing zeros apart."""
    return Counter(_canonical(number) for number in _NUMBER.findall(text))


def _canonical(number: str) -> str:
    plain = number.replace(",", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _common_tail(first: Sequence[int], second: Sequence[int]) -> int:
    common = 0
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        common += 1
    return common
