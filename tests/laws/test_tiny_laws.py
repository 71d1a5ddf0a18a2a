"""Laws 1, 2, 4 and 5 on engines with real caches: a tiny transformer and a tiny GGUF."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import builders
from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.request import Request
from crossroads.labelling.compare import compare
from crossroads.models.pairs import Pair
from crossroads.routing.features import FEATURES
from crossroads.routing.policy import sends_to_large
from crossroads.routing.routers.heuristics import entropy
from crossroads.training.threshold import NEVER
from crossroads.types import Role
from laws.pairs import alone, mixed, random_requests, tokens
from laws.spy import Spy

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

LARGE, SMALL, ROWS, CONTEXT = 1, 2, 8, 128
ROUTING = 0.55  # a threshold on entropy that routes some tokens and keeps some
# Chunks of other sizes add floats in another order, and hidden states are kept in 16 bits.
TOLERANCE = {"atol": 2e-3, "rtol": 2e-3}


def transformer_pair(folder: Path) -> Pair:
    from crossroads.models.gguf_tokenizer import GgufTokenizer
    from crossroads.models.transformers import TransformersLM

    def model(name: str, seed: int, agrees_with: int | None) -> TransformersLM:
        network = builders.tiny_transformer(seed, agrees_with=agrees_with)
        return TransformersLM(
            network, name=name, fingerprint=name, context_length=CONTEXT, max_rows=ROWS
        )

    tokenizer = GgufTokenizer.load(builders.tiny_gguf(folder / "tokenizer.gguf"))
    return Pair("tiny", model("small", SMALL, LARGE), model("large", LARGE, None), tokenizer)


def gguf_pair(folder: Path) -> Pair:
    from crossroads.models.gguf_tokenizer import GgufTokenizer
    from crossroads.models.llamacpp import LlamaCppLM

    paths = [
        builders.tiny_gguf(folder / "small.gguf", SMALL, agrees_with=LARGE),
        builders.tiny_gguf(folder / "large.gguf", LARGE),
    ]
    small, large = (LlamaCppLM.load(path, context_length=CONTEXT, max_rows=ROWS) for path in paths)
    return Pair("tiny", small, large, GgufTokenizer.load(paths[0]))


@pytest.fixture(scope="module", params=[transformer_pair, gguf_pair])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    with request.param(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


def requests(temperature: float = 0.0, count: int = 4) -> list[Request]:
    return random_requests(count, 3, temperature, vocab=90, max_tokens=25)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_threshold_zero_is_the_large_model_alone(pair: Pair, temperature: float) -> None:
    asked = requests(temperature)
    assert tokens(mixed(pair, asked, 0.0)) == tokens(alone(pair, Role.LARGE, asked))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_threshold_above_one_is_the_small_model_alone(pair: Pair, temperature: float) -> None:
    asked = requests(temperature)
    assert tokens(mixed(pair, asked, NEVER)) == tokens(alone(pair, Role.SMALL, asked))


def test_the_two_models_differ(pair: Pair) -> None:
    asked = requests()
    assert tokens(alone(pair, Role.SMALL, asked)) != tokens(alone(pair, Role.LARGE, asked))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_batched_row_is_the_same_row_alone(pair: Pair, temperature: float) -> None:
    asked = requests(temperature, count=6)
    together = mixed(pair, asked, ROUTING, max_rows=4)
    apart = [mixed(pair, [request], ROUTING)[0] for request in asked]
    assert tokens(together) == tokens(apart)
    share = sum((t.usage for t in together), together[0].usage).large_fraction
    assert 0.1 < share < 0.9, "the example must route some tokens and keep some"


@pytest.mark.parametrize("max_lag", [None, 3])
@pytest.mark.parametrize("threshold", [ROUTING, NEVER])
@pytest.mark.parametrize("overlap", [False, True])
def test_lossless_greedy_is_the_large_model_alone(
    pair: Pair, threshold: float, max_lag: int | None, overlap: bool
) -> None:
    plain = requests(count=6)
    asked = [dataclasses.replace(r, lossless=True, max_lag=max_lag) for r in plain]
    router = entropy(pair.small.info.vocab_size)
    models = MixedModels(pair.small, pair.large, router, pair.tokenizer, threshold)
    traces = dict(generate(models, asked, max_rows=4, overlap=overlap))
    assert [traces[i].token_ids for i in range(6)] == tokens(alone(pair, Role.LARGE, plain))
    assert sum(trace.usage.discarded_tokens for trace in traces.values()) > 0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_row_that_revises_is_the_same_row_alone(pair: Pair, temperature: float) -> None:
    asked = [
        dataclasses.replace(r, revise_below=0.2, max_lag=5) for r in requests(temperature, count=6)
    ]
    together = mixed(pair, asked, ROUTING, max_rows=4)
    apart = [mixed(pair, [request], ROUTING)[0] for request in asked]
    assert tokens(together) == tokens(apart)
    assert [trace.usage for trace in together] == [trace.usage for trace in apart]


def test_routed_tokens_are_what_the_large_model_says_of_the_mixed_prefix(pair: Pair) -> None:
    (trace,) = mixed(pair, requests(count=1), ROUTING)
    row = [*trace.prompt_ids, *trace.token_ids]
    for record in trace.records:
        if record.writer is Role.LARGE:
            cache = pair.large.new_cache()
            prefix = row[: len(trace.prompt_ids) + record.position]
            assert int(pair.large.extend([cache], [prefix]).top_ids_NK[0, 0]) == record.token_id
            cache.release()


# Where two chunkings differ in the last bits of a float, rounding to a stored half may differ by
# one of its steps: 2 ** -10 of a number, 2 ** -7 of a log-probability down to -16.
STORED = {"rtol": 2**-10, "atol": 2**-7}


def test_stored_features_are_the_live_ones(pair: Pair) -> None:
    (response,) = alone(pair, Role.LARGE, requests(count=1))
    stored = compare(pair.small, pair.large, response.prompt_ids, response.token_ids)
    spy = Spy(tuple(FEATURES))
    request = Request(response.prompt_ids, max_tokens=len(response.token_ids))
    models = MixedModels(pair.small, pair.large, spy, pair.tokenizer, 0.0)
    ((_, trace),) = generate(models, [request])
    assert trace.token_ids == response.token_ids
    for name, offline in stored.features(tuple(FEATURES), pair.small.embed).items():
        live = torch.cat([seen[name] for seen in spy.seen])
        assert torch.allclose(offline.float(), live.float(), **STORED), name


def test_comparison_holds_the_large_models_own_numbers(pair: Pair) -> None:
    (response,) = alone(pair, Role.LARGE, requests(count=1))
    found = compare(pair.small, pair.large, response.prompt_ids, response.token_ids)
    assert found.large is not None
    real_N, small_N = found.large.logprob_real_N, found.large.logprob_small_N
    best_N = found.large.top_logprobs_NK[:, 0]
    # The response is greedy, so every real token is the large model's best.
    assert torch.allclose(real_N, best_N, **TOLERANCE)
    agrees_N = found.proposed_N == found.real_N
    assert torch.equal(small_N[agrees_N], real_N[agrees_N])
    assert bool((small_N[~agrees_N] < best_N[~agrees_N]).all())
    assert bool(agrees_N.any())
    assert bool((~agrees_N).any())


def test_scores_decide(pair: Pair) -> None:
    for trace in mixed(pair, requests(), ROUTING):
        for record in trace.records:
            assert sends_to_large(record.score, ROUTING) == (record.writer is Role.LARGE)
