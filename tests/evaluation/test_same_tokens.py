import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.evaluation.columns import Columns
from crossroads.evaluation.overlap import OverlapCounter
from crossroads.types import Role, TokenRecord

S, L = Role.SMALL, Role.LARGE


def record(entropy, sent=False, replaced=False, proposed=5):
    return TokenRecord(
        0, 6 if replaced else 5, L if sent else S, proposed, score=0.5, entropy=entropy, lag=sent
    )


def overlap(*responses):
    counter = OverlapCounter()
    for records in responses:
        counter.add(Columns.of(records))
    return counter.overlap()


# Apart by more than the steps in which entropies are counted.
distinct = st.lists(st.integers(0, 900), unique=True, max_size=60).map(
    lambda places: [1.02 ** (place / 2) / 1000 for place in places]
)


@given(distinct, st.data())
def test_it_is_what_the_highest_entropies_would_be(entropies, data):
    sent = [data.draw(st.booleans()) for _ in entropies]
    replaced = [new and data.draw(st.booleans()) for new in sent]
    records = [record(*row) for row in zip(entropies, sent, replaced, strict=True)]
    cut = data.draw(st.integers(0, len(records)))
    found = overlap(records[:cut], records[cut:])
    order = sorted(range(len(records)), key=lambda place: -entropies[place])
    highest = set(order[: sum(sent)])
    routed = {place for place, was in enumerate(sent) if was}
    new = {place for place, was in enumerate(replaced) if was}
    assert found.proposals == len(records)
    assert found.sent == len(routed)
    assert found.replaced == len(new)
    assert found.alike == len(routed & highest)
    assert found.replaced_alike == pytest.approx(len(new & highest))


@given(distinct, st.integers(0, 60))
def test_entropy_itself_would_have_sent_the_same(entropies, most):
    cut = sorted(entropies, reverse=True)[:most]
    found = overlap([record(entropy, entropy in cut) for entropy in entropies])
    assert found.share == (1 if cut else None)
    assert found.replaced_outside is None


def test_of_equal_entropies_those_that_were_sent_come_first():
    # Entropy sends the two highest, and one of the four equal ones.
    equal = [record(1.0, True, True), record(1.0, True), record(1.0), record(1.0)]
    found = overlap([record(2.0, True), record(3.0), *equal])
    assert (found.sent, found.alike) == (3, 2)
    assert found.replaced_alike == pytest.approx(1 / 2)


def test_shares_of_what_was_replaced():
    records = [
        record(3.0, True, True),
        record(2.0, True, False),
        record(1.0),
        record(0.5, True, True),
        record(-1e-7),  # a rounding
    ]
    found = overlap(records)
    assert found.share == pytest.approx(2 / 3)
    assert found.replaced_inside == pytest.approx(1 / 2)
    assert found.replaced_outside == pytest.approx(1)


def test_what_was_written_without_a_proposal_is_left_out():
    records = [record(None, True), record(1.0, True, proposed=None), record(1.0)]
    found = overlap(records, [])
    assert (found.proposals, found.sent, found.share) == (1, 0, None)


def test_memory_does_not_grow_with_the_tokens():
    counter = OverlapCounter()
    sizes = set()
    for seed in range(3):
        values = np.random.default_rng(seed).random(1000) * 12
        counter.add(Columns.of([record(float(value), value > 6) for value in values]))
        sizes.add(counter.proposals.nbytes + counter.sent.nbytes + counter.replaced.nbytes)
    assert len(sizes) == 1
    assert counter.overlap().proposals == 3000
