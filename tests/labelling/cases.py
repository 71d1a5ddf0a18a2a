"""Cases for judges, a small one by default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossroads.labelling.records import Case, Mismatch, Response, Span
from crossroads.types import FinishReason, Message, Problem


def span(text: str) -> Span:
    return Span(tuple(range(1, 1 + len(text.split()))), text)


def case(
    position: int = 3,
    *,
    question: str = "What is 3 times 4?",
    reference: str = " 12, which is the answer.",
    continuations: Sequence[str] = (" twelve, which is the answer.",),
    **changes: Any,
) -> Case:
    """Return a case at `position`; `changes` replace whole fields of it."""
    problem = Problem("p1", (Message("user", question),))
    fields: dict[str, Any] = {
        "problem": problem,
        "response": Response("p1", 0, "default", (1, 2), (5,) * 40, FinishReason.EOS, "a" * 40),
        "mismatch": Mismatch(position, 5, 6, -0.1, -2.0, -0.1),
        "context": "Three times four is",
        "reference": span(reference),
        "continuations": tuple(map(span, continuations)),
    }
    return Case(**{**fields, **changes})


def cases(count: int, **changes: Any) -> list[Case]:
    """Return cases at different positions whose texts differ too."""
    return [case(i, context=f"Line {i}: three times four is", **changes) for i in range(count)]
