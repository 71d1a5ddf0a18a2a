"""The tools of a diagnosis: rankings agree with thresholds, fingerprints find copies only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.diagnosis.hashing import copies, hash_rows
from crossroads.diagnosis.resampling import Clusters, WeightedRanking
from crossroads.diagnosis.wide import cross_predicted
from crossroads.routing.policy import sends_to_large
from crossroads.training.threshold import threshold_for_positive_rate, threshold_for_recall


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60),
    st.floats(0.05, 1.0),
)
def test_a_ranking_sends_what_the_exact_threshold_sends(
    rows: list[tuple[int, bool]], target: float
) -> None:
    scores = np.array([score / 12 for score, _ in rows], np.float32)
    positive = np.array([flag for _, flag in rows])
    ranking = WeightedRanking(scores, positive)
    if positive.any():
        sent = sends_to_large(scores, threshold_for_recall(scores, positive, target))
        assert ranking.rate_at_recall(target) == pytest.approx(sent.mean())
        assert (ranking.sent_at_recall(target) == sent).all()
        within = sends_to_large(scores, threshold_for_positive_rate(scores, target))
        assert ranking.recall_at_rate(target) == pytest.approx(
            (within & positive).sum() / positive.sum()
        )
    else:
        assert np.isnan(ranking.rate_at_recall(target))


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=40), st.data())
def test_a_weight_counts_as_so_many_rows(rows: list[tuple[int, bool]], data: st.DataObject) -> None:
    scores = np.array([score for score, _ in rows], float)
    positive = np.array([flag for _, flag in rows])
    weight = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    )
    repeated = WeightedRanking(np.repeat(scores, weight), np.repeat(positive, weight))
    weighed = WeightedRanking(scores, positive)
    for recall in (0.5, 0.95, 1.0):
        assert weighed.rate_at_recall(recall, weight.astype(float)) == pytest.approx(
            repeated.rate_at_recall(recall), nan_ok=True
        )
    assert weighed.auroc(weight.astype(float)) == pytest.approx(repeated.auroc(), nan_ok=True)


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 9, 200), generator.random(200) < 0.3
    pairs = scores[positive][:, None] - scores[~positive][None]
    assert WeightedRanking(scores.astype(float), positive).auroc() == pytest.approx(
        (np.sign(pairs) / 2 + 0.5).mean()
    )


def test_intervals_are_over_problems_and_widen_with_clusters() -> None:
    generator = np.random.default_rng(0)
    problem = np.repeat(np.arange(20), 200)
    chance = generator.random(20)[problem]
    happens = generator.random(4000) < chance
    parts = np.stack([happens, np.ones(4000, bool)])

    def error(cluster: np.ndarray) -> float:
        estimate = Clusters(cluster, seed=0).estimate_of_sums(parts, lambda s: float(s[0] / s[1]))
        assert estimate.error is not None
        return estimate.error

    assert error(problem) > 3 * error(np.arange(4000))


def test_one_problem_has_no_interval() -> None:
    clusters = Clusters(np.zeros(10, int), seed=0)
    assert clusters.estimate(lambda w: 0.5 if w is None else float(w.mean())).interval is None


@given(st.integers(0, 2**31), st.integers(9, 60))
def test_a_text_is_found_again_and_other_texts_are_not(seed: int, length: int) -> None:
    generator = np.random.default_rng(seed)
    texts = [generator.integers(0, 50_000, length) for _ in range(6)]
    texts.append(np.concatenate([texts[2], generator.integers(0, 50_000, 5)]))
    pairs = {(pair.first, pair.second) for pair in copies(texts)}
    assert pairs == {(2, 6)}


def test_boilerplate_is_no_copy_but_equal_texts_are() -> None:
    generator = np.random.default_rng(0)
    opening = generator.integers(0, 99, 12)
    texts = [np.concatenate([opening, generator.integers(0, 50_000, 40)]) for _ in range(40)]
    assert copies(texts) == []
    equal = copies([opening] * 40)
    assert {pair.second for pair in equal} == set(range(1, 40))


def test_row_hashes_depend_on_every_byte() -> None:
    generator = np.random.default_rng(0)
    first = generator.random((500, 7)).astype(np.float16)
    second = generator.integers(0, 9, (500, 1)).astype(np.int32)
    known = hash_rows(first, second)
    assert len(np.unique(known)) == 500
    for column in range(7):
        changed = first.copy()
        changed[:, column] += np.float16(1)
        assert (hash_rows(changed, second) != known).all()
    assert (hash_rows(first, second + 1) != known).all()
    assert (hash_rows(first.copy(), second.copy()) == known).all()


def test_a_probe_learns_what_is_linear_and_nothing_from_noise() -> None:
    generator = np.random.default_rng(0)
    value = generator.normal(size=(2000, 8))
    group = np.repeat(np.arange(40), 50)
    target = value @ generator.normal(size=8)
    assert np.corrcoef(cross_predicted(value, target, group), target)[0, 1] > 0.99
    noise = generator.normal(size=2000)
    assert abs(np.corrcoef(cross_predicted(value, noise, group), noise)[0, 1]) < 0.15
