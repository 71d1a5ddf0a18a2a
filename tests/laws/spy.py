"""A router that only looks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Spy:
    """Keeps the features of every token and sends all of them to the large model."""

    name, parameters = "spy", 0

    def __init__(self, inputs: tuple[str, ...]) -> None:
        self.inputs = inputs
        self.seen: list[Mapping[str, Tensor]] = []

    def score(self, features: Mapping[str, Tensor]) -> Tensor:
        self.seen.append(dict(features))
        return torch.ones(len(next(iter(features.values()))))
