"""The smallest real line: killed in the middle, run again, and its numbers counted once more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossroads.artifacts import ResumableLog, read_json
from crossroads.dataset import LabelledDataset
from crossroads.evaluation.folder import RunFolder
from crossroads.evaluation.summary import summarise
from crossroads.models.base import Want
from crossroads.models.pairs import Pair
from crossroads.routing.features import TOP_K, FeatureInputs, compute
from crossroads.types import Role, Split, Usage

pytestmark = [pytest.mark.pair, pytest.mark.slow]

SIZES = ["--label", "10", "--evaluate", "2", "--max-tokens", "220", "--rows", "4"]
"""Few rows: of what is under way when the run is killed, all is written again."""

RESPONSES = Path("labels", "respond", "responses.jsonl")


@pytest.fixture(scope="module")
def run_folder(small_gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a quickstart that was killed once and then run to its end."""
    del small_gguf_path
    out = tmp_path_factory.mktemp("quickstart") / "run"
    command = [sys.executable, "-m", "crossroads", "quickstart", "--out", str(out), *SIZES]
    answered = out / RESPONSES
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as killed:
        deadline = time.monotonic() + 300
        while not answered.exists() and time.monotonic() < deadline:
            assert killed.poll() is None
            time.sleep(0.2)
        killed.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    before = answered.read_text()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert answered.read_text().startswith(before[: before.rfind("\n") + 1])
    (out / "stdout.txt").write_text(done.stdout)
    return out


def test_nothing_was_answered_twice(run_folder: Path) -> None:
    ids = [r["problem_id"] for r in ResumableLog(run_folder / RESPONSES)]
    assert len(ids) == len(set(ids)) == 10


def test_numbers_are_the_counts_of_the_traces(run_folder: Path) -> None:
    folder = RunFolder(run_folder)
    (task,) = summarise(folder)
    for row in task.systems:
        traces = [answer.trace for answer in folder.answers(task.task, row.system)]
        assert len(traces) == row.problems == 2
        usage = sum((trace.usage for trace in traces), Usage())
        assert row.large_fraction.value == usage.large_fraction
    by_name = {row.system: row.large_fraction.value for row in task.systems}
    assert set(by_name) == {"small", "large", "router", "entropy~router", "random~router"}
    assert by_name["small"] == 0
    assert by_name["large"] == 1
    # How much a router of ten problems sends is chance, and differs between kinds of CPU.
    for answer in folder.answers("quickstart", "router"):
        threshold = answer.trace.threshold
        assert threshold is not None
        for record in answer.trace.records:
            assert record.score is not None
            assert (record.writer is Role.LARGE) == (record.score >= threshold)


def test_answered_problems_were_not_labelled(run_folder: Path) -> None:
    labelled = {row.problem_id for row in LabelledDataset.open(run_folder / "labels").responses}
    asked = RunFolder(run_folder).answers("quickstart", "router")
    prompts = {answer.trace.prompt_ids for answer in asked}
    assert len(prompts) == 2
    answers = ResumableLog(run_folder / RESPONSES)
    seen = {tuple(r["prompt_ids"]) for r in answers if r["problem_id"] in labelled}
    assert not prompts & seen


def test_the_table_and_the_page_show_every_system(run_folder: Path) -> None:
    shown = (run_folder / "stdout.txt").read_text()
    page = (run_folder / "report.html").read_text()
    for system in RunFolder(run_folder).record().systems:
        assert system.name in shown
        assert system.name in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_stored_features_are_close_to_live_ones(run_folder: Path, real_pair: Pair) -> None:
    """Law 4 where it is only approximate: llama.cpp rounds activations to 8 bits."""
    positions = LabelledDataset.open(run_folder / "labels").split(Split.TEST)
    log = ResumableLog(run_folder / RESPONSES)
    (answer,) = (r for r in log if r["problem_id"] == positions.problem_ids[0])
    names, count = ("entropy", "top_probability"), 12
    stored = positions.features(names)
    cache = real_pair.small.new_cache()
    unread = answer["prompt_ids"]
    for i in range(count):
        step = real_pair.small.extend([cache], [unread], Want(top_k=TOP_K))
        inputs = FeatureInputs(
            step, positions.proposed_N[i : i + 1], positions.position_N[i : i + 1]
        )
        for name, live in compute(names, inputs).items():
            assert float(stored[name][i, 0]) == pytest.approx(float(live[0, 0]), abs=0.25), name
        unread = [answer["response_ids"][i]]
    cache.release()


def test_a_finished_run_is_only_shown_again(run_folder: Path) -> None:
    command = [sys.executable, "-m", "crossroads", "quickstart", "--out", str(run_folder), *SIZES]
    before = read_json(run_folder / "results.json", "results")["tasks"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert read_json(run_folder / "results.json", "results")["tasks"] == before


def test_the_report_is_drawn_again_without_the_models(run_folder: Path) -> None:
    page = (run_folder / "report.html").read_bytes()
    command = [sys.executable, "-m", "crossroads", "report", str(run_folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert "entropy~router" in done.stdout
    assert (run_folder / "report.html").read_bytes() == page
