"""The verbs with `--large GGUF@URL`: what works, what is refused, and what a dead server does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import builders
from crossroads.cli.main import run
from orchestrator.fake_completions import FakeCompletions, fake_completions

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    return (
        builders.tiny_gguf(folder / "small.gguf", 2, agrees_with=1),
        builders.tiny_gguf(folder / "large.gguf", 1),
    )


@pytest.fixture
def fake(paths: tuple[Path, Path]) -> Iterator[FakeCompletions]:
    from crossroads.models.gguf_tokenizer import GgufTokenizer
    from crossroads.models.llamacpp import LlamaCppLM

    model = LlamaCppLM.load(paths[1], context_length=128, max_rows=16)
    try:
        with fake_completions(model, GgufTokenizer.load(paths[1]), "llamacpp") as found:
            yield found
    finally:
        model.close()


@pytest.fixture
def pair(paths: tuple[Path, Path], fake: FakeCompletions) -> list[str]:
    return ["--small", str(paths[0]), "--large", f"{paths[1]}@{fake.url}", "--context", "128"]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    lines = [{"id": f"p{i}", "prompt": f"hello world {i}", "answer": "12"} for i in range(3)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_an_answer_is_that_of_the_pair_in_the_process(
    pair: list[str], paths: tuple[Path, Path], tmp_path: Path
) -> None:
    here = ["--small", str(paths[0]), "--large", str(paths[1]), "--context", "128"]
    ids = []
    for name, options in (("far", pair), ("near", here)):
        trace = tmp_path / f"{name}.json"
        command = ["generate", "hello world", *options, "--router", "entropy", "--threshold", "0"]
        assert run([*command, "--max-tokens", "12", "--trace", str(trace)]) == 0
        ids.append([record["token_id"] for record in json.loads(trace.read_text())["records"]])
    assert ids[0] == ids[1]


def test_an_answer_goes_on_when_the_server_dies_if_that_was_chosen(
    pair: list[str], fake: FakeCompletions, tmp_path: Path
) -> None:
    fake.dies_after = 5  # the probe takes two
    trace = tmp_path / "trace.json"
    command = ["generate", "hello world", *pair, "--router", "entropy", "--threshold", "0"]
    command += ["--max-tokens", "12", "--trace", str(trace), "--on-loss", "small"]
    assert run(command) == 0
    causes = [record["cause"] for record in json.loads(trace.read_text())["records"]]
    lost = causes.index("unavailable")
    assert lost > 0
    assert causes == ["router"] * lost + ["unavailable"] * (len(causes) - lost)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["generate", "hello", "--lossless"], "lossless needs the large model's view"),
        (["generate", "hello", "--revise-below", "0.1"], "revise_below needs the large model's"),
        (["generate", "hello", "--temperature", "1"], "send temperature 0"),
        (["label", "{out}", "--problems", "{problems}"], "the stage compare needs the large"),
        (
            [
                "label",
                "{out}",
                "--problems",
                "{problems}",
                "--temperature",
                "1",
                "--stage",
                "respond",
            ],
            "the stage respond draws from whole distributions",
        ),
        (
            ["label", "{out}", "--problems", "{problems}", "--judge", "local"],
            "the local judge reads whole distributions",
        ),
        (
            ["evaluate", "jsonl:{problems}", "--out", "{out}", "--system", "lossless"],
            "the system lossless cannot run: lossless needs",
        ),
        (
            ["evaluate", "jsonl:{problems}", "--out", "{out}", "--system", "oracle"],
            "the system oracle reads the large model's whole distributions",
        ),
        (
            ["evaluate", "jsonl:{problems}", "--out", "{out}", "--temperature", "1"],
            "the system large cannot run: sampling",
        ),
    ],
)
def test_what_the_server_cannot_do_is_refused_before_any_work(
    command: list[str],
    sentence: str,
    pair: list[str],
    fake: FakeCompletions,
    problems: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    filled = [part.format(out=out, problems=problems) for part in command]
    assert run([*filled, *pair]) == 2
    assert sentence in " ".join(capfd.readouterr().err.split())
    assert len(fake.requests) == 2  # the probe's: the ids that it reads, and how much it tells
    assert not list(out.rglob("*.jsonl"))


def test_answers_are_collected_without_labels(
    pair: list[str], problems: Path, tmp_path: Path
) -> None:
    command = ["label", str(tmp_path / "out"), "--problems", str(problems), *pair]
    assert run([*command, "--max-tokens", "8", "--stage", "respond", "--rows", "2"]) == 0
    assert list((tmp_path / "out" / "respond").glob("*.jsonl"))


def test_a_run_says_how_many_tokens_were_lost(
    pair: list[str],
    fake: FakeCompletions,
    problems: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    fake.dies_after = 6
    out = tmp_path / "run"
    command = ["evaluate", f"jsonl:{problems}", "--out", str(out), *pair, "--max-tokens", "8"]
    assert run([*command, "--system", "entropy@0", "--on-loss", "small"]) == 0
    assert "because no server of the large one answered" in " ".join(capfd.readouterr().out.split())
    record = json.loads((out / "run.json").read_text())
    assert record["settings"]["on_loss"] == "small"


def test_what_a_server_cannot_do_is_no_default(
    pair: list[str], problems: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "run"
    command = ["evaluate", f"jsonl:{problems}", "--out", str(out), *pair, "--max-tokens", "4"]
    assert run([*command, "--pilot", "1", "--count", "1"]) == 0
    assert "lossless is left out" in capfd.readouterr().err
    names = [s["name"] for s in json.loads((out / "run.json").read_text())["systems"]]
    assert names[:3] == ["small", "large", "entropy"]
    assert "lossless" not in names
