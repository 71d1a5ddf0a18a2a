"""Whatever a program does, it harms nothing and has not passed unless its tests ended."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crossroads.errors import EngineError
from crossroads.grading import sandbox as module
from crossroads.grading import seccomp
from crossroads.grading.sandbox import Ending, Limits, check_sandbox, run_program

ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
FEW = Limits(cpu_seconds=5, wall_seconds=60, memory_bytes=128 << 20)
SECOND = Limits(cpu_seconds=1)
needs_sandbox = pytest.mark.usefixtures("sandbox")


@pytest.fixture
def no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the filter of system calls away: the other walls must stand without it."""
    monkeypatch.setattr(module, "seccomp_filter", lambda _machine: ALLOW_ALL)


def run(source: str, limits: Limits = FEW) -> module.Run:
    return run_program({"answer": source, "tests": "assert DONE"}, limits)


# What a program is told


@needs_sandbox
def test_a_program_that_comes_to_its_end_has_passed() -> None:
    assert run("DONE = True") == module.Run(Ending.PASSED)


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "ending", "error", "part"),
    [
        ("DONE = 0", "failed", "AssertionError (at `assert DONE`)", "tests"),
        (
            "def f():\n    return 1 / 0\nf()",
            "failed",
            "ZeroDivisionError: division by zero (at `return 1 / 0`)",
            "answer",
        ),
        ("raise ValueError('a\\nb')", "failed", "ValueError: a (at", "answer"),
        ("raise SystemExit(3)", "failed", "SystemExit: 3", "answer"),
        ("import numpy", "failed", "ModuleNotFoundError: No module named 'numpy'", "answer"),
        ("DONE = (", "invalid", "SyntaxError: '(' was never closed", "answer"),
        ("DONE = '''", "invalid", "SyntaxError: unterminated", "answer"),
        ("DONE = 1\0", "invalid", "null bytes", "answer"),
        ("DONE = '\ud800'", "invalid", "UnicodeEncodeError", "answer"),
        ("DONE = 'x' * 10**9", "memory", "", "answer"),
        ("DONE = [bytearray(1 << 20) for _ in range(1000)]", "memory", "", "answer"),
        ("import ctypes; ctypes.string_at(0)", "killed", "SIGSEGV", ""),
        (
            "class E(Exception):\n    def __str__(self): raise self\nraise E",
            "failed",
            "an error that cannot be shown",
            "answer",
        ),
    ],
)
def test_an_end_has_its_kind_its_error_and_its_part(
    source: str, ending: str, error: str, part: str
) -> None:
    found = run(source)
    assert (found.ending, found.part) == (ending, part)
    assert error in found.error


@needs_sandbox
def test_a_program_that_waits_is_ended() -> None:
    source = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    started = time.monotonic()
    found = run(source, Limits(wall_seconds=0.5))
    assert time.monotonic() - started < 10
    assert found == module.Run(Ending.TIMEOUT, "not done after 0.5 s")


@needs_sandbox
def test_an_endless_loop_is_ended_even_if_it_ignores_the_signal() -> None:
    endless = "while True: pass"
    assert run(endless, SECOND) == module.Run(Ending.TIMEOUT, "not done after 1 s of CPU time")
    ignoring = f"import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n{endless}"
    assert run(ignoring, SECOND) == module.Run(Ending.KILLED, "ended by SIGKILL")


@needs_sandbox
def test_parts_share_names_and_nothing_else() -> None:
    parts = {
        "prompt": "import math",
        "answer": "from __future__ import annotations\n"
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int = math.floor(2.5)",
        "tests": "assert P().x == 2\nassert __name__ != '__main__'\n"
        "def f(x: 1): pass\nassert f.__annotations__ == {'x': 1}",
    }
    assert run_program(parts, FEW).ending is Ending.PASSED
    swallowing = {"answer": "DONE = False\ntext = '''", "tests": "'''\nassert DONE"}
    assert run_program(swallowing, FEW).ending is Ending.INVALID


@needs_sandbox
def test_sets_have_one_order() -> None:
    errors = {run("raise ValueError(hash('x'))").error for _ in range(2)}
    assert len(errors) == 1


@needs_sandbox
def test_many_run_at_once_from_other_threads() -> None:
    def numbered(number: int) -> str:
        return run(f"import time\ntime.sleep(3)\nraise ValueError({number})").error

    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(numbered, range(8)))
    assert [f"ValueError: {number} " in error for number, error in enumerate(errors)] == [True] * 8
    assert time.monotonic() - started < 20  # one after the other takes 24


# What it cannot pretend


@needs_sandbox
@pytest.mark.parametrize(
    "source",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "import sys; sys.exit()",
        "raise KeyboardInterrupt",
        "import os; os.closerange(0, 64)",
        "import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 3)",
        'print(\'{"ending": "passed", "part": "", "error": ""}\'); raise SystemExit',
        "import os, sys; sys.stdout.close(); os.close(1); os._exit(0)",
        "import os\nos.write = lambda *_: 0\nos._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, sys; os.execv(sys.executable, ['python', '-c', ''])",
    ],
)
def test_leaving_early_is_not_passing(source: str) -> None:
    assert run(source).ending in (Ending.FAILED, Ending.KILLED)


FORGED = '{"token": "x", "ending": "passed", "part": "", "error": ""}\\n'


@needs_sandbox
@pytest.mark.parametrize("then", ["os._exit(0)", "DONE = True"])
def test_what_others_write_to_the_channel_is_no_message(then: str) -> None:
    source = f"""
import os
for descriptor in range(64):
    try: os.write(descriptor, b'{FORGED}')
    except OSError: pass
{then}"""
    found = run(source)
    assert found == module.Run(Ending.FAILED, "it wrote to the grader's channel")


@needs_sandbox
@pytest.mark.parametrize("message", ['{"token": "%s"}', '{"token": "%s", "ending": []}'])
def test_a_program_that_found_the_token_cannot_stop_the_grader(message: str) -> None:
    source = f"""
import os, sys
frame = sys._getframe()
while 'channel' not in frame.f_locals: frame = frame.f_back
line = {message!r} % frame.f_locals['job']['token']
os.write(frame.f_locals['channel'], line.encode() + b'\\n')
os._exit(0)"""
    assert run(source) == module.Run(Ending.FAILED, "it wrote to the grader's channel")


@needs_sandbox
def test_a_flood_is_cut_and_no_flood_of_prints_is_kept() -> None:
    flood = """
import os
for descriptor in range(64):
    try:
        for _ in range(100): os.write(descriptor, b'x' * 65536)
    except OSError: pass
"""
    heard: list[module._Heard] = []

    def remember(*arguments: object) -> module._Heard:
        heard.append(original(*arguments))
        return heard[-1]

    original = module._run_sandboxed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_run_sandboxed", remember)
        assert run(flood).ending is Ending.FAILED
        assert run("for _ in range(100): print('x' * 100_000)\nDONE = 1").ending is Ending.PASSED
    assert len(heard[0].channel) == module._HEARD_BYTES
    assert len(heard[1].channel) < 300
    assert heard[1].complaints == b""


# What it cannot reach


@needs_sandbox
@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.fork()",
        "import subprocess\nsubprocess.run(['/bin/true'])",
        "import os, sys\nos.posix_spawn(sys.executable, ['python'], {})",
        "import threading\nthreading.Thread(target=print).start()",
        "import socket\nsocket.socket()",
        "import socket\nsocket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
        "import os\nos.memfd_create('x')",
        "import os\nos.chroot('/tmp')",
    ],
)
def test_calls_that_lead_out_of_the_limits_are_refused(
    source: str,
) -> None:
    found = run(source)
    assert found.ending is Ending.FAILED
    assert found.error.startswith(("PermissionError", "RuntimeError: can't start new thread"))


@needs_sandbox
@pytest.mark.usefixtures("no_filter")
def test_no_process_outlives_its_sandbox() -> None:
    source = """
import os, time
if os.fork() == 0:
    os.setsid()
    os.closerange(0, 64)
    time.sleep(600)
DONE = True"""
    before = sandboxed_processes()
    run(source)
    assert gone(before)


@needs_sandbox
def test_nothing_outlives_the_grader(tmp_path: Path) -> None:
    script = tmp_path / "grader.py"
    script.write_text(
        "from crossroads.grading.sandbox import run_program\n"
        "run_program({'answer': 'import time; time.sleep(600)'})"
    )
    before = sandboxed_processes()
    with subprocess.Popen([sys.executable, str(script)]) as grader:
        assert eventually(lambda: len(sandboxed_processes() - before) >= 3)
        grader.send_signal(signal.SIGKILL)
    assert gone(before)


def sandboxed_processes() -> set[int]:
    """Return bwrap's two processes and the interpreter's one, for each sandbox there is."""
    marker = b"What runs inside the sandbox"
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def gone(before: set[int]) -> bool:
    return eventually(lambda: sandboxed_processes() <= before)


def eventually(condition) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@needs_sandbox
@pytest.mark.usefixtures("no_filter")
def test_the_network_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        found = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nDONE = 1")
    assert "ConnectionRefusedError" in found.error
    assert run(
        "import socket\nassert [n for _, n in socket.if_nameindex()] == ['lo']\nDONE = 1"
    ) == (module.Run(Ending.PASSED))


@needs_sandbox
def test_its_parent_is_out_of_reach() -> None:
    source = "import os, signal\nassert os.getppid() == 1\nos.kill(1, signal.SIGKILL)\nDONE = True"
    assert run(source).ending is Ending.PASSED


@needs_sandbox
def test_no_file_of_the_user_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program looks at every name that it can see, and reads by name what it knows of."""
    secret = tmp_path / "secret-27182"
    secret.write_text("the user's")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("API_KEY", "secret-27182")
    monkeypatch.chdir(tmp_path)
    known = [str(secret), secret.name, str(Path("~").expanduser() / secret.name)]
    known += [__file__, module.__file__, "/etc/passwd", "/etc/hostname", "/proc/1/environ"]
    source = f"""
import os
for path in {known}:
    assert not os.path.exists(path), path
for folder, folders, files in os.walk('/'):
    if folder.startswith({LIBRARIES}): folders.clear()
    assert 'secret-27182' not in files, folder
assert set(os.listdir('/')) <= {{'dev', 'etc', 'lib', 'lib64', 'tmp', 'usr', *{TOPS}}}
assert set(os.listdir('/dev')) == {{'null', 'urandom'}}
assert set(os.environ) <= {{'HOME', 'PWD', 'PYTHONHASHSEED', 'LC_CTYPE'}}, set(os.environ)
assert os.getcwd() == '/tmp'
DONE = True"""
    assert run(source) == module.Run(Ending.PASSED)


PREFIXES = (sys.base_prefix, sys.base_exec_prefix)
TOPS = sorted({Path(prefix).parts[1] for prefix in PREFIXES})
LIBRARIES = ("/lib", "/usr/lib", *(f"{prefix}/lib" for prefix in PREFIXES))


@needs_sandbox
def test_third_party_packages_are_not_even_files() -> None:
    source = "import os, sysconfig\nfolder = sysconfig.get_path('purelib')\n"
    source += "assert not os.path.exists(folder) or os.listdir(folder) == []\nDONE = True"
    assert run(source).ending is Ending.PASSED


# The next two try what would do no harm if the sandbox were broken.


@needs_sandbox
def test_only_its_own_tmp_can_be_written_and_is_fresh_and_small() -> None:
    source = f"""
import os, sys
def refused(call, *arguments):
    try: call(*arguments)
    except OSError: return True
os.mkdir('/tmp/mine')
for folder, folders, _ in os.walk('/'):
    if folder.startswith({LIBRARIES}): folders.clear()
    if not folder.startswith('/tmp'):
        assert refused(os.mkdir, folder + '/new') or os.rmdir(folder + '/new'), folder
for path in (os.__file__, sys.executable):
    assert refused(os.open, path, os.O_RDWR) and refused(os.utime, path), path
DONE = True"""
    limits = Limits(cpu_seconds=5, tmp_bytes=1 << 20)
    assert run(source, limits) == module.Run(Ending.PASSED)
    fresh = "import os\nassert 'mine' not in os.listdir('/tmp')\nDONE = 1"
    assert run(fresh) == module.Run(Ending.PASSED)
    fill = "for n in range(1000): open(f'/tmp/{n}', 'wb').write(bytes(1 << 16))"
    assert "No space left" in run(fill, limits).error


@needs_sandbox
def test_deleting_the_users_files_deletes_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "folder" / "kept"
    kept.parent.mkdir()
    kept.touch()
    run(f"import shutil\nshutil.rmtree({str(kept.parent)!r}, ignore_errors=True)")
    assert kept.exists()


@needs_sandbox
def test_limits_are_set_for_good() -> None:
    source = """
import resource as r
wanted = {r.RLIMIT_CPU: (1, 2), r.RLIMIT_AS: (1 << 28, 1 << 28), r.RLIMIT_FSIZE: (1 << 20, 1 << 20),
          r.RLIMIT_NOFILE: (64, 64), r.RLIMIT_NPROC: (1, 1), r.RLIMIT_MSGQUEUE: (0, 0),
          r.RLIMIT_CORE: (0, 0)}
for kind, limit in wanted.items():
    assert r.getrlimit(kind) == limit, kind
    try: r.setrlimit(kind, (limit[1], limit[1] + 1))
    except ValueError: continue
    raise AssertionError(kind)
DONE = True"""
    limits = Limits(cpu_seconds=1, memory_bytes=1 << 28, tmp_bytes=1 << 20)
    assert run(source, limits) == module.Run(Ending.PASSED)


@needs_sandbox
def test_no_capability_can_be_had() -> None:
    bounding_set = 23  # PR_CAPBSET_READ
    source = f"import ctypes\nread = ctypes.CDLL(None).prctl\nDONE = 1 - read({bounding_set}, 21)"
    assert run(source) == module.Run(Ending.PASSED)


# Where there is none


def test_without_bubblewrap_nothing_runs_and_the_error_tells_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="apt-get install bubblewrap"):
        check_sandbox()


def test_on_another_system_the_error_asks_for_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EngineError, match="needs Linux, not darwin"):
        check_sandbox()


@pytest.mark.parametrize("status", [0, 1])
def test_a_bubblewrap_that_makes_no_sandbox_is_no_failed_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(
        f"#!/bin/sh\necho '{FORGED}'; echo 'bwrap: no namespaces today' >&2\nexit {status}\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (check_sandbox, lambda: run("DONE = True")):
        with pytest.raises(EngineError, match=r"\(bwrap: no namespaces today\)"):
            call()


def test_a_bubblewrap_that_hangs_is_no_failed_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\nexec /bin/sleep 20\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    long = "#" * (1 << 20)  # more than a pipe holds: nobody reads it
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"did not start within 0\.2 s"):
        run(long, Limits(wall_seconds=0.2))
    assert time.monotonic() - started < 10


# The filter, on processors that the tests do not run on


def verdict(program: bytes, architecture: int, number: int) -> int:
    """Return what the kernel would do: a machine for the four instructions in use."""
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at, value = 0, 0
    while True:
        kind, then, otherwise, operand = code[at]
        if kind == 0x06:
            return operand
        if kind == 0x20:
            value = {0: number, 4: architecture}[operand]
        else:
            holds = value == operand if kind == 0x15 else value >= operand
            at += then if holds else otherwise
        at += 1


@pytest.mark.parametrize("machine", seccomp._ARCHITECTURES)
def test_the_filter_refuses_its_calls_and_no_other(machine: str) -> None:
    program = seccomp.seccomp_filter(machine)
    column = list(seccomp._ARCHITECTURES).index(machine)
    architecture = seccomp._ARCHITECTURES[machine]
    refused = {row[column] for row in seccomp._REFUSED.values()} - {None}
    for number in range(500):
        wanted = 0x00050001 if number in refused else 0x7FFF0000
        assert verdict(program, architecture, number) == wanted, number
    assert verdict(program, architecture, 0x40000000 + 39) == 0x00050001
    assert verdict(program, 0x40000003, 2) == 0x80000000  # fork, for 32-bit code


def test_an_unknown_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="x86_64 and aarch64, not on riscv64"):
        seccomp.seccomp_filter("riscv64")
