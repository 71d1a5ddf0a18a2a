"""The interface of every router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Router(Protocol):
    """Features to a score. Pure: the same features give the same scores, in any batch."""

    @property
    def name(self) -> str:
        """The router's type, as in the registry."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the features it reads, from routing.features.FEATURES."""

    @property
    def parameters(self) -> int:
        """Numbers that take part in one score; 0 for heuristics."""

    def score(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return scores [N] in [0, 1], float32; higher means more likely divergent."""
