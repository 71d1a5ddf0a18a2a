"""What can be wrong with labelled data, as switches: each leaves a dataset that opens cleanly.

A fault changes the problems that are about to be written; what it changed is marked, so that a
diagnosis can be checked against the truth. Shapes: N positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from crossroads.errors import ConfigError
from crossroads.names import nearest
from crossroads.simulation.outputs import with_mismatches
from crossroads.simulation.world import Drawn, World
from crossroads.types import Label, Split


@dataclass(frozen=True, slots=True)
class Planned:
    """One response that will be written. `source` is the number of the problem it is drawn from."""

    source: int
    problem_id: str
    domain: int
    split: Split
    sample: int = 0

    @property
    def key(self) -> str:
        """What names the response."""
        return f"{self.problem_id}#{self.sample}"


@dataclass(frozen=True, slots=True)
class Fault:
    """What a fault does, to the plan or to a drawn response, and how strong it is by default.

    meaning: what the strength is. plan(plans, strength, generator) returns the changed plan.
    change(world, drawn, strength, generator) returns the changed response. shifts_test: the labels
    of the test split are drawn with log-odds that lie `strength` above the others'. most: the
    largest strength that makes sense. whole: it is a whole number.
    """

    does: str
    strength: float
    meaning: str
    most: float
    plan: Callable[[list[Planned], float, np.random.Generator], list[Planned]] | None = None
    change: Callable[[World, Drawn, float, np.random.Generator], Drawn] | None = None
    shifts_test: bool = False
    whole: bool = False


def _shifted(world: World, drawn: Drawn, strength: float, _: np.random.Generator) -> Drawn:
    """Give each position the hidden state of `strength` positions before it."""
    by, tokens = round(strength), world.config.tokens_per_problem
    if by >= tokens:
        raise ConfigError(
            f"a shift of shifted_features by {by} positions needs longer problems than {tokens} "
            "tokens; give a smaller strength"
        )
    hidden_NH = drawn.comparison.step.hidden_NH
    assert hidden_NH is not None
    moved_NH = torch.roll(hidden_NH, by, dims=0)
    moved_NH[:by] = hidden_NH[:by]
    step = replace(drawn.comparison.step, hidden_NH=moved_NH)
    return replace(drawn, comparison=replace(drawn.comparison, step=step))


def _noisy(world: World, drawn: Drawn, strength: float, generator: np.random.Generator) -> Drawn:
    """Call identical positions divergent where the small model is certain.

    As many as `strength` times the expected divergent ones. The text has another token there than
    the small model's, and the large model finds the small one's likely: no real divergence.
    """
    certain_N = (drawn.label_N == Label.IDENTICAL) & (
        drawn.comparison.step.entropy_N.numpy() < _CERTAIN_NATS
    )
    wanted = generator.poisson(strength * world.config.divergent_rate * len(drawn.label_N))
    chosen = generator.permutation(np.flatnonzero(certain_N))[:wanted]
    label_N = drawn.label_N.copy()
    label_N[chosen] = Label.DIVERGENT
    small_n = 0.35 + 0.1 * generator.random(len(chosen))
    comparison = with_mismatches(drawn.comparison, chosen, small_n, 0.95 - small_n)
    return replace(drawn, comparison=comparison, label_N=label_N)


_CERTAIN_NATS = 0.1


def _unscaled(world: World, drawn: Drawn, strength: float, _: np.random.Generator) -> Drawn:
    """Blow up the half of the hidden state that says nothing about the label."""
    hidden_NH = drawn.comparison.step.hidden_NH
    assert hidden_NH is not None
    scaled_NH = hidden_NH.clone()
    half = world.config.hidden_size // 2
    scaled_NH[:, half:] = (scaled_NH[:, half:] * strength).clamp(-60000.0, 60000.0)
    step = replace(drawn.comparison.step, hidden_NH=scaled_NH.half().float())
    return replace(drawn, comparison=replace(drawn.comparison, step=step))


def _leaked(plans: list[Planned], share: float, generator: np.random.Generator) -> list[Planned]:
    """Put copies of that share of the calibration and test problems into train, by other ids."""
    held_out = [plan for plan in plans if plan.split != Split.TRAIN]
    chosen = generator.permutation(len(held_out))[: round(share * len(held_out))]
    copies = [
        replace(held_out[i], problem_id=f"{held_out[i].problem_id}-again", split=Split.TRAIN)
        for i in sorted(chosen)
    ]
    return [*plans, *copies]


_COPIES = 10


def _duplicated(
    plans: list[Planned], share: float, generator: np.random.Generator
) -> list[Planned]:
    """Repeat that share of each split's responses as further samples of their problems."""
    found = []
    for split in Split:
        own = [plan for plan in plans if plan.split == split]
        count = max(1, round(share * len(own)))
        repeated = set(generator.permutation(len(own))[:count].tolist())
        for number, plan in enumerate(own):
            samples = 1 + (_COPIES if number in repeated else 0)
            found += [replace(plan, sample=sample) for sample in range(samples)]
    return found


FAULTS: Mapping[str, Fault] = {
    "shifted_features": Fault(
        "hidden states stand beside the labels of later positions",
        1.0,
        "positions of the shift",
        most=1000.0,
        change=_shifted,
        whole=True,
    ),
    "label_noise": Fault(
        "identical tokens of which the small model is certain are labelled divergent",
        0.1,
        "false positives per true one",
        most=10.0,
        change=_noisy,
    ),
    "leaked_problems": Fault(
        "problems of calibration and test are also in train, under other ids",
        0.5,
        "share of them",
        most=1.0,
        plan=_leaked,
    ),
    "duplicated_rows": Fault(
        f"some responses are there {_COPIES + 1} times",
        0.1,
        "share of the responses",
        most=1.0,
        plan=_duplicated,
    ),
    "unscaled_features": Fault(
        "half of the hidden state is orders of magnitude larger than the rest",
        1000.0,
        "factor",
        most=10_000.0,
        change=_unscaled,
    ),
    "changed_base_rate": Fault(
        "the test split has other base rates than train and calibration",
        1.5,
        "shift of the log-odds",
        most=10.0,
        shifts_test=True,
    ),
}


def parse_faults(texts: tuple[str, ...]) -> dict[str, float]:
    """Return strengths by name of `NAME` or `NAME=STRENGTH` texts.

    Raises:
        ConfigError: unknown name, or a strength that is no number or out of range.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in FAULTS:
            raise ConfigError(f"unknown fault {name!r}; {nearest(name, FAULTS)}")
        found[name] = _strength(name, value) if equals else FAULTS[name].strength
    return found


def _strength(name: str, value: str) -> float:
    fault = FAULTS[name]
    try:
        strength = float(value)
    except ValueError as error:
        raise ConfigError(f"the strength of {name} must be a number, got {value!r}") from error
    if not 0 < strength <= fault.most:
        raise ConfigError(
            f"the strength of {name} ({fault.meaning}) must be a positive number up to "
            f"{fault.most:g}, got {value!r}"
        )
    if fault.whole and not strength.is_integer():
        raise ConfigError(
            f"the strength of {name} ({fault.meaning}) must be a whole number, got {value!r}"
        )
    return strength
