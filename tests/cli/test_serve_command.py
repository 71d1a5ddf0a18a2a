"""`crossroads serve`: mistakes cost no model, and a server that was told to stop has not failed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

import builders
from crossroads.cli.main import run

KEY = "a-key-of-some-length"


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if models are loaded."""

    def load(*_: object, **__: object) -> None:
        pytest.fail("the models were loaded")

    monkeypatch.setattr("crossroads.models.pairs.load_pair", load)
    monkeypatch.delenv("CROSSROADS_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "give it an API key"),
        (["--host", "192.0.2.1", "--api-key", KEY], "cannot listen on 192.0.2.1:8000"),
        (["--api-key", "short"], "--api-key must have 16 to 512 characters"),
        (["--api-key", "a key with spaces in it"], "without spaces"),
        (["--api-key-file", "/nowhere/key"], "cannot read the API key file /nowhere/key"),
        (["--api-key", KEY, "--api-key-file", "key"], "are two keys"),
        (["--allow-origin", "example.org"], "must look like https://example.org"),
        (["--router", "rooter"], "no router at rooter"),
        (["--threshold", "nan"], "threshold must be a number >= 0"),
        (["--pair", "qwen"], "there is no pair 'qwen'"),
        (["--small", "a.gguf"], "the large one is missing"),
        (["--port", "65536"], "65536 is not in the range"),
        (["--rows", "0"], "0 is not in the range"),
        (["--queue", "-1"], "-1 is not in the range"),
        (["--timeout", "0"], "0.0 is not in the range"),
        (["--timeout", "nan"], "nan is not a finite number"),
        (["--max-body", "inf"], "inf is not a finite number"),
        (["--shutdown-timeout", "inf"], "inf is not a finite number"),
        (["--default-temperature", "2.1"], "2.1 is not in the range"),
        (["--small-url", "http://a:1"], "--small-url is for --backend vllm; add that"),
        (["--run-ahead", "0"], "--run-ahead is for --backend vllm; add that"),
        (["--backend", "vllm", "--run-ahead", "-1"], "-1 is not in the range"),
        (["--backend", "vllm"], "--backend vllm needs --small and --large"),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_mistakes_are_one_sentence_before_any_model_loads(
    options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *options]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("unloaded")
def test_a_port_that_is_taken_is_said_before_any_model_loads(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capfd.readouterr().err


@pytest.mark.usefixtures("unloaded")
def test_the_key_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "SECRET-" * 100
    path = tmp_path / "key.txt"
    path.write_text(secret)
    assert run(["serve", "--api-key-file", str(path)]) == 2
    assert run(["serve", "--api-key", secret]) == 2
    monkeypatch.setenv("CROSSROADS_API_KEY", secret)
    assert run(["serve"]) == 2
    assert "SECRET" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("unloaded")
def test_without_the_servers_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run(["serve"]) == 2
    assert "needs uvicorn; install it with: pip install 'crossroads-lm[serve]'" in (
        capfd.readouterr().err
    )


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the command on a free port; yield its process and port once it serves."""
    command = [sys.executable, "-m", "crossroads", "serve", "--port", "0", *options]
    # Tests that run in the background ignore ctrl-C, and what they start would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)$", line):
                yield process, int(found[1])
                break
        else:
            pytest.fail("it ended before it served")
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_a_signal_ends_it_without_a_failure(tmp_path: Path, sig: int) -> None:
    pytest.importorskip("llama_cpp")
    small = builders.tiny_gguf(tmp_path / "small.gguf", 2, agrees_with=1)
    large = builders.tiny_gguf(tmp_path / "large.gguf", 1)
    key = tmp_path / "key.txt"
    key.write_text(KEY + "\n")
    models = ["--small", str(small), "--large", str(large), "--context", "128"]
    with serving(*models, "--threshold", "0.55", "--api-key-file", str(key)) as (process, port):
        kept = HTTPConnection("127.0.0.1", port, timeout=30)

        def answer(**fields: Any) -> Any:
            body = {"model": "mixed", "prompt": "hello", "routing": {}, **fields}
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
            kept.request("POST", "/v1/completions", json.dumps(body), headers)
            return json.loads(kept.getresponse().read())

        reply = answer(max_tokens=12)
        assert reply["routing"]["threshold"] == 0.55
        assert reply["usage"]["completion_tokens"] == 12
        assert "error" in answer(max_tokens="many")
        process.send_signal(sig)
        _, err = process.communicate(timeout=30)
        kept.close()
    assert process.returncode == 0
    assert "Traceback" not in err
    assert "shut down: 0 answers ended, 0 were cut off" in err
    assert KEY not in err
    assert "hello" not in err
