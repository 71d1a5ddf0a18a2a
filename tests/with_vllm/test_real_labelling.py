"""Labels with a large model in a real vLLM server are those of the same model in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

if not os.environ.get("CROSSROADS_VLLM"):
    pytest.skip("needs vLLM; run ./test-vllm", allow_module_level=True)

import builders
from crossroads.dataset import LabelledDataset
from crossroads.decoding.request import Request
from crossroads.decoding.single import generate_alone
from crossroads.labelling.continue_ import ContinueConfig
from crossroads.labelling.judges import judge_by_name
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import LabelConfig, label
from crossroads.labelling.sentences import SentenceRule
from crossroads.models.pairs import Pair, load_pair, resolve_pair
from crossroads.models.remote import RemoteLM
from crossroads.sampling import SamplingParams
from crossroads.types import Message, Problem, Role, SilentProgress
from orchestrator.tiny import write_pair

ARGUMENTS = "--dtype float32 --enforce-eager"
AGREE = 1e-4
"""Two engines' float32 log-probabilities."""

HALVES_AGREE = 0.02
"""The same, stored in half precision: a step at 8 nats and more is 1/128."""

PROBLEMS = [Problem(f"p{i}", (Message("user", f"What is {i}?"),), "1") for i in range(20)]


@dataclass(frozen=True)
class Pairs:
    """The same models: both in this process, the large one behind a server, both behind servers."""

    local: Pair
    far: Pair
    both_far: Pair


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    folder = tmp_path_factory.mktemp("labelled")
    small, large = map(str, write_pair(folder))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    size = {"context_length": builders.CONTEXT, "max_rows": 9}
    small_there, large_there = (f"{model}@vllm {ARGUMENTS}" for model in (small, large))
    with (
        load_pair(resolve_pair(small=small, large=large), **size) as local,
        load_pair(resolve_pair(small=small, large=large_there), **size) as far,
        load_pair(resolve_pair(small=small_there, large=_same(far, large)), **size) as both_far,
    ):
        yield Pairs(local, far, both_far)


def _same(pair: Pair, model: str) -> str:
    """Return a reference to the server that was started for the pair's large model."""
    assert isinstance(pair.large, RemoteLM)
    assert pair.large.server is not None
    return f"{model}@{pair.large.server.url}"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_the_process(pairs: Pairs, temperature: float) -> None:
    requests = [
        Request(
            tuple(pairs.local.tokenizer.render(problem.messages)),
            max_tokens=60,
            sampling=SamplingParams(temperature, top_p=0.95, seed=i),
            stop=("e",) if i % 2 else (),
        )
        for i, problem in enumerate(PROBLEMS)
    ]
    found, expected = (
        dict(generate_alone(pair.large, Role.LARGE, pair.tokenizer, requests))
        for pair in (pairs.far, pairs.local)
    )
    for index, trace in expected.items():
        assert found[index].token_ids == trace.token_ids
        assert (found[index].finish_reason, found[index].text) == (trace.finish_reason, trace.text)


def test_labels_are_those_of_the_process(pairs: Pairs, tmp_path: Path) -> None:
    config = LabelConfig(
        # Hot enough for a random model to come upon its eos; hotter, it would draw ids that stand
        # for nothing, which the plugin keeps for itself.
        RespondConfig(max_tokens=200, temperature=1.2),
        ContinueConfig(SentenceRule(max_tokens=12)),
        max_rows=8,
    )
    judge = judge_by_name("convergence")
    for name in ("far", "local", "both_far"):
        label(getattr(pairs, name), PROBLEMS, [judge], tmp_path / name, SilentProgress(), config)
    found, expected, whole = (
        LabelledDataset.open(tmp_path / name) for name in ("far", "local", "both_far")
    )
    assert len(expected.responses) >= 3
    assert found.card["drawn_by_server"] == []
    assert found.card["responses"] == expected.card["responses"]
    assert torch.equal(found.labels().label_N, expected.labels().label_N)
    for row in expected.responses:
        far, near = found.comparison(row).large, expected.comparison(row).large
        assert far is not None
        assert near is not None
        # Sampled hot, many tokens are not among the 20 likeliest; their numbers are exact, too.
        assert torch.allclose(far.logprob_real_N, near.logprob_real_N, atol=AGREE)
        assert torch.allclose(far.top_logprobs_NK, near.top_logprobs_NK, atol=HALVES_AGREE)
        bound_N = near.top_logprobs_NK[:, -1]
        told_N = near.logprob_small_N >= bound_N + HALVES_AGREE
        assert torch.allclose(far.logprob_small_N[told_N], near.logprob_small_N[told_N], atol=AGREE)
        assert bool((far.logprob_small_N >= near.logprob_small_N - AGREE).all())
        # A small model behind a server differs in what two engines' sums differ in.
        step, wanted = whole.comparison(row).step, expected.comparison(row).step
        assert torch.equal(step.top_ids_NK[:, 0], wanted.top_ids_NK[:, 0])
        for name in ("top_logits_NK", "logsumexp_N", "entropy_N", "hidden_NH"):
            mine, theirs = getattr(step, name), getattr(wanted, name)
            assert torch.allclose(mine, theirs, atol=HALVES_AGREE, rtol=2e-3), name
    assert torch.equal(whole.labels().label_N, expected.labels().label_N)
