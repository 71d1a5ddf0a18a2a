"""Law 7: splits are complementary, disjoint by problem, and independent of the input's order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import ConfigError, DataError
from crossroads.splits import SplitShares, assign_splits
from crossroads.types import Split

DOMAINS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=6), st.sampled_from(["x", "y"]), min_size=15, max_size=60
)


@given(DOMAINS, st.integers(0, 100))
def test_every_problem_is_in_exactly_one_split(domains: dict[str, str], seed: int) -> None:
    split_of = assign_splits(domains, SplitShares(), seed)
    assert split_of.keys() == domains.keys()
    assert set(split_of.values()) == set(Split)


@given(DOMAINS, st.integers(0, 100), st.randoms())
def test_the_order_of_the_problems_does_not_matter(domains, seed, random) -> None:
    shuffled = list(domains.items())
    random.shuffle(shuffled)
    shares = SplitShares()
    assert assign_splits(dict(shuffled), shares, seed) == assign_splits(domains, shares, seed)


def test_domains_are_stratified() -> None:
    domains = {f"{d}{i}": d for d in "ab" for i in range(50)}
    split_of = assign_splits(domains, SplitShares(), 0)
    for domain in "ab":
        mine = [s for p, s in split_of.items() if p[0] == domain]
        assert [mine.count(s) for s in Split] == [30, 10, 10]


def test_the_seed_matters() -> None:
    domains = {str(i): "d" for i in range(50)}
    assert assign_splits(domains, SplitShares(), 0) != assign_splits(domains, SplitShares(), 1)


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(DataError, match="2 problems leave no problem for"):
        assign_splits({"a": "d", "b": "d"}, SplitShares(), 0)


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.0), (0.5, 0.3, 0.3)])
def test_shares_that_leave_a_split_empty_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="split shares"):
        SplitShares(*shares)
