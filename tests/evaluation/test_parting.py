from hypothesis import given
from hypothesis import strategies as st

from crossroads.evaluation.parting import Fork, fork_of, partings


def total(parting):
    return sum(found.answers for found in parting.by.values())


def answer(ids, writers, correct=True, system=0, sample=0):
    return {
        "ids": list(ids), "writers": writers, "correct": correct, "system": system,
        "sample": sample,
    }  # fmt: skip


@st.composite
def answers(draw, system, sample=0):
    ids = draw(st.lists(st.integers(0, 1), max_size=6))
    writers = "".join(draw(st.sampled_from("stkca")) for _ in ids)
    return answer(ids, writers, draw(st.booleans()), system, sample)


@given(answers(0), answers(1))
def test_a_fork_is_named_by_the_writers_of_the_first_difference(first, second):
    pairs = list(zip(first["ids"], second["ids"], strict=False))
    common = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    fork = fork_of(first, second)
    if common is None:
        whole = len(first["ids"]) == len(second["ids"])
        assert fork is (Fork.SAME if whole else Fork.ENDED)
    else:
        large = (first["writers"][common] in "kca", second["writers"][common] in "kca")
        named = {Fork.BOTH_LARGE: (1, 1), Fork.BOTH_SMALL: (0, 0), Fork.SENT: (1, 0)}
        assert named.get(fork, (0, 1)) == large


@given(st.lists(st.tuples(answers(0), answers(1)), max_size=8))
def test_seen_from_the_other_side_it_is_turned_around(problems):
    (one,) = partings(problems, ["a", "b"], ["a"])
    (other,) = partings(problems, ["a", "b"], ["b"])
    turned = {Fork.SENT: Fork.KEPT, Fork.KEPT: Fork.SENT}
    for fork in Fork:
        mirror = other.by[turned.get(fork, fork)]
        assert one.by[fork].answers == mirror.answers
        assert (one.by[fork].better, one.by[fork].worse) == (mirror.worse, mirror.better)
    assert total(one) == len(problems)
    right = [(first["correct"], second["correct"]) for first, second in problems]
    assert sum(found.better for found in one.by.values()) == right.count((True, False))
    assert sum(found.worse for found in one.by.values()) == right.count((False, True))


@given(st.lists(answers(0), max_size=8))
def test_an_answer_does_not_part_from_itself(problems):
    (found,) = partings([(a, a | {"system": 1}) for a in problems], ["a", "b"], ["a"])
    assert found.by[Fork.SAME].answers == total(found) == len(problems)


def test_samples_are_compared_with_their_own_kind():
    problem = [
        answer([1], "s", system=0, sample=0),
        answer([2], "k", system=0, sample=1),
        answer([2], "k", system=1, sample=1),
        answer([1], "s", system=1, sample=0),
        answer([3], "a", system=2, sample=0),  # its second sample is missing
    ]
    to_same, to_other = partings([problem], ["a", "b", "c"], ["a"])
    assert (to_same.other, total(to_same), to_same.by[Fork.SAME].answers) == ("b", 2, 2)
    assert (to_other.other, total(to_other), to_other.by[Fork.KEPT].answers) == ("c", 1, 1)


def test_every_router_beside_every_other_system():
    found = partings([], ["small", "one", "two"], ["one", "two"])
    pairs = [(parting.system, parting.other) for parting in found]
    assert pairs == [("one", "small"), ("one", "two"), ("two", "small"), ("two", "one")]


def test_without_a_router_no_answer_is_read():
    unread = iter([[answer([1], "s")]])
    assert partings(unread, ["a", "b"], []) == []
    assert next(unread, None) is not None


def test_what_is_stored():
    (found,) = partings([[answer([1], "k"), answer([2], "s", False, 1)]], ["a", "b"], ["a"])
    none = {"answers": 0, "better": 0, "worse": 0}
    assert found.to_json() == {
        "system": "a", "other": "b", "same": none, "kept": none, "both_large": none,
        "both_small": none, "ended": none, "sent": {"answers": 1, "better": 1, "worse": 0},
    }  # fmt: skip
