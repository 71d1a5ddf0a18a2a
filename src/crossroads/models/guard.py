"""Run a command that ends with whoever started it, however that one ended.

    python guard.py COMMAND ARGUMENT...

Standard input is a pipe of which the starter holds the other end: it closes when that process is
gone, killed ones too. The command reads nothing, and everything that it started ends with it:
workers that outlive a server would keep the GPU's memory. Where the guard itself is killed, Linux
tells the command to end. Runs alone, without this package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
SECONDS = 20.0
"""How long the command may take to end by itself."""


def main(command: Sequence[str]) -> int:
    """Run the command and return its status."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=end_with_guard,  # noqa: PLW1509  there are no threads yet
    )
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    threading.Thread(target=watch, args=(process,), daemon=True).start()
    try:
        return process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def end_with_guard() -> None:
    """Let Linux end this process by SIGTERM when its parent has died; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def watch(process: subprocess.Popen[bytes]) -> None:
    """End the command once nobody holds the other end of standard input."""
    while os.read(0, 1):
        pass
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS)
    process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
