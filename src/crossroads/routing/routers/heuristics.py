"""Routers without parameters: the baselines that every table shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heuristic:
    """A router that is one function of one or two features."""

    name: str
    inputs: tuple[str, ...]
    function: Callable[[Mapping[str, Tensor]], Tensor]
    parameters: int = 0

    def score(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return scores [N]."""
        return self.function(features).float().clamp(0.0, 1.0)


def entropy(vocab_size: int) -> Heuristic:
    """Return entropy over its maximum, log V: 0 for certainty, 1 for a uniform distribution."""
    largest = math.log(vocab_size)
    return Heuristic("entropy", ("entropy",), lambda f: f["entropy"][:, 0] / largest)


def max_probability(vocab_size: int) -> Heuristic:
    """Return 1 - the probability of the likeliest token."""
    del vocab_size
    return Heuristic(
        "max-probability", ("top_probability",), lambda f: 1 - f["top_probability"][:, 0]
    )


def margin(vocab_size: int) -> Heuristic:
    """Return 1 - (probability of the first token - probability of the second)."""
    del vocab_size
    return Heuristic("margin", ("margin",), lambda f: 1 - f["margin"][:, 0])


def always(vocab_size: int) -> Heuristic:
    """Return 1 everywhere: the large model alone, at any threshold up to 1."""
    del vocab_size
    return Heuristic("always", ("position",), lambda f: torch.ones(len(f["position"])))


def never(vocab_size: int) -> Heuristic:
    """Return 0 everywhere: the small model alone, at any threshold above 0."""
    del vocab_size
    return Heuristic("never", ("position",), lambda f: torch.zeros(len(f["position"])))


def random(vocab_size: int, seed: int = 0) -> Heuristic:
    """Return uniform scores that depend on (seed, position, proposed token) alone.

    A hash rather than a generator: a row's scores are the same in any batch and after a resume.
    """
    del vocab_size
    return Heuristic(
        "random",
        ("position", "proposed_id"),
        lambda f: _uniform(f["position"][:, 0], f["proposed_id"][:, 0], seed),
    )


def _uniform(position_N: Tensor, token_N: Tensor, seed: int) -> Tensor:
    """Return a hash of the three numbers, as float in [0, 1).

    The mixing step is the finaliser of SplitMix64 (Steele et al. 2014), reduced to 31-bit state
    so that int64 products never overflow.
    """
    mask = (1 << 31) - 1
    state_N = (position_N * 1_000_003 + token_N * 7_919 + seed * 104_729 + 12_345) & mask
    for multiplier in (0x45D9F3B, 0x2C1B3C6D, 0x297A2D39):
        state_N = ((state_N ^ (state_N >> 15)) * multiplier) & mask
        state_N = state_N ^ (state_N >> 13)
    return (state_N >> 7).float() / float(1 << 24)


HEURISTICS: Mapping[str, Callable[[int], Heuristic]] = {
    "entropy": entropy,
    "margin": margin,
    "max-probability": max_probability,
    "random": random,
    "always": always,
    "never": never,
}
