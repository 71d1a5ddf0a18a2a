"""Running systems: resumed without doing anything twice, and never mixed with another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from crossroads.artifacts import ResumableLog
from crossroads.errors import ConfigError, DataError
from crossroads.evaluation.matching import matched_threshold, threshold_for_fraction
from crossroads.evaluation.run import RunSettings, run_system
from crossroads.types import Usage
from evaluation.bench import SAMPLED, bench, systems, task, texts_of
from laws.pairs import scripted_pair

NAMES = ["small", "large", "entropy@0.62", "lossless:3", "oracle"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [0, 2, 5])
def test_a_torn_run_goes_on_and_gives_the_same_traces(name: str, kept: int, tmp_path: Path) -> None:
    (system,) = systems(name)
    run_system(bench(tmp_path / "a"), task(), system)
    whole = texts_of(bench(tmp_path / "a").folder, "scripted", name)
    run_system(bench(tmp_path / "b"), task(), system)
    log = bench(tmp_path / "b").folder.log("scripted", name)
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:kept]) + lines[kept][:40])
    torn = bench(tmp_path / "b")
    run_system(torn, task(), system)
    assert texts_of(torn.folder, "scripted", name) == whole
    assert len(whole) == len(list(ResumableLog(log.path))) == 6
    pair = scripted_pair()
    run_system(bench(tmp_path / "b", pair), task(), system)
    assert pair.small.calls == pair.large.calls == []


def test_gold_answers_are_the_large_models_own(tmp_path: Path) -> None:
    """The grade belongs to the text: the large model is right everywhere, the small one is not."""
    where = bench(tmp_path)
    for system in systems("small", "large", "entropy@0", "lossless"):
        run_system(where, task(20), system)

    def right(name: str) -> int:
        return sum(answer.grade.correct for answer in where.folder.answers("scripted", name))

    assert right("large") == right("entropy@0") == right("lossless") == 20
    assert right("small") < 20


def test_every_sample_is_drawn_anew_and_alike_for_all_systems(tmp_path: Path) -> None:
    where = bench(tmp_path, settings=SAMPLED)
    for system in systems("large", "entropy@0"):
        run_system(where, task(), system)
    large = texts_of(where.folder, "scripted", "large")
    assert large == texts_of(where.folder, "scripted", "entropy@0")
    assert len(large) == 18
    assert len({large[f"p0#{sample}"] for sample in range(3)}) == 3


def test_a_row_does_not_depend_on_how_many_run_together(tmp_path: Path) -> None:
    (system,) = systems("entropy@0.62")
    found = []
    for rows in (1, 6):
        where = bench(tmp_path / str(rows), settings=RunSettings(rows=rows))
        run_system(where, task(), system)
        found.append(texts_of(where.folder, "scripted", system.name))
    assert found[0] == found[1]


def test_another_run_is_refused_by_what_changed(tmp_path: Path) -> None:
    (system,) = systems("entropy@0.62")
    run_system(bench(tmp_path), task(), system)
    with pytest.raises(ConfigError, match=r"max_tokens: was 30, now 20"):
        run_system(bench(tmp_path, settings=RunSettings(max_tokens=20)), task(), system)
    with pytest.raises(ConfigError, match="task: was"):
        run_system(bench(tmp_path), task(5), system)


def test_samples_of_a_greedy_answer_are_refused() -> None:
    with pytest.raises(DataError, match="2 samples of a greedy answer"):
        RunSettings(samples=2)


@pytest.mark.parametrize(("fraction", "sent"), [(0.1, 1), (0.5, 5), (1.0, 10)])
def test_a_matched_threshold_sends_that_share_of_the_tokens(fraction: float, sent: int) -> None:
    scores = [i / 10 for i in range(10)]
    threshold = threshold_for_fraction(scores, fraction)
    assert sum(score >= threshold - 1e-6 for score in scores) == sent


def test_no_scores_have_no_threshold() -> None:
    with pytest.raises(DataError, match="no tokens"):
        threshold_for_fraction([], 0.5)


@pytest.mark.parametrize("name", ["entropy", "margin", "random"])
@pytest.mark.parametrize("fraction", [0.1, 0.4])
def test_a_matched_system_has_the_live_large_fraction(
    name: str, fraction: float, tmp_path: Path
) -> None:
    (system,) = systems(f"{name}~{fraction}")
    where, problems = bench(tmp_path), task(40)
    threshold = matched_threshold(where, problems, system, fraction, 40)
    (at,) = systems(f"{name}@{threshold!r}")
    run_system(where, problems, at)
    usages = (answer.trace.usage for answer in where.folder.answers("scripted", at.name))
    assert sum(usages, Usage()).large_fraction == pytest.approx(fraction, abs=0.03)


def test_a_good_first_guess_spares_the_other_rounds(tmp_path: Path) -> None:
    """What calibration saw of the scores is where a trained router's pilot begins."""
    asked: list[int] = []
    for guess in (False, True):
        (system,) = systems("margin~0.3")
        where = bench(tmp_path / str(guess))
        if guess:
            (first,) = systems("margin~0.3")
            found = matched_threshold(bench(tmp_path / "found"), task(40), first, 0.3, 40)
            system = replace(system, score_quantiles=(found,) * 101)
        matched_threshold(where, task(40), system, 0.3, 40)
        asked.append(len(where.pair.small.calls))  # type: ignore[attr-defined]
    assert asked[1] < asked[0]


def test_a_matched_threshold_is_found_once(tmp_path: Path) -> None:
    (system,) = systems("entropy~0.3")
    first = matched_threshold(bench(tmp_path), task(), system, 0.3, 4)
    pair = scripted_pair()
    assert matched_threshold(bench(tmp_path, pair), task(), system, 0.3, 4) == first
    assert pair.small.calls == []
    with pytest.raises(ConfigError, match="pilot: was 4, now 5"):
        matched_threshold(bench(tmp_path), task(), system, 0.3, 5)
