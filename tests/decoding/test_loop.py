"""Rows that come, go, wait and fail, in any order: none of them changes another."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.decoding.mixed import MixedLoop, MixedModels, generate
from crossroads.decoding.reading import Event
from crossroads.decoding.request import Request
from crossroads.errors import EngineError
from crossroads.models.pairs import Pair
from crossroads.routing.policy import Momentum
from crossroads.routing.routers.heuristics import entropy
from crossroads.types import FinishReason, Role, Trace
from laws.pairs import VOCAB, mixed, random_requests, scripted_pair

MIDDLE = 0.65


def models_of(pair: Pair, threshold: float = MIDDLE) -> MixedModels:
    return MixedModels(pair.small, pair.large, entropy(VOCAB), pair.tokenizer, threshold)


def of_every_kind(count: int, seed: int) -> list[Request]:
    """Return requests that differ in everything that a request can say."""
    generator = np.random.default_rng(seed)
    kinds: list[dict[str, Any]] = [
        {},
        {"lossless": True, "max_lag": 5},
        {"revise_below": 0.2},
        {"policy": Momentum(), "large_budget": 4},
        {"max_lag": 3, "logprobs": 2},
        {"threshold": 0.5, "lossless": True},
    ]
    plain = random_requests(count, seed) + random_requests(count, seed + 1, 0.9)
    return [
        dataclasses.replace(request, **kinds[int(generator.integers(len(kinds)))])
        for request in plain[::2]
    ]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), overlap=st.booleans())
def test_any_order_of_joins_steps_and_cancels_gives_each_row_its_own_tokens(
    seed: int, overlap: bool
) -> None:
    pair, requests = scripted_pair(max_rows=4), of_every_kind(8, seed)
    # Not hypothesis's own choices: with overlap, how many steps there are is a matter of time.
    generator = np.random.default_rng(seed)
    expected = [mixed(scripted_pair(), [request], MIDDLE)[0] for request in requests]
    loop = MixedLoop(models_of(pair), overlap=overlap)
    waiting, number_of = list(enumerate(requests)), {}
    finished: dict[int, Trace] = {}
    told: dict[int, list[int]] = {}
    while waiting or loop.active:
        move = generator.choice(["join", "cancel", *["step"] * 8])
        if move == "join" and waiting and loop.room:
            number, request = waiting.pop()
            number_of[loop.add(request)] = number
        elif move == "cancel" and loop.active and generator.random() < 0.2:
            row = int(generator.choice(sorted(loop._rows)))
            finished[number_of[row]] = loop.cancel(row)
        else:
            for event in loop.step():
                told.setdefault(number_of[event.row], []).append(event.record.token_id)
                if event.trace is not None:
                    finished[number_of[event.row]] = event.trace
    loop.close()
    assert pair.small.alive == pair.large.alive == 0
    for number, trace in finished.items():
        ids = trace.token_ids
        assert ids == expected[number].token_ids[: len(ids)]
        assert tuple(told.get(number, [])) == ids
        if trace.finish_reason is not FinishReason.CANCELLED:
            assert len(ids) == len(expected[number].token_ids)
            assert trace.usage == expected[number].usage


class Slow:
    """A large model that answers only when it is told to."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.go = threading.Event()
        self.started = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def extend(self, *arguments: Any) -> Any:
        self.started.set()
        assert self.go.wait(30)
        return self._model.extend(*arguments)


def test_while_the_large_model_reads_one_row_the_others_go_on() -> None:
    pair = scripted_pair()
    slow = Slow(pair.large)
    models = dataclasses.replace(models_of(pair), large=slow)
    loop = MixedLoop(models, overlap=True)
    base = dataclasses.replace(random_requests(1, 3)[0], max_tokens=12)
    held = loop.add(dataclasses.replace(base, threshold=0.0))
    free = loop.add(dataclasses.replace(base, threshold=1.5))
    events: list[Event] = []
    while not any(event.row == free and event.trace is not None for event in events):
        events += loop.step()
        assert slow.started.wait(30)
    assert not any(event.row == held for event in events)
    slow.go.set()
    while loop.active:
        events += loop.step()
    loop.close()
    assert events[-1].row == held
    assert events[-1].trace == dataclasses.replace(
        mixed(pair, [base], 0.0)[0], threshold=0.0, records=events[-1].trace.records
    )


class Failing:
    """A model whose engine fails whenever a certain token is among what it reads."""

    def __init__(self, model: Any, poison: int) -> None:
        self._model, self._poison = model, poison

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def extend(self, caches: Any, new_tokens: Any, *rest: Any) -> Any:
        if any(self._poison in tokens for tokens in new_tokens):
            raise EngineError("out of memory at a token")
        return self._model.extend(caches, new_tokens, *rest)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("overlap", [False, True])
def test_a_row_at_which_an_engine_fails_takes_no_other_with_it(role: Role, overlap: bool) -> None:
    pair, poison = scripted_pair(), 63
    good = [r for r in random_requests(12, 8) if poison not in r.prompt_ids][:3]
    good = [dataclasses.replace(r, max_tokens=6) for r in good]
    expected = mixed(pair, good, 0.6)
    assert not any(poison in trace.token_ids for trace in expected)
    bad = dataclasses.replace(good[0], prompt_ids=(5, poison, 7), threshold=0.0)
    models = dataclasses.replace(
        models_of(pair, 0.6), **{role.value: Failing(getattr(pair, role), poison)}
    )
    loop = MixedLoop(models, overlap=overlap)
    numbers = [loop.add(request) for request in (good[0], bad, *good[1:])]
    events = []
    while loop.active:
        events += loop.step()
    loop.close()
    last = {event.row: event for event in events}
    failed = last.pop(numbers[1])
    assert failed.error == "out of memory at a token"
    assert failed.trace is not None
    assert failed.trace.finish_reason is FinishReason.ERROR
    assert [last[row].trace.token_ids for row in sorted(last)] == [t.token_ids for t in expected]
    assert pair.small.alive == pair.large.alive == 0


def test_in_a_run_of_requests_a_failure_is_raised_and_everything_freed() -> None:
    pair = scripted_pair()
    models = dataclasses.replace(models_of(pair), small=Failing(pair.small, 63))
    request = dataclasses.replace(random_requests(1, 3)[0], prompt_ids=(1, 63))
    with pytest.raises(EngineError, match="out of memory at a token"):
        list(generate(models, [request]))
    assert pair.small.alive == pair.large.alive == 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_log_probabilities_are_the_writers(temperature: float) -> None:
    pair = scripted_pair()
    requests = [
        dataclasses.replace(r, logprobs=3, **more)
        for r, more in zip(
            random_requests(3, 4, temperature),
            ({}, {"revise_below": 0.3, "max_lag": 4}, {"lossless": True}),
            strict=True,
        )
    ]
    writers = set()
    for trace in mixed(pair, requests, MIDDLE):
        text = list(trace.prompt_ids)
        for record in trace.records:
            model = pair.small if record.writer is Role.SMALL else pair.large
            logits_V = model._logits(tuple(text)).astype(np.float64)
            logprobs_V = logits_V - np.log(np.exp(logits_V).sum())
            assert record.logprob == pytest.approx(logprobs_V[record.token_id], abs=1e-4)
            best = np.argsort(-logprobs_V)[:3]
            assert [i for i, _ in record.top_logprobs] == best.tolist()
            assert [p for _, p in record.top_logprobs] == pytest.approx(logprobs_V[best], abs=1e-4)
            text.append(record.token_id)
            writers.add(record.writer)
    assert writers == set(Role)
    assert all(
        r.logprob is None for t in mixed(pair, random_requests(1, 4), 0.6) for r in t.records
    )
