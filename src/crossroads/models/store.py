"""A model's weights, wherever its spec says that they are. No engine and no torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossroads.errors import WeightsError
from crossroads.models.catalogue import ModelSpec
from crossroads.models.hub import HubRepo, fetch_repo, repo_bytes, require_repo
from crossroads.models.weights import CacheState, Tell, cache_state, fetch, ignore, require
from crossroads.types import Progress


@dataclass(frozen=True, slots=True)
class ModelState:
    """Whether a model's weights are here: `words` for people; `size` in bytes, 0 when unknown."""

    ready: bool
    words: str
    size: int


def locate(spec: ModelSpec, *, pull: str, progress: Progress | None = None) -> Path:
    """Return the path of a model's weights; never downloads.

    Raises:
        WeightsError: they are not there; says to pull `pull`.
    """
    if spec.file is not None:
        return require(spec.file, pull, progress)
    if spec.repo is not None:
        return require_repo(HubRepo(spec.repo, spec.revision), pull)
    return _own_path(spec)


def fetch_model(
    spec: ModelSpec,
    *,
    given: Sequence[Path] = (),
    verify: bool = False,
    progress: Progress | None = None,
    tell: Tell = ignore,
) -> Path:
    """Return the path of a model's weights, fetching them if they are not in the cache.

    Raises:
        WeightsError: no source has them.
    """
    if spec.file is not None:
        return fetch(spec.file, given=given, verify=verify, progress=progress, tell=tell)
    if spec.repo is None:
        return _own_path(spec)
    if given:
        raise WeightsError(
            f"{spec.name} is a repository without known hashes, so --from cannot be checked; "
            "use the folder itself in place of the model's name"
        )
    return fetch_repo(
        HubRepo(spec.repo, spec.revision), verify=verify, progress=progress, tell=tell
    )


def model_state(spec: ModelSpec) -> ModelState:
    """Say whether a model's weights are here, without reading them."""
    if spec.file is not None:
        state = cache_state(spec.file)
        words = {
            CacheState.READY: "yes",
            CacheState.UNCHECKED: "not checked yet",
            CacheState.HALF: "half a file",
            CacheState.ABSENT: "no",
        }
        return ModelState(state is CacheState.READY, words[state], spec.file.size)
    if spec.repo is not None:
        size = repo_bytes(HubRepo(spec.repo, spec.revision))
        return ModelState(size is not None, "no" if size is None else "yes", size or 0)
    path = _own_path(spec)
    return ModelState(True, "yes", path.stat().st_size if path.is_file() else 0)


def _own_path(spec: ModelSpec) -> Path:
    if spec.path is None or not spec.path.exists():
        raise WeightsError(f"there are no weights of {spec.name} at {spec.path}")
    return spec.path
