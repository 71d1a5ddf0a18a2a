"""Law 5 and its neighbours: what the large model may take back, and what that makes of a row."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from crossroads.decoding.mixed import MixedLoop, MixedModels
from crossroads.decoding.request import Request
from crossroads.models.pairs import Pair
from crossroads.models.scripted import Prefix, ScriptedLM, ScriptedTokenizer, hashed_logits
from crossroads.routing.policy import POLICIES, decide
from crossroads.routing.routers.heuristics import entropy
from crossroads.sampling import SamplingParams, probabilities
from crossroads.training.threshold import NEVER
from crossroads.types import Cause, Role, Trace
from laws.pairs import VOCAB, alone, mixed, random_requests, scripted_pair, tokens

SEEDS = st.integers(0, 10_000)
MAX_LAGS = st.one_of(st.none(), st.integers(0, 12))
THRESHOLDS = st.sampled_from([0.0, 0.55, 0.62, 0.75, NEVER])
NAMES = st.sampled_from(sorted(POLICIES))
few = settings(max_examples=25, deadline=None)


def changed(requests: list[Request], **fields: object) -> list[Request]:
    return [dataclasses.replace(request, **fields) for request in requests]


@few
@given(seed=SEEDS, threshold=THRESHOLDS, max_lag=MAX_LAGS, policy=NAMES)
def test_lossless_greedy_is_the_large_model_alone(
    seed: int, threshold: float, max_lag: int | None, policy: str
) -> None:
    pair, plain = scripted_pair(), random_requests(4, seed)
    requests = changed(plain, lossless=True, max_lag=max_lag, policy=POLICIES[policy]())
    traces = mixed(pair, requests, threshold)
    expected = alone(pair, Role.LARGE, plain)
    assert tokens(traces) == tokens(expected)
    assert [t.text for t in traces] == [t.text for t in expected]
    assert [t.finish_reason for t in traces] == [t.finish_reason for t in expected]


@few
@given(seed=SEEDS, threshold=THRESHOLDS, max_lag=MAX_LAGS)
def test_revising_whatever_is_not_certain_is_the_large_model_alone(
    seed: int, threshold: float, max_lag: int | None
) -> None:
    pair, plain = scripted_pair(), random_requests(4, seed)
    requests = changed(plain, revise_below=1.0, max_lag=max_lag)
    assert tokens(mixed(pair, requests, threshold)) == tokens(alone(pair, Role.LARGE, plain))


@few
@given(
    seed=SEEDS,
    below=st.floats(0.01, 0.6),
    max_lag=MAX_LAGS,
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_no_small_token_stays_that_the_large_model_finds_implausible(
    seed: int, below: float, max_lag: int | None, temperature: float
) -> None:
    pair, plain = scripted_pair(), random_requests(3, seed, temperature)
    requests = changed(plain, revise_below=below, max_lag=max_lag)
    for trace in mixed(pair, requests, 0.7):
        for record, logits_V in zip(trace.records, _large_logits(pair, trace), strict=True):
            if record.cause is Cause.REVISION:  # and nothing is taken back without a reason
                assert float(logits_V.softmax(0)[record.proposed_id]) < below + 1e-6
            if record.writer is Role.SMALL:
                own = float(logits_V.softmax(0)[record.token_id])
                best = temperature == 0 and int(logits_V.argmax()) == record.token_id
                assert own >= below - 1e-6 or best


def _large_logits(pair: Pair, trace: Trace) -> list[torch.Tensor]:
    text = [*trace.prompt_ids, *trace.token_ids]
    start = len(trace.prompt_ids)
    logits = [pair.large._logits(tuple(text[:end])) for end in range(start, len(text))]
    return [torch.from_numpy(values).double() for values in logits]


@few
@given(seed=SEEDS, max_lag=MAX_LAGS, temperature=st.sampled_from([0.0, 1.0]))
def test_nothing_that_was_told_is_taken_back(
    seed: int, max_lag: int | None, temperature: float
) -> None:
    pair = scripted_pair()
    requests = changed(random_requests(3, seed, temperature), lossless=True, max_lag=max_lag)
    loop = MixedLoop(_models(pair, 0.7))
    numbers = [loop.add(request) for request in requests]
    told: dict[int, list[object]] = {number: [] for number in numbers}
    traces = {}
    while loop.active:
        for event in loop.step():
            told[event.row].append(event.record)
            if event.trace is not None:
                traces[event.row] = event.trace
    for number in numbers:
        assert tuple(told[number]) == traces[number].records
        positions = [record.position for record in traces[number].records]
        assert positions == list(range(len(positions)))
    assert pair.small.alive == pair.large.alive == 0


@few
@given(seed=SEEDS, max_lag=st.integers(0, 6), revise=st.sampled_from([0.0, 0.2]))
def test_the_small_model_never_writes_more_than_max_lag_tokens_in_a_row(
    seed: int, max_lag: int, revise: float
) -> None:
    pair, plain = scripted_pair(), random_requests(3, seed)
    requests = changed(plain, max_lag=max_lag, revise_below=revise)
    traces = mixed(pair, requests, NEVER)
    for trace in traces:
        run = 0
        for record in trace.records:
            if record.cause is Cause.MAX_LAG and not revise:
                assert run == max_lag, "it is asked no sooner"
            run = 0 if record.writer is Role.LARGE else run + 1
            assert run <= max_lag
            assert record.cause in {None, Cause.MAX_LAG, Cause.REVISION, Cause.FINAL}
    if max_lag == 0:
        assert tokens(traces) == tokens(alone(pair, Role.LARGE, plain))


@few
@given(seed=SEEDS, budget=st.integers(0, 8), revise=st.sampled_from([0.0, 0.2]))
def test_the_large_model_keeps_its_budget(seed: int, budget: int, revise: float) -> None:
    pair, plain = scripted_pair(), random_requests(3, seed)
    requests = changed(plain, large_budget=budget, revise_below=revise)
    traces = mixed(pair, requests, 0.6)
    assert all(trace.usage.large_tokens <= budget for trace in traces)
    if budget == 0:
        assert tokens(traces) == tokens(alone(pair, Role.SMALL, plain))
    if revise == 0 and budget:  # until it is spent, a budget changes nothing
        for trace, free in zip(traces, mixed(pair, plain, 0.6), strict=True):
            by_large = [r.position for r in free.records if r.writer is Role.LARGE]
            same = by_large[budget - 1] + 1 if len(by_large) >= budget else len(free.records)
            assert trace.token_ids[:same] == free.token_ids[:same]


@few
@given(
    seed=SEEDS, max_lag=MAX_LAGS, lossless=st.booleans(), temperature=st.sampled_from([0.0, 1.0])
)
def test_usage_counts_every_call_of_both_models(
    seed: int, max_lag: int | None, lossless: bool, temperature: float
) -> None:
    pair = scripted_pair()
    (plain,) = random_requests(1, seed, temperature)
    request = dataclasses.replace(
        plain, max_lag=max_lag, lossless=lossless, revise_below=0.0 if lossless else 0.3
    )
    (trace,) = mixed(pair, [request], 0.68)
    usage = trace.usage
    assert usage.large_calls == len(pair.large.calls)
    assert usage.lag_tokens == sum(sum(call) for call in pair.large.calls)
    assert usage.generated_tokens + usage.discarded_tokens == len(pair.small.calls)


def test_where_nothing_revises_nothing_more_is_asked_for() -> None:
    pair, requests = scripted_pair(), random_requests(4, 5)
    asked = []
    extend = pair.large.extend

    def watch(caches, new_tokens, want):
        asked.append(want)
        return extend(caches, new_tokens, want)

    pair.large.extend = watch
    mixed(pair, requests, 0.65)
    assert asked
    assert all(want.positions == "last" and want.top_k == 1 and not want.logits for want in asked)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("revise", [0.0, 0.2])
def test_rows_do_not_share_what_they_remember(policy: str, revise: float) -> None:
    pair = scripted_pair()
    requests = changed(
        random_requests(6, 21, 0.8), policy=POLICIES[policy](), revise_below=revise, max_lag=7
    )
    together = mixed(pair, requests, 0.66, max_rows=4)
    apart = [mixed(pair, [request], 0.66)[0] for request in requests]
    assert tokens(together) == tokens(apart)
    assert [t.usage for t in together] == [t.usage for t in apart]


@few
@given(seed=SEEDS, policy=st.sampled_from(["momentum", "rolling"]), below=st.floats(0.1, 0.6))
def test_a_row_decides_as_if_it_had_always_been_what_it_became(
    seed: int, policy: str, below: float
) -> None:
    pair, chosen = scripted_pair(), POLICIES[policy]()
    requests = changed(random_requests(3, seed), policy=chosen, revise_below=below)
    for trace in mixed(pair, requests, 0.66):
        state = chosen.start()
        for record in trace.records:
            decision = decide(chosen, state, record.score, 0.66)
            state = decision.state
            assert decision.to_large == (record.cause is Cause.ROUTER)


# Sampling: the distribution, against the exact one

SMALL_VOCAB = 5
LENGTH = 3


def sampled_pair() -> Pair:
    """Return models over five ids that disagree a good deal, without an end token in reach."""
    size = {"context_length": 64, "max_rows": 64}

    def large_logits(prefix: Prefix) -> np.ndarray:
        return hashed_logits(5, prefix, SMALL_VOCAB) / 3

    def small_logits(prefix: Prefix) -> np.ndarray:
        return 0.5 * large_logits(prefix) + hashed_logits(6, prefix, SMALL_VOCAB) / 4

    small = ScriptedLM(small_logits, SMALL_VOCAB, eos_ids=(), name="small", **size)
    large = ScriptedLM(large_logits, SMALL_VOCAB, eos_ids=(), name="large", **size)
    return Pair("sampled", small, large, ScriptedTokenizer(SMALL_VOCAB))


def exact(model: ScriptedLM, prompt: tuple[int, ...], params: SamplingParams) -> dict:
    """Return the probability of every continuation of LENGTH tokens."""
    found = {}
    for text in product(range(SMALL_VOCAB), repeat=LENGTH):
        logarithm = 0.0
        for i, token in enumerate(text):
            logits_V = torch.from_numpy(model._logits((*prompt, *text[:i])).astype(np.float32))
            value = float(probabilities(logits_V, params)[token])
            logarithm += math.log(value) if value > 0 else -math.inf
        found[text] = math.exp(logarithm)
    return found


def chi_square(counts: Counter, expected: dict, total: int) -> float:
    """Return the p-value; rare texts are pooled."""
    common = [text for text, p in expected.items() if p * total >= 5]
    cells = [(counts[text], expected[text] * total) for text in common]
    rest = total - sum(seen for seen, _ in cells), total - sum(mean for _, mean in cells)
    if rest[1] > 1e-6 * total:
        cells.append(rest)
    elif rest[0]:
        return 0.0  # a text that cannot be
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    return float(chi2.sf(statistic, len(cells) - 1))


class ByToken:
    """A router that looks at the token alone: what it lets pass is not drawn from q any more."""

    name, parameters, inputs = "by-token", 0, ("proposed_id",)

    def score(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return (features["proposed_id"][:, 0] % 2).float()


@pytest.mark.parametrize(
    ("threshold", "max_lag"), [(NEVER, None), (NEVER, 1), (0.5, None), (0.5, 2), (0.0, None)]
)
@pytest.mark.parametrize(
    "params", [SamplingParams(1.0), SamplingParams(0.7, top_p=0.9), SamplingParams(1.3, top_k=3)]
)
def test_lossless_sampling_is_distributed_as_the_large_model(
    threshold: float, max_lag: int | None, params: SamplingParams
) -> None:
    pair, prompt, total = sampled_pair(), (1, 2), 3000
    requests = [
        Request(
            prompt,
            max_tokens=LENGTH,
            sampling=dataclasses.replace(params, seed=seed),
            lossless=True,
            max_lag=max_lag,
        )
        for seed in range(total)
    ]
    traces = mixed(pair, requests, threshold, ByToken(), max_rows=64)
    counts = Counter(trace.token_ids for trace in traces)
    assert chi_square(counts, exact(pair.large, prompt, params), total) > 1e-4
    if threshold == NEVER:
        assert chi_square(counts, exact(pair.small, prompt, params), total) < 1e-6


def _models(pair: Pair, threshold: float) -> MixedModels:
    return MixedModels(pair.small, pair.large, entropy(VOCAB), pair.tokenizer, threshold)
