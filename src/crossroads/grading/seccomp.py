"""The system calls that a program in the sandbox may not make, as a filter for the kernel.

No call makes a process or a thread: one of each is all there is, so every limit on a process is a
limit on the whole program. RLIMIT_NPROC would do for ordinary users, but does not bind root.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping

from crossroads.errors import EngineError

# AUDIT_ARCH of linux/audit.h; a row of numbers below has one for each, in this order.
_ARCHITECTURES: Mapping[str, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# asm/unistd.h; None where a processor has no such call.
_REFUSED: Mapping[str, tuple[int | None, int | None]] = {
    # processes and threads, and the insides of other ones
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    # the network; some sockets (vsock, AF_ALG) are in no network namespace
    "socket": (41, 198),
    # memory that RLIMIT_AS does not count
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # namespaces, and doors into the kernel that no answer needs
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}

# The classic BPF instructions in use, and seccomp's verdicts (linux/bpf_common.h, seccomp.h).
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
_NUMBER, _ARCHITECTURE = 0, 4  # byte offsets in `struct seccomp_data`
_X32 = 0x40000000  # numbers from here on are the same calls by a second door of x86-64


def seccomp_filter(machine: str) -> bytes:
    """Return the filter for a processor such as `x86_64` (`platform.machine()`).

    The refused calls fail with EPERM. A call in another processor's convention (32-bit code on a
    64-bit machine) ends the process: its numbers mean something else.

    Raises:
        EngineError: the numbers of that processor's calls are not known.
    """
    if machine not in _ARCHITECTURES:
        raise EngineError(
            f"generated code is only run on {' and '.join(_ARCHITECTURES)}, not on {machine}; "
            "grade it on such a machine"
        )
    column = list(_ARCHITECTURES).index(machine)
    numbers = [row[column] for row in _REFUSED.values()]
    known = [number for number in numbers if number is not None]
    # Jumps count the instructions to skip; the last two are "allow" and "refuse".
    return b"".join(
        [
            _instruction(_LOAD, _ARCHITECTURE),
            _instruction(_IF_EQUAL, _ARCHITECTURES[machine], skip=1),
            _instruction(_RETURN, _KILL),
            _instruction(_LOAD, _NUMBER),
            _instruction(_IF_AT_LEAST, _X32, skip=len(known) + 1),
            *(
                _instruction(_IF_EQUAL, number, skip=len(known) - index)
                for index, number in enumerate(known)
            ),
            _instruction(_RETURN, _ALLOW),
            _instruction(_RETURN, _REFUSE),
        ]
    )


def _instruction(code: int, operand: int, skip: int = 0) -> bytes:
    """Return a `struct sock_filter`; it skips as many instructions where its condition holds."""
    return struct.pack("=HBBI", code, skip, 0, operand)
