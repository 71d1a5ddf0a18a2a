"""Stages alone, several samples, what is left out, and mistakes: on the scripted pair."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from crossroads.artifacts import ResumableLog
from crossroads.dataset import UNJUDGED, LabelledDataset
from crossroads.errors import ConfigError, DataError, EngineError
from crossroads.labelling.build import BuildConfig, _texts
from crossroads.labelling.cases import CaseSource, load_comparison
from crossroads.labelling.continue_ import ContinueConfig, continue_all
from crossroads.labelling.judges.base import Judgement, Verdict, failed
from crossroads.labelling.judges.convergence import ConvergenceJudge
from crossroads.labelling.judges.likelihood import LikelihoodJudge
from crossroads.labelling.records import Case
from crossroads.labelling.respond import RespondConfig, respond
from crossroads.labelling.run import STAGES, LabelConfig, label
from crossroads.labelling.sentences import SentenceRule, cut
from crossroads.models.scripted import ScriptedTokenizer
from crossroads.types import Label, Message, Problem, SilentProgress, Split
from laws.pairs import scripted_pair

CONFIG = LabelConfig(RespondConfig(max_tokens=300), max_rows=4)
SILENT = SilentProgress()


def problems(count: int = 15, domain: str = "d") -> list[Problem]:
    texts = [f"PROBLEM {i * i}" for i in range(count)]
    return [
        Problem(f"{domain}{i}", (Message("user", t),), "1", domain) for i, t in enumerate(texts)
    ]


def test_stages_alone_are_the_whole(tmp_path: Path) -> None:
    pair, judges = scripted_pair(), [LikelihoodJudge(), ConvergenceJudge()]
    label(pair, problems(), judges, tmp_path / "whole", SILENT, CONFIG)
    for stage in STAGES:
        label(pair, problems(), judges, tmp_path / "parts", SILENT, CONFIG, stages=[stage])
    cards = [LabelledDataset.open(tmp_path / name).card for name in ("whole", "parts")]
    assert {**cards[0], "provenance": 0} == {**cards[1], "provenance": 0}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("compare", "stage compare needs all responses and 15 are missing"),
        ("continue", "stage continue needs all responses"),
        ("build", "stage build needs all responses"),
    ],
)
def test_a_stage_without_what_it_builds_on_says_so(
    tmp_path: Path, stage: str, message: str
) -> None:
    judges = [ConvergenceJudge()]
    with pytest.raises(DataError, match=message):
        label(scripted_pair(), problems(), judges, tmp_path, SILENT, CONFIG, stages=[stage])


def test_a_build_without_verdicts_says_so(tmp_path: Path) -> None:
    pair, judges = scripted_pair(), [LikelihoodJudge()]
    done = ["respond", "compare"]
    label(pair, problems(), judges, tmp_path, SILENT, CONFIG, stages=done)
    with pytest.raises(DataError, match="judge likelihood has no verdicts"):
        label(pair, problems(), judges, tmp_path, SILENT, CONFIG, stages=["build"])


def test_continuations_are_the_large_models_own_after_the_small_token(tmp_path: Path) -> None:
    pair = scripted_pair()
    label(pair, problems(4), [ConvergenceJudge()], tmp_path, SILENT, CONFIG, stages=STAGES[:3])
    rule = SentenceRule()
    found = {r["key"]: r for r in ResumableLog(tmp_path / "continue" / "continuations.jsonl")}
    for record in ResumableLog(tmp_path / "respond" / "responses.jsonl"):
        text = [*record["prompt_ids"], *record["response_ids"]]
        for j, real in enumerate(record["response_ids"]):
            at = len(record["prompt_ids"]) + j
            small = greedy(pair.small, text[:at], 1)[0]
            key = f"{record['key']}@{j}/0"
            assert (key in found) == (small != real)
            if small != real:
                grown = [small, *greedy(pair.large, [*text[:at], small], rule.max_tokens)]
                span = cut(grown, rule, pair.tokenizer, pair.large.info.eos_ids)
                assert tuple(found[key]["token_ids"]) == span.token_ids
                assert found[key]["text"] == span.text


def greedy(model, text: list[int], count: int) -> list[int]:
    cache, written = model.new_cache(), []
    unread = text
    for _ in range(count):
        written.append(int(model.extend([cache], [unread]).top_ids_NK[0, 0]))
        unread = written[-1:]
        if written[-1] in model.info.eos_ids:
            break
    cache.release()
    return written


def test_the_comparison_holds_the_large_models_own_view(tmp_path: Path) -> None:
    from crossroads.models.base import Want

    pair = scripted_pair()
    responses = respond(pair.large, pair.tokenizer, problems(3), tmp_path / "respond", SILENT,
                        CONFIG.respond)  # fmt: skip
    label(pair, problems(3), [LikelihoodJudge()], tmp_path, SILENT, CONFIG, stages=["compare"])
    for response in responses.finished():
        comparison = load_comparison(tmp_path / "compare", response)
        assert comparison.large is not None
        text = [*response.prompt_ids, *response.response_ids]
        cache = pair.large.new_cache()
        whole = pair.large.extend([cache], [text[:-1]], Want("all", logits=True))
        cache.release()
        logprobs_NV = whole.logits_NV.log_softmax(-1)[len(response.prompt_ids) - 1 :]
        for name, ids in (("real", comparison.real_N), ("small", comparison.proposed_N)):
            expected = logprobs_NV.gather(1, ids[:, None])[:, 0]
            torch.testing.assert_close(getattr(comparison.large, f"logprob_{name}_N"), expected)
        top = comparison.large.top_ids_NK
        expected = logprobs_NV.gather(1, top)
        torch.testing.assert_close(comparison.large.top_logprobs_NK, expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(top[:, 0], comparison.real_N), "a greedy answer is the likeliest"


def test_several_samples_of_a_problem_stay_together(tmp_path: Path) -> None:
    sampled = RespondConfig(300, samples=3, temperature=1.0, seed=5)
    config = dataclasses.replace(CONFIG, respond=sampled)
    label(scripted_pair(), problems(), [LikelihoodJudge()], tmp_path, SILENT, config)
    dataset = LabelledDataset.open(tmp_path)
    splits: dict[str, set[Split]] = {}
    for row in dataset.responses:
        splits.setdefault(row.problem_id, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    records = list(ResumableLog(tmp_path / "respond" / "responses.jsonl"))
    texts = {r["key"]: r["response_ids"] for r in records}
    assert len({tuple(texts.get(f"d3#{n}", [n])) for n in range(3)}) == 3, "samples must differ"
    train = dataset.split(Split.TRAIN)
    assert len(train.problem_ids) == len(set(train.problem_ids))
    assert int(train.problem_N.max()) == len(train.problem_ids) - 1


def test_duplicates_share_a_split(tmp_path: Path) -> None:
    groups = {f"d{i}": "d0" for i in range(1, 6)}
    config = dataclasses.replace(CONFIG, build=BuildConfig(groups=groups))
    label(scripted_pair(), problems(), [LikelihoodJudge()], tmp_path, SILENT, config)
    rows = LabelledDataset.open(tmp_path).responses
    assert len({row.split for row in rows if row.problem_id in {"d0", *groups}}) == 1


def test_what_does_not_fit_or_does_not_end_is_left_out_and_told(tmp_path: Path) -> None:
    pair = scripted_pair(context_length=200)
    long = Problem("long", (Message("user", "X" * 300),), "1", "d")
    config = dataclasses.replace(CONFIG, respond=RespondConfig(max_tokens=60))
    label(pair, [*problems(), long], [LikelihoodJudge()], tmp_path, SILENT, config)
    card = LabelledDataset.open(tmp_path).card
    (failure,) = card["failures"]
    assert (failure["stage"], failure["key"]) == ("respond", "long#0")
    assert failure["reason"] == "the prompt has 300 tokens, the context holds 200"
    assert card["unfinished"], "the example must have an answer that is cut"
    unfinished = [r["key"] for r in ResumableLog(tmp_path / "respond" / "unfinished.jsonl")]
    assert sorted(unfinished) == sorted(card["unfinished"])
    labelled = {
        f"{row.problem_id}#{row.sample}" for row in LabelledDataset.open(tmp_path).responses
    }
    assert labelled.isdisjoint(unfinished)
    assert len(labelled) + len(unfinished) == 15


class Moody:
    """A judge that fails on some cases, and may be down altogether after some."""

    name, settings, needs_continuations = "moody", {}, False

    def __init__(self, lasts: int = 10**9, moody: bool = True) -> None:
        self.lasts, self.moody, self.asked = lasts, moody, []

    def judge(self, cases: Iterable[Case]) -> Iterator[Judgement]:
        for case in cases:
            if len(self.asked) == self.lasts:
                raise EngineError("the judge does not answer; start it and run again")
            self.asked.append(case.id)
            if self.moody and len(self.asked) % 3 == 0:
                yield failed(case, "answered 'perhaps'")
            else:
                yield Judgement(case.id, Verdict(True, 0.8))


def test_a_failed_verdict_is_no_label_and_can_be_asked_for_again(tmp_path: Path) -> None:
    pair, judge = scripted_pair(), Moody()
    label(pair, problems(), [judge], tmp_path, SILENT, CONFIG)
    dataset = LabelledDataset.open(tmp_path)
    unjudged = int((dataset.labels().label_N == UNJUDGED).sum())
    assert unjudged == len(judge.asked) // 3 == dataset.card["base_rates"]["all"]["unjudged"]
    assert len(dataset.card["failures"]) == unjudged
    assert {f["reason"] for f in dataset.card["failures"]} == {"answered 'perhaps'"}
    train = dataset.split(Split.TRAIN)
    assert not bool((train.label_N == UNJUDGED).any())
    positives = train.probability_N[train.label_N == Label.DIVERGENT]
    torch.testing.assert_close(positives, torch.full_like(positives, 0.8), rtol=1e-3, atol=0)
    assert bool((train.probability_N[train.label_N == Label.IDENTICAL] == 0).all())

    again = dataclasses.replace(CONFIG, retry_failed=True, build=BuildConfig(rebuild=True))
    second = Moody(moody=False)
    label(pair, problems(), [second], tmp_path, SILENT, again)
    assert len(second.asked) == unjudged, "only what failed is asked again"
    assert LabelledDataset.open(tmp_path).card["base_rates"]["all"]["unjudged"] == 0


def test_a_judge_that_is_down_stops_the_run_and_what_it_judged_is_kept(tmp_path: Path) -> None:
    pair, first = scripted_pair(), Moody(lasts=20, moody=False)
    with pytest.raises(EngineError, match="does not answer"):
        label(pair, problems(), [first], tmp_path, SILENT, CONFIG)
    second = Moody(moody=False)
    label(pair, problems(), [second], tmp_path, SILENT, CONFIG)
    assert not set(first.asked) & set(second.asked), "nothing is judged twice"
    assert len(LabelledDataset.open(tmp_path).card["failures"]) == 0


def test_changed_continuations_are_refused_by_name(tmp_path: Path) -> None:
    pair, judges = scripted_pair(), [ConvergenceJudge()]
    label(pair, problems(), judges, tmp_path, SILENT, CONFIG, stages=STAGES[:3])
    other = dataclasses.replace(CONFIG, continue_=ContinueConfig(SentenceRule(1)))
    with pytest.raises(ConfigError, match=r"rule: was \{'sentences': 2.*now \{'sentences': 1"):
        label(pair, problems(), judges, tmp_path, SILENT, other)


def test_a_comparison_of_another_response_is_found(tmp_path: Path) -> None:
    pair, judges = scripted_pair(), [LikelihoodJudge()]
    label(pair, problems(5), judges, tmp_path, SILENT, CONFIG, stages=STAGES[:2])
    first, second = sorted((tmp_path / "compare").glob("*.safetensors"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match="is not the comparison of response"):
        label(pair, problems(5), judges, tmp_path, SILENT, CONFIG, stages=["judge"])


def test_samples_that_would_be_the_same_are_refused() -> None:
    for config in (RespondConfig, ContinueConfig):
        with pytest.raises(ConfigError, match="would all be the same"):
            config(samples=2)
        with pytest.raises(ConfigError, match="at least 1"):
            config(samples=0)


def test_unknown_stages_and_judges_twice_are_refused(tmp_path: Path) -> None:
    pair, judge = scripted_pair(), LikelihoodJudge()
    with pytest.raises(ConfigError, match="there is no stage 'juge'"):
        label(pair, problems(), [judge], tmp_path, SILENT, stages=["juge"])
    with pytest.raises(ConfigError, match="named twice"):
        label(pair, problems(), [judge, judge], tmp_path, SILENT)
    with pytest.raises(ConfigError, match="labels need a judge"):
        label(pair, problems(), [], tmp_path, SILENT)


def test_a_stage_can_be_used_from_python_alone(tmp_path: Path) -> None:
    """What the labelling guide shows."""
    pair = scripted_pair()
    given = problems(5)
    responses = respond(pair.large, pair.tokenizer, given, tmp_path / "respond", SILENT)
    label(pair, given, [LikelihoodJudge()], tmp_path, SILENT, stages=["compare"])
    compare = tmp_path / "compare"
    grown = continue_all(
        pair.large, pair.tokenizer, responses, compare, tmp_path / "continue", SILENT
    )
    source = CaseSource(
        {p.id: p for p in given}, responses, compare, pair.tokenizer, pair.large.info.eos_ids,
        SentenceRule(), grown,
    )  # fmt: skip
    cases = list(source)
    assert len(cases) > 10
    for case in cases:
        assert case.response.text.startswith(case.context)
        assert case.reference.token_ids[0] == case.mismatch.real_id
        assert case.continuations[0].token_ids[0] == case.mismatch.small_id
    texts = [json.dumps(dataclasses.asdict(case)) for case in cases[:3]]
    assert all(texts), "cases are plain data"


def test_ids_beyond_the_tokenizer_have_no_text() -> None:
    assert _texts(ScriptedTokenizer(4), [1, 9]) == {"1": "!", "9": ""}
