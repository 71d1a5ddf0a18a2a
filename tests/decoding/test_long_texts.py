"""Long texts are read in parts: nothing changes but that other rows need not wait for them."""

from __future__ import annotations

import dataclasses

import pytest

from crossroads.decoding import reading
from crossroads.decoding.mixed import MixedLoop, MixedModels
from crossroads.decoding.request import Request
from crossroads.decoding.single import SingleLoop
from crossroads.models.pairs import Pair
from crossroads.models.scripted import ScriptedLM, ScriptedTokenizer, hashed_logits
from crossroads.routing.routers.heuristics import entropy
from crossroads.types import FinishReason, Role, Trace
from laws.pairs import VOCAB, alone, mixed, random_requests, scripted_pair

PART = 4
PROMPT = tuple(range(1, 31))
"""Read in eight calls: seven parts, and what is left with the first token."""


def endless_pair() -> Pair:
    """Return models that never end a row by themselves."""

    def model(seed: int) -> ScriptedLM:
        return ScriptedLM(lambda prefix: hashed_logits(seed, prefix, VOCAB), VOCAB, eos_ids=())

    small, large = model(1), model(2)
    return Pair("endless", small, large, ScriptedTokenizer(VOCAB))


def timeless(traces: list[Trace]) -> list[Trace]:
    return [
        dataclasses.replace(
            trace, records=tuple(dataclasses.replace(r, seconds=0.0) for r in trace.records)
        )
        for trace in traces
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("revise_below", [0.0, 0.1])
def test_traces_are_those_of_one_call(
    threshold: float, temperature: float, revise_below: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        dataclasses.replace(r, prompt_ids=r.prompt_ids * n, revise_below=revise_below, logprobs=2)
        for n, r in enumerate(random_requests(8, 3, temperature), start=1)
    ]
    pair = scripted_pair()
    expected = timeless(mixed(pair, requests, threshold))
    expected_alone = {role: timeless(alone(pair, role, requests)) for role in Role}
    monkeypatch.setattr(reading, "AT_ONCE", PART)
    parted = scripted_pair()
    assert timeless(mixed(parted, requests, threshold)) == expected
    for role in Role:
        assert timeless(alone(parted, role, requests)) == expected_alone[role]
    assert len(parted.small.calls) > len(pair.small.calls)  # type: ignore[attr-defined]


def loop_of(pair: Pair, threshold: float = 0.5) -> MixedLoop:
    models = MixedModels(pair.small, pair.large, entropy(VOCAB), pair.tokenizer, threshold)
    return MixedLoop(models)


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_long_texts_are_read_one_after_the_other_in_bounded_calls(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "AT_ONCE", PART)
    pair = endless_pair()
    loop = loop_of(pair, threshold)
    loop.add(Request((1, 2), max_tokens=100))
    first, second = (loop.add(Request((*PROMPT, i), max_tokens=1)) for i in range(2))
    began: dict[int, int] = {}
    for step in range(99):
        for event in loop.step():
            began.setdefault(event.row, step)
    loop.close()
    assert began[first] < began[second]
    for model in (pair.small, pair.large):
        calls: list[tuple[int, ...]] = model.calls  # type: ignore[attr-defined]
        assert max((sum(call) for call in calls), default=0) <= PART + 2


def test_the_short_row_gets_a_token_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "AT_ONCE", PART)
    loop = loop_of(endless_pair(), 2.0)
    short = loop.add(Request((1, 2), max_tokens=50))
    long = loop.add(Request(PROMPT, max_tokens=1))
    for _ in range(7):
        assert [event.row for event in loop.step()] == [short]
    assert [event.row for event in loop.step()] == [short, long]
    loop.close()


def test_the_lag_is_all_that_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "AT_ONCE", PART)
    pair = endless_pair()
    (trace,) = mixed(pair, [Request(PROMPT, max_tokens=3)], 0.0)
    assert [record.lag for record in trace.records] == [30, 1, 1]
    (trace,) = alone(pair, Role.LARGE, [Request(PROMPT, max_tokens=3)])
    assert [record.lag for record in trace.records] == [30, 1, 1]


@pytest.mark.parametrize("steps", [1, 7, 8, 9])
def test_a_row_that_is_cancelled_while_it_is_read_frees_its_caches(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "AT_ONCE", PART)
    pair = endless_pair()
    loops = (
        loop_of(pair, 0.0),
        SingleLoop(pair.large, Role.LARGE, pair.tokenizer),
    )
    for loop in loops:
        row = loop.add(Request(PROMPT, max_tokens=20))
        for _ in range(steps):
            loop.step()
        assert loop.cancel(row).finish_reason is FinishReason.CANCELLED
        assert (pair.small.alive, pair.large.alive) == (0, 0)  # type: ignore[attr-defined]
