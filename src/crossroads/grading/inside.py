"""What runs inside the sandbox: it sets the limits, runs a program and tells how it ended.

`sandbox.py` hands this file to the interpreter as text, so it imports the standard library only.
A job comes as JSON on stdin; one line of JSON goes back on stdout before the program starts, and
one when it has ended.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import types
from typing import Any, NoReturn

_ERROR_CHARACTERS = 300


def main() -> NoReturn:
    """Do the job on stdin.

    Effects: stdin, stdout and stderr become /dev/null, so that nothing that the program prints or
    closes reaches the channel; the process never returns.
    """
    job = json.load(sys.stdin)
    channel = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    # The program may put its own functions in the place of these.
    write, leave, dump = os.write, os._exit, json.dumps
    limit(job["cpu_seconds"], job["memory_bytes"], job["file_bytes"])
    write(channel, (dump({"token": job["token"]}) + "\n").encode())
    outcome = run(job["parts"])
    write(channel, (dump({"token": job["token"], **outcome}) + "\n").encode())
    leave(0)


def limit(cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Limit this process for good; there is no other, see `seccomp.py`."""
    limits = {
        # A second between the signal that says why, and the one that nobody can ignore.
        resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),
        resource.RLIMIT_AS: (memory_bytes, memory_bytes),
        resource.RLIMIT_FSIZE: (file_bytes, file_bytes),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_NPROC: (1, 1),
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, value)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)


def run(parts: dict[str, str]) -> dict[str, str]:
    """Run the parts of a program one after another in one namespace.

    They are compiled apart, all of them first: a part can neither swallow the next one with an
    open quote, nor is its `from __future__ import` in the wrong place.

    Returns:
        `ending`, and, if it is not "passed", `part` and `error`.
    """
    program = types.ModuleType("program")
    sys.modules["program"] = program  # dataclasses look their module up
    codes = {}
    for part, source in parts.items():
        full = _ending("memory", part, "")  # made now: later there may be no memory for it
        try:
            codes[part] = compile(source, f"<{part}>", "exec", dont_inherit=True)
        except MemoryError:
            return full
        except (SyntaxError, ValueError, RecursionError) as error:
            return _ending("invalid", part, describe(error, parts))
    for part, code in codes.items():
        full = _ending("memory", part, "")
        try:
            exec(code, program.__dict__)  # noqa: S102  that is the job
        except MemoryError:
            return full
        except BaseException as error:  # noqa: BLE001  SystemExit, too, is no success
            return _ending("failed", part, describe(error, parts))
    return _ending("passed", "", "")


def _ending(ending: str, part: str, error: str) -> dict[str, str]:
    return {"ending": ending, "part": part, "error": error}


def describe(error: BaseException, parts: dict[str, str]) -> str:
    """Return an error's first line, and the last line of the program on the way to it."""
    try:
        text = str(error).strip().partition("\n")[0]
        line = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return (line + _last_line(error.__traceback__, parts))[:_ERROR_CHARACTERS]
    except BaseException:  # noqa: BLE001  the program may have written `__str__`
        return "an error that cannot be shown"


def _last_line(traceback: Any, parts: dict[str, str]) -> str:
    found = ""
    while traceback is not None:
        part = traceback.tb_frame.f_code.co_filename.strip("<>")
        if part in parts:
            lines = parts[part].splitlines()
            found = f" (at `{lines[traceback.tb_lineno - 1].strip()}`)"
        traceback = traceback.tb_next
    return found


if __name__ == "__main__":
    main()
