"""Policies: what they do to a row's scores, beside R2R's definitions of the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import RequestError
from crossroads.routing.policy import (
    IMMEDIATE,
    POLICIES,
    Momentum,
    Policy,
    RollingWindow,
    decide,
    policy_by_name,
    sends_to_large,
)

SCORES = st.lists(st.floats(0, 1), max_size=40)
POLICY = st.sampled_from([IMMEDIATE, Momentum(), Momentum(0.5, 0.2, 0.9), RollingWindow(4)])


def decisions(policy: Policy, scores: list[float], threshold: float) -> list[bool]:
    state, found = policy.start(), []
    for score in scores:
        decision = decide(policy, state, score, threshold)
        found.append(decision.to_large)
        state = decision.state
    return found


@given(scores=SCORES, policy=POLICY)
def test_at_its_ends_a_threshold_decides_alone(scores: list[float], policy: Policy) -> None:
    assert decisions(policy, scores, 0.0) == [True] * len(scores)
    assert decisions(policy, scores, 1.5) == [False] * len(scores)


@given(scores=SCORES, threshold=st.floats(0.01, 1), policy=POLICY)
def test_a_decision_depends_on_no_later_score(
    scores: list[float], threshold: float, policy: Policy
) -> None:
    whole = decisions(policy, scores, threshold)
    for length in range(len(scores)):
        assert decisions(policy, scores[:length], threshold) == whole[:length]


@given(scores=SCORES, threshold=st.floats(0.01, 1))
def test_immediate_is_the_rule(scores: list[float], threshold: float) -> None:
    expected = [sends_to_large(score, threshold) for score in scores]
    assert decisions(IMMEDIATE, scores, threshold) == expected
    assert decisions(RollingWindow(1), scores, threshold) == expected


@given(scores=SCORES, threshold=st.floats(0.01, 1), size=st.integers(1, 5))
def test_a_rolling_window_takes_over_at_once_and_gives_back_by_its_mean(
    scores: list[float], threshold: float, size: int
) -> None:
    window: list[float] = []
    for score, large in zip(scores, decisions(RollingWindow(size), scores, threshold), strict=True):
        window = [*window, score][-size:]
        assert large == (sum(window) / len(window) >= threshold)
        window = window if large else []


def test_momentum_changes_sides_late_and_comes_back_late() -> None:
    hard, easy = [0.9] * 6, [0.1] * 8
    # Ease 0.70, 0.49, 0.34, 0.24, 0.17, 0.12, then 0.38, 0.57, 0.70 and 0.79.
    expected = [False] * 3 + [True] * 6 + [False] * 5
    assert decisions(Momentum(), [*hard, *easy], 0.5) == expected


def test_policies_are_read_by_name() -> None:
    assert policy_by_name("immediate") == IMMEDIATE
    assert policy_by_name("momentum:factor=0.5,to_small=0.8") == Momentum(0.5, 0.3, 0.8)
    assert policy_by_name("rolling:size=5") == RollingWindow(5)
    assert set(POLICIES) == {"immediate", "momentum", "rolling"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("momentun", "unknown policy 'momentun'; did you mean 'momentum'"),
        ("rolling:size=0", "rolling's size must be a whole number >= 1, got 0"),
        ("rolling:width=3", "cannot read the policy 'rolling:width=3'"),
        ("momentum:factor=x", "cannot read the policy"),
        ("momentum:factor=2", r"momentum's factor must be in \[0, 1\], got 2"),
        ("momentum:to_large=0.8", "to_large .* must not be above its to_small"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        policy_by_name(text)
