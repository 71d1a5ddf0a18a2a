"""The summary of a distribution is what sorting the whole of it gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crossroads.models.base import BLOCK, Want, summarise


def sorted_whole(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids and logits of every entry, largest first, ties by lowest id."""
    values_NV, ids_NV = logits_NV.sort(dim=1, descending=True, stable=True)
    return ids_NV, values_NV


@given(
    seed=st.integers(0, 10**6),
    k=st.integers(2, 9),
    size=st.integers(2, 60 * BLOCK),
    peak=st.sampled_from(["none", "first block", "rest"]),
)
def test_the_top_entries_are_those_of_the_sorted_whole(
    seed: int, k: int, size: int, peak: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Distinct values in random order: no ties.
    logits_NV = torch.stack([torch.randperm(size, generator=generator) for _ in range(3)]).float()
    if peak == "first block":
        logits_NV[:, :BLOCK] += 10 * size
    if peak == "rest":
        logits_NV[:, size - size % BLOCK :] += 10 * size
    out = summarise(logits_NV / size, (3,), Want(top_k=k))
    ids_NV, values_NV = sorted_whole(logits_NV / size)
    assert torch.equal(out.top_ids_NK, ids_NV[:, :k])
    assert torch.equal(out.top_logits_NK, values_NV[:, :k])


@pytest.mark.parametrize("size", [50, 100 * BLOCK])
def test_ties_come_in_the_order_of_their_ids(size: int) -> None:
    logits_NV = torch.randn(4, size, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    out = summarise(logits_NV, (4,), Want(top_k=20))
    _, values_NV = sorted_whole(logits_NV)
    assert torch.equal(out.top_logits_NK, values_NV[:, :20])
    assert torch.equal(logits_NV.gather(1, out.top_ids_NK), out.top_logits_NK)
    tied = out.top_logits_NK[:, 1:] == out.top_logits_NK[:, :-1]
    assert bool(tied.any())
    assert bool((out.top_ids_NK.diff(dim=1) > 0)[tied].all())


def test_masked_entries_are_last_and_add_nothing() -> None:
    logits_NV = torch.full((1, 100 * BLOCK), -torch.inf)
    logits_NV[0, [7, 3000]] = torch.tensor([1.0, 1.0])
    out = summarise(logits_NV, (1,), Want(top_k=5))
    assert out.top_ids_NK[0, :2].tolist() == [7, 3000]
    assert out.top_logits_NK[0, 2:].tolist() == [-torch.inf] * 3
    assert len(set(out.top_ids_NK[0].tolist())) == 5
    assert float(out.entropy_N[0]) == pytest.approx(0.6931, abs=1e-4)
