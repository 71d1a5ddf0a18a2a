"""Rows that come and go of one model that is behind servers: a streamed request for each answer."""

from __future__ import annotations

from crossroads.decoding.kept import KeptCaches
from crossroads.decoding.reading import Event
from crossroads.decoding.request import Request
from crossroads.decoding.served import ServedRow
from crossroads.decoding.single import SingleLoop
from crossroads.models.base import Tokenizer
from crossroads.models.served import ServedLM, Writing, Written
from crossroads.types import FinishReason, Role, Trace


class ServedLoop:
    """As `SingleLoop`, with the same tokens.

    Answers that the server cannot write as we would, and those whose log-probabilities are asked
    for, are written by a `SingleLoop`, step by step. Its rows have odd numbers, the others even
    ones.
    """

    def __init__(
        self,
        model: ServedLM,
        role: Role,
        tokenizer: Tokenizer,
        kept: KeptCaches | None = None,
        *,
        insist: bool = True,
    ) -> None:
        """Start without rows; see `SingleLoop`."""
        self._model = model
        self._role = role
        self._tokenizer = tokenizer
        self._insist = insist
        self._stepwise = SingleLoop(model, role, tokenizer, kept, insist=insist)
        self._writing: Writing | None = None
        self._rows: dict[int, ServedRow] = {}  # by their passages' numbers

    @property
    def active(self) -> int:
        """Rows that are generating."""
        return len(self._rows) + self._stepwise.active

    @property
    def reads(self) -> bool:
        """Whether `step` asks the model by `extend`."""
        return self._stepwise.active > 0

    def add(self, request: Request) -> int:
        """Let a request join; return its row number.

        Raises:
            RequestError: the request cannot be served. EngineError: no room.
        """
        if request.logprobs is not None or request.sampling.needs_logits:
            return 2 * self._stepwise.add(request) + 1
        if self._writing is None:
            self._writing = self._model.writing(insist=self._insist)
        row = ServedRow(0, request, self._model, self._role, self._tokenizer)
        number = self._writing.begin(row.passage)
        self._rows[number] = row
        return 2 * number

    def cancel(self, index: int) -> Trace:
        """Take a row out at once and return what there is of it; other rows do not notice."""
        number, stepwise = divmod(index, 2)
        if stepwise:
            return self._stepwise.cancel(number)
        assert self._writing is not None
        self._writing.stop(number)
        return self._end(number, FinishReason.CANCELLED)

    def close(self) -> None:
        """Cancel every row."""
        self._stepwise.close()
        self._rows.clear()
        if self._writing is not None:
            self._writing.close()
            self._writing = None

    def step(self, seconds: float = 0.0) -> list[Event]:
        """Return the tokens that have come; wait up to so many seconds for the first.

        Rows that are written step by step go on by a token first.
        """
        events = [
            Event(2 * event.row + 1, event.record, event.trace, event.error)
            for event in self._stepwise.step()
        ]
        if self._writing is None or not self._rows:
            return events
        written = self._writing.next(seconds)
        while written is not None:
            events.append(self._take(written))
            written = self._writing.next(0.0) if self._rows else None
        return events

    def _take(self, written: Written) -> Event:
        number, index = written.number, 2 * written.number
        if written.token_id is None:
            trace = self._end(number, FinishReason.ERROR)
            return Event(index, None, trace, str(written.error))
        row = self._rows[number]
        ended = row.add(written.token_id)
        record = row.state.records[-1]
        if not ended:
            return Event(index, record)
        assert self._writing is not None
        self._writing.stop(number)
        assert row.state.finish_reason is not None
        return Event(index, record, self._end(number, row.state.finish_reason))

    def _end(self, number: int, reason: FinishReason) -> Trace:
        state = self._rows.pop(number).state
        state.finish_reason = reason
        return state.trace()
