"""The report on scores with known truth: it adds up, and its page and tables say the same."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from crossroads.errors import DataError
from crossroads.routing.policy import sends_to_large
from crossroads.training.metrics import positive_rate_at_recall
from crossroads.training.report import RECALLS, Report, measure, training_report
from crossroads.training.report_page import write_page
from crossroads.training.report_tables import (
    comparison_lines,
    quality_table,
    recalls_table,
    report_table,
)
from crossroads.training.target import Target
from crossroads.training.threshold import threshold_for_f1, threshold_for_recall
from crossroads.types import Label, Split

HOSTILE = "</script><b>$x_1$ & [red]"


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels without features: all that a report needs."""

    label_N: np.ndarray
    problem_N: np.ndarray
    domain_N: np.ndarray
    domains: tuple[str, ...] = ("gsm", HOSTILE)

    def positive(self, objective: str) -> np.ndarray:
        least = Label.DIVERGENT if objective == "divergent" else Label.NEUTRAL
        return self.label_N >= least


def split(seed: int, problems: int = 20, size: int = 50) -> tuple[Labels, dict[str, np.ndarray]]:
    """Return labels, and scores of a good router, a worse one and chance."""
    generator = np.random.default_rng(seed)
    count = problems * size
    problem_N = np.repeat(np.arange(problems), size)
    label_N = generator.choice(3, count, p=[0.88, 0.06, 0.06]).astype(np.uint8)
    rows = Labels(label_N, problem_N, problem_N % 2)
    noise_N = generator.normal(size=count)

    def scores(strength: float) -> np.ndarray:
        logits_N = strength * rows.positive("divergent") + noise_N - 3
        return (1 / (1 + np.exp(-logits_N))).astype(np.float32)

    chance_N = generator.random(count).astype(np.float32)
    return rows, {"good": scores(3.0), HOSTILE: scores(1.5), "random": chance_N}


def made(seed: int = 0) -> tuple[dict[Split, Labels], dict[str, dict[Split, np.ndarray]]]:
    parts = {which: split(seed + number) for number, which in enumerate(Split)}
    names = parts[Split.TEST][1]
    wanted = (Split.CALIBRATION, Split.TEST)
    scores = {name: {which: parts[which][1][name] for which in wanted} for name in names}
    return {which: rows for which, (rows, _) in parts.items()}, scores


ROWS, SCORES = made()


@pytest.fixture(scope="module")
def found() -> Report:
    return training_report(SCORES, ROWS, "divergent")


def plain(report: Report) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(report.to_json(), allow_nan=False))
    return values


def test_every_router_at_every_recall(found: Report) -> None:
    test, calibration = ROWS[Split.TEST], ROWS[Split.CALIBRATION]
    assert [(r.router, r.target_recall) for r in found.rows] == [
        (name, recall) for name in SCORES for recall in RECALLS
    ]
    for row in found.rows:
        on = SCORES[row.router]
        expected = threshold_for_recall(
            on[Split.CALIBRATION], calibration.positive("divergent"), row.target_recall
        )
        assert row.calibration.point.threshold == row.test.point.threshold == expected
        assert row.calibration.point.recall >= row.target_recall - 1e-9
        sent = sends_to_large(on[Split.TEST], expected)
        assert row.test.point.recall == sent[test.positive("divergent")].mean()
        assert row.test.point.positive_rate == sent.mean()
        assert row.test.recall.low <= row.test.point.recall <= row.test.recall.high
        exact = row.test.recall_clopper_pearson
        assert exact.low <= row.test.point.recall <= exact.high
        assert row.same_recall.value == positive_rate_at_recall(
            on[Split.TEST], test.positive("divergent"), row.target_recall
        )


def test_better_scores_are_reported_as_better(found: Report) -> None:
    good, worse, chance = found.quality
    assert good.auroc.value > worse.auroc.value > chance.auroc.value
    assert good.average_precision.value > worse.average_precision.value
    assert chance.auroc.interval.low < 0.5 < chance.auroc.interval.high
    for comparison in found.comparisons:
        assert comparison.router == "good"
        assert comparison.ratio.interval.high < 1
        assert comparison.difference.interval.high < 0
    assert len(found.comparisons) == 2 * len(RECALLS)


def test_domains_add_up_to_the_whole(found: Report) -> None:
    for chosen in found.chosen:
        parts = [row for row in found.domains if row.router == chosen.router]
        assert sum(row.tokens for row in parts) == chosen.test.point.tokens
        assert sum(row.positives for row in parts) == chosen.test.point.positives
        assert sum(row.problems for row in parts) == 20
        whole = sum(row.positive_rate.value * row.tokens for row in parts)
        assert whole / chosen.test.point.tokens == pytest.approx(chosen.test.point.positive_rate)


def test_a_domain_without_positives_has_no_recall() -> None:
    test = ROWS[Split.TEST]
    label_N = np.where(test.domain_N == 1, Label.IDENTICAL, test.label_N)
    rows = {**ROWS, Split.TEST: dataclasses.replace(test, label_N=label_N)}
    report = training_report(SCORES, rows, "divergent", seed=0)
    assert [row.recall is None for row in report.domains] == [False, True] * len(SCORES)
    assert plain(report)["domains"][1]["recall"] is None


def test_base_rates_and_histograms_count_labels(found: Report) -> None:
    assert [rates.split for rates in found.splits] == [s.value for s in Split]
    for rates, rows in zip(found.splits, ROWS.values(), strict=True):
        assert rates.divergent.value == pytest.approx((rows.label_N == 2).mean())
        assert rates.mismatch.value == pytest.approx((rows.label_N > 0).mean())
        assert rates.positives == (rows.label_N == 2).sum()
        assert rates.problems == 20
    for histogram in found.histograms:
        counts = (histogram.identical, histogram.neutral, histogram.divergent)
        assert [sum(c) for c in counts] == [
            (ROWS[Split.TEST].label_N == label).sum() for label in Label
        ]


def test_the_objective_says_who_is_positive() -> None:
    report = training_report(SCORES, ROWS, "mismatch", [0.8])
    mismatches = (ROWS[Split.TEST].label_N > 0).sum()
    assert {row.test.point.positives for row in report.rows} == {mismatches}


def test_a_target_other_than_recall_chooses_the_thresholds() -> None:
    report = training_report(SCORES, ROWS, "divergent", target=Target("f1"))
    calibration = ROWS[Split.CALIBRATION].positive("divergent")
    for chosen in report.chosen:
        best = threshold_for_f1(SCORES[chosen.router][Split.CALIBRATION], calibration)
        assert chosen.test.point.threshold == best
    assert report.target == "f1"


def test_a_router_that_cannot_meet_the_target_has_no_choice(tmp_path: Path) -> None:
    constant = {which: np.full(len(s), 0.3, np.float32) for which, s in SCORES["good"].items()}
    scores = {"good": SCORES["good"], "constant": constant}
    report = training_report(scores, ROWS, "divergent", target=Target("positive_rate", 0.2))
    assert [chosen.router for chosen in report.chosen] == ["good"]
    report = training_report(
        {"constant": constant}, ROWS, "divergent", target=Target("positive_rate", 0.2)
    )
    assert report.chosen == ()
    write_page(tmp_path / "page.html", plain(report))
    assert "No router could meet" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_shuffling_tokens_changes_no_number(found: Report) -> None:
    generator = np.random.default_rng(5)
    rows: dict[Split, Labels] = {}
    scores: dict[str, dict[Split, np.ndarray]] = {name: {} for name in SCORES}
    for which, own in ROWS.items():
        order = generator.permutation(len(own.label_N))
        rows[which] = Labels(own.label_N[order], own.problem_N[order], own.domain_N[order])
        for name, of in SCORES.items():
            if which in of:
                scores[name][which] = of[which][order]

    def rounded(value: Any) -> Any:
        """Sums of floats in another order differ in their last digits."""
        if isinstance(value, Mapping):
            return {key: rounded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return round(value, 9) if isinstance(value, float) else value

    shuffled = training_report(scores, rows, "divergent")
    assert rounded(plain(shuffled)) == rounded(plain(found))


@pytest.mark.parametrize("label", [Label.IDENTICAL, Label.DIVERGENT])
@pytest.mark.parametrize("which", [Split.CALIBRATION, Split.TEST])
def test_a_split_with_one_kind_of_tokens_is_refused(which: Split, label: Label) -> None:
    one = dataclasses.replace(ROWS[which], label_N=np.full(1000, label, np.uint8))
    with pytest.raises(DataError, match=rf"the {which} split has \d+ divergent tokens of 1000"):
        training_report(SCORES, {**ROWS, which: one}, "divergent")


def test_one_problem_says_nothing_of_others() -> None:
    test = ROWS[Split.TEST]
    alone = dataclasses.replace(test, problem_N=np.zeros_like(test.problem_N))
    report = training_report(SCORES, {**ROWS, Split.TEST: alone}, "divergent")
    assert {(r.test.recall.low, r.test.recall.high) for r in report.rows} == {(0.0, 1.0)}
    assert {(q.auroc.interval.low, q.auroc.interval.high) for q in report.quality} == {(0.0, 1.0)}
    assert all(c.ratio.interval.low == 0 < 1 < c.ratio.interval.high for c in report.comparisons)
    plain(report)


def test_clustered_intervals_are_wider_than_independent_ones() -> None:
    problem = np.repeat(np.arange(30), 20)
    caught = problem % 3 > 0  # a problem's tokens are caught or missed together
    found = measure(caught.astype(np.float32), np.ones(600, bool), problem, 0.5, seed=0)
    exact = found.recall_clopper_pearson
    assert found.recall.high - found.recall.low > 2 * (exact.high - exact.low)


# What people see


def shown(*parts: Any, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*parts)
    return console.export_text()


def test_terminal_tables_fit_100_columns_and_cut_nothing(found: Report) -> None:
    values = plain(found)
    tables = (
        report_table(values["rows"], "divergent", 0.95),
        recalls_table(values["rows"]),
        quality_table(values["quality"]),
    )
    text = shown(*tables)
    assert "\u2026" not in text
    for row in values["rows"]:
        if row["target_recall"] == 0.95:
            same = row["same_recall"]
            assert f"{100 * same['value']:.1f} [{100 * same['interval']['low']:.1f}" in text
    assert HOSTILE in shown(tables[0], width=140)
    lines = comparison_lines(values["comparisons"], 0.95)
    assert len(lines) == 2
    assert lines[1].startswith("At 95 % recall on test good sends 0.")
    assert lines[1].endswith("times what random sends: fewer.")


def test_rows_of_an_older_report_are_still_shown(found: Report) -> None:
    rows = plain(found)["rows"]
    for row in rows:
        del row["same_recall"]
    assert "\u2013" in shown(report_table(rows, "divergent", 0.95))


class Page(HTMLParser):
    """Collects what a browser would make of the page."""

    VOID = ("meta", "path", "use", "br", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [v for n, v in attrs if n in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


HISTORY = [
    {"epoch": i, "loss": 1 / i, "positive_rate": 0.3 / i, "calibration_loss": 0.5}
    for i in (1, 2, 3)
]


@pytest.fixture(scope="module")
def page(found: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    extra = {"history": HISTORY, "best_epoch": 2, "provenance": {"command": HOSTILE, "seed": 0}}
    write_page(path, {**plain(found), **extra})
    text = path.read_text(encoding="utf-8")
    write_page(path, {**plain(found), **extra})
    assert path.read_text(encoding="utf-8") == text
    return text


def test_the_page_is_well_formed_and_escapes_everything(page: str) -> None:
    seen = Page(page)
    assert seen.open == []
    assert "b" not in seen.tags
    assert "script" not in seen.tags
    assert HOSTILE not in page
    assert seen.tags.count("svg") == 4
    assert len(seen.ids) == len(set(seen.ids))


def test_the_page_asks_nobody_for_anything(page: str) -> None:
    seen = Page(page)
    assert all(address[1:] in seen.ids for address in seen.addresses)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(seen.ids)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http" not in without_namespaces.replace("http-equiv", "")


def test_the_page_takes_every_colour_from_its_variables(page: str) -> None:
    drawings = " ".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]+", drawings)
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    assert used <= set(re.findall(r"(--[\w-]+):", page))
    assert "prefers-color-scheme: dark" in page


def test_the_page_says_the_numbers(found: Report, page: str) -> None:
    point = found.chosen[0].test.point
    assert f"good caught {100 * point.recall:.1f}\u00a0%" in page
    assert f"of the {point.positives} divergent tokens" in page
    for heading in ("By domain", "Base rates", "Is the difference real?", "Provenance", "Training"):
        assert heading in page
    assert f"{100 * found.quality[0].auroc.value:.1f} [" in page


def test_a_page_of_one_router_without_history(tmp_path: Path) -> None:
    report = training_report({"good": SCORES["good"]}, ROWS, "divergent")
    write_page(tmp_path / "page.html", plain(report))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert Page(text).tags.count("svg") == 3
    assert "Is the difference real?" not in text
