"""Where a short future ends: after a number of sentences, decided token by token."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from crossroads.errors import ConfigError
from crossroads.labelling.records import Span

# Chinese and Japanese texts end in full-width marks, hence the noqa.
_ENDS = ".。!！?？\n"  # noqa: RUF001
_COLONS = ":："  # noqa: RUF001
_BRACKETS = dict(zip("([{<（【「『", ")]}>）】」』", strict=True))  # noqa: RUF001
_LONGEST_END = 4  # characters; longer tokens that end in a stop are words ("etc.") or code


@dataclass(frozen=True, slots=True)
class SentenceRule:
    """A future is cut after its `sentences`-th sentence end, at an eos, or at `max_tokens`.

    R2R's rule (arXiv 2505.21600 and its published code): a token of at most four characters whose
    last is a full stop, exclamation or question mark or a line break ends a sentence, unless it
    holds a colon or an open bracket; the second end counts, since the first may be the rest of
    the sentence that the mismatch stands in. One thing is ours: a full stop between two digits
    ends nothing, because "$12.50" is no sentence; `decimals=False` is R2R's.
    """

    sentences: int = 2
    max_tokens: int = 128
    decimals: bool = True

    def __post_init__(self) -> None:
        """Refuse a rule that would keep nothing.

        Raises:
            ConfigError: names the setting.
        """
        for name in ("sentences", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"the sentence rule's {name} must be at least 1")


class TokenTexts(Protocol):
    """What the rule asks of a tokenizer."""

    def text_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one id adds to the text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids."""


class Cutter:
    """Reads one future token by token and knows where it ends."""

    def __init__(self, rule: SentenceRule, tokenizer: TokenTexts, eos_ids: Collection[int]) -> None:
        """Start with nothing read."""
        self._rule = rule
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._ids: list[int] = []
        self._ends = 0
        self._before = ""
        self._undecided = False
        self._length: int | None = None
        self._complete = True

    def add(self, token_id: int) -> bool:
        """Read the next token; return whether the future has ended (perhaps before it)."""
        text = self._tokenizer.text_bytes(token_id).decode("utf-8", errors="replace")
        if self._undecided and not text[:1].isdigit() and self._end_at(len(self._ids)):
            return True
        self._undecided = False
        self._ids.append(token_id)
        if token_id in self._eos_ids:
            self._length = len(self._ids)
            return True
        if _ends_sentence(text):
            after_digit = (self._before + text)[:-1][-1:].isdigit()
            self._undecided = self._rule.decimals and text[-1] == "." and after_digit
            if not self._undecided and self._end_at(len(self._ids)):
                return True
        self._before = text or self._before
        if len(self._ids) >= self._rule.max_tokens:
            self._length, self._complete = len(self._ids), False
            return True
        return False

    def span(self) -> Span:
        """Return the future as far as it goes; one that has not ended is not complete."""
        length = len(self._ids) if self._length is None else self._length
        ids = tuple(self._ids[:length])
        complete = self._complete and self._length is not None
        return Span(ids, self._tokenizer.decode(ids), complete)

    def _end_at(self, length: int) -> bool:
        self._ends += 1
        if self._ends == self._rule.sentences:
            self._length = length
        return self._length is not None


def cut(
    token_ids: Iterable[int], rule: SentenceRule, tokenizer: TokenTexts, eos_ids: Collection[int]
) -> Span:
    """Return the start of `token_ids` as the rule cuts it."""
    cutter = Cutter(rule, tokenizer, eos_ids)
    for token_id in token_ids:
        if cutter.add(token_id):
            break
    return cutter.span()


def _ends_sentence(text: str) -> bool:
    if not text or len(text) > _LONGEST_END or text[-1] not in _ENDS:
        return False
    if any(colon in text for colon in _COLONS):
        return False
    return all(
        closing in text[at + 1 :]
        for at, closing in ((at, _BRACKETS.get(c)) for at, c in enumerate(text))
        if closing is not None
    )
