"""Running a program that nobody has read.

A program runs under bubblewrap (`bwrap`), in namespaces of its own: no network, no other process
to see or signal, and no files but a read-only Python with the system's libraries and an empty
/tmp. Third-party packages such as numpy are not there, on purpose: a grade must not depend on what
a machine happens to have. `seccomp.py` takes away processes, threads and sockets, `inside.py` sets
the limits. What the program prints is thrown away.

A program has passed when `inside.py`, after the last part ran, writes a random token to a pipe
that is none of the standard ones. Neither an exit status nor anything that the program prints or
closes is taken for that. But the tests run in the program's own interpreter, as they must in order
to call it: a program that is written to cheat can walk the frames up to the token, or return
objects that equal everything. Nothing here makes such a grade true; it makes it harmless.

What is left to a hostile program: its CPU seconds, its memory and /tmp, and in kernel memory about
a kilobyte for each empty file that it makes (tmpfs stops it at an eighth of the machine's memory);
all of it is gone when it ends.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from crossroads.errors import EngineError
from crossroads.grading.seccomp import seccomp_filter

_INSIDE = Path(__file__).with_name("inside.py")
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_NOBODY = "65534"
_TMP = "/tmp"  # noqa: S108  the sandbox's own
_HEARD_BYTES = 1 << 16  # more than that, nobody honest has to say
_INSTALL = "install bubblewrap, for example with `apt-get install bubblewrap`"


class Ending(StrEnum):
    """How a program ended.

    INVALID: a part does not compile. KILLED: a signal ended it (a crash, or the kernel).
    """

    PASSED = "passed"
    FAILED = "failed"
    INVALID = "invalid"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    CPU seconds decide, because they do not depend on what else the machine does; wall seconds end
    a program that waits. `memory_bytes` is address space, and holds the interpreter, too.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 60.0
    memory_bytes: int = 512 << 20
    tmp_bytes: int = 16 << 20


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Run:
    """How a program ended; `error` in one line, `part` where it arose, empty if unknown."""

    ending: Ending
    error: str = ""
    part: str = ""


def check_sandbox() -> None:
    """Make a sandbox once, so that a run can be refused before it has cost anything.

    Raises:
        EngineError: none can be made here; says what to install or to allow.
    """
    run = run_program({"program": "pass"})
    if run.ending is not Ending.PASSED:
        raise EngineError(
            f"the sandbox for generated code does not run an empty program ({run.ending}: "
            f"{run.error}); grade on another machine"
        )


def run_program(parts: Mapping[str, str], limits: Limits = LIMITS) -> Run:
    """Run the named parts of a program, one after another in one namespace, in a fresh sandbox.

    The parts are compiled apart, and all of them before the first runs. Works in any thread, and
    in many at once.

    Raises:
        EngineError: no sandbox can be made here. Nothing has run then.
    """
    token = secrets.token_hex(16)
    job = {
        "token": token,
        "parts": dict(parts),
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.tmp_bytes,
    }
    heard = _run_sandboxed(json.dumps(job).encode(), limits)
    messages = _messages(heard.channel)
    if not messages or messages[0] != {"token": token}:
        raise _no_sandbox(heard, limits)
    if len(messages) == 1:
        return _without_a_word(heard, limits)
    last = {key: str(value) for key, value in messages[1].items()}
    if last.get("token") != token or last.get("ending") not in set(Ending):
        return Run(Ending.FAILED, "it wrote to the grader's channel")
    return Run(Ending(last["ending"]), last.get("error", ""), last.get("part", ""))


@dataclass(frozen=True, slots=True)
class _Heard:
    """What came out of a sandbox; `status` is None where it had to be killed."""

    channel: bytes
    complaints: bytes
    status: int | None


def _run_sandboxed(job: bytes, limits: Limits) -> _Heard:
    with _filter_descriptor() as descriptor:
        process = subprocess.Popen(
            [*_bwrap(), *_walls(limits), "--seccomp", str(descriptor), "--", *_python()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=[descriptor],
        )
    with process:
        try:
            return _exchange(process, job, limits.wall_seconds)
        finally:
            process.kill()  # and with it its whole PID namespace


def _bwrap() -> list[str]:
    if not sys.platform.startswith("linux"):
        raise EngineError(
            "generated code is only run in a sandbox of bubblewrap, which needs Linux, not "
            f"{sys.platform}: grade it on a Linux machine"
        )
    path = shutil.which("bwrap")
    if path is None:
        raise EngineError(
            f"generated code is only run in a sandbox, and there is no `bwrap`: {_INSTALL}"
        )
    return [path]


def _walls(limits: Limits) -> list[str]:
    """Return the options that make the sandbox."""
    executable = _executable()
    prefixes = {str(executable.parent.parent), sys.base_prefix, sys.base_exec_prefix}
    libraries = [f"{prefix}/{name}" for prefix in sorted(prefixes) for name in ("lib", "lib64")]
    options = [
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup-try", "--uid", _NOBODY, "--gid", _NOBODY, "--cap-drop", "ALL"),
        *("--die-with-parent", "--new-session"),
        # A seed for hashes: the same answer must get the same grade, whatever order a set has.
        *("--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "HOME", _TMP),
    ]
    # First of the mounts: a Python may live in /tmp.
    options += ["--size", str(limits.tmp_bytes), "--tmpfs", _TMP, "--chdir", _TMP]
    for folder in dict.fromkeys([*_SYSTEM_LIBRARIES, *libraries]):
        options += ["--ro-bind-try", folder, folder]
    options += ["--ro-bind", str(executable), str(executable)]
    packages = Path(sysconfig.get_path("stdlib")) / "site-packages"
    if packages.is_dir():
        options += ["--tmpfs", str(packages), "--remount-ro", str(packages)]
    # No /proc, /sys or whole /dev: each has files that root may write, or room that nobody counts.
    for device in ("/dev/null", "/dev/urandom"):
        options += ["--dev-bind", device, device]
    # The root folder itself is a tmpfs without a limit.
    return [*options, "--remount-ro", "/"]


def _python() -> list[str]:
    """Return the command inside; not `-I`, which would ignore the seed for hashes as well."""
    return [str(_executable()), "-S", "-s", "-P", "-X", "utf8", "-c", _INSIDE.read_text("utf-8")]


def _executable() -> Path:
    """Return the interpreter itself, not a virtual environment's name for it."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


@contextmanager
def _filter_descriptor() -> Iterator[int]:
    """Give the end of a pipe from which bwrap reads the filter of system calls."""
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(seccomp_filter(platform.machine()))  # far less than a pipe holds
        yield reading
    finally:
        os.close(reading)


def _exchange(process: subprocess.Popen[bytes], job: bytes, seconds: float) -> _Heard:
    """Write the job, keep the first bytes of what comes, and wait for the end or the deadline."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    deadline = time.monotonic() + seconds
    channel, complaints = bytearray(), bytearray()
    kept = {process.stdout.fileno(): channel, process.stderr.fileno(): complaints}
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        for descriptor in kept:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj is process.stdin:
                    job = _send(key.fd, job)
                    if not job:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                elif chunk := os.read(key.fd, _HEARD_BYTES):
                    kept[key.fd] += chunk[: _HEARD_BYTES - len(kept[key.fd])]
                else:
                    selector.unregister(key.fd)
    status = None
    with suppress(subprocess.TimeoutExpired):
        status = process.wait(max(0.0, deadline - time.monotonic()))
    return _Heard(bytes(channel), bytes(complaints), status)


def _send(descriptor: int, data: bytes) -> bytes:
    """Return what is left of `data`: nothing if nobody reads it any more."""
    try:
        return data[os.write(descriptor, data) :]
    except BrokenPipeError:
        return b""


def _messages(channel: bytes) -> list[dict[str, Any]]:
    """Return the messages; what is none is kept as an empty one, which belongs to nobody."""
    messages = []
    for line in channel.splitlines():
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        messages.append(message if isinstance(message, dict) else {})
    return messages


def _no_sandbox(heard: _Heard, limits: Limits) -> EngineError:
    if heard.status is None:
        return EngineError(
            f"the sandbox for generated code did not start within {limits.wall_seconds:g} s; "
            "grade with fewer at a time"
        )
    lines = heard.complaints.decode(errors="replace").strip().splitlines() or ["no message"]
    return EngineError(
        f"bubblewrap cannot make a sandbox for generated code here ({lines[-1]}); mostly that "
        "is because this user may not make user namespaces: allow them (on Ubuntu with `sysctl "
        "kernel.apparmor_restrict_unprivileged_userns=0`), or grade on a machine that does"
    )


def _without_a_word(heard: _Heard, limits: Limits) -> Run:
    """Return how a program ended that did not come to the end of its tests."""
    if heard.status is None:
        return Run(Ending.TIMEOUT, f"not done after {limits.wall_seconds:g} s")
    number = heard.status - 128  # as a shell, bwrap adds 128 to the signal
    if number == signal.SIGXCPU:
        return Run(Ending.TIMEOUT, f"not done after {limits.cpu_seconds} s of CPU time")
    if number in set(signal.Signals):
        return Run(Ending.KILLED, f"ended by {signal.Signals(number).name}")
    return Run(Ending.FAILED, f"left before its tests had ended, with status {heard.status}")
