import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from crossroads.errors import ConfigError, DataError
from crossroads.evaluation.report import summarise_run, terminal_table, write_html
from crossroads.evaluation.results import GradedTrace, SystemKind, SystemRun, SystemSummary
from crossroads.evaluation.tables import tables_of
from crossroads.grading import Grade
from crossroads.types import FinishReason, Message, Problem, Role, TokenRecord, Trace

HOSTILE = "<script>alert(1)</script>"


def text_of(token_id):
    return {7: HOSTILE, 8: "\n", 9: ""}.get(token_id, f" t{token_id}")


def record(position, writer, proposed=True, score=None, token_id=None):
    token = position if token_id is None else token_id
    return TokenRecord(
        position=position,
        token_id=token,
        writer=writer,
        proposed_id=token + (writer is Role.LARGE) if proposed else None,
        score=score,
        entropy=0.5 if proposed else None,
        lag=1 if writer is Role.LARGE else 0,
    )


def graded(index, fraction, correct, kind, tokens=20):
    large = round(fraction * tokens)
    records = tuple(
        record(
            i,
            Role.LARGE if i < large else Role.SMALL,
            proposed=kind is not SystemKind.LARGE,
            score=0.25 if kind in (SystemKind.ROUTER, SystemKind.BASELINE) else None,
        )
        for i in range(tokens)
    )
    grade = Grade(True, "42", "equal") if correct else Grade(False, None, "no complete \\boxed{}")
    problem = Problem(f"gsm-{index}", (Message("user", f"How many? {HOSTILE}"),), "42", "gsm")
    return GradedTrace(problem, Trace((1, 2), records, FinishReason.EOS, "text"), grade)


def make_run(name, kind, fraction, accuracy, problems=20):
    rng = np.random.default_rng(len(name))
    wobble = 0.0 if fraction in (0, 1) else 0.1
    traces = tuple(
        graded(i, fraction + wobble * rng.uniform(-1, 1), i < accuracy * problems, kind)
        for i in range(problems)
    )
    return SystemRun(name, None, traces, seconds=4.0, kind=kind)


@pytest.fixture
def runs():
    return [
        make_run("small alone", SystemKind.SMALL, 0.0, 0.3),
        make_run("large alone", SystemKind.LARGE, 1.0, 0.9),
        make_run("router", SystemKind.ROUTER, 0.3, 0.8),
        make_run("entropy <b>", SystemKind.BASELINE, 0.3, 0.6),
        make_run("random $x_1$ [red]", SystemKind.BASELINE, 0.31, 0.4),
    ]


@pytest.fixture
def summaries(runs):
    return [summarise_run(run, 500, 1500, 50) for run in runs]


TRAINING = {
    "objective": HOSTILE,
    "base_rates": {"divergent": 0.031},
    "rows": [
        {
            "router": "default",
            "test": {
                "point": {"recall": 0.95, "positives": 40},
                "recall": {"low": 0.9, "high": 0.99},
            },
        }
    ],
}


class Page(HTMLParser):
    """Collects what a browser would make of the page."""

    VOID = ("meta", "input", "path", "use", "br", "rect", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.titles, self.addresses = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]
        self.addresses += [v for n, v in attrs if n in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def written(path, runs, summaries, training=TRAINING):
    write_html(path, summaries, runs, text_of, training, {"command": HOSTILE, "seeds": [0, 1]})
    return path.read_text(encoding="utf-8")


def test_summary_counts_what_the_traces_say():
    parts = (
        graded(0, 0.5, True, SystemKind.ROUTER, tokens=10),
        graded(1, 0.0, False, SystemKind.ROUTER, tokens=30),
    )
    run = SystemRun("r", 0.4, parts, 2.0, SystemKind.ROUTER, recall=0.9, positive_rate=0.1)
    row = summarise_run(run, 500, 1500, 50)
    assert (row.accuracy, row.unparsed, row.n_problems) == (0.5, 1, 2)
    assert row.large_fraction == 5 / 40
    assert (row.mean_tokens, row.tokens_per_second) == (20, 20)
    assert row.active_parameters_per_token == pytest.approx(500 + 50 + 1500 * 5 / 40)
    assert (row.recall, row.positive_rate, row.threshold) == (0.9, 0.1, 0.4)


def test_a_model_alone_costs_itself_and_has_no_uncertain_fraction(summaries):
    small, large = summaries[:2]
    assert (small.active_parameters_per_token, large.active_parameters_per_token) == (500, 1500)
    assert small.large_fraction_interval.high == 0.0
    assert large.large_fraction_interval.low == 1.0


def test_a_small_model_that_was_not_recorded_as_proposing_still_counts():
    one = graded(0, 0.0, True, SystemKind.LARGE)
    assert summarise_run(SystemRun("s", None, (one,), 1.0), 500, 1500, 0).mean_tokens == 20
    row = summarise_run(SystemRun("s", None, (one,), 1.0), 500, 1500, 0)
    assert row.active_parameters_per_token == 500


def test_an_empty_run_and_an_empty_generation():
    with pytest.raises(DataError, match="no problems"):
        summarise_run(SystemRun("r", None, (), 0.0), 1, 2, 3)
    silent = graded(0, 0.0, False, SystemKind.SMALL, tokens=0)
    row = summarise_run(SystemRun("r", None, (silent,), 0.0), 1, 2, 3)
    assert (row.tokens_per_second, row.active_parameters_per_token, row.mean_tokens) == (0, 0, 0)


def test_runs_and_summaries_survive_json(runs, summaries):
    for run in runs:
        assert SystemRun.from_json(json.loads(json.dumps(run.to_json()))) == run
    for row in summaries:
        assert SystemSummary.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_terminal_table_shows_names_as_they_are(summaries):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_table(summaries))
    text = console.export_text()
    assert "random $x_1$ [red]" in text
    assert "20 problems" in text
    assert "80 [58, 92]" in text


def test_page_escapes_everything_and_is_well_formed(tmp_path, runs, summaries):
    hostile = record(0, Role.LARGE, token_id=7, score=0.9)
    hostile = replace(hostile, proposed_id=7)
    changed = replace(record(1, Role.LARGE, score=0.8), token_id=3, proposed_id=7)
    first = runs[2].graded[0]
    trace = replace(first.trace, records=(hostile, changed, record(2, Role.SMALL, token_id=9)))
    runs[2] = replace(runs[2], graded=(replace(first, trace=trace), *runs[2].graded[1:]))
    page = Page(text := written(tmp_path / "page.html", runs, summaries))
    assert page.open == []
    assert page.tags.count("script") == 1
    assert "b" not in page.tags
    assert HOSTILE not in text
    assert any("small proposed the same" in title for title in page.titles)
    assert any(f"small proposed '{HOSTILE}'" in title for title in page.titles)
    assert "\u27e89\u27e9" in text


def test_page_asks_nobody_for_anything(tmp_path, runs, summaries):
    text = written(tmp_path / "page.html", runs, summaries)
    assert all(address.startswith("#") for address in Page(text).addresses)
    assert not re.search(r"@import|url\((?!#)", text)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "http" not in without_namespaces.replace("http-equiv", "")


def test_page_is_the_same_bytes_each_time(tmp_path, runs, summaries):
    first = written(tmp_path / "a.html", runs, summaries)
    assert written(tmp_path / "b.html", runs, summaries) == first


def test_page_tells_the_result_the_failures_and_the_doubt(tmp_path, runs, summaries):
    text = written(tmp_path / "page.html", runs, summaries)
    assert "router answered 80\u00a0% correctly" in text
    assert "30\u00a0% for the small model alone" in text
    assert "no complete \\boxed{}" in text
    assert "+50 [" in text
    assert "no difference seen" in text
    assert "0.95 [0.9, 0.99]" in text


def test_page_of_a_run_without_a_router(tmp_path, runs, summaries):
    text = written(tmp_path / "page.html", runs[:1], summaries[:1])
    assert "No trained router was run" in text
    assert "Is the difference real?" not in text


def test_a_page_that_cannot_be_written_is_refused(tmp_path, runs, summaries):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot write"):
        written(tmp_path / "file" / "page.html", runs, summaries)


def test_any_json_becomes_tables():
    tables = tables_of({"seed": 1, "empty": {}, "none": None, **TRAINING}, "Training")
    scalars = dict(tables[0].rows)
    assert scalars["seed"] == "1"
    assert scalars["base_rates \u203a divergent"] == "0.031"
    assert tables[1].header == ("router", "test \u203a recall", "test \u203a positives")
    assert tables[1].rows == (("default", "0.95 [0.9, 0.99]", "40"),)
