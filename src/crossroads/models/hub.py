"""The model hub: single files for `weights.py`, and whole repositories for transformers models.

The hub's client runs in a child process (`hub_worker.py`). Only there can it be kept from writing
beside our cache: it reads its folders from the environment once, when it is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossroads.artifacts import read_json, sha256_file, write_json
from crossroads.errors import CrossroadsError, WeightsError
from crossroads.models.sources import (
    HubSource,
    SourceError,
    WeightsFile,
    check_space,
    metered,
    sizes_within,
)
from crossroads.models.weights import Tell, cache_root, ignore, lock, partial_path, writable
from crossroads.types import Progress, SilentProgress

_POLL_SECONDS = 0.1
_MARKER = ".crossroads.json"


def fetch_file(source: HubSource, file: WeightsFile, partial: Path, progress: Progress) -> Path:
    """Return a candidate from the hub; refuses before the download if the hub has another file.

    Raises:
        SourceError: the hub cannot be reached or does not have it.
    """
    folder = partial / "hub"
    folder.mkdir(exist_ok=True)
    have = sum(sizes_within(folder))
    check_space(folder, file.size - have)
    request = {
        "action": "file",
        "repo": source.repo,
        "revision": source.revision,
        "filename": source.filename,
        "sha256": file.sha256,
        "folder": str(folder),
    }
    with metered(progress, f"fetching {file.name}", file.size - have) as meter:
        _run_worker(request, partial / "home", lambda: meter.at(sum(sizes_within(folder)) - have))
    return folder / source.filename


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository of safetensors weights with its tokenizer."""

    repo: str
    revision: str = "main"

    @property
    def path(self) -> Path:
        """Where the cache keeps it, present or not."""
        return cache_root() / "repos" / self.revision / self.repo

    @property
    def key(self) -> str:
        """Its name among locks and partial downloads."""
        return f"{self.repo.replace('/', '--')}--{self.revision}"


def repo_bytes(repo: HubRepo) -> int | None:
    """Return the size of a whole cached repository, None when it is not there or not whole."""
    try:
        files = read_json(repo.path / _MARKER, "marker")["files"]
        sizes = [entry["size"] for entry in files]
        here = [(repo.path / entry["name"]).stat().st_size for entry in files]
    except (CrossroadsError, OSError, KeyError, TypeError):
        return None
    return sum(sizes) if sizes == here else None


def require_repo(repo: HubRepo, pull: str) -> Path:
    """Return the folder of a cached repository; never downloads.

    Raises:
        WeightsError: it is not in the cache; says to pull `pull`.
    """
    if repo_bytes(repo) is None:
        raise WeightsError(
            f"the weights {repo.repo} are not in {cache_root()}; run: crossroads pull {pull}"
        )
    return repo.path


def fetch_repo(
    repo: HubRepo,
    *,
    verify: bool = False,
    progress: Progress | None = None,
    tell: Tell = ignore,
) -> Path:
    """Return the folder of a repository in the cache, fetching it if it is not there.

    Every file is checked against the size and, where the hub states one, the hash that the hub
    states for the commit. Effects and resumption as for `weights.fetch`.

    Raises:
        WeightsError: the hub cannot be reached, does not have it, or gave something else.
    """
    progress = progress or SilentProgress()
    with writable(cache_root()), lock(repo.key, repo.repo, tell):
        if repo_bytes(repo) is not None:
            bad = _first_bad(repo.path, _plan(repo.path / _MARKER), progress) if verify else None
            if bad is None:
                return repo.path
            tell(f"{repo.path / bad} is damaged; fetching it again")
        partial = partial_path(repo.key)
        try:
            _download_repo(repo, partial, progress)
        except SourceError as error:
            raise WeightsError(f"cannot get {repo.repo}: hub: {error}") from error
        return _install_repo(repo, partial)


def _download_repo(repo: HubRepo, partial: Path, progress: Progress) -> None:
    """Download and verify all files into `partial/files`, the marker beside them."""
    files, plan = partial / "files", partial / "plan.json"
    files.mkdir(parents=True, exist_ok=True)
    request = {"action": "plan", "repo": repo.repo, "revision": repo.revision, "plan": str(plan)}
    _run_worker(request, partial / "home", lambda: None)
    total = sum(entry["size"] for entry in _plan(plan)["files"])
    have = sum(sizes_within(files))
    check_space(files, total - have)
    request = {**request, "action": "repo", "folder": str(files)}
    with metered(progress, f"fetching {repo.repo}", total - have) as meter:
        _run_worker(request, partial / "home", lambda: meter.at(sum(sizes_within(files)) - have))
    if bad := _first_bad(files, _plan(plan), progress):
        (files / bad).unlink(missing_ok=True)
        raise SourceError(f"gave a damaged {bad}; deleted, pull again to fetch it")


def _install_repo(repo: HubRepo, partial: Path) -> Path:
    shutil.rmtree(repo.path, ignore_errors=True)
    shutil.rmtree(partial / "files" / ".cache", ignore_errors=True)  # the client's own notes
    repo.path.parent.mkdir(parents=True, exist_ok=True)
    write_json(partial / "files" / _MARKER, _plan(partial / "plan.json"))
    (partial / "files").replace(repo.path)
    shutil.rmtree(partial, ignore_errors=True)
    return repo.path


def _plan(path: Path) -> dict[str, Any]:
    """Return {"commit", "files": [{"name", "size", "sha256" or null}]} as the worker wrote it."""
    plan: dict[str, Any] = read_json(path, "list of the repository's files")
    return plan


def _first_bad(folder: Path, plan: Mapping[str, Any], progress: Progress) -> str | None:
    """Return the first file that is not what the plan says."""
    total = sum(entry["size"] for entry in plan["files"] if entry["sha256"])
    progress.start("checking", total, "B")
    try:
        for entry in plan["files"]:
            path = folder / entry["name"]
            if not path.is_file() or path.stat().st_size != entry["size"]:
                return str(entry["name"])
            if entry["sha256"] and sha256_file(path, progress.advance) != entry["sha256"]:
                return str(entry["name"])
    finally:
        progress.finish()
    return None


def _run_worker(request: Mapping[str, str], home: Path, tick: Callable[[], None]) -> None:
    """Run one request in a child and wait for it.

    Raises:
        SourceError: the child's one sentence about what went wrong.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "crossroads.models.hub_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment(home),
    )
    try:
        # stdin stays open: when this process dies, its end closes and the child gives up too.
        if process.stdin is not None:
            process.stdin.write(json.dumps(dict(request)).encode() + b"\n")
            process.stdin.flush()
        while process.poll() is None:
            tick()
            time.sleep(_POLL_SECONDS)
        message = process.stderr.read().decode(errors="replace") if process.stderr else ""
        if process.returncode != 0:
            lines = message.strip().splitlines() or ["the hub's client ended without a word"]
            raise SourceError(lines[-1])
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stderr):
            if pipe is not None:
                pipe.close()


def _environment(home: Path) -> dict[str, str]:
    """Return the user's environment with the client's writable folders moved under our cache.

    The user's token and hub cache stay where they are: both are only read.
    """
    from huggingface_hub import constants  # noqa: PLC0415  half a second that loading never needs

    return {
        **os.environ,
        "HF_HOME": str(home),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": constants.HF_TOKEN_PATH,
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
