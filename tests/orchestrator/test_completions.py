"""A large model behind servers that are not vLLM: the same tokens, or one sentence why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import builders
from crossroads.decoding.mixed import MixedLoop, MixedModels, generate
from crossroads.decoding.request import Request, check_request
from crossroads.decoding.single import generate_alone
from crossroads.errors import EngineError, RequestError
from crossroads.models.base import Want
from crossroads.models.completions import CompletionsLM
from crossroads.models.completions_probe import find_out
from crossroads.models.completions_wire import Completions, LlamaCpp, TokenFinder, Told
from crossroads.models.pairs import Pair
from crossroads.routing.routers.heuristics import entropy
from crossroads.types import Cause, OnLoss, Role, Trace
from laws.pairs import alone, mixed, random_requests, scripted_pair
from orchestrator.fake_completions import KINDS, FakeCompletions, fake_completions
from orchestrator.fake_server import fake_server
from orchestrator.patience import STEADY

MIDDLE = 0.65


@contextmanager
def served(
    kind: str, pair: Pair | None = None, **fields: Any
) -> Iterator[tuple[CompletionsLM, FakeCompletions]]:
    pair = scripted_pair() if pair is None else pair
    with fake_completions(pair.large, pair.tokenizer, kind, **fields) as fake:
        info = pair.large.info
        found = find_out([fake.url], pair.tokenizer, info.eos_ids, STEADY)
        model = CompletionsLM(info, [fake.url], found, pair.tokenizer, STEADY)
        try:
            yield model, fake
            assert model.alive == 0
        finally:
            model.close()


def run(model: CompletionsLM, requests: list[Request], pair: Pair | None = None) -> list[Trace]:
    pair = scripted_pair() if pair is None else pair
    router = entropy(pair.small.info.vocab_size)
    models = MixedModels(pair.small, model, router, pair.tokenizer, MIDDLE)
    found = generate(models, requests, on_loss=OnLoss.SMALL)
    return [trace for _, trace in sorted(found, key=lambda x: x[0])]


# What they can do


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_writes_what_the_model_itself_would(kind: str) -> None:
    requests = [dataclasses.replace(r, max_lag=3) for r in random_requests(3, 3)]
    expected = mixed(scripted_pair(), requests, MIDDLE)
    by_itself = alone(scripted_pair(), Role.LARGE, requests)
    with served(kind) as (model, _):
        assert [t.token_ids for t in run(model, requests)] == [t.token_ids for t in expected]
        tokenizer = scripted_pair().tokenizer
        found = dict(generate_alone(model, Role.LARGE, tokenizer, requests))
        assert [found[i].token_ids for i in range(3)] == [t.token_ids for t in by_itself]
        assert any(t.finish_reason == "eos" for t in [*expected, *by_itself])


@pytest.mark.parametrize(
    ("kind", "most_top", "told"),
    [
        ("llamacpp", 20, 20),
        ("ids", 20, 20),
        ("ids", 5, 5),
        ("named", 20, 20),
        ("ids", 0, 0),
        ("bytes", 20, 0),
        ("text", 20, 0),
    ],
)
def test_what_a_server_tells_is_declared_and_more_is_refused_by_name(
    kind: str, most_top: int, told: int
) -> None:
    (request,) = random_requests(1, 3)
    with served(kind, most_top=most_top) as (model, _):
        info = model.info
        assert (info.most_top, info.looks_back, info.engine) == (told, False, "remote")
        refused: list[tuple[dict[str, Any], str]] = [
            ({"revise_below": 0.5}, "revise_below needs the large model's view"),
            ({"lossless": True}, "lossless needs the large model's view"),
            ({"logprobs": 20}, "logprobs needs the 20 likeliest"),
            ({"logprobs": 0}, "logprobs needs the 1 likeliest"),
        ]
        for fields, sentence in refused:
            if "logprobs" in fields and max(1, fields["logprobs"]) <= told:
                check_request(dataclasses.replace(request, **fields), [info])
                continue
            with pytest.raises(RequestError, match=sentence):
                check_request(dataclasses.replace(request, **fields), [info])
        sampling = dataclasses.replace(request.sampling, temperature=0.5)
        with pytest.raises(RequestError, match="send temperature 0"):
            check_request(dataclasses.replace(request, sampling=sampling), [info])
        with pytest.raises(EngineError, match="nothing of earlier tokens"):
            model.extend([model.new_cache()], [[1, 2]], Want(positions="all"))
        model.alive = 0


@pytest.mark.parametrize("kind", ["llamacpp", "ids", "named"])
def test_log_probabilities_are_the_models(kind: str) -> None:
    requests = [dataclasses.replace(r, logprobs=3, threshold=0.0) for r in random_requests(2, 3)]
    expected = mixed(scripted_pair(), requests, 0.0)
    with served(kind) as (model, _):
        found = run(model, requests)
    for trace, other in zip(found, expected, strict=True):
        for record, wanted in zip(trace.records, other.records, strict=True):
            assert record.logprob == pytest.approx(wanted.logprob, abs=1e-5)


def test_a_servers_own_settings_are_switched_off() -> None:
    with served("llamacpp") as (model, fake):
        run(model, random_requests(1, 3))
        assert all(body["samplers"] == ["temperature"] for body in fake.requests)
    with served("text") as (model, fake):
        run(model, random_requests(1, 3))
        last = fake.requests[-1]
        assert (last["repeat_penalty"], last["repetition_penalty"]) == (1.0, 1.0)
        assert last["temperature"] == last["presence_penalty"] == last["frequency_penalty"] == 0
        assert "ignore_eos" not in last  # llama.cpp would never end then


def test_the_context_is_the_servers_if_that_is_shorter() -> None:
    with served("llamacpp", context=99) as (model, _):
        assert model.info.context_length == 99


def test_vllm_is_told_apart() -> None:
    pair = scripted_pair()
    with fake_server(pair.large, None) as fake:
        found = find_out([fake.url], pair.tokenizer, pair.large.info.eos_ids, STEADY)
        assert found.dialect is None


# What is found out before it gives bad answers


@pytest.mark.parametrize(
    ("trick", "sentence"),
    [
        ("beginning", "was sent 18 tokens and read 19"),
        ("literal", "was sent 18 tokens and read"),
        ("mute", r"does not say how many tokens it read \(usage.prompt_tokens\)"),
        ("strings", r"takes no token ids as a prompt \(.*prompt must be a string"),
        ("busy", "takes no token ids as a prompt .*unhashable list"),
    ],
)
def test_a_server_that_reads_something_else_is_refused(trick: str, sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence), served("text", trick=trick):
        pass


def test_a_server_that_splits_the_text_anew_is_refused(tiny: Pair) -> None:
    with (
        pytest.raises(EngineError, match=r"was sent 18 tokens and read 6: it splits"),
        served("llamacpp", tiny, trick="anew"),
    ):
        pass


def test_a_text_that_does_not_tell_its_tokens_is_refused() -> None:
    with (
        pytest.raises(EngineError, match="so its text does not tell its tokens"),
        served("text", trick="first"),
    ):
        pass


def test_servers_of_two_kinds_are_refused() -> None:
    pair = scripted_pair()
    with (
        fake_completions(pair.large, pair.tokenizer, "llamacpp") as first,
        fake_completions(pair.large, pair.tokenizer, "text") as second,
        pytest.raises(EngineError, match="are not of one kind"),
    ):
        find_out([first.url, second.url], pair.tokenizer, pair.large.info.eos_ids, STEADY)


# Tokens that text does not tell


def test_a_text_is_a_token_where_exactly_one_is_that() -> None:
    finder = TokenFinder([b"a", b"b", b"b", None, b"\xe2\x82", "\ufffd".encode(), b""], [3])
    assert finder.find(Told(piece=b"a")) == 0
    assert finder.find(Told(token_id=2, piece=b"a")) == 2
    assert finder.find(Told(piece=b"\xe2\x82")) == 4
    assert finder.find(Told(ended=True)) == 3
    for told, sentence in (
        (Told(piece=b"b"), "b'b', is more than one token"),
        (Told(piece=b"c"), "b'c', is no token"),
        (Told(piece=b""), "this one has none"),
        (Told(piece=b"", text="\ufffd", ended=True), "this one has none"),
        (Told(token_id=7), "outside of the vocabulary of 7"),
    ):
        with pytest.raises(EngineError, match=sentence):
            finder.find(told)


def test_a_replacement_character_is_not_taken_for_the_token_of_that_name() -> None:
    """Servers write U+FFFD for half a character, whatever token that is."""
    finder = TokenFinder([b"a", "\ufffd".encode()], [0])
    reply = {"choices": [{"text": "\ufffd", "finish_reason": "length"}]}
    with pytest.raises(EngineError, match="part of a character"):
        finder.find(Completions().told(reply))


def test_replies_are_read_by_the_best_name_that_they_have() -> None:
    def told(**choice: Any) -> Told:
        return Completions().told({"choices": [{"text": "x", **choice}], "usage": None})

    assert told().piece == b"x"
    assert told(token_ids=[5]).token_id == 5
    assert told(logprobs={"tokens": ["bytes:\\xe2\\x82"]}).piece == b"\xe2\x82"
    assert told(logprobs={"tokens": ["token_id:7"]}).token_id == 7
    assert told(logprobs={"tokens": ["x"], "top_logprobs": [{"x": -1.0}]}).values is None
    content = [{"id": 4, "bytes": [120], "top_logprobs": [{"id": 4, "logprob": -0.5}]}]
    found = told(logprobs={"content": content})
    assert (found.token_id, found.values) == (4, {4: -0.5})
    half = LlamaCpp().told({"tokens": [9], "tokens_evaluated": 3, "content": ""})
    assert (half.token_id, half.values, half.read) == (9, None, 3)


# A real tokenizer, with tokens that are part of a character


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pytest.importorskip("llama_cpp")
    from crossroads.models.gguf_tokenizer import GgufTokenizer
    from crossroads.models.llamacpp import LlamaCppLM

    folder = tmp_path_factory.mktemp("tiny")
    paths = (
        builders.tiny_gguf(folder / "small.gguf", 2, agrees_with=1),
        builders.tiny_gguf(folder / "large.gguf", 1),
    )
    small, large = (LlamaCppLM.load(path, context_length=128, max_rows=16) for path in paths)
    with Pair("tiny", small, large, GgufTokenizer.load(paths[1])) as pair:
        yield pair


def _tiny_requests(count: int, **fields: Any) -> list[Request]:
    requests = random_requests(count, 5, vocab=builders.VOCAB - builders.PADDING - 3)
    return [dataclasses.replace(r, threshold=0.0, max_tokens=24, **fields) for r in requests]


def test_ids_tell_parts_of_characters_too(tiny: Pair) -> None:
    requests = _tiny_requests(3)
    expected = mixed(tiny, requests, MIDDLE)
    pieces = tiny.tokenizer.pieces()
    written = [pieces[i] or b"" for trace in expected for i in trace.token_ids]
    assert any("\ufffd" in piece.decode(errors="replace") for piece in written)
    with served("llamacpp", tiny) as (model, _):
        found = run(model, requests, tiny)
    assert [t.token_ids for t in found] == [t.token_ids for t in expected]


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("text", {}, "it is part of a character"),
        ("llamacpp", {"logprobs": 0}, "told no log-probability"),
    ],
)
def test_a_token_that_cannot_be_told_fails_its_row_and_no_other(
    kind: str, fields: dict[str, Any], sentence: str, tiny: Pair
) -> None:
    requests = _tiny_requests(6, **fields)
    expected = mixed(tiny, [dataclasses.replace(r, logprobs=None) for r in requests], MIDDLE)
    with served(kind, tiny) as (model, _):
        router = entropy(tiny.small.info.vocab_size)
        models = MixedModels(tiny.small, model, router, tiny.tokenizer, MIDDLE)
        loop = MixedLoop(models)
        numbers = [loop.add(request) for request in requests]
        ends = {}
        while loop.active:
            ends |= {e.row: e for e in loop.step() if e.trace is not None}
        loop.close()
    failed = 0
    for number, other in zip(numbers, expected, strict=True):
        end = ends[number]
        if end.error is not None:
            failed += 1
            assert len(end.trace.token_ids) < len(other.token_ids)
        assert end.trace.token_ids == other.token_ids[: len(end.trace.token_ids)]
        assert end.error is None or end.trace.finish_reason == "error"
    assert failed
    with pytest.raises(EngineError, match=sentence):
        raise EngineError(next(e.error for e in ends.values() if e.error is not None))


def test_a_gguf_behind_a_server_is_described_without_its_weights(
    tiny: Pair, tmp_path: Path
) -> None:
    from crossroads.models.pairs import load_pair, resolve_pair

    small = builders.tiny_gguf(tmp_path / "small.gguf", 2, agrees_with=1)
    large = builders.tiny_gguf(tmp_path / "large.gguf", 1)
    with fake_completions(tiny.large, tiny.tokenizer, "llamacpp") as fake:
        spec = resolve_pair(small=str(small), large=f"{large}@{fake.url}")
        with load_pair(spec, context_length=128, max_rows=4) as pair:
            info, real = pair.large.info, tiny.large.info
            for name in ("parameters", "vocab_size", "hidden_size", "eos_ids", "dtype"):
                assert getattr(info, name) == getattr(real, name)
            assert info.fingerprint == real.fingerprint
            requests = _tiny_requests(2)
            models = MixedModels(
                pair.small, pair.large, entropy(builders.VOCAB), pair.tokenizer, 0.0
            )
            found = dict(generate(models, requests))
            expected = mixed(tiny, requests, 0.0)
            assert [found[i].token_ids for i in range(2)] == [t.token_ids for t in expected]


# A server that dies


def test_a_row_goes_on_small_when_the_server_dies() -> None:
    requests = random_requests(2, 3)
    with served("text") as (model, fake):
        fake.refuse = 503
        found = run(model, requests)
    assert [t.token_ids for t in found] == [
        t.token_ids for t in alone(scripted_pair(), Role.SMALL, requests)
    ]
    assert any(r.cause is Cause.UNAVAILABLE for t in found for r in t.records)
