"""`crossroads evaluate` and `report` as a user calls them, on a tiny pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import builders
from crossroads.cli.main import run

pytest.importorskip("llama_cpp")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the options that name a pair of tiny GGUF files."""
    folder = tmp_path_factory.mktemp("tiny")
    small = builders.tiny_gguf(folder / "small.gguf", 2, agrees_with=1)
    large = builders.tiny_gguf(folder / "large.gguf", 1)
    return ["--small", str(small), "--large", str(large), "--context", "128", "--max-tokens", "12"]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    lines = [{"id": f"p{i}", "prompt": f"hello world {i}", "answer": "12"} for i in range(4)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_a_run_is_evaluated_taken_up_and_drawn_again(
    tiny: list[str], problems: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["evaluate", f"jsonl:{problems}", "--out", str(out), *tiny, "--pilot", "2"]
    assert run([*command, "--sweep", "0.3"]) == 0
    shown = capfd.readouterr().out
    record = json.loads((out / "run.json").read_text())
    names = [system["name"] for system in record["systems"]]
    assert names[:4] == ["small", "large", "entropy", "margin~entropy"]
    assert {"random~entropy", "lossless", "entropy~0.3", "random~0.3"} <= set(names)
    assert all(name in shown for name in names)
    page = (out / "report.html").read_bytes()
    assert list((out / "plots").glob("*.png"))
    answers = {path: path.read_bytes() for path in (out / "answers").rglob("*") if path.is_file()}
    assert run([*command, "--sweep", "0.3"]) == 0
    assert run(["report", str(out), "--most-traces", "0"]) == 0
    assert len((out / "report.html").read_bytes()) < len(page)
    assert run(["report", str(out)]) == 0
    assert {path: path.read_bytes() for path in answers} == answers
    assert b"entropy~0.3" in page
    assert run([*command, "--system", "oracle"]) == 0
    systems = json.loads((out / "run.json").read_text())["systems"]
    assert [system["name"] for system in systems] == [*names, "oracle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gsm9k"], "gsm9k"),
        (["jsonl:{problems}", "--sweep", "0.1,much"], "--sweep takes large_fractions"),
        (["jsonl:{problems}", "--count", "2", "--last", "2"], "give one of them"),
        (["jsonl:{problems}", "--samples", "3"], "temperature"),
        (["jsonl:{problems}", "--router", "entropy"], "--system entropy"),
        (["jsonl:{problems}", "--system", "router"], "needs a trained router"),
        (["jsonl:{problems}", "--system", "smal"], "did you mean 'small'"),
        (["jsonl:/nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    message: str,
    tiny: list[str],
    problems: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = [argument.format(problems=problems) for argument in arguments]
    out = tmp_path / "run"
    assert run(["evaluate", *given, "--out", str(out), *tiny]) == 2
    err = capfd.readouterr().err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err
    assert not out.exists()


def test_an_answer_that_is_missing_is_named(
    tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "silent.jsonl"
    path.write_text('{"id": "p1", "prompt": "hello"}\n')
    assert run(["evaluate", f"jsonl:{path}", "--out", str(tmp_path / "run"), *tiny]) == 2
    assert "p1" in capfd.readouterr().err


def test_a_report_of_nothing_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(tmp_path / "nothing")]) == 2
    assert "there is no run at" in capfd.readouterr().err
