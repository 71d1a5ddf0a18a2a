"""Training comes near the best possible router, where that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossroads.routing.routers.heuristics import entropy, max_probability
from crossroads.simulation.simulate import Simulated, simulate
from crossroads.simulation.world import SimulationConfig
from crossroads.training.config import FitConfig
from crossroads.training.fit import fit, score_rows
from crossroads.training.ranking import Ranking
from crossroads.training.rows import Corpus
from crossroads.types import SilentProgress, Split

CONFIG = FitConfig(
    inputs=("entropy", "margin", "top_logprobs", "hidden"),
    network={"dropout": 0.3},
    epochs=12,
    auxiliary=1.0,
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    config = SimulationConfig(problems=150, tokens_per_problem=150, hidden_size=32)
    return simulate(config, tmp_path_factory.mktemp("optimum") / "data")


def test_a_trained_router_is_near_the_optimum(simulated: Simulated, tmp_path: Path) -> None:
    corpus = Corpus.open([simulated.dataset], (*CONFIG.inputs, "top_probability"), tmp_path)
    router = fit(corpus, CONFIG, SilentProgress()).router
    test = corpus.split(Split.TEST)

    def rate(scores, recall: float) -> float:
        ranking = Ranking.of(scores, test.positive("divergent"), test.problem_N)
        return float(ranking.rate_at_recall(recall)[0])

    size = corpus.small.vocab_size
    heuristics = [score_rows(h, test) for h in (entropy(size), max_probability(size))]
    best, ours = simulated.truth.scores(Split.TEST), score_rows(router, test)
    for recall in (0.8, 0.9, 0.95):
        # 30 test problems: the optimum on these very labels is itself good to about a tenth.
        assert rate(best, recall) * 0.9 < rate(ours, recall) < rate(best, recall) * 1.5
        assert rate(ours, recall) < 0.85 * min(rate(scores, recall) for scores in heuristics)
