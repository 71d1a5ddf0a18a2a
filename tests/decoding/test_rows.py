"""How a row ends: eos of either model, stop strings and ids, limits; and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from crossroads.decoding.cost import active_parameters
from crossroads.decoding.request import Request
from crossroads.errors import RequestError
from crossroads.models.pairs import Pair
from crossroads.models.scripted import Prefix, ScriptedLM, ScriptedTokenizer
from crossroads.training.threshold import NEVER
from crossroads.types import FinishReason, Role
from laws.pairs import alone, mixed, random_requests, scripted_pair


def writes(*tokens: int, eos: tuple[int, ...] = (0,), context: int = 100) -> ScriptedLM:
    """Return a model that writes `tokens` after a prompt of two tokens, then repeats the last."""

    def logits(prefix: Prefix) -> np.ndarray:
        one_V = np.zeros(64)
        one_V[tokens[min(max(len(prefix) - 2, 0), len(tokens) - 1)]] = 9.0
        return one_V

    return ScriptedLM(logits, 64, eos_ids=eos, context_length=context)


def pair_of(small: ScriptedLM, large: ScriptedLM) -> Pair:
    return Pair("pair", small, large, ScriptedTokenizer(64))


PROMPT = Request((5, 6), max_tokens=10)


@pytest.mark.parametrize("threshold", [0.0, NEVER])
def test_either_models_eos_ends_the_row(threshold: float) -> None:
    pair = pair_of(writes(7, 8, 50, eos=(50,)), writes(7, 9, 51, eos=(51,)))
    (trace,) = mixed(pair, [PROMPT], threshold)
    assert trace.finish_reason is FinishReason.EOS
    assert trace.token_ids == ((7, 9, 51) if threshold == 0 else (7, 8, 50))


def test_the_other_models_eos_counts_too() -> None:
    pair = pair_of(writes(7, 51, 8, eos=(50,)), writes(7, 9, eos=(51,)))
    (trace,) = mixed(pair, [PROMPT], NEVER)
    assert trace.token_ids == (7, 51)


def test_eos_adds_nothing_to_the_text() -> None:
    (trace,) = mixed(pair_of(writes(33, 34, 0), writes(33, 34, 0)), [PROMPT], NEVER)
    assert trace.text == "AB"
    assert len(trace.records) == 3


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [(("C",), "AB", 3), (("BC",), "A", 3), (("X", "CD", "BCD"), "A", 4), (("ABCDE",), "", 5)],
)
def test_a_stop_string_ends_the_row_and_is_cut_off(
    stop: tuple[str, ...], text: str, tokens: int
) -> None:
    model = writes(33, 34, 35, 36, 37, 38)
    request = dataclasses.replace(PROMPT, stop=stop)
    (trace,) = mixed(pair_of(model, model), [request], NEVER)
    assert (trace.text, len(trace.records)) == (text, tokens)
    assert trace.finish_reason is FinishReason.STOP


def test_a_stop_id_ends_the_row() -> None:
    model = writes(33, 34, 35)
    (trace,) = mixed(pair_of(model, model), [dataclasses.replace(PROMPT, stop_ids=(34,))], 0.0)
    assert trace.token_ids == (33, 34)
    assert trace.finish_reason is FinishReason.STOP


def test_max_tokens_and_the_smaller_context_end_the_row() -> None:
    model = writes(33)
    (trace,) = mixed(pair_of(model, model), [dataclasses.replace(PROMPT, max_tokens=4)], 0.5)
    assert (len(trace.records), trace.finish_reason) == (4, FinishReason.LENGTH)
    (trace,) = mixed(pair_of(writes(33), writes(33, context=7)), [PROMPT], NEVER)
    assert (len(trace.records), trace.finish_reason) == (5, FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": ()}, "the prompt is empty"),
        ({"prompt_ids": (1,) * 100}, "100 tokens and .* context holds 100"),
        ({"prompt_ids": (1, 64)}, "token id 64 is outside"),
        ({"prompt_ids": (1, -2)}, "token id -2 is outside"),
        ({"max_tokens": 0}, "max_tokens must be a whole number >= 1, got 0"),
        ({"stop": ("a", "")}, "stop string is empty"),
        ({"threshold": -0.1}, "threshold must be a number >= 0"),
        ({"threshold": float("nan")}, "threshold must be a number >= 0"),
        ({"threshold": float("inf")}, "threshold must be a number >= 0"),
        ({"threshold": "0.5"}, "threshold must be a number >= 0 .* got '0.5'"),
        ({"stop": "ab"}, "stop must be a list of strings, got 'ab'"),
        ({"stop": (1,)}, "stop must be a list of strings"),
        ({"stop_ids": ("a",)}, "stop_ids must be a list of token ids"),
        ({"large_budget": -1}, "large_budget must be a whole number >= 0, got -1"),
        ({"max_lag": -1}, "max_lag must be a whole number >= 0, got -1"),
        ({"max_lag": 1.5}, "max_lag must be a whole number >= 0, got 1.5"),
        ({"logprobs": 21}, "logprobs must be at most 20, got 21"),
        ({"revise_below": 1.5}, r"revise_below must be a probability in \[0, 1\], got 1.5"),
        ({"revise_below": float("nan")}, "revise_below must be a probability"),
        ({"revise_below": 0.1, "lossless": True}, "lossless has a rule of its own"),
        ({"large_budget": 3, "lossless": True}, "lossless cannot keep a large_budget"),
    ],
)
def test_a_request_that_cannot_be_served_is_one_sentence(
    change: dict[str, object], message: str
) -> None:
    pair = pair_of(writes(33), writes(33))
    with pytest.raises(RequestError, match=message):
        mixed(pair, [dataclasses.replace(PROMPT, **change)], 0.5)
    assert pair.small.alive == pair.large.alive == 0


def test_records_number_the_tokens_and_time_runs_forward() -> None:
    (trace,) = mixed(scripted_pair(), random_requests(1, 3), 0.6)
    assert [r.position for r in trace.records] == list(range(len(trace.records)))
    seconds = [r.seconds for r in trace.records]
    assert seconds == sorted(seconds)


def test_traces_survive_json() -> None:
    (trace,) = mixed(scripted_pair(), random_requests(1, 3), 0.6)
    assert type(trace).from_json(trace.to_json()) == trace


def test_a_model_alone_is_charged_for_its_own_tokens() -> None:
    pair, requests = scripted_pair(), random_requests(2, 5)
    for role in Role:
        for trace in alone(pair, role, requests):
            assert trace.usage.large_fraction == (1.0 if role is Role.LARGE else 0.0)


def test_active_parameters_of_the_ends_and_the_middle() -> None:
    pair, requests = scripted_pair(), random_requests(3, 5)
    (trace,) = mixed(pair, requests[:1], 0.6)
    expected = 10 + 1 + trace.usage.large_fraction * 100
    assert active_parameters(trace.records, 10, 100, 1) == pytest.approx(expected)
    for role, cost in ((Role.SMALL, 10), (Role.LARGE, 100)):
        (trace,) = alone(pair, role, requests[:1])
        assert active_parameters(trace.records, 10, 100, 1) == cost
    assert active_parameters((), 10, 100, 1) == 0
