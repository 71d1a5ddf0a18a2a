"""Any bytes become a request or one sentence that names the first wrong field."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.errors import (
    BusyError,
    ClosedError,
    ConfigError,
    CrossroadsError,
    DataError,
    EngineError,
    RequestError,
)
from crossroads.sampling import SamplingParams
from crossroads.serving.api_error import ApiError, from_error, queue_full
from crossroads.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    Limits,
    parse_chat,
    parse_completion,
)
from crossroads.types import Message

USER = {"role": "user", "content": "hello"}
CHAT: dict[str, Any] = {"model": "mixed", "messages": [USER], "seed": 1}
COMPLETION: dict[str, Any] = {"model": "mixed", "prompt": "hello", "seed": 1}

FEW = settings(max_examples=60)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=()), max_size=8), inner)
    ),
    max_leaves=6,
)
chat_fields = st.sampled_from([f.alias or name for name, f in ChatRequest.model_fields.items()])
completion_fields = st.sampled_from(list(CompletionRequest.model_fields))


def chat(**fields: Any) -> ChatRequest:
    return parse_chat(json.dumps(CHAT | fields).encode())


def completion(**fields: Any) -> CompletionRequest:
    return parse_completion(json.dumps(COMPLETION | fields).encode())


def refusal(body: bytes | dict[str, Any], limits: Limits | None = None) -> ApiError | None:
    """Return the error of a chat, or of a completion where there is a prompt; None: it is one."""
    parse = parse_completion if isinstance(body, dict) and "prompt" in body else parse_chat
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        parse(data, limits or Limits())
    except ApiError as error:
        check_can_be_told(error)
        return error
    return None


def refused(body: bytes | dict[str, Any], limits: Limits | None = None) -> ApiError:
    error = refusal(body, limits)
    assert error is not None
    return error


def is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(character) < 0xE000 for character in text)


def is_at(error: ApiError, field: str) -> bool:
    """Whether the error names `field`, or something in it."""
    return re.match(re.escape(field) + r"($|\.|\[)", error.param or "") is not None


def check_can_be_told(error: ApiError) -> None:
    assert error.status == 400
    assert error.type == "invalid_request_error"
    assert json.loads(error.response().body) == error.body()
    assert error.message.strip()
    assert "\n" not in error.message
    assert len(error.message) < 1000
    assert error.message.startswith(error.param or "the ")


class TestAnyBytes:
    @FEW
    @given(st.binary() | st.text().map(str.encode) | json_values.map(json.dumps).map(str.encode))
    def test_nonsense_is_refused(self, body: bytes) -> None:
        for parse in (parse_chat, parse_completion):
            with pytest.raises(ApiError) as caught:
                parse(body)
            check_can_be_told(caught.value)

    @FEW
    @given(chat_fields, json_values)
    def test_a_wrong_field_of_a_chat_is_the_one_that_is_named(self, field: str, value: Any) -> None:
        error = refusal(CHAT | {field: value})
        assert error is None or is_at(error, field)

    @FEW
    @given(completion_fields, json_values)
    def test_so_is_one_of_a_completion(self, field: str, value: Any) -> None:
        error = refusal(COMPLETION | {field: value})
        assert error is None or is_at(error, field)

    @FEW
    @given(st.sampled_from(["role", "content", "name", "extra"]), json_values)
    def test_so_is_one_of_a_message(self, field: str, value: Any) -> None:
        error = refusal(CHAT | {"messages": [USER, USER | {field: value}]})
        assert error is None or is_at(error, f"messages[1].{field}")

    @FEW
    @given(st.text(st.characters(exclude_categories=())) | json_values)
    def test_what_is_accepted_is_what_was_sent(self, value: Any) -> None:
        body = CHAT | {"metadata": {"key": value}}
        if isinstance(value, str) and is_unicode(value):
            assert chat(**body).metadata == {"key": value}
        else:
            assert is_at(refused(body), "metadata.key")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "is empty"),
        (b" \n", None, "is empty"),
        (b"\xef\xbb\xbf", None, "is empty"),
        (b'{"model": "\xff"}', None, "not UTF-8 (byte 11)"),
        ('{"model": "mixed"}'.encode("utf-16"), None, "not UTF-8"),
        (b"{", None, "not JSON"),
        (b"{} {}", None, "not JSON"),
        (b"[]", None, "got an empty list"),
        (b"null", None, "got null"),
        (b'"x"', None, "got 'x'"),
        (b"[" * 200_000, None, "deeper"),
        (b'{"a":' * 200_000, None, "deeper"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, None, "deeper"),
        (b'{"temperature": NaN}', "temperature", "finite"),
        (b'{"temperature": -Infinity}', "temperature", "finite"),
        (b'{"temperature": 1e999}', "temperature", "finite"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "seed", "finite"),
        (b'{"model": "a", "model": "a"}', "model", "twice"),
        (b'{"metadata": {"a": 1, "b": [{"c": 1, "c": 2}]}}', "metadata.b[0].c", "twice"),
        (b'{"stop": ["a", "\\ud83d"]}', "stop[1]", "surrogate"),
        (b'{"\\ud83d": 1}', None, "not valid Unicode"),
        (b'{"metadata": {"\\ud83d": 1}}', "metadata", "not valid Unicode"),
        (b'{"a.b\\n": [NaN]}', "['a.b\\n'][0]", "finite"),
        (b'{"' + b"k" * 100_000 + b'": 1}', "k" * 200 + "...", "not a known field"),
    ],
)
def test_json_that_is_none_or_two(body: bytes, param: str | None, words: str) -> None:
    error = refused(body)
    assert error.param == param
    assert words in error.message


def test_a_byte_order_mark_is_nothing() -> None:
    assert parse_chat(b"\xef\xbb\xbf" + json.dumps(CHAT).encode()) == chat()


def test_whole_surrogate_pairs_are_text() -> None:
    body = b'{"model": "m", "prompt": "\\ud83d\\ude00"}'
    assert parse_completion(body).prompts == ["\N{GRINNING FACE}"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": None}, "model", "must be a string, got null"),
        ({"messages": []}, "messages", "must not be empty"),
        ({"messages": "hi"}, "messages", "must be a list, got 'hi'"),
        ({"messages": [USER, "hi"]}, "messages[1]", "must be an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "is required"),
        ({"messages": [USER | {"content": None}]}, "messages[0].content", "got null"),
        ({"messages": [USER | {"content": []}]}, "messages[0].content", "not be empty"),
        ({"messages": [USER | {"role": "tool"}]}, "messages[0].role", "'tool' is not served"),
        (
            {"messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]},
            "messages[0].role",
            "'tool' is not served",
        ),
        ({"messages": [USER | {"tool_calls": [1]}]}, "messages[0].tool_calls", "not served"),
        ({"messages": [USER | {"refusal": "no"}]}, "messages[0].refusal", "not served"),
        (
            {"messages": [USER, USER | {"content": [{"type": "text", "text": 1}]}]},
            "messages[1].content[0].text",
            "must be a string, got 1",
        ),
        (
            {"messages": [USER | {"content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "'image_url' is not served",
        ),
        ({"temperature": 2.1}, "temperature", "must be <= 2, got 2.1"),
        ({"temperature": -0.1}, "temperature", "must be >= 0"),
        ({"temperature": "0"}, "temperature", "must be a number, got '0'"),
        ({"temperature": True}, "temperature", "must be a number, got true"),
        ({"top_p": 0}, "top_p", "must be > 0, got 0"),
        ({"top_k": -2}, "top_k", "must be >= -1"),
        ({"top_k": 1.0}, "top_k", "must be a whole number, got 1.0"),
        ({"min_p": 1.1}, "min_p", "must be <= 1"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "must be <= 2"),
        ({"presence_penalty": -2.5}, "presence_penalty", "must be >= -2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "must be >= 0.01"),
        ({"seed": 2**63}, "seed", "must be <= 9223372036854775807"),
        ({"seed": -(2**63) - 1}, "seed", "must be >= -9223372036854775808"),
        ({"n": 0}, "n", "must be >= 1"),
        ({"n": True}, "n", "must be a whole number, got true"),
        ({"max_tokens": 0}, "max_tokens", "must be >= 1"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "must equal"),
        ({"stream": 1}, "stream", "must be true or false, got 1"),
        ({"stream_options": {}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not a known field"),
        ({"logprobs": 3}, "logprobs", "must be true or false"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "must be <= 20"),
        ({"stop": 3}, "stop", "must be a string or a list of strings, got 3"),
        ({"stop": ["a", 3]}, "stop[1]", "must be a string, got 3"),
        ({"stop": ["a", ""]}, "stop[1]", "must not be empty"),
        ({"stop": ""}, "stop", "must not be empty"),
        ({"metadata": {"a": 1}}, "metadata.a", "must be a string"),
        ({"metadata": dict.fromkeys("abcdefghijklmnopq", "x")}, "metadata", "at most 16"),
        ({"routing": []}, "routing", "must be an object, got an empty list"),
        ({"routing": {"threshold": -1}}, "routing.threshold", "must be >= 0"),
        ({"routing": {"max_large_fraction": 2}}, "routing.max_large_fraction", "must be <= 1"),
        ({"routing": {"revise_below": 1.5}}, "routing.revise_below", "must be <= 1"),
        ({"routing": {"treshold": 1}}, "routing.treshold", "did you mean 'threshold'?"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"given_messages": [USER]}, "given_messages", "not a known field"),
        ({"echo": False}, "echo", "not a known field"),
        ({"tools": [{}]}, "tools", "tools is not served; leave it out"),
        ({"store": True}, "store", "is served only as false"),
        ({"store": 0}, "store", "is served only as false"),
        ({"response_format": {"type": "json_object"}}, "response_format", '{"type": "text"}'),
        ({"modalities": ["text", "audio"]}, "modalities", 'only as ["text"]'),
    ],
)
def test_the_sentence_names_the_field_of_a_chat(
    fields: dict[str, Any], param: str, words: str
) -> None:
    error = refused(CHAT | fields)
    assert error.param == param
    assert words in error.message


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": None}, "prompt", "got null"),
        ({"prompt": {}}, "prompt", "must be a string, token ids, or a list of either"),
        ({"prompt": ""}, "prompt", "must not be empty"),
        ({"prompt": []}, "prompt", "must not be empty"),
        ({"prompt": ["a", ""]}, "prompt[1]", "must not be empty"),
        ({"prompt": [[1], []]}, "prompt[1]", "must not be empty"),
        ({"prompt": ["a", 1]}, "prompt[1]", "must be a string, got 1"),
        ({"prompt": [1, "a"]}, "prompt[1]", "must be a whole number, got 'a'"),
        ({"prompt": [True]}, "prompt[0]", "got true"),
        ({"prompt": [1, -1]}, "prompt[1]", "must be >= 0"),
        ({"prompt": [2**31]}, "prompt[0]", "must be <= 2147483647"),
        ({"prompt": [[1], [2, None]]}, "prompt[1][1]", "must be a whole number, got null"),
        ({"prompt": [[1], 2]}, "prompt[1]", "must be a list, got 2"),
        ({"best_of": 2}, "best_of", "only where it equals n, which is 1"),
        ({"echo": True}, "echo", "served only as false"),
        ({"suffix": "x"}, "suffix", "is not served"),
        ({"logprobs": True}, "logprobs", "must be a whole number"),
        ({"logprobs": 21}, "logprobs", "must be <= 20"),
        ({"messages": [USER]}, "messages", "not a known field"),
    ],
)
def test_the_sentence_names_the_field_of_a_completion(
    fields: dict[str, Any], param: str, words: str
) -> None:
    error = refused(COMPLETION | fields)
    assert error.param == param
    assert words in error.message


@pytest.mark.parametrize(
    ("body", "limits", "param"),
    [
        (CHAT | {"messages": [USER] * 2}, Limits(most_messages=1), "messages"),
        (CHAT | {"messages": [USER] * 2}, Limits(most_characters=9), "messages"),
        (CHAT | {"n": 3}, Limits(most_choices=2), "n"),
        (CHAT | {"stop": ["a"] * 3}, Limits(most_stops=2), "stop"),
        (CHAT | {"stop": ["a", "abc"]}, Limits(longest_stop=2), "stop[1]"),
        (COMPLETION | {"prompt": ["a", "b"]}, Limits(most_prompts=1), "prompt"),
        (COMPLETION | {"prompt": [1, 2, 3]}, Limits(most_characters=2), "prompt"),
        (COMPLETION | {"prompt": [[1], [2, 3]]}, Limits(most_characters=2), "prompt"),
    ],
)
def test_limits_are_kept_and_reached(body: dict[str, Any], limits: Limits, param: str) -> None:
    assert refused(body, limits).param == param
    (name,) = [n for n in Limits.__dataclass_fields__ if getattr(limits, n) != getattr(Limits(), n)]
    one_more = Limits(**{name: getattr(limits, name) + 1})
    parse = parse_completion if "prompt" in body else parse_chat
    parse(json.dumps(body).encode(), one_more)


class TestLeftOut:
    OPTIONAL_CHAT = (set(ChatRequest.model_fields) | set(ChatRequest.not_served)) - {
        "model", "given_messages", "seed",
    }  # fmt: skip

    @pytest.mark.parametrize("field", sorted(OPTIONAL_CHAT))
    def test_null_is_left_out_of_a_chat(self, field: str) -> None:
        assert chat(**{field: None}) == chat()

    @pytest.mark.parametrize(
        "field",
        sorted(
            (set(CompletionRequest.model_fields) | set(CompletionRequest.not_served))
            - {"model", "prompt", "seed"}
        ),
    )
    def test_null_is_left_out_of_a_completion(self, field: str) -> None:
        assert completion(**{field: None}) == completion()

    def test_null_is_left_out_of_inner_objects(self) -> None:
        nulls = dict.fromkeys(("threshold", "max_large_fraction", "revise_below", "trace"))
        assert chat(routing=nulls).routing == chat(routing={}).routing
        message = dict.fromkeys(
            ("name", "refusal", "tool_calls", "function_call", "audio", "annotations")
        )
        assert chat(messages=[USER | message]) == chat()
        options = {
            "include_usage": None,
            "include_obfuscation": None,
            "continuous_usage_stats": None,
        }
        assert not chat(stream=True, stream_options=options).include_usage

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("tools", []),
            ("tool_choice", "none"),
            ("response_format", {"type": "text"}),
            ("logit_bias", {}),
            ("modalities", ["text"]),
            ("store", False),
            ("service_tier", "auto"),
        ],
    )
    def test_what_asks_for_nothing_is_left_out(self, field: str, value: Any) -> None:
        assert chat(**{field: value}) == chat()


@pytest.mark.parametrize(("module", "body"), [("chat/", CHAT), ("", COMPLETION)])
def test_every_field_of_openais_client_is_served_or_refused_by_name(
    module: str, body: dict[str, Any]
) -> None:
    if (found := importlib.util.find_spec("openai")) is None or found.origin is None:
        pytest.skip("openai is not installed")
    # Read, and not imported: that takes seconds.
    path = Path(found.origin).parent / "types" / f"{module}completion_create_params.py"
    source = path.read_text().partition("class CompletionCreateParamsBase(")[2]
    fields = set(re.findall(r"^    (\w+): ", source.partition("\nclass ")[0], re.MULTILINE))
    assert {"model", "temperature", "logit_bias"} < fields
    for field in fields - set(body):
        error = refused(body | {field: [[]]})
        assert is_at(error, field)
        assert "not a known field" not in error.message


class TestWhatTheAppReads:
    def test_messages_are_plain_text_of_three_roles(self) -> None:
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        found = chat(
            messages=[
                {"role": "system", "content": "s"},
                {"role": "developer", "content": "d"},
                {"role": "user", "content": parts, "name": "ann"},
                {"role": "assistant", "content": "a", "reasoning_content": "hm"},
            ]
        ).messages
        assert found == [
            Message("system", "s"),
            Message("system", "d"),
            Message("user", "one\ntwo"),
            Message("assistant", "a"),
        ]

    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [
            ("a", ["a"]),
            (["a", "b"], ["a", "b"]),
            ([1, 2], [(1, 2)]),
            ([[1], [2, 3]], [(1,), (2, 3)]),
        ],
    )
    def test_prompts(self, prompt: Any, expected: list[str | tuple[int, ...]]) -> None:
        assert completion(prompt=prompt).prompts == expected

    def test_stops(self) -> None:
        assert chat().stops == chat(stop=[]).stops == ()
        assert chat(stop="a").stops == ("a",)
        assert chat(stop=["a", "b"]).stops == ("a", "b")

    def test_most_tokens(self) -> None:
        assert chat().most_tokens is None
        assert chat(max_tokens=3).most_tokens == 3
        assert chat(max_completion_tokens=3).most_tokens == 3
        assert chat(max_tokens=3, max_completion_tokens=3).most_tokens == 3

    def test_logprobs_count(self) -> None:
        assert chat().logprobs_count is None
        assert chat(logprobs=True).logprobs_count == 0
        assert chat(logprobs=True, top_logprobs=2).logprobs_count == 2
        assert completion().logprobs_count is None
        assert completion(logprobs=0).logprobs_count == 0
        assert completion(logprobs=3).logprobs_count == 3

    def test_usage_in_a_stream(self) -> None:
        assert chat(stream=True, stream_options={"include_usage": True}).include_usage
        assert not chat(stream=True).include_usage

    @pytest.mark.parametrize("model", ["small", "large"])
    def test_one_model_alone_is_not_routed(self, model: str) -> None:
        assert chat(model=model, routing={"trace": True}).routing is not None
        assert chat(model=model, routing={}).routing is not None
        for field in ("threshold", "max_large_fraction", "revise_below"):
            error = refused(CHAT | {"model": model, "routing": {field: 0}})
            assert error.param == f"routing.{field}"
            assert chat(routing={field: 0}).routing is not None

    def test_no_routing_is_not_empty_routing(self) -> None:
        assert chat().routing is None
        assert chat(routing={}).routing is not None


class TestSampling:
    def test_all_fields_arrive(self) -> None:
        fields: dict[str, Any] = {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 4,
            "min_p": 0.1,
            "seed": 7,
            "frequency_penalty": 0.25,
            "presence_penalty": -0.5,
            "repetition_penalty": 1.5,
        }
        assert chat(**fields).sampling(0.0) == SamplingParams(**fields)
        assert completion(**fields).sampling(0.0, choice=2).seed == 9

    def test_left_out_means_off(self) -> None:
        assert chat().sampling(0.3) == SamplingParams(0.3, seed=1)
        assert chat(temperature=0).sampling(0.3).greedy
        assert chat(top_k=-1).sampling(0.3).top_k == 0

    @given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
    def test_different_seeds_stay_different(self, one: int, other: int) -> None:
        given_seeds = {one, other, ~one, min(-one, 2**63 - 1), 0}
        found = [chat(seed=seed).sampling(0.0).seed for seed in given_seeds]
        assert min(found) >= 0
        assert len(set(found)) == len(given_seeds)
        assert one < 0 or chat(seed=one).sampling(0.0).seed == one

    def test_no_seed_is_a_new_one_per_request_and_one_in_it(self) -> None:
        requests = [chat(seed=None) for _ in range(5)]
        assert len({request.sampling(0.0).seed for request in requests}) == 5
        first = requests[0]
        assert first.sampling(0.0).seed == first.sampling(0.0).seed < 2**53
        assert first.sampling(0.0, choice=3).seed == first.sampling(0.0).seed + 3


class TestErrorsOfTheEngine:
    @pytest.mark.parametrize(
        ("error", "status", "keeps_words"),
        [
            (RequestError("the prompt is too long"), 400, True),
            (ConfigError("no chat template"), 400, True),
            (EngineError("/secret/model.gguf failed"), 503, False),
            (BusyError("8 wait"), 429, False),
            (ClosedError("closed"), 503, False),
            (DataError("/secret/data"), 500, False),
            (CrossroadsError("?"), 500, False),
        ],
    )
    def test_only_errors_about_the_request_keep_their_words(
        self, error: CrossroadsError, status: int, keeps_words: bool
    ) -> None:
        found = from_error(error)
        assert found.status == status
        assert (str(error) in found.message) == keeps_words

    @given(st.floats(0, 1e6))
    def test_retry_after_is_whole_seconds_and_never_too_soon(self, seconds: float) -> None:
        told = int(queue_full(seconds).headers["Retry-After"])
        assert seconds <= told <= max(1, math.ceil(seconds))
