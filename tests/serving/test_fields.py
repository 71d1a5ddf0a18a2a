"""Every field of a request, by OpenAI's own clients: it has its effect, or is refused by name."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from crossroads.serving.protocol import ChatRequest, CompletionRequest
from crossroads.serving.reply_schemas import ModelList
from laws.pairs import scripted_pair
from serving.calls import chat, choices, completion, get, ids, post
from serving.live_server import Live, live

MODELS = ("mixed", "small", "large")
TRACED = {"routing": {"trace": True}}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as found:
        yield found


@pytest.fixture
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=20) as found:
        yield found


def test_both_clients_of_openai_read_the_same(server: Live, client: OpenAI) -> None:
    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0) as other:
            said = await other.chat.completions.create(**chat(n=2, temperature=1, seed=2))
            continued = await other.completions.create(**completion(seed=2))
            return [said, continued]

    chats, completions = asyncio.run(asyncio.wait_for(ask(), 20))
    again = client.chat.completions.create(**chat(n=2, temperature=1, seed=2))
    assert [c.message.content for c in again.choices] == [c.message.content for c in chats.choices]
    assert again.usage == chats.usage
    assert client.completions.create(**completion(seed=2)).choices == completions.choices


def test_routing_is_told_to_who_asks(client: OpenAI) -> None:
    plain = client.chat.completions.create(**chat())
    assert not hasattr(plain, "routing")
    assert not hasattr(plain.choices[0], "trace")
    asked = client.chat.completions.create(**chat(), extra_body={"routing": {}})
    assert 0 < asked.routing["large_fraction"] < 1
    assert not hasattr(asked.choices[0], "trace")
    assert asked.choices[0].message.content == plain.choices[0].message.content


def test_without_a_temperature_an_answer_is_greedy(server: Live) -> None:
    assert choices(server, chat(seed=1)) == choices(server, chat(seed=2, temperature=0))


def test_choices_are_drawn_with_the_seeds_that_follow(server: Live) -> None:
    drawn = {"temperature": 1.0, **TRACED}
    several = choices(server, chat(n=4, seed=20, **drawn))
    assert [choice["index"] for choice in several] == [0, 1, 2, 3]
    for i, choice in enumerate(several):
        assert {**choices(server, chat(seed=20 + i, **drawn))[0], "index": i} == choice
    assert len({ids(choice) for choice in several}) == 4
    assert choices(server, chat(**drawn)) != choices(server, chat(**drawn))


def test_a_negative_seed_is_a_seed_of_its_own(server: Live) -> None:
    drawn = {"temperature": 1.0, **TRACED}
    found = [ids(choices(server, chat(seed=seed, **drawn))[0]) for seed in (-1, 1, -1)]
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_has_at_most_the_tokens_that_it_may(client: OpenAI, name: str) -> None:
    whole = client.chat.completions.create(**chat()).choices[0]
    assert whole.finish_reason == "stop"
    cut = client.chat.completions.create(**chat(**{name: 7}))
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 7
    assert cut.choices[0].message.content == (whole.message.content or "")[:7]


@pytest.mark.parametrize("model", MODELS)
def test_a_stop_string_across_tokens_ends_the_answer_before_it(client: OpenAI, model: str) -> None:
    text = (
        client.chat.completions.create(**chat("ROADS", model=model)).choices[0].message.content
        or ""
    )
    for stop in (text[5:8], [text[9:11], text[4:6], "never"]):
        choice = client.chat.completions.create(**chat("ROADS", model=model, stop=stop)).choices[0]
        places = [text.index(s) for s in ([stop] if isinstance(stop, str) else stop[:2])]
        assert choice.message.content == text[: min(places)]
        assert choice.finish_reason == "stop"


@pytest.mark.parametrize("model", MODELS)
def test_logprobs_are_the_writers_own(client: OpenAI, model: str) -> None:
    body = chat(model=model, logprobs=True, top_logprobs=3, extra_body=TRACED)
    choice = client.chat.completions.create(**body).choices[0]
    assert choice.logprobs is not None
    told = choice.logprobs.content or []
    assert "".join(token.token for token in told) == choice.message.content
    for token in told:
        assert bytes(token.bytes or []).decode() == token.token
        assert [t.logprob for t in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )
        # Greedy: the likeliest is the one that was written.
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (
            token.token,
            token.logprob,
        )
    plain = client.chat.completions.create(**chat(logprobs=True)).choices[0].logprobs
    assert plain is not None
    assert all(token.top_logprobs == [] for token in plain.content or [])


def test_completions_tell_logprobs_in_lists(client: OpenAI) -> None:
    choice = client.completions.create(**completion(logprobs=2, max_tokens=9)).choices[0]
    told = choice.logprobs
    assert told is not None
    assert "".join(told.tokens or []) == choice.text
    assert told.text_offset == list(range(9))
    assert [len(top) for top in told.top_logprobs or []] == [2] * 9
    pairs = zip(told.tokens or [], told.token_logprobs or [], told.top_logprobs or [], strict=True)
    assert all(top[token] == logprob for token, logprob, top in pairs)


def test_prompts_are_texts_or_ids_and_each_has_its_choices(client: OpenAI) -> None:
    drawn = {"n": 2, "temperature": 1.0, "seed": 5}
    texts = client.completions.create(**completion(["ONE", "TWO"], **drawn))
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    encode = scripted_pair().tokenizer.encode
    by_id = client.completions.create(**completion([encode("ONE"), encode("TWO")], **drawn))
    assert by_id.choices == texts.choices
    lone = [client.completions.create(**completion(p, **drawn)) for p in ("ONE", encode("TWO"))]
    assert [c.text for reply in lone for c in reply.choices] == [c.text for c in texts.choices]
    assert texts.usage is not None
    assert texts.usage.prompt_tokens == 6


def test_messages_may_come_in_parts_and_developers_speak_as_the_system(server: Live) -> None:
    def said(*messages: dict[str, Any]) -> Any:
        return choices(server, {"model": "mixed", "messages": list(messages), "max_tokens": 9})

    user = {"role": "user", "content": "ONE\nTWO"}
    parts = [{"type": "text", "text": "ONE"}, {"type": "text", "text": "TWO"}]
    assert said({"role": "user", "content": parts}) == said(user)
    assert said({"role": "developer", "content": "BE"}, user) == said(
        {"role": "system", "content": "BE"}, user
    )
    assert said({"role": "system", "content": "BE"}, user) != said(user)
    earlier = {"role": "assistant", "content": "YES", "reasoning_content": "HM"}
    assert said(user, earlier, user) != said(user, user)


WITHOUT_EFFECT = {
    "user": "me", "metadata": {"a": "b"}, "safety_identifier": "x", "prompt_cache_key": "y",
}  # fmt: skip


def test_what_only_describes_a_request_has_no_effect(server: Live) -> None:
    assert choices(server, chat(**WITHOUT_EFFECT)) == choices(server, chat())


DRAWN = {"temperature": 1.0, "seed": 11}
EFFECTS: dict[str, tuple[dict[str, Any], Any]] = {
    "model": ({}, "small"),
    "max_tokens": ({}, 3),
    "max_completion_tokens": ({}, 3),
    "temperature": ({"seed": 11}, 1.0),
    "top_p": (DRAWN, 0.5),
    "top_k": (DRAWN, 2),
    "min_p": (DRAWN, 0.3),
    "frequency_penalty": (DRAWN, 1.5),
    "presence_penalty": (DRAWN, 1.5),
    "repetition_penalty": (DRAWN, 1.8),
    "seed": (DRAWN, 12),
    "stop": ({}, ["A", "B", "C", "D"]),
    "n": (DRAWN, 2),
    "stream": ({}, True),
    "stream_options": ({"stream": True}, {"include_usage": True}),
    "routing": ({}, {}),
    "given_messages": ({}, None),  # every test
    "prompt": ({}, None),
    "logprobs": ({}, True),
    "top_logprobs": ({"logprobs": True}, 2),
    "best_of": ({}, None),  # served where it says what n says
}


def test_every_field_has_an_effect_or_is_known_to_have_none(server: Live) -> None:
    """A field that is new has to be put into one of the two tables."""
    known = {*ChatRequest.model_fields, *CompletionRequest.model_fields}
    assert known == {*EFFECTS, *WITHOUT_EFFECT}
    constant = re.compile(rb'"(id|created)":[^,]+,')
    for field, (common, value) in EFFECTS.items():
        if value is not None:
            bodies = [chat("TOKENS", **common), chat("TOKENS", **{**common, field: value})]
            before, after = (constant.sub(b"", post(server, body).content) for body in bodies)
            assert before != after, field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}),
        ("reasoning_effort", "high"),
        ("store", True),
        ("nonsense", 1),
    ],
)
def test_what_is_not_served_is_refused_by_name(client: OpenAI, field: str, value: Any) -> None:
    with pytest.raises(BadRequestError, match=field) as caught:
        client.chat.completions.create(**chat(), extra_body={field: value})
    assert caught.value.param == field


def test_models_are_listed_and_found(server: Live, client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(MODELS)
    assert [client.models.retrieve(name).id for name in MODELS] == list(MODELS)
    with pytest.raises(NotFoundError, match="there is no model 'nope'"):
        client.models.retrieve("nope")
    ModelList.model_validate(get(server, "/v1/models").json)


def test_an_answer_ends_where_the_context_does() -> None:
    with live(scripted_pair(context_length=16)) as server:
        reply = post(server, completion("A" * 10, routing={"threshold": 0})).json
        assert reply["usage"]["completion_tokens"] <= 6
        assert reply["choices"][0]["finish_reason"] == "length"
        for body in (completion("A" * 16), chat("A" * 17)):
            refused = post(server, body)
            assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
