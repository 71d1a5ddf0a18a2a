"""Mistakes: a status, one sentence, the field; and never anything of the server's inside."""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from crossroads.serving.app import Safety
from crossroads.serving.safety import LOOPBACK_HOSTS
from crossroads.serving.service import ServiceOptions
from laws.pairs import VOCAB, scripted_pair
from serving.calls import (
    CHAT,
    COMPLETIONS,
    Reply,
    call,
    chat,
    completion,
    connection,
    get,
    path_of,
    post,
    say,
)
from serving.live_server import KEY, Live, live

JSON = {"Content-Type": "application/json"}
INSIDE = re.compile(rb"Traceback|\.py\b|site-packages|Error\(|pydantic|crossroads\.|0x[0-9a-f]{6}")
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as found:
        yield found


def raw(server: Live, body: bytes, path: str = CHAT, **headers: str) -> Reply:
    """Return the reply to a body that need not be JSON."""
    return call(server, "POST", path, body, {**JSON, **headers})


def is_an_error(reply: Reply) -> bool:
    """Whether a reply has OpenAI's form of an error, in one sentence, and nothing of the inside."""
    message = reply.error["message"]
    assert 0 < len(message) < 500
    assert "\n" not in message
    assert not INSIDE.search(reply.content)
    assert reply.error["type"] in ("invalid_request_error", "rate_limit_error", "server_error")
    return True


WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": [{"role": "user", "content": "A"}]}, "model", "is required"),
    ({"model": "mixed"}, "messages", "is required"),
    (chat(temperature=2.1), "temperature", "must be <= 2, got 2.1"),
    (chat(temperature="hot"), "temperature", "must be a number, got 'hot'"),
    (chat(top_p=0), "top_p", "must be > 0"),
    (chat(n=9), "n", "the most is 8"),
    (completion(["A"] * 8, n=3), "n", "are 24 answers, the most is 16"),
    (chat(stop=["A"] * 5), "stop", "the most is 4"),
    (chat(max_tokens=0), "max_tokens", "must be >= 1"),
    (chat(max_tokens=1, max_completion_tokens=2), "max_completion_tokens", "must equal max_tokens"),
    (chat(top_logprobs=2), "top_logprobs", "needs logprobs"),
    (chat(stream_options={}), "stream_options", "needs stream"),
    (chat(routing={"treshold": 1}), "routing.treshold", "did you mean 'threshold'"),
    (chat(routing={"threshold": -1}), "routing.threshold", "must be >= 0"),
    (chat(model="small", routing={"threshold": 1}), "routing.threshold", "is for mixed"),
    (chat(messages=[{"role": "tool", "content": "A"}]), "messages[0].role", "'tool' is not served"),
    (chat(messages=[]), "messages", "must not be empty"),
    (chat(""), "messages", "the prompt is empty"),
    (completion([VOCAB]), "prompt", f"token id {VOCAB} is outside"),
    (completion([[1], []]), "prompt[1]", "must not be empty"),
    (completion([-1]), "prompt[0]", "must be >= 0"),
    (completion("A" * 5000), "prompt", "has 5000 tokens and the context holds 4096"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "param", "words"), WRONG, ids=str)
def test_a_wrong_request_is_a_400_that_names_the_field(
    server: Live, body: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    reply = post(server, {**body, "stream": stream} if "stream_options" not in body else body)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert words in reply.error["message"]
    assert is_an_error(reply)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":1,"a":2}', b'{"seed":NaN}', b"{}" * 2]
)
def test_a_body_that_is_no_object_is_a_400(server: Live, body: bytes) -> None:
    for path in (CHAT, COMPLETIONS):
        reply = raw(server, body, path)
        assert reply.status == 400
        assert is_an_error(reply)


def test_an_unknown_model_or_path_is_a_404(server: Live) -> None:
    for body in (chat(model="mix"), completion(model="gpt-4")):
        reply = post(server, body)
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert "mixed" in reply.error["message"]
    paths = (
        "/v1",
        "/v1/chat",
        "/v1/models/x/y",
        "/page/nope.js",
        "/page/../page/../secret",
        "/%00",
        "/page/%2e%2e/%2e%2e/secret",
    )
    for path in paths:
        reply = get(server, path)
        assert (reply.status, reply.error["code"]) == (404, "not_found")
        assert is_an_error(reply)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("DELETE", COMPLETIONS, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PUT", "/v1/routing", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("BREW", "/", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_ones(
    server: Live, method: str, path: str, allowed: str
) -> None:
    reply = call(server, method, path, b"{}", JSON)
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    assert is_an_error(reply)


@pytest.mark.parametrize(
    "path", ["/", "/health", "/metrics", "/v1/models", "/v1/routing", "/openapi.json"]
)
def test_head_is_get_without_a_body(server: Live, path: str) -> None:
    whole, head = get(server, path), call(server, "HEAD", path)
    assert (whole.status, head.status) == (200, 200)
    assert head.content == b""
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_a_large_body_is_a_413_however_it_is_sent(server: Live) -> None:
    large = json.dumps(chat("A" * (4 * MIB))).encode()
    with connection(server) as kept:
        kept.putrequest("POST", CHAT)
        kept.putheader("Content-Type", "application/json")
        kept.putheader("Content-Length", str(len(large)))
        kept.endheaders()
        at_once = kept.getresponse()
        assert at_once.status == 413
    with connection(server) as kept:
        parts = (large[i : i + 65536] for i in range(0, len(large), 65536))
        kept.request("POST", CHAT, parts, JSON, encode_chunked=True)
        reply = kept.getresponse()
        assert (reply.status, json.loads(reply.read())["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "x"])
def test_what_is_not_called_json_is_a_415(server: Live, content_type: str) -> None:
    reply = call(server, "POST", CHAT, json.dumps(chat()).encode(), {"Content-Type": content_type})
    assert reply.status == 415
    assert is_an_error(reply)


# Who may speak to it


def test_without_the_key_it_answers_nothing_but_the_page() -> None:
    with live(safety=Safety(key=KEY, hosts=LOOPBACK_HOSTS)) as server:
        right = {"Authorization": f"Bearer {KEY}"}
        assert post(server, chat(max_tokens=1), **right).status == 200
        for path in ("/v1/models", "/v1/routing", "/metrics", "/openapi.json"):
            assert get(server, path, **right).status == 200
            refused = get(server, path)
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert is_an_error(refused)
        for wrong in ("", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer"):
            refused = post(server, chat(), Authorization=wrong)
            assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
            assert KEY.encode() not in refused.content
        for path in ("/", "/health", "/page/app.js"):
            assert get(server, path).status == 200


def test_other_names_and_other_sites_are_refused(server: Live) -> None:
    port = urlsplit(server.url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost"):
        assert post(server, chat(max_tokens=1), Host=host).status == 200
    for host in ("evil.example", "127.0.0.1.evil.example", f"evil.example:{port}"):
        reply = post(server, chat(), Host=host)
        assert reply.status == 421
        assert is_an_error(reply)
    assert post(server, chat(max_tokens=1), Origin=server.url).status == 200
    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        reply = post(server, chat(), Origin=origin)
        assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")
        assert is_an_error(reply)


# Logs


@pytest.mark.parametrize("log_text", [False, True])
def test_the_log_holds_texts_only_if_told_to(
    caplog: pytest.LogCaptureFixture, log_text: bool
) -> None:
    with caplog.at_level(logging.DEBUG), live(options=ServiceOptions(log_text=log_text)) as server:
        answers = [post(server, body).json for body in (chat("SECRET-1"), completion("SECRET-2"))]
        assert post(server, chat("SECRET-3", temperature=9)).status == 400
        assert post(server, chat("SECRET-4", stream=True)).status == 200
        server.wait_until_idle()
    answer = answers[0]["choices"][0]["message"]["content"]
    assert answers[0]["id"] in caplog.text
    for text in ("SECRET-1", "SECRET-2", "SECRET-4", repr(answer)):
        assert (text in caplog.text) == log_text


# Anything at all

MUTATIONS = 500
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**30, "", "A", "\x00", "é", [], {}, [[]], [None], {"a": 1},
    ["A", 1], [1, "A"], "9" * 400, -(2**63), 2**64, [0] * 300, "mixed",
]  # fmt: skip


def _random_body(random_: random.Random) -> dict[str, Any]:
    common = {
        "max_tokens": 3,
        "temperature": 1.0,
        "seed": 1,
        "stop": ["A", "B"],
        "n": 2,
        "top_p": 0.5,
    }
    routed = {
        "routing": {"threshold": 0.5, "max_large_fraction": 0.5, "revise_below": 0.1, "trace": True}
    }
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    messages = [
        {"role": "system", "content": "BE"},
        {"role": "user", "content": [{"type": "text", "text": "HI"}]},
    ]
    body = random_.choice(
        [
            chat(messages=messages, logprobs=True, top_logprobs=2, **common, **routed),
            completion(["ONE", "TWO"], logprobs=2, **common, **routed),
            completion([1, 2, 3], **common),
        ]
    )
    return {**body, **(streamed if random_.random() < 0.3 else {})}


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything inside a value."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def _retyped(random_: random.Random, body: dict[str, Any]) -> bytes:
    for _ in range(random_.randint(1, 2)):
        container, key = random_.choice(_places(body))
        container[key] = random_.choice(ODD)
    return json.dumps(body).encode()


def _dropped(random_: random.Random, body: dict[str, Any]) -> bytes:
    container, key = random_.choice(_places(body))
    del container[key]
    return json.dumps(body).encode()


def _doubled(random_: random.Random, body: dict[str, Any]) -> bytes:
    key = random_.choice(list(body))
    return json.dumps(body)[:-1].encode() + f", {json.dumps({key: 1})[1:]}".encode()


def _with_bytes(random_: random.Random, body: dict[str, Any]) -> bytes:
    content = bytearray(json.dumps(body).encode())
    for _ in range(random_.randint(1, 4)):
        content[random_.randrange(len(content))] = random_.randrange(256)
    return bytes(content)


def _cut(random_: random.Random, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return content[: random_.randrange(len(content))]


def _nested(random_: random.Random, body: dict[str, Any]) -> bytes:
    depth = random_.choice([10, 40, 2000, 100_000])
    opening, closing = random_.choice([(b"[", b"]"), (b'{"a":', b"}")])
    deep = opening * depth + b"1" + closing * depth
    return json.dumps({**body, "metadata": "@"}).encode().replace(b'"@"', deep)


def _with_surrogate(random_: random.Random, body: dict[str, Any]) -> bytes:
    half = random_.choice([b'"\\ud800"', b'"\\udfff\\ud800"', b'"A\\ud83d\\ude00"'])
    container, key = random_.choice(_places(body))
    container[key] = "@"
    return json.dumps(body).encode().replace(b'"@"', half)


MUTATE: list[Callable[[random.Random, dict[str, Any]], bytes]] = [
    _retyped, _retyped, _retyped, _dropped, _doubled, _with_bytes, _cut, _nested, _with_surrogate,
]  # fmt: skip


def test_no_bytes_break_the_server_and_nothing_of_them_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    random_ = random.Random(7)
    seen = Counter[int]()
    # A short context: long answers would prove nothing here.
    with live(scripted_pair(context_length=24)) as server, connection(server) as kept:
        healthy = post(server, chat()).json["choices"]
        with caplog.at_level(logging.WARNING):
            for _ in range(MUTATIONS):
                body = _random_body(random_)
                path = path_of(body)
                content = random_.choice(MUTATE)(random_, body)
                reply = say(kept, "POST", path, content, JSON)
                seen[reply.status] += 1
                assert reply.status in (200, 400, 404), (content[:300], reply.content)
                assert reply.status == 200 or is_an_error(reply)
                assert b"server_error" not in reply.content
        assert caplog.text == ""
        server.wait_until_idle()
        assert post(server, chat()).json["choices"] == healthy
    assert min(seen[200], seen[400]) > MUTATIONS // 20
