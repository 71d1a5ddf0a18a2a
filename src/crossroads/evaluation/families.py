"""Systems that are one router at several thresholds, and how figures tell them apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from crossroads.evaluation.folder import SystemEntry
from crossroads.evaluation.kinds import SystemKind

ALONE = (SystemKind.SMALL, SystemKind.LARGE)


@dataclass(frozen=True, slots=True)
class Family:
    """Systems of one router, in the order of the run. number: of its colour and marker."""

    label: str
    members: tuple[str, ...]
    number: int


def families(systems: Sequence[SystemEntry]) -> list[Family]:
    """Return the systems that use both models, those of one router together.

    A system without a router is a family of its own. The models alone are in none.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for system in systems:
        if system.kind not in ALONE:
            by_router = (system.router, "") if system.router is not None else ("", system.name)
            groups.setdefault(by_router, []).append(system.name)
    return [
        Family(_label(router, members), tuple(members), number)
        for number, ((router, _), members) in enumerate(groups.items())
    ]


def _label(router: str, members: Sequence[str]) -> str:
    """Return the members' common name, as in `entropy`, `entropy@0.2`; or the router's."""
    names = {re.split("[@~:]", member)[0] for member in members}
    return names.pop() if len(names) == 1 else router
