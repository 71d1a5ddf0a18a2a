"""The judges of one run: parsed at once, built when what they need is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from crossroads.labelling.judges import NEED_PAIR, judge_by_name, parse_judge
from crossroads.labelling.judges.base import Judge, JudgeContext
from crossroads.models.pairs import Pair


class ChosenJudges:
    """Judges by their texts (`NAME:KEY=VALUE,...`), in order."""

    def __init__(self, texts: Sequence[str], context: JudgeContext) -> None:
        """Build, and so check, those that need no model.

        Raises:
            ConfigError: unknown name or setting, or a value that the judge cannot work with.
        """
        self._named = [parse_judge(text) for text in texts]
        self._context = context
        self._early = {
            number: self._build(number, context)
            for number, (name, _) in enumerate(self._named)
            if name not in NEED_PAIR
        }

    def _build(self, number: int, context: JudgeContext) -> Judge:
        name, values = self._named[number]
        return judge_by_name(name, context, **values)

    @contextmanager
    def with_pair(self, pair: Pair) -> Iterator[list[Judge]]:
        """Yield all of them, and close those that hold a model of their own."""
        context = replace(self._context, pair=pair)
        with ExitStack() as stack:
            judges = []
            for number in range(len(self._named)):
                judge = self._early.get(number) or self._build(number, context)
                if close := getattr(judge, "close", None):
                    stack.callback(close)
                judges.append(judge)
            yield judges
