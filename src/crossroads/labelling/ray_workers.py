"""Workers of Ray: the only module that knows it.

Ray is started on this machine alone, bound to its loopback address, and ended with the run; or it
is a cluster that is there already. Workers get plain data and load their own models. A folder
means the same to all of them: a cluster's machines share the file system that the run is in.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from crossroads.errors import ConfigError, CrossroadsError, EngineError
from crossroads.labelling.shard_progress import Board, ReportingProgress, Reports
from crossroads.labelling.sharded import LabelOrder, work
from crossroads.types import Progress

_POLL_SECONDS = 0.5
_STORE_BYTES = 100 * 2**20
"""What passes between driver and workers is small: problems and reports."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # tell nobody
    "RAY_BACKEND_LOG_LEVEL": "error",  # its warnings would tear the bar, and say less than ours
    # Under `uv run`, Ray would send the working folder, datasets and all, to every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
_LOCAL_ENVIRONMENT = {
    # In spite of its name: the loopback address instead of all of them, as on macOS and Windows.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker asks Ray for; a fraction of a GPU puts several workers on one."""

    cpus: int
    gpus: float


@dataclass(frozen=True, slots=True)
class _Place:
    """What a worker takes over from the process that sent it: for relative paths, and records."""

    folder: str
    command: tuple[str, ...]


class RayWorkers:
    """A `Runner` (call `run`) while it is entered; no worker outlives the block."""

    def __init__(self, count: int, *, gpus: float = 0.0, address: str | None = None) -> None:
        """Choose how many workers, `gpus` for each, and the cluster; None starts Ray here.

        Raises:
            EngineError: Ray is not installed.
        """
        self.count = count
        self._gpus = gpus
        self._address = address
        self._share = Share(0, gpus)
        self._ray = _import_ray(local=address is None)

    def __enter__(self) -> RayWorkers:
        """Start Ray, or connect to the cluster.

        Raises:
            EngineError: Ray does not answer.
            ConfigError: Ray does not have what the workers ask for.
        """
        ray = self._ray
        try:
            if self._address is None:
                ray.init(
                    "local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=_STORE_BYTES,
                )
            else:
                _check_reachable(self._address)
                ray.init(self._address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise EngineError(
                f"Ray cannot be started here ({reason}); see the files in /tmp/ray"
                if self._address is None
                else f"there is no Ray to work with at {self._address} ({reason}); start one with "
                "`ray start --head`, or leave --ray out"
            ) from error
        try:
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._share = share(machines, self.count, self._gpus)
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ray.shutdown()

    @property
    def cpus(self) -> int:
        """CPUs of each worker, at least 1: how many threads its models may have."""
        return max(1, self._share.cpus)

    def run(self, orders: Sequence[LabelOrder], progress: Progress) -> None:
        """Carry out `orders` at once, and show all of it on `progress`.

        Raises:
            CrossroadsError: the first one that a worker met; the others are stopped.
        """
        ray = self._ray
        place = _Place(os.getcwd(), tuple(sys.argv))  # noqa: PTH109  text, as it will be used
        reporter = ray.remote(num_cpus=0)(Reports).remote()
        # A worker that died would die again, and its memory is free only when its process ends.
        remote = ray.remote(
            num_cpus=self._share.cpus, num_gpus=self._share.gpus, max_retries=0, max_calls=1
        )(_work)
        tasks = {
            remote.remote(order, number, reporter, place, self._share.gpus): number
            for number, order in enumerate(orders)
        }
        board = Board(progress, len(orders))
        try:
            while tasks:
                ended, _ = ray.wait(list(tasks), timeout=_POLL_SECONDS)
                board.show(_get(ray, reporter.read.remote()))
                for task in ended:
                    error = _get(ray, task)
                    del tasks[task]
                    if error is not None:
                        raise error
            board.close()
        finally:
            for task in tasks:
                with suppress(ray.exceptions.RayError):
                    ray.cancel(task, force=True)
            ray.kill(reporter)


def share(machines: Sequence[Mapping[str, float]], workers: int, gpus: float) -> Share:
    """Return the most CPUs that each of `workers` can have on `machines`, beside its `gpus`.

    With more workers than CPUs none is asked for: workers that wait for servers need none.

    Raises:
        ConfigError: the machines have too few GPUs.
    """

    def places(cpus: int) -> float:
        return sum(_places(machine, cpus, gpus) for machine in machines)

    if gpus > 0 and places(0) < workers:
        there = sum(machine.get("GPU", 0.0) for machine in machines)
        raise ConfigError(
            f"{workers} workers with {gpus:g} GPUs each do not fit Ray's {there:g} GPUs; "
            "give fewer --workers or less --worker-gpus"
        )
    most = max((int(machine.get("CPU", 0.0)) for machine in machines), default=0)
    cpus = next((cpus for cpus in range(most, 0, -1) if places(cpus) >= workers), 0)
    return Share(cpus, gpus)


def _places(machine: Mapping[str, float], cpus: int, gpus: float) -> float:
    """Return how many workers one machine has room for."""
    by_cpu = machine.get("CPU", 0.0) // cpus if cpus else float("inf")
    if gpus <= 0:
        return by_cpu
    there = machine.get("GPU", 0.0)
    # Ray never spreads a fraction over two devices.
    by_gpu = there * (1 / gpus // 1) if gpus < 1 else there // gpus
    return min(by_cpu, by_gpu)


def _import_ray(*, local: bool) -> Any:
    """Import Ray, which reads its environment then."""
    for name, value in {**_ENVIRONMENT, **(_LOCAL_ENVIRONMENT if local else {})}.items():
        os.environ.setdefault(name, value)
    try:
        import ray  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise EngineError(
            "labelling with --workers needs Ray, which is not installed; install it with: "
            "pip install 'crossroads-lm[ray]'"
        ) from error
    return ray


def _check_reachable(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _get(ray: Any, reference: Any) -> Any:
    """Return a result; the death of a worker is the user's to know of, a bug is a traceback."""
    died = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.RayActorError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.LocalRayletDiedError,
    )
    try:
        return ray.get(reference)
    except died as error:
        raise EngineError(
            f"a worker died ({type(error).__name__}); what it finished is kept: run again to go "
            "on, with fewer --workers if its memory was not enough"
        ) from error
    except ray.exceptions.RaySystemError as error:
        raise EngineError(
            f"a worker could not begin ({str(error).strip().splitlines()[-1]}); install the same "
            "packages on every machine of the cluster"
        ) from error


def _work(
    order: LabelOrder, number: int, reporter: Any, place: _Place, gpus: float
) -> CrossroadsError | None:
    """Carry out an order in this worker; return what the user must know, raise what is a bug."""
    with suppress(OSError):
        os.chdir(place.folder)
    sys.argv = list(place.command)  # the dataset names the command that made it
    if gpus <= 0:  # Ray would leave all of them to every worker
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        work(order, ReportingProgress(lambda report: reporter.tell.remote(number, report)))
    except CrossroadsError as error:
        return error
    except MemoryError:
        return _no_memory()
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            return _no_memory()
        raise
    return None


def _no_memory() -> EngineError:
    return EngineError("a worker ran out of memory; give fewer --workers, or fewer --rows to each")
