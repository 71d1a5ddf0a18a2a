"""Sampling filters, and that draws follow the distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from crossroads.errors import RequestError
from crossroads.sampling import (
    SamplingParams,
    penalise,
    probabilities,
    row_generator,
    sample,
)
from crossroads.types import Role

LOGITS = torch.log(torch.tensor([0.5, 0.05, 0.3, 0.15]))


def test_no_filter_is_softmax_at_the_temperature() -> None:
    expected = torch.softmax(LOGITS.double() / 0.7, 0)
    assert torch.allclose(probabilities(LOGITS, SamplingParams(0.7)), expected)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(1.0, top_k=2), {0, 2}),
        (SamplingParams(1.0, top_p=0.5), {0}),
        (SamplingParams(1.0, top_p=0.51), {0, 2}),
        (SamplingParams(1.0, top_p=0.81), {0, 2, 3}),
        (SamplingParams(1.0, min_p=0.4), {0, 2}),
        (SamplingParams(1.0, top_k=3, min_p=0.5), {0, 2}),
        (SamplingParams(1.0, top_k=1), {0}),
    ],
)
def test_filters_keep_the_right_tokens(params: SamplingParams, kept: set[int]) -> None:
    found = probabilities(LOGITS, params)
    assert {int(i) for i in found.nonzero()[:, 0]} == kept
    inside = torch.tensor([i in kept for i in range(4)])
    expected = torch.where(inside, LOGITS.double().exp(), 0.0)
    assert torch.allclose(found, expected / expected.sum())


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    st.floats(0.05, 3),
    st.floats(0.01, 1),
    st.integers(0, 30),
    st.floats(0, 1),
)
def test_filtered_probabilities_sum_to_one(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    params = SamplingParams(temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    found = probabilities(torch.tensor(logits), params)
    assert float(found.sum()) == pytest.approx(1.0)
    assert float(found[int(torch.tensor(logits).double().argmax())]) > 0


def test_draws_follow_the_distribution() -> None:
    generator, params = row_generator(0, Role.SMALL), SamplingParams(1.0)
    counts = np.bincount([sample(0, LOGITS, params, generator) for _ in range(8000)], minlength=4)
    assert counts / 8000 == pytest.approx(LOGITS.exp().numpy(), abs=0.02)


def test_roles_have_streams_of_their_own() -> None:
    small, large = row_generator(5, Role.SMALL), row_generator(5, Role.LARGE)
    assert small.random() != large.random()


def test_greedy_draws_nothing() -> None:
    generator = row_generator(0, Role.SMALL)
    assert sample(7, None, SamplingParams(), generator) == 7
    assert generator.random() == row_generator(0, Role.SMALL).random()


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(bad))):
        SamplingParams(**bad)


PENALTIES = st.builds(
    SamplingParams,
    frequency_penalty=st.floats(-2, 2),
    presence_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.5, 2),
)
TOKENS = st.lists(st.integers(0, 7), max_size=30)


@example(
    SamplingParams(frequency_penalty=-1.9424933146343282, presence_penalty=-1.5),
    [6, 6], 0, [0.0] * 6 + [-5.5, 0.0],  # what is left of a difference shows how it was rounded
)  # fmt: skip
@given(PENALTIES, TOKENS, st.integers(0, 30), st.lists(st.floats(-9, 9), min_size=8, max_size=8))
def test_penalties_are_what_their_definitions_say(
    params: SamplingParams, tokens: list[int], prompt: int, logits: list[float]
) -> None:
    given_V = torch.tensor(logits, dtype=torch.float64)
    found_V = penalise(given_V, tokens, prompt, params)
    assert given_V.tolist() == logits, "the model's own logits are kept"
    for token, logit in enumerate(logits):
        expected = logit
        if token in tokens:
            rate = params.repetition_penalty
            expected = logit / rate if logit > 0 else logit * rate
        if count := tokens[prompt:].count(token):
            expected -= count * params.frequency_penalty + params.presence_penalty
        assert float(found_V[token]) == pytest.approx(expected)


def test_without_penalties_logits_are_left_alone() -> None:
    assert penalise(LOGITS, [1, 2], 0, SamplingParams(0.7)) is LOGITS


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e300])
def test_no_temperature_breaks_the_distribution(temperature: float) -> None:
    found = probabilities(torch.tensor([5.0, 3.0, -1e4]), SamplingParams(temperature))
    assert float(found.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("field", "value", "range_"),
    [
        ("frequency_penalty", 2.1, r"\[-2, 2\]"),
        ("presence_penalty", float("nan"), r"\[-2, 2\]"),
        ("repetition_penalty", 0.0, r"\[0.01, 100\]"),
    ],
)
def test_a_penalty_out_of_range_is_refused(field: str, value: float, range_: str) -> None:
    with pytest.raises(RequestError, match=f"{field} must be in {range_}"):
        SamplingParams(**{field: value})
