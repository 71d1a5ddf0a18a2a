"""Routers that come with the package: one folder per pair, named after it."""

from __future__ import annotations

from pathlib import Path

from crossroads.routing.checkpoint import LoadedRouter, load_router
from crossroads.types import ModelInfo

PRETRAINED = Path(__file__).parent.parent / "pretrained"


def find_pretrained(small: ModelInfo, large: ModelInfo) -> LoadedRouter | None:
    """Return the package's router for exactly these two models; None where it has none.

    Raises:
        RouterError: the package's file is damaged.
    """
    for card in sorted(PRETRAINED.glob("*/router.json")):
        loaded = load_router(card.parent)
        wanted = (loaded.card.small.fingerprint, loaded.card.large_fingerprint)
        if (small.fingerprint, large.fingerprint) == wanted:
            return load_router(card.parent, small)
    return None
