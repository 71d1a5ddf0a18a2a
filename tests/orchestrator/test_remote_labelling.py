"""Labels with a large model behind a server are those of the same model in the process."""

from __future__ import annotations

from pathlib import Path

import torch

from crossroads.dataset import LabelledDataset
from crossroads.labelling.judges import judge_by_name
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import LabelConfig, label
from crossroads.models.pairs import Pair
from crossroads.models.remote import RemoteLM
from crossroads.types import Message, Problem, SilentProgress
from laws.pairs import scripted_pair
from orchestrator.fake_server import fake_server


def _label(pair: Pair, folder: Path, temperature: float = 0.0) -> LabelledDataset:
    problems = [Problem(f"p{i}", (Message("user", f"P{i}" * 3),), "1") for i in range(7)]
    config = LabelConfig(RespondConfig(max_tokens=120, temperature=temperature))
    judges = [judge_by_name("likelihood")]
    label(pair, problems, judges, folder, SilentProgress(), config)
    return LabelledDataset.open(folder)


def test_a_dataset_says_what_a_server_drew(tmp_path: Path) -> None:
    local = scripted_pair()
    with fake_server(scripted_pair().large, None) as fake:
        large = RemoteLM(local.large.info, [fake.url])
        try:
            pair = Pair("scripted", local.small, large, local.tokenizer)
            found = _label(pair, tmp_path, 0.7)
        finally:
            large.close()
    assert found.card["drawn_by_server"] == ["respond"]
    assert len(fake.requests) == 7 + len(found.responses), "one for an answer, one to read it"


def test_a_served_large_model_gives_the_same_labels(tmp_path: Path) -> None:
    local = scripted_pair()
    expected = _label(local, tmp_path / "local")
    with fake_server(scripted_pair().large, None) as fake:
        large = RemoteLM(local.large.info, [fake.url])
        try:
            found = _label(Pair("scripted", local.small, large, local.tokenizer), tmp_path / "far")
            assert large.alive == 0
        finally:
            large.close()
    assert [r.problem_id for r in found.responses] == [r.problem_id for r in expected.responses]
    assert torch.equal(found.labels().label_N, expected.labels().label_N)
    for row, other in zip(found.responses, expected.responses, strict=True):
        far, near = found.comparison(row), expected.comparison(other)
        assert torch.equal(far.real_N, near.real_N)
        assert far.large is not None
        assert near.large is not None
        assert torch.allclose(far.large.logprob_real_N, near.large.logprob_real_N, atol=1e-5)
        # Of a token outside of those that a server tells, there is a bound.
        told_N = near.large.logprob_small_N >= near.large.top_logprobs_NK[:, -1]
        assert torch.allclose(
            far.large.logprob_small_N[told_N], near.large.logprob_small_N[told_N], atol=1e-5
        )
        assert bool((far.large.logprob_small_N >= near.large.logprob_small_N - 1e-5).all())
