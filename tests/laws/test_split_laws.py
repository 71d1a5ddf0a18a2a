"""Law 7: splits are complementary, disjoint by problem, and independent of the input's order."""

from __future__ import annotations

import pytest
from hypothesis import given, reject
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


GROUPED = DOMAINS.flatmap(
    lambda domains: st.tuples(
        st.just(domains),
        st.dictionaries(st.sampled_from(sorted(domains)), st.sampled_from(sorted(domains))),
    )
)


def try_splits(domains, seed, groups) -> dict[str, Split]:
    """Return the splits; a few large groups may leave a split empty, which is refused rightly."""
    try:
        return assign_splits(domains, SplitShares(), seed, groups)
    except DataError:
        reject()


@given(GROUPED, st.integers(0, 100))
def test_a_group_is_never_torn_apart(grouped, seed: int) -> None:
    domains, groups = grouped
    split_of = try_splits(domains, seed, groups)
    assert split_of.keys() == domains.keys()
    splits_of_group: dict[str, set[Split]] = {}
    for problem_id, split in split_of.items():
        splits_of_group.setdefault(groups.get(problem_id, problem_id), set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of_group.values())


@given(GROUPED, st.integers(0, 100), st.randoms())
def test_with_groups_the_order_does_not_matter_either(grouped, seed: int, random) -> None:
    domains, groups = grouped
    shuffled, regrouped = list(domains.items()), list(groups.items())
    random.shuffle(shuffled)
    random.shuffle(regrouped)
    expected = try_splits(domains, seed, groups)
    assert assign_splits(dict(shuffled), SplitShares(), seed, dict(regrouped)) == expected


@given(GROUPED, st.integers(0, 100))
def test_what_a_group_is_called_does_not_matter(grouped, seed: int) -> None:
    domains, groups = grouped
    renamed = {i: f"the group {groups.get(i, i)}" for i in domains} | {"no such problem": "x"}
    assert try_splits(domains, seed, groups) == assign_splits(domains, SplitShares(), seed, renamed)


@given(DOMAINS, st.integers(0, 100))
def test_groups_of_one_change_nothing(domains: dict[str, str], seed: int) -> None:
    alone = {problem_id: problem_id for problem_id in domains}
    expected = assign_splits(domains, SplitShares(), seed)
    assert assign_splits(domains, SplitShares(), seed, alone) == expected


@given(GROUPED, st.integers(0, 100))
def test_groups_never_overfill_calibration_and_test(grouped, seed: int) -> None:
    domains, groups = grouped
    split_of = try_splits(domains, seed, groups)
    # A group counts for the domain of its first id.
    first: dict[str, str] = {}
    for problem_id in sorted(domains):
        first.setdefault(groups.get(problem_id, problem_id), problem_id)
    home = {i: domains[first[groups.get(i, i)]] for i in domains}
    for domain in set(home.values()):
        mine = [split_of[i] for i in home if home[i] == domain]
        assert mine.count(Split.CALIBRATION) <= round(len(mine) * 0.2)
        assert mine.count(Split.TEST) <= round(len(mine) * 0.2)


def test_splits_of_problems_without_groups_stay_what_they_were() -> None:
    # Written down before groups existed: data sets labelled then keep their splits.
    domains = {f"p{i}": "xy"[i % 2] for i in range(10)}
    split_of = assign_splits(domains, SplitShares(), 7)
    assert sorted(i for i in domains if split_of[i] is Split.CALIBRATION) == ["p1", "p4"]
    assert sorted(i for i in domains if split_of[i] is Split.TEST) == ["p0", "p3"]


def test_problems_that_are_all_one_group_are_refused() -> None:
    domains = {str(i): "d" for i in range(50)}
    with pytest.raises(DataError, match=r"50 problems \(1 when each group counts once\) leave no"):
        assign_splits(domains, SplitShares(), 0, dict.fromkeys(domains, "0"))
