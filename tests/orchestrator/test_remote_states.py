"""A decoder behind vLLM's pooling runner, and a head here, are the model in the process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import builders
from crossroads.errors import EngineError
from crossroads.labelling.compare import compare
from crossroads.models.base import StepOutput, Want
from crossroads.models.hf_head import load_ends
from crossroads.models.pairs import load_pair, resolve_pair
from crossroads.models.remote_states import RemoteStatesLM
from crossroads.models.transformers import TransformersLM
from laws.pairs import scripted_pair
from orchestrator.fake_server import FakeServer, fake_server
from orchestrator.tiny import tiny_tokenizer

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@dataclass(frozen=True)
class Served:
    """One model twice: in the process, and behind a server."""

    folder: Path
    local: TransformersLM
    fake: FakeServer
    model: RemoteStatesLM


def _write(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _tied() -> Any:
    model = builders.tiny_transformer(3)
    config = model.config
    config.tie_word_embeddings = True
    tied = type(model)(config)
    tied.model.load_state_dict(model.model.state_dict())
    return tied.eval()


@pytest.fixture(params=["own head", "one matrix for both ends"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    made = builders.tiny_transformer(3) if request.param == "own head" else _tied()
    folder = _write(tmp_path / "model", made)
    local = TransformersLM.load(folder, device="cpu", dtype="float32", max_rows=8)
    with fake_server(local, None) as fake:
        model = RemoteStatesLM(local.info, load_ends(folder), [fake.url])
        try:
            yield Served(folder, local, fake, model)
            assert model.alive == 0
        finally:
            model.close()


def _same(found: StepOutput, expected: StepOutput) -> None:
    assert found.row_lengths == expected.row_lengths
    assert torch.equal(found.top_ids_NK[:, 0], expected.top_ids_NK[:, 0])
    # Two sums of the same numbers may order neighbours of almost the same logit differently.
    assert (found.top_ids_NK == expected.top_ids_NK).float().mean() > 0.98
    for name in ("top_logits_NK", "logsumexp_N", "entropy_N", "hidden_NH", "logits_NV"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert (mine is None) == (theirs is None), name
        assert mine is None or torch.allclose(mine, theirs, **CLOSE), name


@pytest.mark.parametrize(
    "want",
    [
        Want(),
        Want(positions="all", top_k=20, hidden=True),
        Want(positions=(2, 1, 70), top_k=3, logits=True),
    ],
)
def test_outputs_are_those_of_the_model_in_the_process(served: Served, want: Want) -> None:
    generator = np.random.default_rng(1)
    rows = [generator.integers(1, builders.END_OF_TEXT, n).tolist() for n in (5, 1, 90)]
    first = [generator.integers(1, builders.END_OF_TEXT, n).tolist() for n in (4, 7, 1)]
    outputs = []
    for model in (served.model, served.local):
        caches = [model.new_cache() for _ in rows]
        model.extend(caches, first)
        outputs.append(model.extend(caches, rows, want))
        forked = model.fork(caches[2], 10)
        outputs.append(model.extend([forked], [[3, 4]], Want(hidden=True)))
        for cache in (*caches, forked):
            cache.release()
    _same(outputs[0], outputs[2])
    _same(outputs[1], outputs[3])
    assert torch.equal(served.model.embed([5, 2]), served.local.embed([5, 2]))


def test_a_comparison_is_one_request_and_the_same(served: Served) -> None:
    large = served.local
    prompt, response = [3, 4, 5], 2 * list(range(10, 60))
    expected = compare(served.local, large, prompt, response)
    before = len(served.fake.requests)
    found = compare(served.model, large, prompt, response)
    assert len(served.fake.requests) == before + 1
    _same(found.step, expected.step)
    assert torch.equal(found.real_N, expected.real_N)
    assert torch.equal(found.position_N, expected.position_N)


def test_states_that_are_not_normed_are_refused(served: Served) -> None:
    served.fake.stretch = 1.2
    with pytest.raises(EngineError, match="not tell the states after the final norm"):
        RemoteStatesLM(served.local.info, load_ends(served.folder), [served.fake.url])


def test_another_models_states_are_refused(served: Served) -> None:
    with (
        fake_server(scripted_pair().small, None) as other,
        pytest.raises(EngineError, match="numbers for 3 tokens of hidden size"),
    ):
        RemoteStatesLM(served.local.info, load_ends(served.folder), [other.url])


def test_a_pair_is_loaded_with_its_small_model_at_a_server(served: Served, tmp_path: Path) -> None:
    large = _write(tmp_path / "large", builders.tiny_transformer(1))
    spec = resolve_pair(small=f"{served.folder}@{served.fake.url}", large=str(large))
    with load_pair(spec, context_length=builders.CONTEXT) as pair:
        assert isinstance(pair.small, RemoteStatesLM)
        assert pair.small.info.fingerprint == served.local.info.fingerprint


def test_a_head_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = _write(tmp_path / "model", builders.tiny_transformer(3))
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(EngineError, match=r"no tensor lm_head\.weight"):
        load_ends(folder)
