"""What every CausalLM promises, stated once and run against any of them.

A backend is a `Case`: a loaded model, how far two chunkings may differ, and, where it can be
shown, the output head. Shapes: N positions, K top entries, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from crossroads.errors import EngineError, RequestError
from crossroads.models.base import CausalLM, KVCache, StepOutput, Want, concatenate

EVERYTHING = Want("all", top_k=7, hidden=True, logits=True)
Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Case:
    """A model under contract. Its context must hold 64 tokens and it must have 4 rows or more."""

    model: CausalLM
    tolerance: float
    head_VH: Tensor | None = None
    embedding_VE: Tensor | None = None


def read(model: CausalLM, tokens: Sequence[int], want: Want = EVERYTHING) -> StepOutput:
    """Return the outputs of a fresh pass over one row."""
    cache = model.new_cache()
    try:
        return model.extend([cache], [tokens], want)
    finally:
        cache.release()


def read_in_chunks(
    model: CausalLM, tokens: Sequence[int], cuts: Sequence[int], want: Want = EVERYTHING
) -> StepOutput:
    """Return the outputs of one row that is read in pieces, cut at `cuts`."""
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(tokens)}), len(tokens)]
    cache = model.new_cache()
    try:
        parts = [model.extend([cache], [tokens[a:b]], want) for a, b in pairwise(bounds)]
        assert cache.length == len(tokens)
    finally:
        cache.release()
    return concatenate(parts, (sum(part.row_lengths[0] for part in parts),))


def assert_same(got: StepOutput, expected: StepOutput, tolerance: float) -> None:
    """Assert that two outputs are equal up to `tolerance` in every number."""
    assert got.row_lengths == expected.row_lengths
    for field in fields(StepOutput):
        if field.name in ("row_lengths", "top_ids_NK"):
            continue
        mine, theirs = getattr(got, field.name), getattr(expected, field.name)
        assert (mine is None) == (theirs is None), field.name
        if mine is not None:
            assert mine.shape == theirs.shape, field.name
            # An entropy is a sum over logits, each times a probability; it moves more than one.
            wide = 10 if field.name == "entropy_N" else 1
            difference = (mine - theirs).abs().max().item()
            assert difference <= tolerance * wide, f"{field.name} differs by {difference}"
    differs_NK = got.top_ids_NK != expected.top_ids_NK
    if differs_NK.any():  # then the two ids must have been as good as tied
        assert got.logits_NV is not None, "ids differ and no logits were asked for"
        mine_NK = got.logits_NV.gather(1, got.top_ids_NK)
        theirs_NK = got.logits_NV.gather(1, expected.top_ids_NK)
        assert (mine_NK - theirs_NK).abs().max().item() <= 2 * tolerance


def check_any_chunking_gives_the_same(case: Case, tokens: Sequence[int], cuts: list[int]) -> None:
    """Reading a row in any pieces gives what one pass gives."""
    whole = read(case.model, tokens)
    assert_same(read_in_chunks(case.model, tokens, cuts), whole, case.tolerance)


def check_crop_then_extend(
    case: Case, kept: Sequence[int], dropped: Sequence[int], new: Sequence[int]
) -> None:
    """A cache that was cropped continues as if the dropped tokens had never been read."""
    cache = case.model.new_cache()
    case.model.extend([cache], [[*kept, *dropped]])
    cache.crop(len(kept))
    assert cache.length == len(kept)
    got = case.model.extend([cache], [new], EVERYTHING)
    cache.release()
    expected = read(case.model, [*kept, *new]).slice(len(kept), len(kept) + len(new))
    assert_same(got, expected, case.tolerance)


def check_forks_are_rows_of_their_own(
    case: Case, tokens: Sequence[int], at: Sequence[int], tails: Rows
) -> None:
    """A fork continues as a fresh row would, whatever becomes of its source and its siblings."""
    model = case.model
    source = model.new_cache()
    model.extend([source], [tokens])
    forks = [model.fork(source, length) for length in at]
    assert [fork.length for fork in forks] == list(at)
    grown = model.extend([source, *forks], [[1], *tails], EVERYTHING)
    source.release()
    forks[0].crop(0)
    again = model.extend([forks[-1]], [[2, 3]], EVERYTHING) if len(forks) > 1 else None
    for fork in forks:
        fork.release()
    assert_same(
        grown.row(0), read(model, [*tokens, 1]).slice(len(tokens), len(tokens) + 1), case.tolerance
    )
    for i, (length, tail) in enumerate(zip(at, tails, strict=True)):
        fresh = read(model, [*tokens[:length], *tail]).slice(length, length + len(tail))
        assert_same(grown.row(i + 1), fresh, case.tolerance)
    if again is not None:
        row = [*tokens[: at[-1]], *tails[-1], 2, 3]
        assert_same(again, read(model, row).slice(len(row) - 2, len(row)), case.tolerance)


def check_forks_are_bounded(case: Case) -> None:
    """A fork is one of `max_rows`, and a length that its source does not have is a mistake."""
    source = case.model.new_cache()
    case.model.extend([source], [[1, 2, 3]])
    for length in (-1, 4):
        with pytest.raises(ValueError, match="cannot cut"):
            case.model.fork(source, length)
    forks = [case.model.fork(source, 3) for _ in range(case.model.info.max_rows - 1)]
    with pytest.raises(EngineError):
        case.model.fork(source, 1)
    for cache in (source, *forks):
        cache.release()
    with pytest.raises(ValueError, match="released"):
        case.model.fork(source, 0)


def check_rows_are_alone(case: Case, first: Rows, then: Rows) -> None:
    """A ragged batch gives every row what it would get alone, prefill and continuation."""
    caches = [case.model.new_cache() for _ in first]
    batched = [case.model.extend(caches, tokens, EVERYTHING) for tokens in (first, then)]
    for cache in caches:
        cache.release()
    assert batched[1].row_lengths == tuple(len(tokens) for tokens in then)
    for i, (head, tail) in enumerate(zip(first, then, strict=True)):
        alone = read(case.model, [*head, *tail])
        assert_same(batched[0].row(i), alone.slice(0, len(head)), case.tolerance)
        assert_same(batched[1].row(i), alone.slice(len(head), len(alone.entropy_N)), case.tolerance)


def check_releasing_a_row_leaves_the_others(case: Case, rows: Rows, gone: int) -> None:
    """Releasing a row, and giving its slot to another text, changes no other row."""
    caches = [case.model.new_cache() for _ in rows]
    case.model.extend(caches, rows)
    caches[gone].release()
    newcomer = case.model.new_cache()
    case.model.extend([newcomer], [list(reversed(rows[gone]))])
    caches[gone] = newcomer
    texts = [list(row) for row in rows]
    texts[gone].reverse()
    order = list(reversed(range(len(rows))))  # rows may come in any order, too
    got = case.model.extend([caches[i] for i in order], [[1 + i] for i in order], EVERYTHING)
    for cache in caches:
        cache.release()
    for place, i in enumerate(order):
        expected = read(case.model, [*texts[i], 1 + i])
        assert_same(
            got.row(place), expected.slice(len(texts[i]), len(texts[i]) + 1), case.tolerance
        )


def check_last_is_the_last_of_all(case: Case, rows: Rows, hidden: bool) -> None:
    """`positions="last"` gives the last position of each row and nothing else."""
    caches = [case.model.new_cache() for _ in rows]
    last = case.model.extend(caches, rows, Want("last", 7, hidden, logits=True))
    for cache, row in zip(caches, rows, strict=True):
        assert cache.length == len(row)
        cache.release()
    assert last.row_lengths == (1,) * len(rows)
    for i, row in enumerate(rows):
        whole = read(case.model, row, Want("all", 7, hidden, logits=True))
        assert_same(last.row(i), whole.slice(len(row) - 1, len(row)), case.tolerance)


def check_each_row_has_its_own_count(case: Case, rows: Rows, counts: Sequence[int]) -> None:
    """A number per row gives so many of its last positions; a wrong number changes nothing."""
    caches = [case.model.new_cache() for _ in rows]
    for wrong in ((1,) * (len(rows) + 1), (0,) * len(rows), tuple(len(row) + 1 for row in rows)):
        with pytest.raises(ValueError, match=r"positions|outputs"):
            case.model.extend(caches, rows, Want(wrong))
    assert [cache.length for cache in caches] == [0] * len(rows)
    got = case.model.extend(caches, rows, Want(tuple(counts), 7, hidden=True, logits=True))
    for cache in caches:
        cache.release()
    assert got.row_lengths == tuple(counts)
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        whole = read(case.model, row)
        assert_same(got.row(i), whole.slice(len(row) - count, len(row)), case.tolerance)


def check_summary_is_true(case: Case, tokens: Sequence[int], k: int) -> None:
    """Top entries, logsumexp and entropy are those of the logits that came with them."""
    out = read(case.model, tokens, Want("all", top_k=k, logits=True))
    logits_NV = out.logits_NV
    assert logits_NV is not None
    assert logits_NV.shape == (len(tokens), case.model.info.vocab_size)
    assert out.top_ids_NK.shape == (len(tokens), k)
    best_NK = logits_NV.sort(dim=-1, descending=True).values[:, :k]
    assert torch.equal(out.top_logits_NK, best_NK)
    assert torch.equal(logits_NV.gather(1, out.top_ids_NK), best_NK)
    log_p_NV = logits_NV.double().log_softmax(-1)
    torch.testing.assert_close(out.logsumexp_N.double(), logits_NV.double().logsumexp(-1))
    entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    torch.testing.assert_close(out.entropy_N.double(), entropy_N, rtol=1e-4, atol=1e-4)


def check_outputs_come_iff_wanted(case: Case, hidden: bool, logits: bool) -> None:
    """Hidden states and logits are there when asked for, and only then."""
    out = read(case.model, [1, 2, 3], Want("all", 2, hidden, logits))
    assert (out.hidden_NH is not None) == hidden
    assert (out.logits_NV is not None) == logits
    if out.hidden_NH is not None:
        assert out.hidden_NH.shape == (3, case.model.info.hidden_size)
        assert out.hidden_NH.dtype == torch.float32


def check_outputs_stay(case: Case) -> None:
    """What an extend returned does not change when the model is used again."""
    first = read(case.model, [1, 2, 3, 4])
    assert first.logits_NV is not None
    assert first.hidden_NH is not None
    copies = first.logits_NV.clone(), first.hidden_NH.clone(), first.top_logits_NK.clone()
    read(case.model, [9, 8, 7, 6])
    assert torch.equal(first.logits_NV, copies[0])
    assert torch.equal(first.hidden_NH, copies[1])
    assert torch.equal(first.top_logits_NK, copies[2])


def check_hidden_times_head_is_logits(case: Case, tokens: Sequence[int]) -> None:
    """The hidden state is the one that the output head reads: after the final norm."""
    if case.head_VH is None:
        pytest.skip("no output head to show")
    for out in (read(case.model, tokens), read(case.model, tokens, Want("last", 1, True, True))):
        assert out.hidden_NH is not None
        assert out.logits_NV is not None
        torch.testing.assert_close(out.hidden_NH @ case.head_VH.T, out.logits_NV, rtol=0, atol=1e-3)


def check_embedding(case: Case) -> None:
    """`embed` gives the input embedding's rows, in the order asked for."""
    ids = [5, 0, case.model.info.vocab_size - 1, 5]
    rows_NE = case.model.embed(ids)
    assert rows_NE.shape[0] == 4
    assert rows_NE.dtype == torch.float32
    assert torch.equal(rows_NE[0], rows_NE[3])
    if case.embedding_VE is not None:
        assert torch.equal(rows_NE, case.embedding_VE[ids])


def check_refusals_change_nothing(case: Case) -> None:
    """An impossible request is refused by name and leaves every cache as it was."""
    model = case.model
    caches: list[KVCache] = [model.new_cache(), model.new_cache()]
    model.extend(caches, [[1, 2], [3]])
    room = model.info.context_length - 1
    impossible: list[Rows] = [
        [[4], []],
        [[4], [model.info.vocab_size]],
        [[4], [-1]],
        [[4], [1] * (room + 1)],
        [[4]],
    ]
    for rows in impossible:
        with pytest.raises(RequestError):
            model.extend(caches, rows)
        assert [cache.length for cache in caches] == [2, 1]
    with pytest.raises(RequestError):
        model.extend([], [])
    with pytest.raises(RequestError):
        model.extend([caches[0], caches[0]], [[4], [5]])
    got = model.extend(caches, [[5], [6]], EVERYTHING)
    for cache in caches:
        cache.release()
    assert_same(got.row(0), read(model, [1, 2, 5]).slice(2, 3), case.tolerance)
    assert_same(got.row(1), read(model, [3, 6]).slice(1, 2), case.tolerance)


def check_crop_bounds(case: Case) -> None:
    """A crop outside [0, length] is a mistake of the caller and is told so."""
    cache = case.model.new_cache()
    case.model.extend([cache], [[1, 2, 3]])
    for length in (-1, 4):
        with pytest.raises(ValueError, match="cannot cut"):
            cache.crop(length)
    cache.crop(3)
    assert cache.length == 3
    cache.crop(0)
    assert_same(
        case.model.extend([cache], [[7, 8]], EVERYTHING), read(case.model, [7, 8]), case.tolerance
    )
    cache.release()


def check_rows_are_bounded_and_reused(case: Case) -> None:
    """`max_rows` caches fit and no more; a released one makes room, releasing twice does not."""
    caches = [case.model.new_cache() for _ in range(case.model.info.max_rows)]
    with pytest.raises(EngineError):
        case.model.new_cache()
    case.model.extend([caches[0]], [[1, 2, 3]])
    caches[0].release()
    caches[0].release()
    caches[0] = case.model.new_cache()
    assert caches[0].length == 0
    with pytest.raises(EngineError):
        case.model.new_cache()
    got = case.model.extend([caches[0]], [[4, 5]], EVERYTHING)
    for cache in caches:
        cache.release()
    assert_same(got, read(case.model, [4, 5]), case.tolerance)


def check_context_can_be_filled(case: Case) -> None:
    """Every row reaches `context_length` at the same time, and not one token more."""
    model, length = case.model, case.model.info.context_length
    caches = [model.new_cache() for _ in range(model.info.max_rows)]
    row = [1 + i % 50 for i in range(length)]
    model.extend(caches, [row for _ in caches])
    with pytest.raises(RequestError):
        model.extend([caches[-1]], [[1]])
    for cache in caches:
        assert cache.length == length
        cache.release()


def check_closing_twice(model: CausalLM) -> None:
    """`close` can be called twice, and caches can be released afterwards."""
    cache = model.new_cache()
    model.extend([cache], [[1, 2]])
    model.close()
    model.close()
    cache.release()
