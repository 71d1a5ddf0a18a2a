"""Nobody ever sees half a file, and a torn log goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossroads.artifacts import (
    IndexedLog,
    ResumableLog,
    atomic_path,
    ensure_writable,
    exclusive,
    load_tensors,
    pin_config,
    read_json,
    save_tensors,
    write_json,
)
from crossroads.errors import ConfigError, DataError


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def torn_write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        torn_write()
    assert read_json(path, "x") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*file/out"):
        ensure_writable(tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        ensure_writable(tmp_path / "out")


def test_log_survives_a_torn_last_line(tmp_path: Path) -> None:
    log = ResumableLog(tmp_path / "log.jsonl")
    log.append({"n": 1})
    log.append({"n": 2})
    with log.path.open("a") as file:
        file.write('{"n": 3, "te')
    again = ResumableLog(log.path)
    again.append({"n": 4})
    assert [r["n"] for r in again] == [1, 2, 4]


@pytest.mark.parametrize("kind", [ResumableLog, IndexedLog])
def test_who_reads_a_log_that_is_being_written_changes_nothing(
    kind: type[ResumableLog], tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    writer = ResumableLog(path)
    writer.append({"key": "a"})
    half, rest = '{"key": "b"', ', "é": 1}\n'
    with path.open("a", encoding="utf-8") as file:
        file.write(half)
        file.flush()
        assert [record["key"] for record in kind(path)] == ["a"]
        file.write(rest)
    writer.append({"key": "c"})
    found = kind(path)
    assert [record["key"] for record in found] == ["a", "b", "c"]
    if isinstance(found, IndexedLog):
        found.append({"key": "a", "é": 2})
        assert found.get("a") == {"key": "a", "é": 2}
        assert found.get("c") == {"key": "c"}


def test_an_index_knows_its_places_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"key": "a"}\n{"key": "to')
    log = IndexedLog(path)
    log.append({"key": "b"})
    assert list(log.keys()) == ["a", "b"]
    assert [log.get("a"), log.get("b")] == [{"key": "a"}, {"key": "b"}]


def test_a_bad_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"n": 1}\nrubbish\n{"n": 2}\n')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        list(ResumableLog(path))


def test_reading_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"the card .*bad.json is not valid JSON"):
        read_json(tmp_path / "bad.json", "card")
    with pytest.raises(DataError, match="no card at"):
        read_json(tmp_path / "none.json", "card")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(DataError, match="is damaged"):
        load_tensors(tmp_path / "bad.safetensors", "weights")


def test_a_changed_config_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    pin_config(path, {"a": 1, "b": [1, 2]}, "a run")
    pin_config(path, {"a": 1, "b": (1, 2)}, "a run")
    with pytest.raises(ConfigError, match="a: was 1, now 2"):
        pin_config(path, {"a": 2, "b": [1, 2]}, "a run")
    assert json.loads(path.read_text())["a"] == 1


def test_a_folder_is_held_by_one_process_and_let_go_when_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from crossroads.artifacts import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another process is working in"), exclusive(tmp_path):
            pass
        other.kill()
        other.wait()
        with exclusive(tmp_path):
            pass
    with exclusive(tmp_path):
        pass


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch
    import torch

    def on_a_full_disk(_tensors: dict, path: Path, _metadata: dict) -> None:
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", on_a_full_disk)
    with pytest.raises(ConfigError, match=r"cannot write .*x.safetensors: .*No space left"):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(3)}, {})
    assert list(tmp_path.iterdir()) == []
