"""Streams: their chunks together are the whole reply, whatever was asked for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk

from crossroads.models.pairs import Pair
from crossroads.models.scripted import ScriptedLM, ScriptedTokenizer
from crossroads.serving.reply_schemas import ChatChunk, ChatReply, CompletionReply
from laws.pairs import VOCAB
from serving import golden
from serving.calls import Raw, chat, completion, post, post_all
from serving.live_server import Live, live

TRACED = {"routing": {"trace": True}}
USAGE = {"stream_options": {"include_usage": True}}
OPEN, CLOSE = 61, 62  # ids of the tags, in the tokenizer of models that think


class ThinkingTokenizer(ScriptedTokenizer):
    """A scripted tokenizer with two tokens for the tags of a thought."""

    _TAGS = {OPEN: b"<think>", CLOSE: b"</think>"}  # noqa: RUF012

    def pieces(self) -> Sequence[bytes | None]:
        """Return every id's bytes."""
        return [self._TAGS.get(i, piece) for i, piece in enumerate(super().pieces())]

    def text_bytes(self, token_id: int) -> bytes:
        """Return a tag or a character."""
        return self._TAGS.get(token_id) or super().text_bytes(token_id)


class OpeningTokenizer(ThinkingTokenizer):
    """One whose chat template has opened the thought already."""

    def render(self, messages: Sequence[Any]) -> list[int]:
        """Return the contents' ids and the opening tag."""
        return [*super().render(messages), OPEN]


def saying(text: Sequence[int], tokenizer: ScriptedTokenizer, prompt: int) -> Pair:
    """Return a pair that answers with these ids to every prompt of so many tokens."""

    def logits(prefix: Sequence[int]) -> np.ndarray:
        place = len(prefix) - prompt
        values = np.zeros(VOCAB)
        values[text[place] if place < len(text) else 0] = 9.0
        return values

    small, large = (ScriptedLM(logits, VOCAB, name=name) for name in ("small", "large"))
    return Pair("thinking", small, large, tokenizer)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as found:
        yield found


def added_up(chunks: Sequence[Any]) -> dict[str, Any]:
    """Return what a stream's chunks add up to, in the form of `told`."""
    found: dict[int, dict[str, Any]] = {}
    totals: dict[str, Any] = {}
    for chunk in chunks:
        if not chunk["choices"]:
            totals |= {key: chunk[key] for key in ("usage", "routing") if chunk.get(key)}
        for part in chunk["choices"]:
            so_far = found.setdefault(part["index"], told_choice({"index": part["index"]}))
            assert so_far["finish_reason"] is None, "something came after the end"
            new = told_choice({**part, "message": part.get("delta", {})})
            for name in ("content", "reasoning_content", "text", "trace"):
                so_far[name] += new[name]
            for name, values in new["logprobs"].items():
                so_far["logprobs"][name] = so_far["logprobs"].get(name, []) + values
            so_far["finish_reason"] = new["finish_reason"]
    return {"choices": [found[index] for index in sorted(found)], **totals}


def told(reply: Any) -> dict[str, Any]:
    """Return what a whole reply tells, but for how long each token took."""
    totals = {key: reply[key] for key in ("usage", "routing") if key in reply}
    return {"choices": [told_choice(choice) for choice in reply["choices"]], **totals}


def told_choice(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message", {})
    return {
        "index": choice["index"],
        "finish_reason": choice.get("finish_reason"),
        "content": message.get("content", ""),
        "reasoning_content": message.get("reasoning_content", ""),
        "text": choice.get("text", ""),
        "trace": [{**token, "seconds": 0} for token in choice.get("trace", [])],
        "logprobs": dict(choice.get("logprobs") or {}),
    }


@pytest.mark.parametrize(
    "body",
    [
        chat(),
        chat(model="small", temperature=1.0, seed=1, n=3),
        chat(model="large", stop=["7", "Q+"], logprobs=True),
        chat("TOKENS", n=2, temperature=1.0, seed=2, logprobs=True, top_logprobs=2, **TRACED),
        chat("TOKENS", routing={"revise_below": 0.3, "trace": True}, logprobs=True),
        chat("TOKENS", stop="ABSENT", **TRACED),
        chat(max_tokens=1),
        completion(["ONE", "TWO"], n=2, temperature=1.0, seed=3, logprobs=1, **TRACED),
        completion("ONE", stop=["A", "9"]),
    ],
    ids=str,
)
def test_the_chunks_together_are_the_whole_reply(server: Live, body: dict[str, Any]) -> None:
    whole, stream = post_all(server, [body, {**body, **USAGE, "stream": True}])
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.events[-1] == "[DONE]"
    chunks = stream.events[:-1]
    assert added_up(chunks) == told(whole.json)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    kind = CompletionReply if "prompt" in body else ChatChunk
    for chunk in chunks:
        assert kind.model_validate(chunk).model_dump(exclude_unset=True) == chunk


def test_what_might_have_begun_a_stop_string_comes_in_the_end(server: Live) -> None:
    whole = post(server, completion(max_tokens=9)).json["choices"][0]["text"]
    body = completion(max_tokens=9, stop=whole[6:] + "~", **USAGE, stream=True)
    assert added_up(post(server, body).events[:-1])["choices"][0]["text"] == whole


def test_totals_come_last_and_only_to_who_asks(server: Live) -> None:
    def last(**fields: Any) -> Any:
        return post(server, chat(stream=True, **fields)).events[-2]

    assert last()["choices"][0]["finish_reason"] == "stop"
    assert last(stream_options={"include_usage": False})["choices"]
    both = last(**USAGE, routing={})
    assert both["choices"] == []
    assert (
        both["usage"]["completion_tokens"]
        == both["routing"]["small_tokens"] + (both["routing"]["large_tokens"])
    )
    assert "routing" not in last(**USAGE)
    assert last(routing={})["usage"] is None


def test_usage_so_far_grows_with_the_answer_to_what_the_end_says(server: Live) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = chat(n=2, max_tokens=12, stream=True, stream_options=options)
    chunks = post(server, body).events[:-1]
    told = [c["usage"] for c in chunks if c.get("usage")]
    counts = [usage["completion_tokens"] for usage in told]
    assert counts == sorted(counts)
    assert told[-1] == chunks[-1]["usage"]
    assert told[-2] == told[-1]
    assert all(u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"] for u in told)


def test_text_comes_while_the_answer_grows() -> None:
    with (
        live(seconds_per_token=0.03) as server,
        OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=20) as client,
        client.chat.completions.create(**chat(max_tokens=25), stream=True) as stream,
    ):
        heard = []
        for chunk in stream:
            heard.append(chunk.choices[0].delta.content or "")
            if len(heard) == 4:
                assert server.service.engine.running == 1
        assert sum(len(text) == 1 for text in heard) >= 24


def test_no_token_waits_for_the_one_before_to_be_acknowledged(server: Live) -> None:
    with Raw(server, chat(stream=True)) as client:
        client.read_until(b"content")
        (connection,) = server.server.server_state.connections
        served = connection.transport.get_extra_info("socket")
        assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.read_until(b"[DONE]")


def test_both_clients_of_openai_read_the_same_stream(server: Live, client: OpenAI) -> None:
    body = chat(n=2, temperature=1.0, seed=5, **USAGE)

    async def read() -> list[ChatCompletionChunk]:
        async with AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0) as other:
            return [c async for c in await other.chat.completions.create(**body, stream=True)]

    later = asyncio.run(asyncio.wait_for(read(), 20))
    now = list(client.chat.completions.create(**body, stream=True))
    whole = client.chat.completions.create(
        **{k: v for k, v in body.items() if k != "stream_options"}
    )
    for chunks in (later, now):
        for choice in whole.choices:
            said = [
                c.delta.content or "" for x in chunks for c in x.choices if c.index == choice.index
            ]
            assert "".join(said) == choice.message.content
        assert chunks[-1].usage == whole.usage
    continued = client.completions.create(**completion("ONE"), stream=True)
    assert (
        "".join(c.choices[0].text for c in continued)
        == client.completions.create(**completion("ONE")).choices[0].text
    )


@pytest.fixture
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=20) as found:
        yield found


# Models that think

THOUGHT, ANSWER = "LET-ME-SEE", "12*17=204"


@pytest.mark.parametrize("opened", [False, True])
def test_a_models_thoughts_are_told_apart_from_its_answer(opened: bool) -> None:
    tokenizer = (OpeningTokenizer if opened else ThinkingTokenizer)(VOCAB)
    encode = tokenizer.encode
    text = [*([] if opened else [OPEN]), *encode(THOUGHT), CLOSE, *encode(ANSWER)]
    with live(saying(text, tokenizer, prompt=5 + opened)) as server:
        body = chat(**TRACED)
        whole, stream = post_all(server, [body, {**body, **USAGE, "stream": True}])
        cut = post(server, chat(max_tokens=4)).json["choices"][0]["message"]
        plain = post(server, completion("HELLO" + "!" * opened)).json["choices"][0]["text"]
        assert server.service.thinks
    message = whole.json["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, ANSWER)
    assert ChatReply.model_validate(whole.json).model_dump(exclude_unset=True) == whole.json
    assert added_up(stream.events[:-1]) == told(whole.json)
    for channel, said in (("reasoning", THOUGHT), ("content", ANSWER)):
        tokens = [t for t in whole.json["choices"][0]["trace"] if t["channel"] == channel]
        assert "".join(token["text"] for token in tokens) == said
    assert cut["content"] == ""
    assert THOUGHT.startswith(cut["reasoning_content"])
    assert plain == tokenizer.decode(text)  # a completion is the text as it is


def test_a_thought_that_is_never_closed_is_told_to_its_end() -> None:
    tokenizer = ThinkingTokenizer(VOCAB)
    text = [OPEN, *tokenizer.encode(THOUGHT + "<")]
    with live(saying(text, tokenizer, prompt=5)) as server:
        message = post(server, chat()).json["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "", "reasoning_content": THOUGHT + "<"}


# Transcripts


@pytest.fixture(scope="module")
def golden_server() -> Iterator[Live]:
    with live(golden.server_pair()) as found:
        yield found


@pytest.mark.parametrize("name", golden.STREAMS)
def test_streams_are_what_they_were_byte_for_byte(golden_server: Live, name: str) -> None:
    """Meant to change? `PYTHONPATH=tests python tests/serving/golden.py` writes them anew."""
    assert golden.transcript(golden_server, name).decode() == golden.path(name).read_text()


def test_every_transcript_is_compared() -> None:
    assert {p.stem for p in golden.FOLDER.iterdir()} == set(golden.STREAMS)
