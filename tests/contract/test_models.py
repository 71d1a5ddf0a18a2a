"""Every backend under the one contract: scripted, tiny transformer, tiny GGUF."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import model_contract as contract
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import builders
from crossroads.models.base import CausalLM
from crossroads.models.scripted import ScriptedLM

CONTEXT, ROWS = 64, 4
few = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

ids = st.integers(0, 63)
row = st.lists(ids, min_size=1, max_size=16)
rows = st.lists(row, min_size=2, max_size=ROWS)
cuts = st.lists(st.integers(1, 40), max_size=12)


def scripted(_folder: Path) -> contract.Case:
    """Exact: it recomputes everything from the prefix."""
    model = ScriptedLM.hashed(1, 64, context_length=CONTEXT, max_rows=ROWS)
    return contract.Case(model, tolerance=0.0)


def transformer(_folder: Path, batched: bool = True) -> contract.Case:
    pytest.importorskip("transformers")
    from crossroads.models.transformers import TransformersLM

    model = TransformersLM(
        builders.tiny_transformer(),
        name="tiny",
        fingerprint="tiny",
        context_length=CONTEXT,
        max_rows=ROWS,
        batched=batched,
    )
    assert model.batched == batched
    return with_weights(model, tolerance=1e-4)


def gguf(folder: Path, batch_tokens: int = 512, threads: int | None = None) -> contract.Case:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from crossroads.models.llamacpp import FLOAT_TOLERANCE, LlamaCppLM

    model = LlamaCppLM.load(
        builders.tiny_gguf(folder / "tiny.gguf"),
        context_length=CONTEXT,
        max_rows=ROWS,
        batch_tokens=batch_tokens,
        threads=threads,
    )
    return with_weights(model, FLOAT_TOLERANCE)


def with_weights(model: CausalLM, tolerance: float) -> contract.Case:
    weights = builders.tiny_weights()
    head_VH, embedding_VE = weights["lm_head.weight"], weights["model.embed_tokens.weight"]
    return contract.Case(model, tolerance, head_VH, embedding_VE)


FACTORIES: dict[str, Callable[[Path], contract.Case]] = {
    "scripted": scripted,
    "transformer": transformer,
    "transformer-rows": partial(transformer, batched=False),  # the fallback, one cache per row
    "gguf": gguf,
    "gguf-small-batches": partial(gguf, batch_tokens=5),  # most rows are cut within a batch
}


@pytest.fixture(scope="module", params=FACTORIES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[contract.Case]:
    case = FACTORIES[request.param](tmp_path_factory.mktemp("models"))
    yield case
    # Every law gives back what it took; else the next one would run out of rows anyway.
    caches = [case.model.new_cache() for _ in range(case.model.info.max_rows)]
    case.model.close()
    for cache in caches:
        cache.release()


@few
@given(tokens=st.lists(ids, min_size=1, max_size=40), cuts=cuts)
def test_any_chunking_gives_the_same(
    case: contract.Case, tokens: list[int], cuts: list[int]
) -> None:
    contract.check_any_chunking_gives_the_same(case, tokens, cuts)


@few
@given(kept=st.lists(ids, min_size=0, max_size=12), dropped=row, new=row)
def test_crop_then_extend(
    case: contract.Case, kept: list[int], dropped: list[int], new: list[int]
) -> None:
    contract.check_crop_then_extend(case, kept, dropped, new)


@few
@given(data=st.data(), tokens=row, count=st.integers(1, ROWS - 1))
def test_forks_are_rows_of_their_own(
    case: contract.Case, data: st.DataObject, tokens: list[int], count: int
) -> None:
    at = data.draw(st.lists(st.integers(0, len(tokens)), min_size=count, max_size=count))
    tails = data.draw(st.lists(row, min_size=count, max_size=count))
    contract.check_forks_are_rows_of_their_own(case, tokens, at, tails)


def test_forks_are_bounded(case: contract.Case) -> None:
    contract.check_forks_are_bounded(case)


@few
@given(data=st.data(), first=rows)
def test_rows_are_alone(case: contract.Case, data: st.DataObject, first: list[list[int]]) -> None:
    then = data.draw(st.lists(row, min_size=len(first), max_size=len(first)))
    contract.check_rows_are_alone(case, first, then)


@few
@given(data=st.data(), texts=rows)
def test_releasing_a_row_leaves_the_others(
    case: contract.Case, data: st.DataObject, texts: list[list[int]]
) -> None:
    gone = data.draw(st.integers(0, len(texts) - 1))
    contract.check_releasing_a_row_leaves_the_others(case, texts, gone)


@few
@given(data=st.data(), texts=rows)
def test_each_row_has_its_own_count(
    case: contract.Case, data: st.DataObject, texts: list[list[int]]
) -> None:
    counts = [data.draw(st.integers(1, len(text))) for text in texts]
    contract.check_each_row_has_its_own_count(case, texts, counts)


@pytest.mark.parametrize("hidden", [False, True])
@few
@given(texts=rows)
def test_last_is_the_last_of_all(case: contract.Case, hidden: bool, texts: list[list[int]]) -> None:
    contract.check_last_is_the_last_of_all(case, texts, hidden)


@pytest.mark.parametrize("k", [1, 5, 64])
def test_summary_is_true(case: contract.Case, k: int) -> None:
    contract.check_summary_is_true(case, list(range(30)), k)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_outputs_come_iff_wanted(case: contract.Case, hidden: bool, logits: bool) -> None:
    contract.check_outputs_come_iff_wanted(case, hidden, logits)


def test_outputs_stay(case: contract.Case) -> None:
    contract.check_outputs_stay(case)


def test_hidden_times_head_is_logits(case: contract.Case) -> None:
    contract.check_hidden_times_head_is_logits(case, [3, 1, 4, 1, 5])


def test_embedding(case: contract.Case) -> None:
    contract.check_embedding(case)


def test_refusals_change_nothing(case: contract.Case) -> None:
    contract.check_refusals_change_nothing(case)


def test_crop_bounds(case: contract.Case) -> None:
    contract.check_crop_bounds(case)


def test_rows_are_bounded_and_reused(case: contract.Case) -> None:
    contract.check_rows_are_bounded_and_reused(case)


def test_context_can_be_filled(case: contract.Case) -> None:
    contract.check_context_can_be_filled(case)


@pytest.mark.parametrize("name", FACTORIES)
def test_closing_twice(name: str, tmp_path: Path) -> None:
    contract.check_closing_twice(FACTORIES[name](tmp_path).model)
