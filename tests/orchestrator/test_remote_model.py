"""A large model behind servers, in the in-process loop: the same tokens, and what it cannot do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.request import Request, check_request
from crossroads.errors import EngineError, PairError, RequestError
from crossroads.models.base import Want
from crossroads.models.catalogue import find_model
from crossroads.models.remote import RemoteLM
from crossroads.models.server_pool import Patience
from crossroads.routing.routers.heuristics import entropy
from crossroads.types import Trace
from laws.pairs import VOCAB, mixed, random_requests, scripted_pair
from orchestrator.fake_server import FakeServer, fake_server
from orchestrator.patience import HASTY, STEADY

MIDDLE = 0.65


@contextmanager
def remote(
    replicas: int = 1, patience: Patience = STEADY
) -> Iterator[tuple[RemoteLM, list[FakeServer]]]:
    large = scripted_pair().large
    with fake_server(large, None) as first, fake_server(large, None) as second:
        fakes = [first, second][:replicas]
        model = RemoteLM(large.info, [fake.url for fake in fakes], patience)
        try:
            yield model, fakes
        finally:
            model.close()


def run(model: RemoteLM, requests: list[Request], *, overlap: bool = False) -> list[Trace]:
    pair = scripted_pair()
    models = MixedModels(pair.small, model, entropy(VOCAB), pair.tokenizer, MIDDLE)
    found = generate(models, requests, overlap=overlap)
    return [trace for _, trace in sorted(found, key=lambda x: x[0])]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"threshold": 0.0},
        {"max_lag": 3},
        {"revise_below": 0.1, "max_lag": 4},
        {"lossless": True, "max_lag": 3},
        {"lossless": True, "threshold": 1.5, "max_tokens": 60},
    ],
)
def test_it_writes_what_the_model_itself_would(fields: dict, overlap: bool) -> None:
    requests = [dataclasses.replace(r, **fields) for r in random_requests(4, 3)]
    expected = mixed(scripted_pair(), requests, MIDDLE)
    with remote() as (model, _):
        found = run(model, requests, overlap=overlap)
        assert model.alive == 0
    for trace, other in zip(found, expected, strict=True):
        assert trace.token_ids == other.token_ids
        assert trace.usage == other.usage


@pytest.mark.parametrize("count", [1, 2, 32, 33])
def test_a_lag_is_told_place_by_place_without_reading_the_row_again(count: int) -> None:
    tokens = [i % (VOCAB - 3) for i in range(60)]
    want = Want(positions=(count,), top_k=4)
    local = scripted_pair().large
    expected = local.extend([local.new_cache()], [tokens], want)
    with remote() as (model, (fake,)):
        found = model.extend([model.new_cache()], [tokens], want)
        (body,) = fake.requests
    assert found.top_ids_NK.tolist() == expected.top_ids_NK.tolist()
    logprobs_NK = expected.top_logits_NK - expected.logsumexp_N[:, None]
    assert torch.allclose(found.top_logits_NK, logprobs_NK.float(), atol=1e-5)
    assert ("prompt_logprobs" in body) == (count > 32)


def test_log_probabilities_are_the_models() -> None:
    requests = [dataclasses.replace(r, logprobs=3) for r in random_requests(3, 3)]
    expected = mixed(scripted_pair(), requests, 0.0)
    with remote() as (model, _):
        found = run(model, [dataclasses.replace(r, threshold=0.0) for r in requests])
    for trace, other in zip(found, expected, strict=True):
        for record, wanted in zip(trace.records, other.records, strict=True):
            assert record.logprob == pytest.approx(wanted.logprob, abs=1e-5)


def test_rows_survive_a_server_that_goes_away_and_fail_when_all_have() -> None:
    requests = random_requests(4, 3)
    expected = mixed(scripted_pair(), requests, MIDDLE)
    with remote(2) as (model, fakes):
        fakes[0].refuse = 503
        assert [t.token_ids for t in run(model, requests)] == [t.token_ids for t in expected]
    with remote(2, HASTY) as (model, fakes):
        fakes[0].refuse = fakes[1].refuse = 503
        with pytest.raises(EngineError, match="no server of large has answered"):
            run(model, requests)
        assert model.alive == 0


def test_a_row_that_the_server_refuses_takes_no_other_with_it() -> None:
    requests = random_requests(3, 3)
    expected = mixed(scripted_pair(), requests, MIDDLE)
    with remote() as (model, fakes):
        cache = model.new_cache()
        fakes[0].refuse = 400
        with pytest.raises(EngineError, match="refuses the request"):
            model.extend([cache], [[5, 6]])
        fakes[0].refuse, fakes[0].silent = 0, True
        with pytest.raises(EngineError, match="fewer than the 1 likeliest"):
            model.extend([cache], [[5, 6]])
        assert cache.length == 0
        cache.release()
        fakes[0].silent = False
        assert [t.token_ids for t in run(model, requests)] == [t.token_ids for t in expected]


def test_a_failed_extend_changes_no_cache_and_crop_is_a_matter_of_tokens() -> None:
    with remote(patience=HASTY) as (model, fakes):
        cache = model.new_cache()
        first = model.extend([cache], [[5, 6, 7]], Want(top_k=4))
        fakes[0].refuse = 503
        with pytest.raises(EngineError):
            model.extend([cache], [[8]])
        assert cache.length == 3
        fakes[0].refuse = 0
        model.extend([cache], [[8, 9]])
        cache.crop(2)
        again = model.extend([cache], [[7]], Want(top_k=4))
        assert again.top_ids_NK.tolist() == first.top_ids_NK.tolist()
        fork = model.fork(cache, 2)
        model.extend([fork], [[9]])
        assert (cache.length, fork.length) == (3, 3)


@pytest.mark.parametrize("want", [Want(hidden=True), Want(logits=True), Want(top_k=21)])
def test_what_a_server_does_not_tell_is_refused_by_the_model(want: Want) -> None:
    with remote() as (model, _), pytest.raises(EngineError, match="tells the 20 likeliest"):
        model.extend([model.new_cache()], [[1]], want)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": 0.5}, "send temperature 0 and no penalties"),
        ({"frequency_penalty": 0.5}, "send temperature 0 and no penalties"),
    ],
)
def test_sampling_is_refused_before_anything_runs(changes: dict, sentence: str) -> None:
    with remote() as (model, _):
        (request,) = random_requests(1, 3)
        sampling = dataclasses.replace(request.sampling, **changes)
        with pytest.raises(RequestError, match=sentence):
            check_request(dataclasses.replace(request, sampling=sampling), [model.info])
        revising = dataclasses.replace(request, revise_below=0.01)
        with pytest.raises(RequestError, match="revise_below needs the 100 likeliest"):
            check_request(revising, [model.info])


def test_no_server_is_one_sentence() -> None:
    with pytest.raises(EngineError, match=r"no server answers at http://127\.0\.0\.1:9"):
        RemoteLM(scripted_pair().large.info, ["http://127.0.0.1:9"], HASTY)


def test_a_model_behind_a_server_is_named_by_its_folder_and_address(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    spec = find_model(f"{tmp_path}@http://a:1,http://b:2")
    assert (spec.engine, spec.urls) == ("remote", ("http://a:1", "http://b:2"))
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(b"")
    spec = find_model(f"{gguf}@http://a:1")
    assert (spec.engine, spec.path, spec.has_gguf) == ("remote", gguf, True)
    spec = find_model("qwen2.5-coder-1.5b@http://a:1")
    assert (spec.engine, spec.has_gguf) == ("remote", True)
    with pytest.raises(PairError, match="there is no model"):
        find_model(f"{tmp_path}/none.gguf@http://a:1")
