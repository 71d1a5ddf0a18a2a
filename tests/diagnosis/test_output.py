"""What a diagnosis prints and writes, and what it makes of real generations."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from crossroads.artifacts import ResumableLog, write_json
from crossroads.cli.diagnose import diagnose as command
from crossroads.dataset import LabelledDataset
from crossroads.diagnosis.causes import CAUSES
from crossroads.diagnosis.diagnose import Diagnosis, diagnose
from crossroads.diagnosis.evidence import Evidence, Options
from crossroads.diagnosis.live import Live, read_live
from crossroads.diagnosis.page import write_page
from crossroads.diagnosis.reference import Reference
from crossroads.diagnosis.run import Run, open_run
from crossroads.diagnosis.summary import summary
from crossroads.diagnosis.tokens import Data
from crossroads.diagnosis.verdict import Estimate, Status, Verdict, plain, points_text
from crossroads.errors import ConfigError, DataError, RouterError
from crossroads.simulation.simulate import simulate
from crossroads.simulation.world import SimulationConfig
from crossroads.statistics import Interval
from crossroads.training.config import FitConfig
from crossroads.training.train import train
from crossroads.types import FinishReason, Role, SilentProgress, TokenRecord, Trace

pytest.importorskip("matplotlib")
QUICK = Options(quick=True)
REPORTED = "positive_rate=0.3179,recall=0.95,threshold=0.3367"


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "labels"
    simulate(SimulationConfig(seed=3, tokens_per_problem=100), folder)
    return folder


@pytest.fixture(scope="module")
def router(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router")
    config = FitConfig(inputs=("entropy", "margin"), epochs=3)
    train([LabelledDataset.open(labels)], config, folder, SilentProgress())
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


class _Page(HTMLParser):
    """Collects the text, and refuses anything that would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert not {"src", "onload", "onclick"} & {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_text(path: Path) -> str:
    parser = _Page()
    parser.feed(path.read_text(encoding="utf-8"))
    return " ".join(parser.text)


def test_a_bare_result_is_diagnosed_on_the_command_line(tmp_path: Path) -> None:
    page, numbers = tmp_path / "why.html", tmp_path / "why.json"
    done = invoke(
        "--result", REPORTED, "--reference", "positive_rate=0.124,recall=0.95",
        "--html", page, "--json", numbers,
    )  # fmt: skip
    assert done.exit_code == 0
    words = " ".join(done.output.split())
    for name in CAUSES:
        assert name.split()[0] in words
    assert "19.4 points more than the reference's 12.4 %" in words
    assert "All 19.4 points remain unexplained." in words
    content = json.loads(numbers.read_text())
    assert [verdict["name"] for verdict in content["verdicts"]] == list(CAUSES)
    assert {verdict["status"] for verdict in content["verdicts"]} == {"ruled out", "cannot tell"}
    text = page_text(page)
    for verdict in content["verdicts"]:
        assert verdict["evidence"] in text


def test_a_run_is_diagnosed_with_plots(labels: Path, router: Path, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    done = invoke(router, "--data", labels, "--quick", "--html", page)
    assert done.exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") >= 3
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", text)  # every stand-in colour replaced
    assert "nan" not in page_text(page).lower().split()
    assert "by entropy" in done.output or "entropy alone needs" in " ".join(done.output.split())


def test_the_same_evidence_gives_the_same_page(labels: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("a.html", "b.html"):
        data = Data([LabelledDataset.open(labels)])
        diagnosis = diagnose(Evidence(data=data, reference=Reference(0.124), options=QUICK))
        write_page(tmp_path / name, diagnosis, {"command": "x"})
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_what_a_verdict_says_is_text_and_never_markup(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    verdict = Verdict("population", Status.FOUND, hostile, needs=hostile)
    diagnosis = Diagnosis(None, None, None, (), (), (verdict,), (hostile,))
    write_page(tmp_path / "page.html", diagnosis, {"command": hostile})
    assert page_text(tmp_path / "page.html").count(hostile) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to diagnose"),
        (["--reference", "positive_rate=0.124"], "nothing to diagnose"),
        (["--result", "recall=0.95"], "needs a positive_rate"),
        (["--result", "nowhere.json"], "no R2R result at nowhere.json"),
        (["--result", REPORTED, "--reference", "12.4"], "--reference takes"),
        (["--result", REPORTED, "--reference", "positive_rate=0.1,rec=0.9"], "did you mean"),
        (["--result", REPORTED, "--live", "nowhere"], "nowhere"),
        (["--data", "nowhere"], "no finished dataset"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        invoke(*arguments)


def test_a_router_of_another_model_is_refused(router: Path, tmp_path: Path) -> None:
    config = SimulationConfig(seed=4, problems=10, tokens_per_problem=20)
    other = simulate(config, tmp_path / "labels").dataset
    with pytest.raises(RouterError, match="give the data of that model"):
        Evidence(run=open_run(router), data=Data([other]))


def traces(run: Run, data: Data, folder: Path, scale: float) -> Path:
    """Write traces whose scores are the data's own ones times `scale`."""
    scores = np.clip(data.score(run.loaded.router) * scale, 0, 1)
    threshold = run.loaded.card.threshold
    log = ResumableLog(folder / "router" / "traces.jsonl")
    for number in range(len(data.tokens.responses)):
        own = scores[data.tokens.start_R[number] : data.tokens.start_R[number + 1]]
        records = tuple(
            TokenRecord(i, 1, Role.LARGE if s >= threshold else Role.SMALL, 1, float(s), 0.5)
            for i, s in enumerate(own)
        )
        trace = Trace((1, 2), records, FinishReason.EOS, "", threshold, 0, f"t{number}")
        log.append({"trace": trace.to_json(), "seconds": 1.0})
    write_json(folder / "router" / "config.json", {"router": run.loaded.router.name})
    return folder


@pytest.mark.parametrize(("scale", "differs"), [(1.0, False), (3.0, True)])
def test_live_scores_are_compared_with_the_datas(
    scale: float, differs: bool, labels: Path, router: Path, tmp_path: Path
) -> None:
    run, data = open_run(router), Data([LabelledDataset.open(labels)])
    live = read_live(traces(run, data, tmp_path, scale), run.loaded.router.name)
    assert live.usage.generated_tokens == len(live.score_N) == len(data.tokens)
    verdict = diagnose(Evidence(run=run, data=data, live=live, options=QUICK)).verdict(
        "live against offline"
    )
    assert (verdict.status is Status.FOUND) == differs
    assert verdict.facts["large_fraction"] == pytest.approx(live.large_N.mean())


def test_traces_of_other_thresholds_are_no_evidence(
    labels: Path, router: Path, tmp_path: Path
) -> None:
    run, data = open_run(router), Data([LabelledDataset.open(labels)])
    live = read_live(traces(run, data, tmp_path, 3.0))
    others = [replace(t, threshold=0.1 + 0.1 * (i % 2)) for i, t in enumerate(live.traces)]
    mixed = Live.of(others, tmp_path)
    assert mixed.thresholds == (0.1, 0.2)
    evidence = Evidence(run=run, data=data, live=mixed, options=QUICK)
    assert diagnose(evidence).verdict("live against offline").status is Status.CANNOT_TELL


def test_live_points_count_where_the_reference_is_live_and_nowhere_else() -> None:
    found = (Verdict("live against offline", Status.FOUND, "l.", Estimate(0.1)),)
    for population, explained in (("live", 0.1), ("offline", 0.0), (None, 0.0)):
        reference = Reference(0.1, population=population)
        diagnosis = Diagnosis(None, reference, Estimate(0.2), (), (), found, ())
        assert diagnosis.explained == explained


def test_chance_and_symptoms_explain_no_points() -> None:
    found = tuple(
        Verdict(cause.name, Status.FOUND, "e.", Estimate(0.1))
        for cause in CAUSES.values()
        if not cause.adds
    )
    diagnosis = Diagnosis(None, Reference(0.1), Estimate(0.2), (), (), found, ())
    assert diagnosis.explained == 0.0


def test_an_estimates_interval_holds_it_and_its_text_has_both_ends() -> None:
    estimate = Estimate.of(0.5, np.array([0.1, 0.2, 0.3]))
    assert estimate.interval is not None
    assert estimate.interval.low <= 0.5 <= estimate.interval.high
    assert points_text(Estimate(0.042, Interval(0.031, 0.053))) == "+4.2 [+3.1, +5.3]"
    assert points_text(-Estimate(0.042, Interval(0.031, 0.053))) == "-4.2 [-5.3, -3.1]"
    assert plain({"a": np.float32("nan"), "b": [np.int64(1)]}) == {"a": None, "b": [1]}


def test_the_summary_orders_by_points_and_counts_what_remains() -> None:
    verdicts = (
        Verdict("base rates", Status.FOUND, "b.", Estimate(0.02)),
        Verdict("label noise", Status.FOUND, "l.", Estimate(0.1)),
        Verdict("leakage between splits", Status.FOUND, "k.", Estimate(-0.03)),
        Verdict("seed spread", Status.CANNOT_TELL, "s.", needs="seeds"),
    )
    diagnosis = Diagnosis(None, Reference(0.1), Estimate(0.2), (), (), verdicts, ())
    assert [verdict.name for verdict in diagnosis.found()] == [
        "label noise",
        "leakage between splits",
        "base rates",
    ]
    text = " ".join(summary(diagnosis))
    assert "comes to +9.0" in text
    assert "+11.0 remain" in text
    assert "seed spread: seeds" in text
