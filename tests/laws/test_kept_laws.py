"""Rows that begin alike: a kept cache saves reading and changes no token."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.decoding.engine import Engine
from crossroads.decoding.kept import WORTH_IT, KeptCaches
from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.request import Request
from crossroads.models.pairs import Pair
from crossroads.routing.routers.heuristics import entropy
from crossroads.types import Role, Trace
from laws.pairs import VOCAB, random_requests, scripted_pair

MIDDLE = 0.65
few = settings(max_examples=25, deadline=None)


def chat(pair: Pair, keep: int, requests: list[Request], role: Role | None) -> list[Trace]:
    """Return the traces of turns: each prompt is the row before it and its own tokens."""
    models = MixedModels(pair.small, pair.large, entropy(VOCAB), pair.tokenizer, MIDDLE)

    async def run() -> list[Trace]:
        traces: list[Trace] = []
        async with Engine(models, max_rows=2, keep=keep) as engine:
            before: tuple[int, ...] = ()
            for request in requests:
                turn = dataclasses.replace(request, prompt_ids=before + request.prompt_ids)
                trace = [e async for e in engine.generate(turn, alone=role)][-1].trace
                assert trace is not None
                before = turn.prompt_ids + trace.token_ids
                traces.append(trace)
        return traces

    return asyncio.run(run())


@few
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.8]),
    st.sampled_from([None, *Role]),
    st.sampled_from([{}, {"revise_below": 0.2, "max_lag": 3}, {"lossless": True, "max_lag": 4}]),
)
def test_a_chat_with_kept_caches_is_the_chat_without(
    seed: int, temperature: float, role: Role | None, fields: dict
) -> None:
    requests = [dataclasses.replace(r, **fields) for r in random_requests(4, seed, temperature)]
    pair = scripted_pair()
    kept, fresh = chat(pair, 2, requests, role), chat(scripted_pair(), 0, requests, role)
    assert [t.token_ids for t in kept] == [t.token_ids for t in fresh]
    assert [t.text for t in kept] == [t.text for t in fresh]
    assert pair.small.alive == pair.large.alive == 0


def test_a_next_turn_reads_its_own_tokens_and_not_the_chat_again() -> None:
    requests = [dataclasses.replace(r, max_tokens=30) for r in random_requests(3, 5)]
    pair, plain = scripted_pair(), scripted_pair()
    chat(pair, 1, requests, None)
    traces = chat(plain, 0, requests, None)
    shared = sum(len(t.prompt_ids) for t in traces) - sum(len(r.prompt_ids) for r in requests)
    saved = _read(plain.small) - _read(pair.small)
    # All but the last token of a row is in its cache, which is what the next turn reads again.
    assert shared - len(traces) <= saved <= shared


def _read(model: object) -> int:
    return sum(sum(call) for call in model.calls)  # type: ignore[attr-defined]


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=40), max_size=12),
    st.integers(0, 3),
)
def test_what_is_taken_is_a_prefix_of_the_row_and_nothing_is_lost(
    rows: list[list[int]], most: int
) -> None:
    model, kept = scripted_pair(max_rows=most + 1).small, KeptCaches(most)
    for row in rows:
        cache = kept.take(Role.SMALL, model, row)
        assert cache.tokens == row[: cache.length]  # type: ignore[attr-defined]
        assert cache.length < len(row)
        assert cache.length == 0 or cache.length >= WORTH_IT - 1
        model.extend([cache], [row[cache.length :]])
        kept.give_back(Role.SMALL, cache, row)
        assert len(kept) == model.alive <= most
    kept.close()
    assert model.alive == 0


def test_a_row_takes_a_kept_caches_place_where_there_is_no_other() -> None:
    model, kept = scripted_pair(max_rows=1).small, KeptCaches(5)
    cache = kept.take(Role.SMALL, model, [1] * 40)
    model.extend([cache], [[1] * 40])
    kept.give_back(Role.SMALL, cache, [1] * 40)
    other = kept.take(Role.SMALL, model, [2] * 40)
    assert (other.length, len(kept), model.alive) == (0, 0, 1)
    with pytest.raises(Exception, match="in use"):
        kept.take(Role.SMALL, model, [3] * 40)
