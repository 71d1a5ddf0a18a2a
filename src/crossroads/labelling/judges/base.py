"""What decides whether a mismatch is neutral or divergent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from crossroads.labelling.records import Case
from crossroads.models.pairs import Pair


@dataclass(frozen=True, slots=True)
class Verdict:
    """`divergent` is None when the judge failed, with the reason; a failure is never a 0.

    `probability` in [0, 1], where the judge has one: how likely, or in which share of its samples,
    the mismatch is divergent. `reason` says in a few words how the verdict came about.
    """

    divergent: bool | None
    probability: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one case."""

    case_id: str
    verdict: Verdict


class Judge(Protocol):
    """Verdicts on mismatches. `settings` is all that its verdicts depend on, and no secret."""

    @property
    def name(self) -> str:
        """The judge's name in the registry."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Plain JSON values, stored with the labels."""

    @property
    def needs_continuations(self) -> bool:
        """Whether it looks at `Case.continuations`."""

    def judge(self, cases: Iterable[Case]) -> Iterator[Judgement]:
        """Yield one judgement per case, in any order, as they are ready.

        Cases are taken as they are needed, never all at once: a run may have millions.

        Raises:
            EngineError: what the judge works with is gone (an endpoint that is down), so that
                every further case would fail; the run stops, and goes on from there later.
        """


@dataclass(frozen=True, slots=True)
class JudgeContext:
    """What a judge may be built with: the pair of the run, and how many rows may run at once.

    `pair` is None where no model is loaded; `cache` is a folder for replies of remote judges.
    """

    pair: Pair | None = None
    max_rows: int = 16
    cache: Path | None = None


def failed(case: Case, reason: str) -> Judgement:
    """Return the judgement of a judge that could not judge."""
    return Judgement(case.id, Verdict(None, None, reason))
