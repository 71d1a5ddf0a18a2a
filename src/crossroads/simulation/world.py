"""A world whose labels are drawn from a known probability of the stored router inputs.

At every position two numbers decide: x, the log-odds that the small model gives to all tokens but
its best, and v, the hidden state's component along one fixed direction. With
q(v) = v + 0.3 (v^2 - 1),

    P(mismatch | inputs)            = sigmoid(a + 1.0 x + 0.8 q(v))
    P(divergent | mismatch, inputs) = sigmoid(b + 0.3 x + 1.2 q(v))

and everything else that is stored (other hidden components, ids, embeddings, scale of the logits)
is drawn without a look at the labels. Both numbers are read off the *stored*, rounded tensors
before labels are drawn, so the product of the two is exactly P(divergent | all inputs): the
Bayes-optimal score, which no router beats but by luck. Problems differ in difficulty and positions
of a problem resemble each other (an autoregressive process), so tokens come in clusters as real
ones do; given the inputs, labels are independent.

Shapes: N positions of a problem, K top entries, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from crossroads.dataset import Comparison
from crossroads.errors import ConfigError
from crossroads.models.base import StepOutput
from crossroads.routing.features import TOP_K, stored_logprobs
from crossroads.simulation.outputs import (
    FEWEST_OTHERS,
    MOST_OTHERS,
    compared,
    distribution,
    sigmoid,
)
from crossroads.splits import SplitShares
from crossroads.types import Label

_CALIBRATION_DRAWS = 100_000

# Mean of x, and the deviations of x and v between problems and between positions of one.
_X_LEVEL, _X_PROBLEM, _X_POSITION = -4.5, 0.5, 2.2
_V_PROBLEM, _V_POSITION = 0.3, 0.95


@dataclass(frozen=True, slots=True)
class SimulationConfig:
    """What is simulated. Rates are R2R's by default (arXiv 2505.21600: 89 / 6 / 5 %).

    domains: share of the problems and, through `domain_shift`, how much harder each next domain is
    (in log-odds of the small model's uncertainty). faults: names of simulation.faults.FAULTS, with
    a strength after an equals sign where the default is not wanted (`label_noise=0.1`).
    """

    problems: int = 60
    tokens_per_problem: int = 150
    hidden_size: int = 32
    vocab_size: int = 500
    mismatch_rate: float = 0.11
    divergent_rate: float = 0.05
    domains: Mapping[str, float] = field(
        default_factory=lambda: {"math": 0.5, "code": 0.25, "qa": 0.25}
    )
    domain_shift: float = 0.4
    shares: SplitShares = SplitShares()  # noqa: RUF009  frozen
    seed: int = 0
    faults: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a world that cannot be.

        Raises:
            ConfigError: names the field.
        """
        if self.problems < 10 or self.tokens_per_problem < 5:
            raise ConfigError(
                "a simulation needs at least 10 problems of 5 tokens, got "
                f"{self.problems} of {self.tokens_per_problem}"
            )
        if self.hidden_size < 8 or self.vocab_size <= TOP_K + 1:
            raise ConfigError(
                f"a simulation needs a hidden size of at least 8 and more than {TOP_K + 1} tokens, "
                f"got {self.hidden_size} and {self.vocab_size}"
            )
        if not 0 < self.divergent_rate < self.mismatch_rate < 1:
            raise ConfigError(
                "rates must satisfy 0 < divergent < mismatch < 1, got "
                f"{self.divergent_rate} and {self.mismatch_rate}"
            )
        if not self.domains or min(self.domains.values()) <= 0:
            raise ConfigError(f"every domain needs a positive share, got {dict(self.domains)}")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the small model put out on one problem, rounded as it will be stored."""

    step: StepOutput
    x_N: np.ndarray
    v_N: np.ndarray


@dataclass(frozen=True, slots=True)
class Drawn:
    """One problem with its labels and their true probabilities."""

    comparison: Comparison
    label_N: np.ndarray
    mismatch_N: np.ndarray
    divergent_N: np.ndarray


class World:
    """The laws of one simulation; `intercepts` make its rates those of the config."""

    def __init__(self, config: SimulationConfig) -> None:
        """Find the intercepts."""
        self.config = config
        half = config.hidden_size // 2
        direction = np.random.default_rng([config.seed, 1]).standard_normal(half)
        # v lives in the first half of the hidden state only, so that whatever happens to the scale
        # of the other half, the half precision of v stays the same.
        self.direction_H = np.zeros(config.hidden_size)
        self.direction_H[:half] = direction / np.linalg.norm(direction)
        self.mismatch_intercept, self.divergent_intercept = self._intercepts()

    def probabilities(
        self, x_N: np.ndarray, v_N: np.ndarray, shift: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return P(mismatch) and P(divergent); `shift` moves the log-odds of both steps."""
        q_N = v_N + 0.3 * (v_N**2 - 1)
        mismatch_N = sigmoid(self.mismatch_intercept + x_N + 0.8 * q_N + shift)
        given_N = sigmoid(self.divergent_intercept + 0.3 * x_N + 1.2 * q_N + shift)
        return mismatch_N, mismatch_N * given_N

    def inputs(self, problem: int, domain: int) -> Inputs:
        """Return one problem's outputs; the same problem always has the same."""
        config = self.config
        generator = np.random.default_rng([config.seed, 2, problem])
        x_N, v_N = self._coordinates(generator, config.tokens_per_problem, domain)
        logprob_NK, entropy_N = distribution(x_N, config.vocab_size)
        hidden_NH = self._hidden(generator, v_N)
        first_N = generator.integers(config.vocab_size, size=len(x_N))
        ids_NK = (first_N[:, None] + np.arange(TOP_K)) % config.vocab_size
        stored_NK = torch.from_numpy(logprob_NK).to(torch.float16)
        logsumexp_N = torch.from_numpy(generator.normal(20.0, 2.0, len(x_N))).float()
        step = StepOutput(
            row_lengths=(len(x_N),),
            top_ids_NK=torch.from_numpy(ids_NK),
            top_logits_NK=stored_NK.float() + logsumexp_N[:, None],
            logsumexp_N=logsumexp_N,
            entropy_N=torch.from_numpy(entropy_N).float(),
            hidden_NH=torch.from_numpy(hidden_NH),
        )
        return Inputs(step, *self.read(stored_logprobs(step), hidden_NH))

    def read(self, logprob_NK: Tensor, hidden_NH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and v of stored tensors: all that labels depend on."""
        best_N = logprob_NK[:, 0].double().numpy()
        others_N = np.clip(-np.expm1(best_N), FEWEST_OTHERS, MOST_OTHERS)
        return np.log(others_N / (1 - others_N)), hidden_NH.astype(np.float64) @ self.direction_H

    def draw(self, problem: int, domain: int, shift: float = 0.0) -> Drawn:
        """Return one problem with labels."""
        inputs = self.inputs(problem, domain)
        generator = np.random.default_rng([self.config.seed, 3, problem])
        mismatch_N, divergent_N = self.probabilities(inputs.x_N, inputs.v_N, shift)
        draw_N = generator.random(len(mismatch_N))
        label_N = np.where(
            draw_N < divergent_N,
            Label.DIVERGENT,
            np.where(draw_N < mismatch_N, Label.NEUTRAL, Label.IDENTICAL),
        ).astype(np.uint8)
        comparison = compared(inputs.step, label_N, generator)
        return Drawn(comparison, label_N, mismatch_N, divergent_N)

    def population(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return P(mismatch) and P(divergent) at `count` positions, each of another problem.

        At one position an autoregressive series is just a normal number, so none is followed.
        """
        config = self.config
        generator = np.random.default_rng([config.seed, 9])
        shares = np.array(list(config.domains.values()))
        domain_N = generator.choice(len(shares), size=count, p=shares / shares.sum())
        spread_x, spread_v = (
            math.hypot(_X_PROBLEM, _X_POSITION),
            math.hypot(_V_PROBLEM, _V_POSITION),
        )
        x_N = (
            _X_LEVEL + config.domain_shift * domain_N + spread_x * generator.standard_normal(count)
        )
        v_N = spread_v * generator.standard_normal(count)
        lowest, highest = _log_odds(FEWEST_OTHERS), _log_odds(MOST_OTHERS)
        return self.probabilities(np.clip(x_N, lowest, highest), v_N)

    def _coordinates(
        self, generator: np.random.Generator, count: int, domain: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return x and v before rounding: a problem's own level, and what lingers."""
        level = _X_LEVEL + _X_PROBLEM * generator.standard_normal()
        level += self.config.domain_shift * domain
        x_N = level + _X_POSITION * _lingering(generator, count, 0.3)
        mean = _V_PROBLEM * generator.standard_normal()
        v_N = mean + _V_POSITION * _lingering(generator, count, 0.2)
        return x_N, v_N

    def _hidden(self, generator: np.random.Generator, v_N: np.ndarray) -> np.ndarray:
        """Return hidden states whose component along the direction is v, in half precision."""
        noise_NH = 2.0 * generator.standard_normal((len(v_N), self.config.hidden_size))
        noise_NH -= (noise_NH @ self.direction_H)[:, None] * self.direction_H
        whole_NH = noise_NH + v_N[:, None] * self.direction_H
        rounded: np.ndarray = whole_NH.astype(np.float16).astype(np.float32)
        return rounded

    def _intercepts(self) -> tuple[float, float]:
        config = self.config
        generator = np.random.default_rng([config.seed, 4])
        shares = np.array(list(config.domains.values()))
        parts = [
            self._coordinates(
                generator, 100, int(generator.choice(len(shares), p=shares / shares.sum()))
            )
            for _ in range(_CALIBRATION_DRAWS // 100)
        ]
        x_N, v_N = (np.concatenate(values) for values in zip(*parts, strict=True))
        x_N, q_N = np.minimum(x_N, _log_odds(MOST_OTHERS)), v_N + 0.3 * (v_N**2 - 1)
        a = _solve(lambda a: float(sigmoid(a + x_N + 0.8 * q_N).mean()), config.mismatch_rate)
        mismatch_N = sigmoid(a + x_N + 0.8 * q_N)
        b = _solve(
            lambda b: float((mismatch_N * sigmoid(b + 0.3 * x_N + 1.2 * q_N)).mean()),
            config.divergent_rate,
        )
        return a, b


def _lingering(generator: np.random.Generator, count: int, memory: float) -> np.ndarray:
    """Return a stationary autoregressive series of unit variance."""
    noise_N = generator.standard_normal(count)
    series_N = np.empty(count)
    series_N[0] = noise_N[0]
    for i in range(1, count):
        series_N[i] = memory * series_N[i - 1] + math.sqrt(1 - memory**2) * noise_N[i]
    return series_N


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _solve(rate_of: Callable[[float], float], wanted: float) -> float:
    """Return where the increasing function `rate_of` reaches `wanted`, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rate_of(middle) < wanted else (low, middle)
    return (low + high) / 2
