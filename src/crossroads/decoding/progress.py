"""How far a batch of answers is, from its tokens: rows that run together also end together."""

from __future__ import annotations

from crossroads.types import Progress


class AnswerProgress:
    """Turns tokens into answers for a `Progress` that counts answers.

    Counting finished answers alone would show nothing for a whole batch and then jump, and any
    estimate from it would be wrong. An open row counts for its tokens over the mean length of the
    finished answers (over half of the limit before the first one), never for a whole answer.
    """

    _NEVER_QUITE = 0.95

    def __init__(self, progress: Progress, max_tokens: int) -> None:
        """Report to `progress`, whose stage has begun."""
        self._progress = progress
        self._expected = max_tokens / 2
        self._tokens = 0
        self._finished = 0
        self._finished_tokens = 0
        self._shown = 0.0

    def token(self, open_rows: int) -> None:
        """Count one token, written while `open_rows` answers were open."""
        self._tokens += 1
        self._show(open_rows)

    def answer(self, tokens: int) -> None:
        """Count one finished answer of `tokens` tokens."""
        self._finished += 1
        self._finished_tokens += tokens
        self._expected = self._finished_tokens / self._finished
        self._show(0)

    def _show(self, open_rows: int) -> None:
        part = (self._tokens - self._finished_tokens) / max(self._expected, 1.0)
        now = self._finished + min(part, self._NEVER_QUITE * open_rows)
        if now > self._shown:
            self._progress.advance(now - self._shown)
            self._shown = now
