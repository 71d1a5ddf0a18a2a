"""Where a training run tells its numbers: a JSONL file always, other places if asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from crossroads.artifacts import ResumableLog
from crossroads.errors import ConfigError, EngineError


class Tracker(Protocol):
    """Hears of every epoch."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Take the numbers of an epoch; the same epoch may come again after a resume."""

    def close(self) -> None:
        """Write what is left. Twice is harmless."""


class NoTracker:
    """Tells nobody."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Forget the numbers."""

    def close(self) -> None:
        """Do nothing."""


class JSONLTracker:
    """One line per epoch in `history.jsonl`; an epoch that is there is not written again."""

    def __init__(self, folder: Path) -> None:
        """Go on with the file in `folder`."""
        self._log = ResumableLog(folder / "history.jsonl")
        self._epochs = {record["epoch"] for record in self._log}

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add a line."""
        if epoch not in self._epochs:
            self._epochs.add(epoch)
            self._log.append({**values, "epoch": epoch})

    def close(self) -> None:
        """Do nothing: every line is on disk."""


class TensorBoardTracker:
    """Scalars for TensorBoard, in `FOLDER/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        """Open the event file.

        Raises:
            EngineError: the package is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  optional
        except ImportError as error:
            raise EngineError(
                "TensorBoard is not installed; pip install 'crossroads-lm[tracking]'"
            ) from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add the numbers as scalars."""
        for name, value in values.items():
            if name != "epoch":
                self._writer.add_scalar(f"training/{name}", value, epoch)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        """Tell each of them."""
        self._trackers = trackers

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Tell each of them."""
        for tracker in self._trackers:
            tracker.log(epoch, values)

    def close(self) -> None:
        """Close each of them."""
        for tracker in self._trackers:
            tracker.close()


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {
    "jsonl": JSONLTracker,
    "tensorboard": TensorBoardTracker,
}


def open_trackers(names: Sequence[str], folder: Path) -> Trackers:
    """Return the JSONL tracker and those named.

    Raises:
        ConfigError: an unknown name. EngineError: a package is missing.
    """
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise ConfigError(f"unknown tracker {unknown[0]!r}; known: {', '.join(TRACKERS)}")
    return Trackers([TRACKERS[name](folder) for name in dict.fromkeys(("jsonl", *names))])
