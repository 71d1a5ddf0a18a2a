"""Agreement between judges: kappa's laws, what is compared, and the disagreements as text."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from crossroads.artifacts import write_json, write_text
from crossroads.cli.main import run as run_cli
from crossroads.errors import DataError
from crossroads.labelling.agreement import PairCounts, agreement
from crossroads.labelling.agreement_text import (
    disagreement_text,
    judges_table,
    markdown,
    pairs_table,
)
from crossroads.labelling.judges.base import Verdict
from crossroads.labelling.stored import CONTEXT
from crossroads.labelling.verdicts import Verdicts, judge_folder
from crossroads.statistics import ratio_interval
from labelling import scripted_run

VERDICTS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
FAILED = Verdict(None, None, "no verdict")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_run.write_run(tmp_path_factory.mktemp("run"))


def judge(folder: Path, name: str, verdicts: dict[str, Verdict | bool], **config: Any) -> Path:
    """Write a judge's record as labelling does."""
    own = judge_folder(folder / "judges", name, config)
    write_text(own / "verdicts.jsonl", "")
    log = Verdicts(own)
    for case, verdict in verdicts.items():
        log.append(case, verdict if isinstance(verdict, Verdict) else Verdict(verdict))
    write_json(own / "config.json", {"judge": name, **config})
    return own


def case(problem: int, position: int) -> str:
    return f"p{problem}#0@{position}"


def many(share: int, shift: int = 0) -> dict[str, Verdict | bool]:
    """Return verdicts on ten positions of each of six problems, one in `share` divergent."""
    return {
        case(problem, position): (problem + position + shift) % share == 0
        for problem in range(6)
        for position in range(10)
    }


def test_kappa_of_a_table_computed_by_hand() -> None:
    counts = PairCounts(both_divergent=20, only_first=5, only_second=10, both_neutral=15)
    # p_o = 35/50; the first finds 25 of 50 divergent, the second 30: p_e = .5 * .6 + .5 * .4.
    assert counts.agreement == 0.7
    assert counts.kappa == pytest.approx((0.7 - 0.5) / (1 - 0.5))


@given(VERDICTS, st.randoms(use_true_random=False))
def test_kappa_is_symmetric_and_ignores_the_order_of_cases(pairs, random) -> None:  # type: ignore[no-untyped-def]
    first, second = zip(*pairs, strict=True)
    kappa = PairCounts.of(first, second).kappa
    shuffled = random.sample(pairs, len(pairs))
    assert PairCounts.of(second, first).kappa == kappa
    assert PairCounts.of(*zip(*shuffled, strict=True)).kappa == kappa
    negated = PairCounts.of([not x for x in first], [not x for x in second])
    assert negated.kappa == kappa


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_kappa_with_oneself_is_1_and_undefined_when_constant(verdicts: list[bool]) -> None:
    kappa = PairCounts.of(verdicts, verdicts).kappa
    assert kappa == (None if len(set(verdicts)) == 1 else 1.0)


def test_kappa_of_constant_judges_that_differ_is_0_and_of_nothing_undefined() -> None:
    assert PairCounts.of([True] * 4, [False] * 4).kappa == 0
    assert PairCounts.of([], []).kappa is None
    assert PairCounts.of([], []).agreement is None


@settings(max_examples=50, deadline=None)
@given(VERDICTS)
def test_kappa_equals_scikit_learns(pairs: list[tuple[bool, bool]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    first, second = map(list, zip(*pairs, strict=True))
    kappa = PairCounts.of(first, second).kappa
    if kappa is not None:
        expected = metrics.cohen_kappa_score(first, second, labels=[False, True])
        assert kappa == pytest.approx(expected, abs=1e-12)


def test_only_mismatches_that_both_judged_are_compared(tmp_path: Path) -> None:
    judge(tmp_path, "a", {case(0, 1): True, case(0, 2): False, case(1, 1): FAILED})
    judge(tmp_path, "b", {case(0, 1): True, case(1, 1): True, case(1, 9): False})
    [pair] = agreement(tmp_path).pairs
    assert (pair.first, pair.second) == ("a", "b")
    assert pair.counts == PairCounts(1, 0, 0, 0)


def test_a_judge_is_counted_with_the_kinds_of_its_failures(tmp_path: Path) -> None:
    reasons = ["3 replies", "41 replies", "no endpoint", "7.5 replies"]
    failed: dict[str, Verdict | bool] = {
        case(1, i): Verdict(None, None, reason) for i, reason in enumerate(reasons)
    }
    judge(tmp_path, "a", {**many(5), **failed}, model="m")
    judge(tmp_path, "b", many(2))
    first, second = agreement(tmp_path).judges
    assert (first.ok, first.failed, dict(first.settings)) == (56, 4, {"model": "m"})
    assert first.reasons == (("\u2026 replies", 3), ("no endpoint", 1))
    assert first.divergent == sum(v is True for v in {**many(5), **failed}.values()) / 56
    assert (second.ok, second.failed, second.divergent, second.reasons) == (60, 0, 0.5, ())


def test_the_interval_is_over_problems(tmp_path: Path) -> None:
    judge(tmp_path, "a", many(5))
    judge(tmp_path, "b", many(2))
    [pair] = agreement(tmp_path, seed=3).pairs
    same = [
        sum(many(5)[case(problem, i)] == many(2)[case(problem, i)] for i in range(10))
        for problem in range(6)
    ]
    assert pair.interval == ratio_interval(same, [10] * 6, 3)


def test_the_newest_verdict_counts(tmp_path: Path) -> None:
    own = judge(tmp_path, "a", {case(0, 1): FAILED, case(0, 2): True})
    judge(tmp_path, "b", {case(0, 1): True, case(0, 2): True})
    Verdicts(own).append(case(0, 1), Verdict(False))
    report = agreement(tmp_path)
    assert report.pairs[0].counts == PairCounts(1, 0, 1, 0)
    assert report.judges[0].failed == 0


def test_judges_of_one_name_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    own = [judge(tmp_path, "llm", many(3), model=model).name for model in "mn"]
    judge(tmp_path, "other", many(2))
    assert [found.name for found in agreement(tmp_path).judges] == [*sorted(own), "other"]


def test_a_sample_is_part_of_a_larger_one_and_the_same_for_every_pair(tmp_path: Path) -> None:
    for name, share in (("a", 2), ("b", 3), ("c", 4)):
        judge(tmp_path, name, many(share, shift=len(name)))

    def differing(sample: int | None, seed: int = 0) -> list[set[tuple[str, int]]]:
        report = agreement(tmp_path, sample, seed, examples=60)
        assert {pair.counts.total for pair in report.pairs} == {sample or 60}
        return [
            {(found.problem_id, found.position) for found in pair.disagreements}
            for pair in report.pairs
        ]

    small, large, whole = differing(12), differing(30), differing(None)
    for few, more, every in zip(small, large, whole, strict=True):
        assert few < more < every
        assert len(few) <= 12
    assert differing(12) == small
    assert differing(12, seed=1) != small
    assert agreement(tmp_path, 1000).pairs[0].counts.total == 60


@pytest.mark.parametrize("names", [[], ["likelihood"]])
def test_one_judge_agrees_with_nobody(
    tmp_path: Path, names: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        judge(tmp_path, name, many(3))
    judge(tmp_path, "empty", {})
    with pytest.raises(DataError, match="--stage judge --judge OTHER"):
        agreement(tmp_path)
    assert run_cli(["agreement", str(tmp_path)]) == 2
    assert names == [] or names[0] in capfd.readouterr().err


def test_reading_writes_nothing_and_skips_a_line_that_is_half_written(tmp_path: Path) -> None:
    own = judge(tmp_path, "a", many(5))
    judge(tmp_path, "b", many(2))
    before = agreement(tmp_path)
    with (own / "verdicts.jsonl").open("a") as log:
        log.write('{"key": "p0#0@99", "diver')
    files = scripted_run.state(tmp_path)
    assert agreement(tmp_path) == before
    assert scripted_run.state(tmp_path) == files


def test_a_damaged_record_is_named_by_its_line(tmp_path: Path) -> None:
    own = judge(tmp_path, "a", {case(0, 1): True})
    judge(tmp_path, "b", many(2))
    with (own / "verdicts.jsonl").open("a") as log:
        log.write("[]\n")
    with pytest.raises(DataError, match=r"verdicts\.jsonl line 2"):
        agreement(tmp_path)


def test_disagreements_show_what_the_judges_saw(labelled: Path) -> None:
    cases = scripted_run.cases(labelled)
    tokenizer = scripted_run.scripted_pair().tokenizer
    [pair] = agreement(labelled, examples=10_000).pairs
    assert len(pair.disagreements) == pair.counts.only_first + pair.counts.only_second > 5
    for found in pair.disagreements:
        seen = cases[f"{found.problem_id}#0@{found.position}"]
        assert found.context == seen.context[-CONTEXT:]
        assert found.reference == seen.reference.text
        assert list(found.continuations) == [span.text for span in seen.continuations]
        assert found.small in (tokenizer.decode([seen.mismatch.small_id]), "<eos>")
        assert found.real in (tokenizer.decode([seen.mismatch.real_id]), "<eos>")
        first, second = found.verdicts
        assert (first.judge, second.judge) == ("likelihood", "picky")
        assert {first.word, second.word} == {"neutral", "divergent"}


def test_without_comparisons_disagreements_still_show_the_verdicts(tmp_path: Path) -> None:
    judge(tmp_path, "a", {case(0, 7): Verdict(True, 0.9, "other meaning")})
    judge(tmp_path, "b", {case(0, 7): False})
    report = agreement(tmp_path)
    [found] = report.pairs[0].disagreements
    assert (found.problem_id, found.position, found.real, found.context) == ("p0", 7, "", "")
    text = disagreement_text(found).plain
    assert "a says divergent (p 0.90): other meaning" in text
    assert "b says neutral" in text
    assert "[[" not in text


def test_the_report_is_plain_json_with_what_follows_from_the_counts(labelled: Path) -> None:
    report = agreement(labelled)
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    [pair] = value["pairs"]
    assert pair["kappa"] == report.pairs[0].counts.kappa
    assert pair["agreement"] == report.pairs[0].counts.agreement
    assert pair["total"] == sum(pair["counts"].values())


def test_markdown_keeps_its_columns_and_shows_hostile_text_as_it_is(labelled: Path) -> None:
    text = markdown(agreement(labelled))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    widths = [len(re.split(r"(?<!\\)\|", row)) for row in rows]
    assert widths == [7] * 4 + [10] * 3  # judges: head, rule, two; pairs: head, rule, one
    assert "position \u2026 is \\| odd" in text
    outside = [line for line in text.splitlines() if not line.startswith("    ")]
    assert not any(re.search(r"(?<!\\)<", line) for line in outside)
    assert any("p" in line and "\\<b\\>" in line for line in outside)


def test_the_terminal_tables_fit_80_columns_and_show_every_count(labelled: Path) -> None:
    report = agreement(labelled)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(judges_table(report), pairs_table(report))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    counts = report.pairs[0].counts
    row = [line for line in shown.splitlines() if line.strip().startswith("likelihood")][-1]
    cells = row.replace("[", "").replace("]", "").replace(",", "").split()
    assert int(cells[1]) == counts.total
    in_table = (counts.both_divergent, counts.only_first, counts.only_second, counts.both_neutral)
    assert tuple(map(int, cells[-4:])) == in_table


def test_the_command_prints_the_pairs_and_writes_the_report(
    labelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "agreement.md"
    assert run_cli(["agreement", str(labelled), "--out", str(out), "--examples", "2"]) == 0
    shown = capfd.readouterr().out
    assert shown.count("picky says") == 2
    assert out.read_text() == markdown(agreement(labelled, examples=2))
