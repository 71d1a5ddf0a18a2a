"""One of our own runs, as its folder tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossroads.artifacts import read_json
from crossroads.errors import DataError
from crossroads.routing.checkpoint import LoadedRouter, load_router

REPORT, CONFIG = "report.json", "config.json"


@dataclass(frozen=True, slots=True)
class Run:
    """A router folder: the router, and what its training wrote beside it, empty where it did not.

    settings: the training's own, by name. trained_on: names and hashes of its datasets' files.
    """

    folder: Path
    loaded: LoadedRouter
    report: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained_on: frozenset[frozenset[tuple[str, str]]] = frozenset()

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """Epochs, in order."""
        return list(self.report.get("history") or [])

    @property
    def objective(self) -> str | None:
        """The positive class."""
        found = self.report.get("objective") or self.settings.get("objective")
        return str(found) if found else None

    def over_entropy(self, recall: float) -> Mapping[str, Any] | None:
        """Return the report's own comparison with entropy at a recall on test, None without one."""
        for row in self.report.get("comparisons") or []:
            if row.get("other") == "entropy" and abs(row.get("recall", -1) - recall) < 1e-9:
                found: Mapping[str, Any] = row
                return found
        return None

    def reported(self, recall: float) -> Mapping[str, Any] | None:
        """Return the report's own row of the router at a recall target, None without one."""
        for row in self.report.get("rows") or []:
            if (
                row.get("router") == self.loaded.router.name
                and abs(row.get("target_recall", -1) - recall) < 1e-9
            ):
                found: Mapping[str, Any] = row
                return found
        return None


def open_run(folder: Path) -> Run:
    """Return the run in a router folder.

    Raises:
        RouterError: no router there, or an altered one.
        DataError: a report or config that is not JSON.
    """
    loaded = load_router(folder)
    config = _optional(folder / CONFIG)
    settings = config.get("config", config)
    return Run(
        folder,
        loaded,
        report=_optional(folder / REPORT),
        settings=settings if isinstance(settings, Mapping) else {},
        trained_on=_trained_on(config),
    )


def _trained_on(config: Mapping[str, Any]) -> frozenset[frozenset[tuple[str, str]]]:
    """Return the hashes of the datasets' files, as far as the config tells."""
    found = config.get("datasets") or [config.get("dataset")]
    if isinstance(found, Mapping):
        found = found.get("datasets", [])
    return frozenset(frozenset(files.items()) for files in found if isinstance(files, Mapping))


def _optional(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    content = read_json(path, path.stem)
    if not isinstance(content, Mapping):
        raise DataError(f"{path} is not a JSON object; copy the router's folder again")
    return content
