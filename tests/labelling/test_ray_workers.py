"""Labelling by workers of a real Ray on this machine, on the scripted pair."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

import builders
from crossroads.artifacts import read_json
from crossroads.cli.options import PairOptions
from crossroads.errors import EngineError
from crossroads.labelling.ray_workers import RayWorkers
from crossroads.labelling.sharded import label_in_shards, work
from crossroads.types import SilentProgress
from labelling.shard_pairs import BrokenSource, DeadlySource, order
from labelling.test_shards import files
from orchestrator.tiny import stand_in_for_vllm

ABSENT = "Ray is not installed: pip install 'crossroads-lm[ray]'"


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"needs Ray, .* pip install 'crossroads-lm\[ray\]'"):
        RayWorkers(2)


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    pytest.importorskip("ray", reason=ABSENT)
    with (
        pytest.raises(EngineError, match=r"no Ray to work with at 127\.0\.0\.1:9 .*refused"),
        RayWorkers(2, address="127.0.0.1:9"),
    ):
        pass


@pytest.mark.slow
def test_rays_workers_make_the_dataset_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason=ABSENT)
    # Workers are to import the scripted pair.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    work(order(tmp_path / "alone"), SilentProgress())
    shown = SilentProgress()
    broken = order(tmp_path / "shared", source=BrokenSource())
    deadly = order(tmp_path / "shared", source=DeadlySource())
    with RayWorkers(2) as ray:
        ours = psutil.Process().children(recursive=True)
        open_to = {
            connection.laddr.ip.removeprefix("::ffff:")
            for process in ours
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        with pytest.raises(EngineError, match="needs 40 GB and 3 are free; give another pair"):
            label_in_shards(broken, 2, ray.run, SilentProgress())
        with pytest.raises(EngineError, match=r"a worker died .* run again to go on"):
            label_in_shards(deadly, 1, ray.run, SilentProgress())
        label_in_shards(order(tmp_path / "shared"), 2, ray.run, shown)
        ours += psutil.Process().children(recursive=True)
    assert open_to == {"127.0.0.1"}
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    assert shown.stages["large model answers"] == pytest.approx(12)
    command = read_json(tmp_path / "shared" / "dataset.json", "card")["provenance"]["command"]
    assert command.split()[0] == Path(sys.argv[0]).name
    _, left = psutil.wait_procs(ours, timeout=30)
    assert left == []


@pytest.mark.slow
def test_each_worker_may_start_its_own_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason=ABSENT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    small, large = stand_in_for_vllm(tmp_path, monkeypatch)
    source = PairOptions(None, str(small), f"{large}@vllm", builders.CONTEXT, 1)
    work(order(tmp_path / "alone", 4, source, ["respond", "compare"]), SilentProgress())
    first = read_json(large / "started.json", "start")["pid"]
    with RayWorkers(2) as ray:
        shared = order(tmp_path / "shared", 4, source, ["respond", "compare"])
        label_in_shards(shared, 2, ray.run, SilentProgress())
    assert read_json(large / "started.json", "start")["pid"] != first
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if "stand_in_vllm" in command]
