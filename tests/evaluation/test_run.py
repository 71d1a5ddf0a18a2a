"""Running systems: resumed without doing anything twice, and never mixed with another run."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossroads.artifacts import ResumableLog
from crossroads.errors import ConfigError, DataError
from crossroads.evaluation.results import SystemKind
from crossroads.evaluation.run import RunConfig, System, run_system, threshold_for_fraction
from crossroads.routing.routers.heuristics import entropy
from crossroads.types import Message, Problem, Role, SilentProgress
from laws.pairs import VOCAB, scripted_pair

CONFIG = RunConfig(max_tokens=30, max_rows=3)
MIXED = System("entropy", SystemKind.BASELINE, router=entropy(VOCAB), threshold=0.62)


def problems(count: int = 6) -> list[Problem]:
    return [Problem(f"p{i}", (Message("user", f"Q {i}"),), "1") for i in range(count)]


@pytest.mark.parametrize("system", [MIXED, System("small", SystemKind.SMALL, role=Role.SMALL)])
def test_a_torn_run_goes_on_and_gives_the_same_traces(system: System, tmp_path: Path) -> None:
    whole = run_system(
        scripted_pair(), system, problems(), tmp_path / "a", SilentProgress(), CONFIG
    )
    run_system(scripted_pair(), system, problems(), tmp_path / "b", SilentProgress(), CONFIG)
    log = tmp_path / "b" / "traces.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:40])
    pair = scripted_pair()
    again = run_system(pair, system, problems(), tmp_path / "b", SilentProgress(), CONFIG)
    assert [g.trace.token_ids for g in again.graded] == [g.trace.token_ids for g in whole.graded]
    assert len({r["trace"]["id"] for r in ResumableLog(log)}) == len(list(ResumableLog(log))) == 6
    pair.small.calls.clear()
    run_system(pair, system, problems(), tmp_path / "b", SilentProgress(), CONFIG)
    assert pair.small.calls == []


def test_another_threshold_or_other_problems_are_refused(tmp_path: Path) -> None:
    run_system(scripted_pair(), MIXED, problems(), tmp_path, SilentProgress(), CONFIG)
    other = System("entropy", SystemKind.BASELINE, router=entropy(VOCAB), threshold=0.7)
    with pytest.raises(ConfigError, match=r"threshold: was 0.62, now 0.7"):
        run_system(scripted_pair(), other, problems(), tmp_path, SilentProgress(), CONFIG)
    with pytest.raises(ConfigError, match="problems: was"):
        run_system(scripted_pair(), MIXED, problems(5), tmp_path, SilentProgress(), CONFIG)


def test_a_problem_without_an_answer_is_refused(tmp_path: Path) -> None:
    bad = [*problems(2), Problem("p9", (Message("user", "Q"),))]
    with pytest.raises(DataError, match="'p9' has no answer"):
        run_system(scripted_pair(), MIXED, bad, tmp_path, SilentProgress(), CONFIG)


@pytest.mark.parametrize(("fraction", "sent"), [(0.1, 1), (0.5, 5), (1.0, 10)])
def test_a_matched_threshold_sends_that_share_of_the_tokens(fraction: float, sent: int) -> None:
    scores = [i / 10 for i in range(10)]
    threshold = threshold_for_fraction(scores, fraction)
    assert sum(score >= threshold - 1e-6 for score in scores) == sent
