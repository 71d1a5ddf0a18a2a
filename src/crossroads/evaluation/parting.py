"""Where two systems' answers to the same problem part, and who wrote the tokens that differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from crossroads.evaluation.traces import LARGE_LETTERS


class Fork(StrEnum):
    """How two answers part, by the writers of the first token in which they differ.

    Up to there the texts are the same, so a model that is asked twice should write the same. Greedy
    BOTH_LARGE and BOTH_SMALL are rounding: what a model computes depends a little on how many
    tokens it reads at once. With a temperature they are chance, too.
    """

    SAME = "same"  # token for token
    SENT = "sent"  # the large model wrote for the first system, the small one for the other
    KEPT = "kept"  # the other way round
    BOTH_LARGE = "both_large"
    BOTH_SMALL = "both_small"
    ENDED = "ended"  # one answer ends where the other goes on


@dataclass(slots=True)
class Outcomes:
    """Pairs of answers. better: the first system's alone is correct; worse: the other's alone."""

    answers: int = 0
    better: int = 0
    worse: int = 0


@dataclass(frozen=True, slots=True)
class Parting:
    """`system`'s answers beside `other`'s to the same problems and samples."""

    system: str
    other: str
    by: Mapping[Fork, Outcomes] = field(default_factory=lambda: {fork: Outcomes() for fork in Fork})

    def add(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
        """Count one answer of each, packed as by `traces.page_answer`."""
        outcomes = self.by[fork_of(first, second)]
        outcomes.answers += 1
        outcomes.better += first["correct"] and not second["correct"]
        outcomes.worse += second["correct"] and not first["correct"]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "system": self.system,
            "other": self.other,
            **{fork.value: asdict(outcomes) for fork, outcomes in self.by.items()},
        }


def fork_of(first: Mapping[str, Any], second: Mapping[str, Any]) -> Fork:
    """Return how two packed answers part."""
    pairs = enumerate(zip(first["ids"], second["ids"], strict=False))
    at = next((place for place, (one, other) in pairs if one != other), None)
    if at is None:
        return Fork.SAME if len(first["ids"]) == len(second["ids"]) else Fork.ENDED
    if first["writers"][at] in LARGE_LETTERS:
        return Fork.BOTH_LARGE if second["writers"][at] in LARGE_LETTERS else Fork.SENT
    return Fork.KEPT if second["writers"][at] in LARGE_LETTERS else Fork.BOTH_SMALL


def partings(
    problems: Iterable[Sequence[Mapping[str, Any]]], systems: Sequence[str], routers: Sequence[str]
) -> list[Parting]:
    """Return every router's answers beside every other system's.

    Args:
        problems: of each problem all packed answers, whose `system` is a place in `systems`.
        systems: of the run, in its order.
        routers: those of them that are compared with all the others.
    """
    found = [Parting(router, other) for router in routers for other in systems if other != router]
    if not found:
        return []  # nothing is read
    place = {name: number for number, name in enumerate(systems)}
    for answers in problems:
        by_key = {(answer["system"], answer["sample"]): answer for answer in answers}
        samples = sorted({sample for _, sample in by_key})
        for parting in found:
            for sample in samples:
                first, second = (
                    by_key.get((place[name], sample)) for name in (parting.system, parting.other)
                )
                if first is not None and second is not None:
                    parting.add(first, second)
    return found
