"""A routed pair as a model of lm-evaluation-harness, held to the loops that it wraps.

What needs the harness itself is skipped where the package lm_eval is not installed.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import builders
from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.request import Request
from crossroads.errors import ConfigError, EngineError, RequestError, RouterError
from crossroads.evaluation import harness
from crossroads.evaluation.harness_args import AloneModel, Answerer, ModelArgs, read_model_args
from crossroads.evaluation.harness_prompts import (
    ChatPrompt,
    encode_pair,
    prompt_ids,
    render_chat_prompt,
)
from crossroads.evaluation.harness_requests import read_settings, repeated
from crossroads.evaluation.log_probabilities import log_probabilities
from crossroads.models.pairs import Pair
from crossroads.models.scripted import ScriptedLM, ScriptedTokenizer, hashed_logits
from crossroads.routing.routers.heuristics import entropy
from crossroads.sampling import SamplingParams
from crossroads.types import Message, Role, Usage
from laws.pairs import VOCAB, alone, mixed, scripted_pair

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason='lm_eval is not installed: pip install "crossroads-lm[harness]"',
)

THRESHOLD = 0.62  # routes some tokens of the scripted pair and keeps some
NEVER = 1.1
TASK: dict[str, Any] = {
    "task": "sums",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["#"], "max_gen_toks": 30},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
QUESTIONS = [f"Q{'=' * (i % 3)}{i}?" for i in range(7)]


def routed(pair: Pair, threshold: float = THRESHOLD) -> MixedModels:
    router = entropy(pair.small.info.vocab_size)
    return MixedModels(pair.small, pair.large, router, pair.tokenizer, threshold)


def only(pair: Pair, role: Role) -> AloneModel:
    model = pair.small if role is Role.SMALL else pair.large
    return AloneModel(model, role, pair.tokenizer)


def instance(*arguments: Any, kind: str = "generate_until", document: int = 0) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0, ("sums", document, 1))


def asked_for(settings: dict[str, Any] | None = None) -> list[Any]:
    given = TASK["generation_kwargs"] if settings is None else settings
    return [instance(text, given, document=i) for i, text in enumerate(QUESTIONS)]


def task_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a task over a local file; nothing of it comes from a network."""
    rows = folder / "rows.jsonl"
    lines = [
        json.dumps({"question": text, "answer": "!", "choices": ["A", "B"]}) for text in QUESTIONS
    ]
    rows.write_text("\n".join(lines))
    files = {"data_files": {"test": str(rows)}, "cache_dir": str(folder / "cache")}
    return {**copy.deepcopy(TASK), "dataset_path": "json", "dataset_kwargs": files, **changes}


def evaluate(model: Any, task: dict[str, Any], **options: Any) -> Any:
    """Run the harness's own evaluator on one task."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    return simple_evaluate(model, tasks=[task], task_manager=manager, bootstrap_iters=0, **options)


def answers(results: Any) -> list[str]:
    samples = sorted(results["samples"]["sums"], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


# Laws of text


@needs_harness
@pytest.mark.parametrize("max_rows", [1, 4])
def test_the_harness_gets_what_the_mixed_loop_gives(tmp_path: Path, max_rows: int) -> None:
    pair = scripted_pair()
    model = harness.RoutedPair(routed(pair), max_rows=max_rows)
    results = evaluate(model, task_config(tmp_path))
    requests = [
        Request(tuple(pair.tokenizer.encode(text)), max_tokens=30, stop=("#",))
        for text in QUESTIONS
    ]
    traces = mixed(pair, requests, THRESHOLD)
    assert answers(results) == [trace.text for trace in traces]
    usage = sum((trace.usage for trace in traces), Usage())
    told = results["config"]["crossroads"]
    assert told["small_tokens"] == usage.small_tokens > 0
    assert told["large_tokens"] == usage.large_tokens > 0
    assert told["large_fraction"] == usage.large_fraction
    assert told["tasks"]["sums"]["lag_tokens"] == usage.lag_tokens
    assert (told["answers"], told["threshold"]) == (len(QUESTIONS), THRESHOLD)


@needs_harness
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(("threshold", "role"), [(0.0, Role.LARGE), (NEVER, Role.SMALL)])
def test_the_ends_of_the_threshold_are_each_model_alone(
    threshold: float, role: Role, temperature: float
) -> None:
    requests = asked_for({"until": [], "max_gen_toks": 25, "temperature": temperature, "seed": 5})
    pair = scripted_pair()
    both, one = harness.RoutedPair(routed(pair, threshold)), harness.RoutedPair(only(pair, role))
    texts = both.generate_until(requests, disable_tqdm=True)
    assert texts == one.generate_until(requests, disable_tqdm=True)
    sampling = SamplingParams(temperature=temperature, seed=5)
    traces = alone(
        pair,
        role,
        [
            Request(tuple(pair.tokenizer.encode(text)), max_tokens=25, sampling=sampling)
            for text in QUESTIONS
        ],
    )
    assert texts == [trace.text for trace in traces]
    written = sum(len(trace.records) for trace in traces)
    for told in (both.report(), one.report()):
        assert told[f"{role.value}_tokens"] == told["generated_tokens"] == written


@needs_harness
def test_answers_come_in_the_order_of_the_requests_whatever_ends_first() -> None:
    pair = scripted_pair()
    requests = asked_for()
    in_order = harness.RoutedPair(routed(pair)).generate_until(requests, disable_tqdm=True)
    assert len(set(map(len, in_order))) > 2, "the example's answers must differ in length"
    order = np.random.default_rng(1).permutation(len(requests))
    shuffled = harness.RoutedPair(routed(pair), max_rows=3).generate_until(
        [requests[i] for i in order], disable_tqdm=True
    )
    assert shuffled == [in_order[i] for i in order]


@needs_harness
def test_repetitions_draw_differently_and_the_first_one_keeps_the_seed() -> None:
    settings = {"do_sample": True, "temperature": 1.0, "seed": 3, "max_gen_toks": 12}
    request = instance("Q1?", settings)
    model = harness.RoutedPair(routed(scripted_pair()))
    texts = model.generate_until([request] * 4, disable_tqdm=True)
    assert len(set(texts)) == 4
    again = instance("Q1?", settings)
    assert model.generate_until([again], disable_tqdm=True) == texts[:1]
    assert model.generate_until([again] * 4, disable_tqdm=True) == texts


def test_a_repetition_changes_nothing_but_the_seed_and_shares_none() -> None:
    request = Request((1,), sampling=SamplingParams(temperature=0.5, seed=0))
    assert repeated(request, 0) is request
    seeds = {
        repeated(replace(request, sampling=SamplingParams(0.5, seed=s)), k).sampling.seed
        for s in range(5)
        for k in range(5)
    }
    assert len(seeds) == 25
    third = repeated(request, 2)
    assert replace(third, sampling=replace(third.sampling, seed=0)) == request


@needs_harness
def test_a_request_that_cannot_be_served_is_named_before_anything_is_generated() -> None:
    pair = scripted_pair(context_length=40)
    model = harness.RoutedPair(routed(pair))
    with pytest.raises(RequestError, match=r"task sums, document 7: the prompt has 60 tokens"):
        model.generate_until([*asked_for(), instance("Q" * 60, {}, document=7)])
    assert pair.small.calls == []  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match=r"document 0: .*num_beams=4"):
        model.generate_until([instance("Q", {"num_beams": 4})])


@needs_harness
def test_answers_that_the_context_may_cut_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = harness.RoutedPair(routed(scripted_pair(context_length=20)))
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        model.generate_until(
            [instance("QQ", {"max_gen_toks": 18}), instance("QQ", {"max_gen_toks": 19})]
        )
    assert "1 of 2 answers end early if they fill the context of 20 tokens" in caplog.text


# Settings


def test_a_tasks_settings_become_a_request() -> None:
    settings = {
        "until": ["\n\n", ""],
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 50,
        "min_p": 0.1,
        "seed": 7,
        "max_gen_toks": 9,
        "num_beams": 1,
    }
    sampling = SamplingParams(temperature=0.7, top_p=0.95, top_k=50, min_p=0.1, seed=7)
    expected = Request((0,), max_tokens=9, sampling=sampling, stop=("\n\n",))
    assert read_settings(settings, 256) == expected
    assert read_settings({"until": "X", "temperature": None}, 256).stop == ("X",)
    assert read_settings({}, 77) == Request((0,), max_tokens=77)


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, 0.0),
        ({"temperature": 0.3}, 0.3),
        ({"do_sample": False, "temperature": 0.3}, 0.0),
        ({"do_sample": True, "temperature": 0.3}, 0.3),
        ({"do_sample": True}, 1.0),
        ({"do_sample": False}, 0.0),
    ],
)
def test_do_sample_and_temperature(settings: dict[str, Any], temperature: float) -> None:
    assert read_settings(settings, 1).sampling.temperature == temperature


def test_the_first_of_the_harnesss_token_limits_counts() -> None:
    settings = {"max_tokens": 3, "max_completion_tokens": 4, "max_new_tokens": 2}
    assert read_settings(settings, 9).max_tokens == 2
    assert read_settings({**settings, "max_gen_toks": 1}, 9).max_tokens == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_beams": 4}, "cannot keep the generation setting num_beams=4; it has until"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"do_sample": "yes"}, "do_sample must be true or false, got 'yes'"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": -1}, "temperature must be a number >= 0"),
        ({"top_k": 0.5}, "top_k must be a whole number, got 0.5"),
        ({"top_p": True}, "top_p must be a number, got True"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        read_settings(settings, 256)


# Chats


@needs_harness
def test_a_chat_is_read_as_the_tokenizer_renders_it(tmp_path: Path) -> None:
    pair = scripted_pair()
    model = harness.RoutedPair(routed(pair))
    task = task_config(tmp_path, num_fewshot=2, fewshot_split="test")
    results = evaluate(
        model, task, apply_chat_template=True, fewshot_as_multiturn=True, system_instruction="SYS"
    )
    prompts = [sample["arguments"][0][0] for sample in results["samples"]["sums"]]
    assert all(isinstance(prompt, ChatPrompt) for prompt in prompts)
    assert all(prompt.startswith("SYS") and prompt.count("!") == 2 for prompt in prompts)
    requests = [Request(prompt.ids, max_tokens=30, stop=("#",)) for prompt in prompts]
    texts = [sample["resps"][0][0] for sample in results["samples"]["sums"]]
    assert texts == [trace.text for trace in mixed(pair, requests, THRESHOLD)]


def test_a_chat_keeps_its_ids_when_it_is_copied_or_cached() -> None:
    tokenizer = ScriptedTokenizer(VOCAB)
    history = [{"role": "user", "content": "AB"}]
    chat = render_chat_prompt(tokenizer, history, open_end=False)
    assert chat == "AB"
    assert chat.ids == tuple(tokenizer.render([Message("user", "AB")]))
    for twin in (copy.deepcopy(chat), pickle.loads(pickle.dumps(chat))):
        assert isinstance(twin, ChatPrompt)
        assert prompt_ids(tokenizer, twin) == chat.ids


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    """Return the tiny models' tokenizer, which has special tokens and a template with roles."""
    pytest.importorskip("llama_cpp")
    from crossroads.models.gguf_tokenizer import GgufTokenizer

    return GgufTokenizer.load(builders.tiny_gguf(tmp_path / "tokenizer.gguf"))


def test_the_last_message_stays_open_where_the_answer_has_begun(tokenizer: Any) -> None:
    asked = {"role": "user", "content": "the end"}
    begun = {"role": "assistant", "content": "hello"}
    closed = render_chat_prompt(tokenizer, [asked], open_end=False)
    chat = render_chat_prompt(tokenizer, [asked, begun], open_end=True)
    assert closed == "<|im_start|>user\nthe end<|im_end|>\n<|im_start|>assistant\n"
    assert chat == closed + "hello"
    assert chat.ids == (*closed.ids, *tokenizer.encode("hello"))


def test_a_documents_special_token_stays_text_in_a_chat(tokenizer: Any) -> None:
    history = [{"role": "user", "content": "the<|im_end|>"}]
    chat = render_chat_prompt(tokenizer, history, open_end=False)
    assert chat.count("<|im_end|>") == 2
    assert chat.ids.count(builders.IM_END) == 1
    assert prompt_ids(tokenizer, chat) == chat.ids != prompt_ids(tokenizer, str(chat))


@needs_harness
def test_a_chat_written_by_hand_is_told(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    pair = scripted_pair()
    size = {"context_length": 256}
    large = ScriptedLM.hashed(1, builders.VOCAB, **size)
    small = ScriptedLM.hashed(2, builders.VOCAB, **size)
    model = harness.RoutedPair(routed(replace(pair, small=small, large=large, tokenizer=tokenizer)))
    chat = model.apply_chat_template([{"role": "user", "content": "the<|im_end|>"}])
    settings = {"max_gen_toks": 2}
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        model.generate_until([instance(chat, settings), instance("the end", settings)])
        assert "read as text" not in caplog.text
        model.generate_until([instance("<|im_start|>user\nthe", settings)])
    assert "prompts hold '<|im_start|>', which is read as text" in caplog.text


@needs_harness
def test_a_template_by_name_is_refused() -> None:
    model = harness.RoutedPair(routed(scripted_pair()))
    assert model.chat_template(chat_template=True) == ""
    with pytest.raises(ConfigError, match="one chat template, its own; got 'tool_use'"):
        model.chat_template("tool_use")


# Laws of log-probabilities

Rows = list[tuple[tuple[int, ...], int]]


def some_rows(count: int, vocab: int, longest: int, seed: int = 0) -> Rows:
    """Return rows of which many share beginnings, and one continues with nothing."""
    generator = np.random.default_rng(seed)
    stems = [tuple(generator.integers(1, vocab, size=longest // 2).tolist()) for _ in range(3)]
    rows: Rows = [(stems[0], len(stems[0]))]
    for i in range(count):
        tail = generator.integers(1, vocab, size=int(generator.integers(1, longest // 2)))
        ids = (*stems[i % 3], *(int(t) for t in tail))
        rows.append((ids, int(generator.integers(1, len(ids)))))
    return rows


def brute_force(seed: int, ids: Sequence[int], start: int) -> tuple[float, bool]:
    """Return what a scripted model says of a row, from its function alone."""
    total, greedy = 0.0, True
    for i in range(start, len(ids)):
        logits_V = hashed_logits(seed, tuple(ids[:i]), VOCAB).astype(np.float64)
        total += logits_V[ids[i]] - np.logaddexp.reduce(logits_V)
        greedy &= int(logits_V.argmax()) == ids[i]
    return total, greedy


def test_a_log_probability_is_the_sum_along_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(12, VOCAB, 24)
    for chunk in (1, 5, 128):
        monkeypatch.setattr("crossroads.evaluation.log_probabilities.CHUNK", chunk)
        model = ScriptedLM.hashed(4, VOCAB)
        found = dict(log_probabilities(model, rows))
        assert sorted(found) == list(range(len(rows)))
        for number, (ids, start) in enumerate(rows):
            logprob, _ = brute_force(4, ids, start)
            assert found[number][0] == pytest.approx(logprob, abs=1e-3)
        assert model.alive == 0, "the cache must be given back"


def test_greedy_continuations_are_known_and_one_other_token_is_enough_to_lose_it() -> None:
    pair = scripted_pair()
    (trace,) = alone(pair, Role.LARGE, [Request((5, 6, 7), max_tokens=6)])
    path = (5, 6, 7, *trace.token_ids)
    assert len(path) > 6
    others = [(*path[:i], path[i] % 62 + 1, *path[i + 1 :]) for i in range(3, len(path))]
    rows: Rows = [(path, 3), *((other, 3) for other in others), ((5, 6, 7), 3)]
    found = dict(log_probabilities(pair.large, rows))
    assert [greedy for _, (_, greedy) in sorted(found.items())] == (
        [True, *([False] * len(others)), True]
    )
    assert found[len(rows) - 1] == (0.0, True)


def test_what_texts_share_is_read_once() -> None:
    stems = [tuple(range(1, 31)), tuple(range(31, 61))]
    rows: Rows = [((*stems[i % 2], 40 + i, 50), 30) for i in range(8)]
    model = ScriptedLM.hashed(4, VOCAB)
    list(log_probabilities(model, rows))
    # Two stems, and for each row its first token's prefix end and the token itself.
    assert sum(tokens for call in model.calls for tokens in call) == 2 * (29 + 4 * 2)


def test_a_text_longer_than_the_context_is_refused_before_anything_is_read() -> None:
    model = ScriptedLM.hashed(4, VOCAB, context_length=10)
    fits: Rows = [(tuple(range(1, 12)), 3)]
    assert len(list(log_probabilities(model, fits))) == 1
    model.calls.clear()
    with pytest.raises(RequestError, match=r"12 tokens does not fit .* context of 10"):
        list(log_probabilities(model, [*fits, (tuple(range(1, 13)), 3)]))
    assert model.calls == []


def test_log_probabilities_are_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    from crossroads.models.transformers import TransformersLM

    network = builders.tiny_transformer(1)
    model = TransformersLM(network, name="large", fingerprint="1", context_length=64, max_rows=1)
    rows = some_rows(6, 250, 30)
    found = dict(log_probabilities(model, rows))
    for number, (ids, start) in enumerate(rows):
        with torch.no_grad():
            logits_NV = network(torch.tensor([ids])).logits[0].double()
        log_NV = logits_NV.log_softmax(-1)
        expected = sum(float(log_NV[i - 1, ids[i]]) for i in range(start, len(ids)))
        greedy = all(int(logits_NV[i - 1].argmax()) == ids[i] for i in range(start, len(ids)))
        assert found[number][0] == pytest.approx(expected, abs=2e-3)
        assert found[number][1] == greedy


def test_contexts_and_continuations_meet_as_in_the_harness(tokenizer: Any) -> None:
    def split(context: str, continuation: str) -> tuple[list[int], list[int]]:
        ids, start = encode_pair(tokenizer, 999, context, continuation)
        return list(ids[:start]), list(ids[start:])

    encode: Callable[[str], list[int]] = tokenizer.encode
    assert split("hello", " world") == (encode("hello"), encode(" world"))
    assert split("hello ", "world") == (encode("hello"), encode(" world"))
    assert split("", " the") == ([999], encode(" the"))
    assert split("\n", "the") == ([999], encode("\nthe"))
    # "hell" + "o" is one token: its second half still has to be scored.
    assert encode("hello") != encode("hell") + encode("o")
    assert split("hell", "o") == (encode("hell"), encode("o"))
    chat = render_chat_prompt(tokenizer, [{"role": "user", "content": "the"}], open_end=False)
    assert split(chat, "hello") == (list(chat.ids), encode("hello"))


@needs_harness
def test_a_multiple_choice_task_takes_the_likelier_choice(tmp_path: Path) -> None:
    pair = scripted_pair()
    task = task_config(
        tmp_path, output_type="multiple_choice", doc_to_choice="choices", doc_to_target=0
    )
    del task["generation_kwargs"]
    task["metric_list"][0]["metric"] = "acc"
    results = evaluate(harness.RoutedPair(only(pair, Role.LARGE)), task)
    right = 0
    for sample in results["samples"]["sums"]:
        scores = []
        for (context, choice), (response,) in zip(
            sample["arguments"], sample["resps"], strict=True
        ):
            ids = pair.tokenizer.encode(context + choice)
            logprob, greedy = brute_force(1, ids, len(context))
            assert response == (pytest.approx(logprob, abs=1e-3), greedy)
            scores.append(logprob)
        right += scores[0] > scores[1]
    assert results["results"]["sums"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
    assert 0 < right < len(QUESTIONS), "the example must have both outcomes"
    assert results["config"]["crossroads"]["scored_texts"] == 2 * len(QUESTIONS)


@needs_harness
def test_a_rolling_log_probability_predicts_every_token_once() -> None:
    pair = scripted_pair(context_length=10)
    model = harness.RoutedPair(only(pair, Role.LARGE))
    texts = ["ABCDEFG", "", "A" * 9 + "BCD" * 8]
    found = model.loglikelihood_rolling(
        [instance(text, kind="loglikelihood_rolling") for text in texts], disable_tqdm=True
    )
    expected = []
    for text in texts:
        ids, total = [0, *pair.tokenizer.encode(text)], 0.0
        # Windows of ten predictions, the last one with as much context as there is room for.
        for at in range(1, len(ids), 10):
            end = min(at + 10, len(ids))
            start = max(0, end - 11)
            total += brute_force(1, ids[start:end], at - start)[0]
        expected.append(total)
    assert found == pytest.approx(expected, abs=1e-2)


@needs_harness
@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling"])
def test_a_routed_pair_has_no_log_probabilities(kind: str) -> None:
    model = harness.RoutedPair(routed(scripted_pair()))
    sentence = "no distribution of its own.*that sums asks for.*generate_until.*system=large"
    with pytest.raises(ConfigError, match=sentence):
        getattr(model, kind)([instance("A", "B", kind=kind)])


# Model arguments, usage, the command line


def test_model_arguments_are_read_as_the_harness_gives_them() -> None:
    harness_adds = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    assert read_model_args(harness_adds) == ModelArgs()
    given = {"small": "a.gguf", "large": 7, "threshold": 0, "context": 99, "router": None}
    expected = ModelArgs(small="a.gguf", large="7", threshold=0, context=99)
    assert read_model_args({**harness_adds, **given}) == expected
    assert read_model_args({"batch_size": "16"}).max_rows == 16


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"pretrained": "x"}, ConfigError, "no model argument 'pretrained'; known: pair, small"),
        ({"treshold": 1}, ConfigError, "'treshold'; did you mean 'threshold'"),
        ({"system": "both"}, ConfigError, "one of mixed, small, large, got 'both'"),
        ({"max_rows": 0}, ConfigError, "max_rows must be a whole number >= 1, got 0"),
        ({"context": "long"}, ConfigError, "context must be a whole number >= 1, got 'long'"),
        ({"threshold": -1}, RequestError, "threshold must be a number >= 0"),
        ({"threshold": "high"}, RequestError, "threshold must be a number >= 0"),
        ({"system": "large", "threshold": 0.5}, ConfigError, "means nothing with system=large"),
        ({"system": "small", "router": "entropy"}, ConfigError, "router means nothing with"),
        ({"batch_size": "auto"}, ConfigError, "batch_size=auto cannot be kept"),
        ({"batch_size": 4, "max_rows": 8}, ConfigError, "give the number of rows once"),
    ],
)
def test_wrong_model_arguments_are_one_sentence(
    arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        read_model_args(arguments)


@pytest.fixture(scope="module")
def tiny_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("llama_cpp")
    folder = tmp_path_factory.mktemp("tiny")
    small = builders.tiny_gguf(folder / "small.gguf", 2, agrees_with=1)
    return {"small": str(small), "large": str(builders.tiny_gguf(folder / "large.gguf", 1))}


def model_args(**values: Any) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def loaded(model: Any) -> Iterator[Answerer]:
    answerer = model._answerer
    yield answerer
    models = [answerer.small, answerer.large] if isinstance(answerer, MixedModels) else []
    for each in models or [answerer.model]:
        each.close()


@needs_harness
def test_registering_takes_no_model_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.registry import model_registry

    monkeypatch.setattr(model_registry, "_objs", {})
    monkeypatch.delitem(sys.modules, "lm_eval.models", raising=False)
    harness.register()
    harness.register()
    assert "crossroads" in model_registry
    assert "hf" in model_registry


@needs_harness
@pytest.mark.parametrize("system", ["mixed", "small", "large"])
def test_every_system_loads_by_its_arguments(tiny_paths: dict[str, str], system: str) -> None:
    harness.register()
    from lm_eval.api.registry import get_model

    assert get_model("crossroads") is harness.RoutedPair
    text = model_args(**tiny_paths, system=system, context=64, max_rows=2)
    model = get_model("crossroads").create_from_arg_string(text, {"batch_size": 1})
    for answerer in loaded(model):
        names = [info["name"] for info in model.report()["models"]]
        assert names == {"mixed": ["small", "large"]}.get(system, [system])
        if isinstance(answerer, MixedModels):
            assert (answerer.router.name, answerer.threshold) == ("entropy", 0.15)
        (text,) = model.generate_until([instance("hello", {"max_gen_toks": 4})])
        assert model.report()["generated_tokens"] > 0


@needs_harness
def test_every_system_of_a_pair_reads_the_same_chats(
    tiny_paths: dict[str, str], tmp_path: Path
) -> None:
    other = builders.CHAT_TEMPLATE.replace("assistant", "helper")
    small = builders.tiny_gguf(tmp_path / "small.gguf", 2, agrees_with=1, chat_template=other)
    paths = {**tiny_paths, "small": str(small)}
    chats = set()
    for system in ("mixed", "small", "large"):
        text = model_args(**paths, system=system, context=64, max_rows=1)
        model = harness.RoutedPair.create_from_arg_string(text)
        for _ in loaded(model):
            chats.add(model.apply_chat_template([{"role": "user", "content": "the"}]))
    assert chats == {"<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"}


@needs_harness
def test_a_router_that_is_not_there_is_one_sentence(tiny_paths: dict[str, str]) -> None:
    text = model_args(**tiny_paths, router="pretrained", context=64)
    with pytest.raises(RouterError, match="the package has no router for"):
        harness.RoutedPair.create_from_arg_string(text)


@needs_harness
def test_usage_is_written_and_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "deep" / "usage.json"
    model = harness.RoutedPair(routed(scripted_pair()), usage=path)
    with caplog.at_level(logging.INFO, logger="lm_eval"):
        model.generate_until(asked_for(), disable_tqdm=True)
    told = json.loads(path.read_text())
    assert told == json.loads(json.dumps(model.report()))
    share = told["large_tokens"] / (told["small_tokens"] + told["large_tokens"])
    assert told["large_fraction"] == pytest.approx(share)
    (line,) = [record.getMessage() for record in caplog.records if "mixed:" in record.getMessage()]
    assert f"{told['small_tokens']} small, {told['large_tokens']} large" in line
    assert f"large_fraction {share:.3f} | entropy at threshold 0.62" in line
    model.generate_until(asked_for()[:1], disable_tqdm=True)
    assert json.loads(path.read_text())["answers"] == len(QUESTIONS) + 1


@needs_harness
def test_a_usage_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="usage must be a file"):
        harness.RoutedPair(routed(scripted_pair()), usage=tmp_path)
    text = model_args(small="no.gguf", large="no.gguf", usage=tmp_path)
    with pytest.raises(ConfigError, match="usage must be a file"):  # not: no such model
        harness.RoutedPair.create_from_arg_string(text)


@needs_harness
def test_cached_answers_are_not_generated_again(tmp_path: Path) -> None:
    cached = str(tmp_path / "cache")
    pair = scripted_pair()
    task = task_config(tmp_path)
    first = evaluate(harness.RoutedPair(routed(pair)), task, use_cache=cached)
    again = harness.RoutedPair(routed(pair))
    assert answers(evaluate(again, task, use_cache=cached)) == answers(first)
    assert again.report()["answers"] == 0


class InterruptedCache:
    """A cache of the harness that sees three answers before somebody presses Ctrl-C."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Any, str]] = []

    def add_partial(self, kind: str, arguments: Any, text: str) -> None:
        if len(self.kept) == 3:
            raise KeyboardInterrupt
        self.kept.append((kind, arguments, text))


@needs_harness
def test_an_answer_is_in_the_cache_as_soon_as_it_is_finished() -> None:
    requests = asked_for()
    model = harness.RoutedPair(routed(scripted_pair()), max_rows=1)
    texts = model.generate_until(requests, disable_tqdm=True)
    cache = InterruptedCache()
    model.set_cache_hook(cache)
    with pytest.raises(KeyboardInterrupt):
        model.generate_until(requests, disable_tqdm=True)
    expected = [("generate_until", requests[i].args, texts[i]) for i in range(3)]
    assert cache.kept == expected


@pytest.fixture
def quick_cli(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the harness's own tasks, whose index takes ten seconds."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr(sys, "argv", ["harness"])
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)  # it will be switched off


@needs_harness
@pytest.mark.usefixtures("quick_cli")
def test_the_harnesss_command_line_runs_a_pair(tiny_paths: dict[str, str], tmp_path: Path) -> None:
    task = task_config(tmp_path, doc_to_text="the {{question}}")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text(json.dumps(task))  # JSON is YAML
    usage = tmp_path / "usage.json"
    text = model_args(**tiny_paths, router="entropy", threshold=0.5, context=96, usage=usage)
    harness.main(
        ["--tasks", "sums", "--include_path", str(tmp_path / "tasks"), "--model_args", text,
         "--apply_chat_template", "--limit", "3", "--output_path", str(tmp_path / "out")]
    )  # fmt: skip
    told = json.loads(usage.read_text())
    assert (told["answers"], told["threshold"]) == (3, 0.5)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["crossroads"] == told


@needs_harness
@pytest.mark.usefixtures("quick_cli")
def test_the_command_line_says_a_users_mistake_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_config(tmp_path)
    (tmp_path / "sums.yaml").write_text(json.dumps(task))
    with pytest.raises(SystemExit) as exit_:
        harness.main(["run", "--tasks", "sums", "--include_path", str(tmp_path),
                      "--model_args", "system=both"])  # fmt: skip
    assert exit_.value.code == 2
    error = "error: system must be one of mixed, small, large, got 'both'"
    assert capsys.readouterr().err.splitlines()[-1] == error


def test_without_the_package_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    sentence = r'need the package lm_eval .*pip install "crossroads-lm\[harness\]"'
    with pytest.raises(EngineError, match=sentence):
        harness.RoutedPair(routed(scripted_pair()))
    with pytest.raises(SystemExit) as exit_:
        harness.main(["--tasks", "gsm8k"])
    assert exit_.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    # The module itself can be read: only what needs the package fails.
    spec = importlib.util.find_spec("crossroads.evaluation.harness")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
