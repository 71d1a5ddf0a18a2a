import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.evaluation.columns import Columns
from crossroads.evaluation.figure import coarser
from crossroads.evaluation.usage_patterns import (
    RELATIVE_BINS,
    WIDTH,
    Bin,
    PatternCounter,
    RoutedToken,
)
from crossroads.types import Cause, Role, TokenRecord

S, L = Role.SMALL, Role.LARGE


def record(token_id, writer=S, proposed_id=None, lag=0):
    return TokenRecord(0, token_id, writer, proposed_id, score=0.5, lag=lag)


def counted(*traces):
    counter = PatternCounter()
    for records in traces:
        counter.add(Columns.of(records))
    return counter.patterns()


@st.composite
def mixed_records(draw):
    writer = draw(st.sampled_from([S, L]))
    token = draw(st.integers(0, 5))
    proposed = draw(st.none() | st.integers(0, 5)) if writer is L else token
    lag = draw(st.integers(1, 9)) if writer is L else draw(st.sampled_from([0, 0, 3]))
    return record(token, writer, proposed, lag)


traces = st.lists(st.lists(mixed_records(), max_size=90), max_size=4)


@given(traces)
def test_every_token_is_counted_once_in_each_view(responses):
    patterns = counted(*responses)
    records = [r for records in responses for r in records]
    asked = [r for r in records if r.writer is L or r.lag]
    for bins in (patterns.relative, patterns.absolute):
        assert sum(part.tokens for part in bins) == len(records)
        assert sum(part.asked for part in bins) == len(asked)
    sent = [r for r in asked if r.proposed_id is not None]
    assert sum(token.sent for token in patterns.tokens) == len(sent)
    replaced = [r for r in sent if r.writer is L and r.token_id != r.proposed_id]
    assert sum(token.replaced for token in patterns.tokens) == len(replaced)


@given(traces)
def test_what_is_replaced_was_sent_and_what_is_sent_was_proposed(responses):
    for token in counted(*responses).tokens:
        assert 0 <= token.replaced <= token.sent <= token.proposed
        assert token.sent > 0


@given(traces)
def test_the_order_of_responses_does_not_matter(responses):
    assert counted(*responses) == counted(*reversed(responses))


def test_a_hand_counted_response():
    records = [
        record(7, S, 7),
        record(8, L, 7, lag=2),  # replaced
        record(7, L, 7, lag=1),  # sent, and the large model wrote the same
        record(5, S, 5, lag=3),  # asked, and let stand
        record(9, L, None, lag=1),  # written without a proposal
    ]
    patterns = counted(records)
    assert patterns.tokens == (RoutedToken(7, 3, 2, 1), RoutedToken(5, 1, 1, 0))
    assert patterns.absolute == (Bin(5, 4),)
    asked = {place * 4: part for place, part in enumerate(patterns.relative[::4])}
    assert asked == {0: Bin(1, 0), 4: Bin(1, 1), 8: Bin(1, 1), 12: Bin(1, 1), 16: Bin(1, 1)}
    assert sum(part.tokens for part in patterns.relative) == 5


def test_a_response_of_any_length_goes_from_the_first_part_to_the_last():
    even = counted([record(1, S, 1)] * (3 * RELATIVE_BINS))
    assert {part.tokens for part in even.relative} == {3}
    assert [part.tokens for part in even.absolute] == [WIDTH] * 3 + [3 * RELATIVE_BINS - 3 * WIDTH]
    single = counted([record(1, L, 2, lag=1)])
    assert single.relative[0] == Bin(1, 1)
    assert set(single.relative[1:]) == {Bin(0, 0)}


def test_nothing_generated_is_nothing_counted():
    patterns = counted([])
    assert patterns.tokens == patterns.absolute == ()
    assert {part.share for part in patterns.relative} == {0.0}


def test_most_sent_first_and_no_more_than_asked_for():
    patterns = counted([record(9, L, t, lag=1) for t in (3, 1, 1, 2, 2, 3, 3)])
    assert [token.token_id for token in patterns.tokens] == [3, 1, 2]
    assert [token["token_id"] for token in patterns.to_json(2)["tokens"]] == [3, 1]


@pytest.mark.parametrize("count", [1, 40, 41, 163])
def test_coarser_bins_hold_the_same_tokens(count):
    generator = np.random.default_rng(count)
    bins = [Bin(int(n), int(n) // 3) for n in generator.integers(0, 50, count)]
    joined, width = coarser(bins, 16)
    assert len(joined) <= 40
    assert width * len(joined) >= 16 * count
    assert sum(part.tokens for part in joined) == sum(part.tokens for part in bins)
    assert sum(part.asked for part in joined) == sum(part.asked for part in bins)


def test_columns_keep_what_the_records_say():
    changed = TokenRecord(0, 4, L, 2, 0.9, 1.5, lag=3, cause=Cause.ROUTER)
    columns = Columns.of([changed, record(1, S, 1)])
    assert columns == Columns(
        token_ids=[4, 1],
        large=[True, False],
        asked=[True, False],
        replaced=[True, False],
        proposed_ids=[2, 1],
        scores=[0.9, 0.5],
        entropies=[1.5, None],
        lags=[3, 0],
        causes=["router", None],
    )
