"""Which router a user means by a name, a folder or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossroads.errors import RouterError
from crossroads.routing.checkpoint import RouterCard, load_router, router_by_name
from crossroads.routing.pretrained import find_pretrained
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import HEURISTICS
from crossroads.types import ModelInfo

HEURISTIC_THRESHOLD = 0.15
"""Where a heuristic routes unless the user says otherwise."""


@dataclass(frozen=True, slots=True)
class ChosenRouter:
    """A router, its own threshold, and its card if it was trained."""

    router: Router
    threshold: float
    card: RouterCard | None = None


def choose_router(name: str | None, small: ModelInfo, large: ModelInfo) -> ChosenRouter:
    """Return the router that `name` stands for.

    Args:
        name: a router folder, `pretrained`, a heuristic's name; None takes the package's router
            for these two models, or entropy where it has none.
        small: the small model.
        large: the large model.

    Raises:
        RouterError: there is no such router, or it was trained for another model.
    """
    if name in (None, "pretrained"):
        found = find_pretrained(small, large)
        if found is not None:
            return ChosenRouter(found.router, found.card.threshold, found.card)
        if name is not None:
            raise RouterError(
                f"the package has no router for {small.name} and {large.name}; "
                "train one, or give --router entropy"
            )
    chosen = name or "entropy"
    if chosen in HEURISTICS:
        return ChosenRouter(router_by_name(chosen, small.vocab_size), HEURISTIC_THRESHOLD)
    loaded = load_router(Path(chosen), small)
    return ChosenRouter(loaded.router, loaded.card.threshold, loaded.card)
