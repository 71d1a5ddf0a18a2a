"""The command line: mistakes are one sentence and exit code 2, ctrl-C is 130."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import builders
from crossroads.cli.main import VERBS, run

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the options that name a pair of tiny GGUF files."""
    folder = tmp_path_factory.mktemp("tiny")
    small = builders.tiny_gguf(folder / "small.gguf", 2, agrees_with=1)
    large = builders.tiny_gguf(folder / "large.gguf", 1)
    return ["--small", str(small), "--large", str(large), "--context", "128"]


def test_generate_streams_the_text_and_then_its_usage(
    tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace_path = tmp_path / "trace.json"
    options = ["--threshold", "0.55", "--max-tokens", "12", "--trace", str(trace_path)]
    assert run(["generate", "hello", *tiny, *options]) == 0
    out, err = capfd.readouterr()
    trace = json.loads(trace_path.read_text())
    assert out.rstrip("\n") == trace["text"].rstrip("\n")
    large = sum(record["writer"] == "large" for record in trace["records"])
    assert f"[12 tokens: {12 - large} small, {large} large" in err
    assert f"large_fraction {large / 12:.3f}" in err


def test_a_stop_string_is_never_shown(
    tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    common = ["generate", "hello", *tiny, "--max-tokens", "12", "--trace", str(path)]
    assert run(common) == 0
    text = json.loads(path.read_text())["text"]
    stop = text[4:6]
    capfd.readouterr()
    assert run([*common, "--stop", stop]) == 0
    assert capfd.readouterr().out.rstrip("\n") == text[: text.index(stop)].rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate", "x", "--pair", "qwen"], "there is no pair 'qwen'"),
        (["generate", "x", "--small", "a.gguf"], "the large one is missing"),
        (["generate", "x", "--small", "a.gguf", "--large", "b.gguf"], "a.gguf"),
        (["generate", "x", "--threshold", "nan"], "threshold must be a number >= 0"),
        (["generate", "x", "--temperature", "-1"], "temperature must be a number >= 0"),
        (["generate", "x", "--max-tokens", "0"], "max_tokens must be a whole number >= 1"),
        (["generate", "x", "--max-tokens", "many"], "not a valid integer"),
        (["generate", "x", "--colour"], "No such option"),
        (["generat"], "No such command 'generat'"),
        (["train", "/nowhere", "/tmp/x"], "no finished dataset at /nowhere"),
        (["label", "out"], "give --problems FILE or --task NAME"),
        (["label", "out", "--problems", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["label", "out", "--task", "x:y"], "there is no task 'x:y'"),
        (
            ["label", "out", "--task", "reasoning_gym:chain_sum", "--judge", "me"],
            "no judge 'me'",
        ),
        (["quickstart", "--label", "3"], "--label must be at least 5"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    arguments: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_says_what_to_pull(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CROSSROADS_CACHE", str(tmp_path / "empty"))
    assert run(["generate", "x"]) == 2
    assert "crossroads pull qwen2.5-coder" in capfd.readouterr().err


def test_a_prompt_over_the_context_is_refused(
    tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "z" * 500, *tiny]) == 2
    assert "context holds 128" in capfd.readouterr().err


def test_a_router_of_another_pair_is_refused(
    tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from crossroads.routing.checkpoint import RouterCard, SmallModelId, save_router
    from crossroads.routing.routers.neural import NeuralRouter, build_network

    network = build_network("mlp", {"inputs": ["entropy"], "widths": [1]})
    small = SmallModelId("other-model", "llamacpp", "f" * 64, 896, 151936)
    save_router(tmp_path, NeuralRouter("mlp", network), RouterCard(small, "l", "g", "p", 0.5))
    assert run(["generate", "x", *tiny, "--router", str(tmp_path)]) == 2
    assert "was trained for other-model (hidden size 896)" in capfd.readouterr().err


def test_an_unwritable_output_folder_is_refused_before_the_models_load(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "run")
    for arguments in (
        ["label", out, "--task", "reasoning_gym:chain_sum", "--pair", "qwen2.5-coder"],
        ["quickstart", "--out", out],
    ):
        assert run(arguments) == 2
        assert f"cannot write {out}" in capfd.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_is_130_and_says_how_to_go_on(tiny: list[str], tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(json.dumps({"id": str(i), "prompt": f"p{i}"}) + "\n" for i in range(200))
    )
    command = [sys.executable, "-m", "crossroads", "label", str(tmp_path / "out")]
    options = ["--problems", str(problems), *tiny, "--rows", "1", "--max-tokens", "100"]
    # Tests that run in the background ignore ctrl-C, and what they start would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        logs, deadline = tmp_path / "out" / "respond", time.monotonic() + 60
        while not list(logs.glob("*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "dataset.json").exists()
    for log in logs.glob("*.jsonl"):
        assert all(json.loads(line) for line in log.read_text().splitlines())


def test_help_names_every_verb(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capfd.readouterr().out
    for verb in VERBS:
        assert verb in shown
        assert run([verb, "--help"]) == 0


def test_names_with_colons_are_no_emoji(capfd: pytest.CaptureFixture[str]) -> None:
    from crossroads.cli.console import RichProgress, console

    with RichProgress() as progress:
        progress.note("[1/2] gsm8k:train: small")
        progress.start("gsm8k:train: small", 1, "answers")
    console().print("gsm8k:train: 2 problems", markup=False)
    out, err = capfd.readouterr()
    assert out.strip() == "gsm8k:train: 2 problems"
    assert err.count("gsm8k:train: small") == 2
