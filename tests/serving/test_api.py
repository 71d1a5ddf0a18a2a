"""Laws of the live server: replies are what the decoding loops generate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from crossroads.decoding.request import Request
from crossroads.models.pairs import Pair
from crossroads.sampling import SamplingParams
from crossroads.serving.reply_schemas import ChatReply, CompletionReply
from crossroads.types import Role, Trace
from laws.pairs import alone, mixed, random_requests, scripted_pair
from serving.calls import chat, choices, completion, ids, post, post_all
from serving.live_server import MIDDLE, Live, live

MODELS = ("mixed", "small", "large")
TRACED = {"routing": {"trace": True}}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as found:
        yield found


def loops(
    pair: Pair, model: str, requests: list[Request], threshold: float = MIDDLE
) -> list[Trace]:
    """Return what the loops generate, without a server."""
    if model == "mixed":
        return mixed(pair, requests, threshold)
    return alone(pair, Role(model), requests)


def request_of(text: str, **values: Any) -> Request:
    """Return the engine's request for one user message."""
    return Request(tuple(scripted_pair().tokenizer.encode(text)), **values)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_answers_as_its_loop_does_token_for_token(
    server: Live, model: str, temperature: float
) -> None:
    requests = random_requests(12, seed=5, temperature=temperature)
    expected = loops(scripted_pair(), model, requests)
    bodies = [
        completion(
            list(r.prompt_ids),
            model=model,
            max_tokens=r.max_tokens,
            temperature=temperature,
            seed=r.sampling.seed,
            **TRACED,
        )
        for r in requests
    ]
    for trace, reply in zip(expected, post_all(server, bodies), strict=True):
        choice = reply.json["choices"][0]
        assert ids(choice) == trace.token_ids
        assert choice["text"] == trace.text
        assert choice["finish_reason"] == ("length" if trace.finish_reason == "length" else "stop")
        assert [t["writer"] for t in choice["trace"]] == [r.writer for r in trace.records]
        assert [t["score"] for t in choice["trace"]] == [r.score for r in trace.records]


@pytest.mark.parametrize(("threshold", "model"), [(0, "large"), (1.1, "small")])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_at_the_ends_of_the_threshold_one_model_answers_alone(
    server: Live, threshold: float, model: str, temperature: float
) -> None:
    drawn = {"temperature": temperature, "seed": 7, "n": 3}
    both = post(server, chat(routing={"threshold": threshold}, **drawn)).json
    one = post(server, chat(model=model, routing={}, **drawn)).json
    assert both["choices"] == one["choices"]
    assert both["usage"] == one["usage"]
    assert both["routing"]["large_fraction"] == one["routing"]["large_fraction"]


@pytest.mark.parametrize(
    "body",
    [
        chat("LAW", n=3, temperature=0.8, seed=3),
        chat("LAW", model="small"),
        chat("LAW", model="large"),
        completion(["AB", "C"], n=2, temperature=0.8, seed=3),
        chat("LAW", n=2, temperature=0.8, seed=4, routing={"revise_below": 0.2}),
        chat("LAW", routing={"max_large_fraction": 0.2, "threshold": 0.3}),
    ],
    ids=str,
)
def test_usage_and_routing_are_counts_of_the_traces(server: Live, body: dict[str, Any]) -> None:
    reply = post(server, {**body, "routing": {**body.get("routing", {}), "trace": True}}).json
    tokens = [token for choice in reply["choices"] for token in choice["trace"]]
    large = [token for token in tokens if token["writer"] == "large"]
    prompt = sum(map(len, body["prompt"])) if "prompt" in body else len("LAW")
    assert reply["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": len(tokens),
        "total_tokens": prompt + len(tokens),
    }
    routing = reply["routing"]
    assert routing["large_tokens"] == len(large)
    assert routing["small_tokens"] == len(tokens) - len(large)
    assert routing["large_fraction"] == len(large) / len(tokens)
    assert routing["large_calls"] == sum(token["lag"] > 0 for token in tokens)
    assert routing["lag_tokens"] == sum(token["lag"] for token in tokens)
    assert routing["discarded_tokens"] == sum(token["discarded"] for token in tokens)
    expected = body.get("routing", {}).get("threshold", MIDDLE)
    assert routing["threshold"] == (expected if body["model"] == "mixed" else None)
    for choice in reply["choices"]:
        said = choice["text"] if "prompt" in body else choice["message"]["content"]
        assert "".join(token["text"] for token in choice["trace"]) == said
        assert [token["position"] for token in choice["trace"]] == list(range(len(choice["trace"])))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_large_models_share_never_passes_its_limit(server: Live, share: float) -> None:
    routing = {"max_large_fraction": share, "threshold": 0.1, "trace": True}
    reply = post(server, chat(n=4, temperature=1.0, seed=1, routing=routing)).json
    for choice in reply["choices"]:
        large = 0
        for count, token in enumerate(choice["trace"], start=1):
            large += token["writer"] == "large"
            assert large <= share * count
    assert (reply["routing"]["large_fraction"] == 0) == (share == 0)


def test_requests_at_once_are_answered_as_one_at_a_time(server: Live) -> None:
    bodies = [
        make(
            f"REQUEST {i}",
            model=MODELS[i % 3],
            max_tokens=30,
            temperature=i % 4 / 3,
            seed=i,
            n=1 + i % 2,
        )
        for i in range(12)
        for make in (chat, completion)
    ]
    one_by_one = [post(server, body).json["choices"] for body in bodies]
    assert [reply.json["choices"] for reply in post_all(server, bodies)] == one_by_one


@pytest.mark.parametrize(
    "body",
    [
        chat(),
        chat(n=2, logprobs=True, top_logprobs=3, **TRACED),
        chat(model="large", **TRACED),
        completion(logprobs=2, **TRACED),
        completion(routing={"revise_below": 0.3, "trace": True}),
    ],
    ids=str,
)
def test_replies_are_what_the_document_says_and_no_more(server: Live, body: dict[str, Any]) -> None:
    kind = CompletionReply if "prompt" in body else ChatReply
    value = post(server, body).json
    assert kind.model_validate(value, strict=False).model_dump(exclude_unset=True) == value


SAMPLING: list[dict[str, Any]] = [
    {"top_p": 0.5},
    {"top_k": 2},
    {"min_p": 0.3},
    {"frequency_penalty": 1.5},
    {"presence_penalty": 1.5},
    {"repetition_penalty": 1.8},
    {"temperature": 1.5},
    {"seed": 12},
    {"seed": 2**63 - 1},
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("field", SAMPLING, ids=str)
def test_each_sampling_field_does_what_it_does_in_the_loop(
    server: Live, model: str, field: dict[str, Any]
) -> None:
    common = {"temperature": 1.0, "seed": 11}
    request = request_of("TOKENS", sampling=SamplingParams(**{**common, **field}))
    body = chat("TOKENS", model=model, **common, **TRACED)
    found = ids(choices(server, {**body, **field})[0])
    assert found == loops(scripted_pair(), model, [request])[0].token_ids
    assert found != ids(choices(server, body)[0])
