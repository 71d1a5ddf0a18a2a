"""The local judge, on models that answer as they are told."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import builders
from crossroads.errors import ConfigError, EngineError
from crossroads.labelling.judges import JudgeContext, judge_by_name, local
from crossroads.labelling.judges.base import Verdict
from crossroads.labelling.judges.local import LocalLLMJudge
from crossroads.labelling.judges.prompt import PROMPT_VERSION, messages
from crossroads.labelling.records import Case, Span
from crossroads.models.pairs import LoadedModel, Pair
from crossroads.models.scripted import Prefix, ScriptedLM, ScriptedTokenizer
from crossroads.types import Message
from labelling.cases import case, cases

VOCAB = 95
TOKENIZER = ScriptedTokenizer(VOCAB)
ZERO, ONE = TOKENIZER.encode("0") + TOKENIZER.encode("1")
ANSWERS = {"sure": 0.9, "maybe": 0.6, "no": 0.2}


def probability_of(text: str) -> float:
    """Return what the model thinks of the one word that B consists of."""
    b = text.split("<B>")[1].split("</B>", maxsplit=1)[0]
    return next(p for word, p in ANSWERS.items() if word in b)


def model(max_rows: int = 8, context_length: int = 8192) -> ScriptedLM:
    """Return a model that answers a whole prompt by B's word, and thinks most of a third token."""

    def logits(prefix: Prefix) -> np.ndarray:
        logits_V = np.zeros(VOCAB)
        text = TOKENIZER.decode(prefix)
        if text.endswith("One!digit:"):  # what a space becomes
            p = probability_of(text)
            logits_V[ONE], logits_V[ZERO], logits_V[3] = math.log(p), math.log(1 - p), 9.0
        return logits_V

    return ScriptedLM(logits, VOCAB, max_rows=max_rows, context_length=context_length, name="lm")


def judge(lm: ScriptedLM, bound: float = 0.5, max_rows: int = 4) -> LocalLLMJudge:
    return LocalLLMJudge(lm, TOKENIZER, bound=bound, max_rows=max_rows)


def verdicts(judge: LocalLLMJudge, some: list[Case]) -> list[Verdict]:
    found = {j.case_id: j.verdict for j in judge.judge(some)}
    return [found[one.id] for one in some]


def worded(*words: str) -> list[Case]:
    return [case(i, context=f"Line {i}", continuations=[w]) for i, w in enumerate(words)]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 64])
def test_the_two_digits_are_weighed(rows: int) -> None:
    words = ["sure", "no", "maybe", "no", "no", "sure", "maybe"]
    lm = model()
    found = verdicts(judge(lm, max_rows=rows), worded(*words))
    assert [v.probability for v in found] == [pytest.approx(ANSWERS[w], abs=1e-5) for w in words]
    assert [v.divergent for v in found] == [w != "no" for w in words]
    assert lm.alive == 0


@pytest.mark.parametrize("own", [1, 2, 3])
def test_a_model_with_few_rows_gives_the_same(own: int) -> None:
    lm = model(max_rows=own)
    found = verdicts(judge(lm, max_rows=16), worded("sure", "no", "maybe"))
    assert [v.divergent for v in found] == [True, False, True]
    assert lm.alive == 0


def test_the_bound_decides() -> None:
    found = verdicts(judge(model(), bound=0.7), worded("sure", "maybe"))
    assert [v.divergent for v in found] == [True, False]


def test_several_continuations_are_averaged_across_batches() -> None:
    some = [
        case(0, continuations=["no"]),
        case(1, continuations=["sure", "no", "maybe"]),
        case(2, continuations=["no", "maybe"]),
    ]
    for rows in (1, 2, 4, 8):
        found = verdicts(judge(model(), max_rows=rows), some)
        assert [v.probability for v in found] == [
            pytest.approx(p, abs=1e-5) for p in (0.2, 1.7 / 3, 0.4)
        ]
        assert [v.divergent for v in found] == [False, True, False]


def test_what_prompts_share_is_read_once() -> None:
    lm = model()
    some = cases(12, continuations=["no"])
    verdicts(judge(lm), some)
    prompt = len(TOKENIZER.render(messages(some[0], some[0].continuations[0])))
    system = len(TOKENIZER.render(messages(some[0], some[0].continuations[0])[:1]))
    read = sum(sum(call) for call in lm.calls)
    assert read < system + 12 * (prompt - system)
    assert max(map(len, lm.calls)) == 4


def test_cases_are_taken_as_needed() -> None:
    taken = 0

    def source() -> Iterator[Case]:
        nonlocal taken
        for one in cases(10, continuations=["no"]):
            taken += 1
            yield one

    lm = model()
    stream = judge(lm).judge(source())
    next(stream)
    assert taken == 4
    stream.close()
    assert lm.alive == 0


def test_what_cannot_be_asked_fails_alone() -> None:
    lm = model(context_length=3500)
    some = [
        case(0, continuations=[]),
        case(1, continuations=["sure"]),
        case(2, continuations=["no", "no " * 1000]),
    ]
    none, good, long = verdicts(judge(lm), some)
    assert none == Verdict(None, None, "no continuation to compare the reference with")
    assert good.divergent
    assert long.divergent is None
    assert long.probability is None
    assert "the model's context 3500" in long.reason


def test_numbers_that_are_not_finite_are_a_failure() -> None:
    lm = ScriptedLM(lambda _: np.full(VOCAB, np.nan), VOCAB, context_length=8192)
    [verdict] = verdicts(judge(lm), worded("no"))
    assert verdict == Verdict(None, None, "the model put out numbers that are not finite")


def test_digits_that_are_not_single_tokens() -> None:
    class Wide(ScriptedTokenizer):
        def encode(self, text: str) -> list[int]:
            return [1, *super().encode(text)]

    with pytest.raises(EngineError, match="writes '0' as 2 tokens"):
        LocalLLMJudge(model(), Wide(VOCAB))


@pytest.mark.parametrize("bound", [0.0, 1.0, -1.0, math.nan])
def test_a_bound_out_of_range(bound: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        judge(model(), bound=bound)


def test_by_name_it_asks_the_pairs_large_model() -> None:
    large = model()
    pair = Pair("p", ScriptedLM.hashed(1, VOCAB), large, TOKENIZER)
    named = judge_by_name("local", JudgeContext(pair=pair, max_rows=3), bound=0.3)
    [judgement] = named.judge(worded("sure"))
    assert judgement.verdict.divergent
    assert large.calls
    assert named.settings == {
        "model": "lm", "fingerprint": "scripted-lm", "bound": 0.3, "prompt": PROMPT_VERSION
    }  # fmt: skip
    with pytest.raises(ConfigError, match="weights="):
        judge_by_name("local", JudgeContext())


def test_weights_are_loaded_for_it_and_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    asked: list[tuple[str, int]] = []

    class Closing(ScriptedLM):
        def close(self) -> None:
            closed.append(self.info.name)

    def load(name: str, *, context_length: int, max_rows: int) -> LoadedModel:
        asked.append((name, max_rows))
        lm = Closing.hashed(1, VOCAB, name=name, max_rows=max_rows, context_length=context_length)
        return LoadedModel(lm, TOKENIZER)

    monkeypatch.setattr(local, "load_model", load)
    context = JudgeContext(max_rows=5)
    named = judge_by_name("local", context, weights="a")
    assert isinstance(named, LocalLLMJudge)
    assert len(list(named.judge(cases(7)))) == 7
    assert not closed
    named.close()
    named.close()
    assert closed == ["a"]
    assert asked == [("a", 6)]  # five rows and the one that they share
    forgotten = judge_by_name("local", context, weights="b")
    del forgotten
    gc.collect()
    with pytest.raises(ConfigError):
        judge_by_name("local", context, weights="c", bound=3)
    assert closed == ["a", "b", "c"]


def test_a_pairs_model_is_not_closed() -> None:
    class Closing(ScriptedLM):
        def close(self) -> None:
            raise AssertionError("closed")

    lm = Closing.hashed(1, VOCAB, context_length=8192)
    judge(lm).close()


def tiny(engine: str, folder: Path) -> LoadedModel:
    """Return a tiny model with real caches."""
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    from crossroads.models.gguf_tokenizer import GgufTokenizer
    from crossroads.models.llamacpp import LlamaCppLM

    path = builders.tiny_gguf(folder / "tiny.gguf")
    tokenizer = GgufTokenizer.load(path)
    if engine == "llamacpp":
        return LoadedModel(LlamaCppLM.load(path, context_length=256, max_rows=4), tokenizer)
    pytest.importorskip("transformers")
    from crossroads.models.transformers import TransformersLM

    network = builders.tiny_transformer()
    return LoadedModel(
        TransformersLM(network, name="tiny", fingerprint="tiny", max_rows=4), tokenizer
    )


def short_messages(one: Case, continuation: Span) -> tuple[Message, ...]:
    """Ask in few words: the tiny models' context is shorter than the real prompt."""
    return Message("system", "one or two"), Message("user", one.context + continuation.text)


@pytest.mark.parametrize("engine", ["transformers", "llamacpp"])
def test_a_batch_on_real_caches_gives_what_single_rows_give(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "messages", short_messages)
    some = worded("sure", "no", "maybe", "the end", "hello world")
    lm = tiny(engine, tmp_path)
    try:
        batched = verdicts(LocalLLMJudge(lm.model, lm.tokenizer, max_rows=3), some)
        alone = [
            verdicts(LocalLLMJudge(lm.model, lm.tokenizer, max_rows=1), [one])[0] for one in some
        ]
    finally:
        lm.close()
    expected = [v.probability for v in alone]
    assert len({round(p or 0, 3) for p in expected}) == len(some)
    assert [v.probability for v in batched] == [pytest.approx(p, abs=2e-3) for p in expected]
