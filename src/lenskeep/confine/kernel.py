"""The few calls to the kernel that Python has no words for. No closures and no callbacks: those need pages that are
written and then run, and the service forbids such pages.

Why this room speaks to the kernel itself. Looked at in November 2026: `landlock` 1.0.0.dev5 (for files alone) and
`py-landlock` 0.1.1 (for the network as well) call themselves alphas and have one author each; both close what a rule
for a file under /proc needs open. `pyseccomp` is of 2021 and needs a C library that a device may not have. What they
would spare us is some two hundred lines over an interface that Linux promises never to break, in the one place where
somebody else's mistake would go unseen. So the calls are made here, and tests hold the numbers against another source
and every promise against a real kernel.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from lenskeep.confine import calls

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
PR_SET_MM = 35
PR_SET_MDWE = 65
PR_SET_PTRACER = 0x59616D61

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_NICE = 1, 2, 23
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make one system call. Raises: OSError."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    answer = int(_libc.syscall(ctypes.c_long(number), *words))
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


def control(option: int, value: int | bytes = 0, more: int | bytes = 0) -> bool:
    """Set one property of this process; say whether the kernel knows and took it."""
    words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in (value, more)]
    return bool(_libc.prctl(ctypes.c_int(option), *words, ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0)


def status(field: str) -> str:
    """Return what the kernel says of the calling thread: a field of its status file, empty when there is none."""
    for line in Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    return ""


def drop_capabilities(kept: frozenset[int]) -> None:
    """Give up what a root process may do beyond its account, but for `kept`; nothing to do for any other account.

    Raises: OSError when the kernel does not let go.
    """
    machine = calls.machine()
    if not machine:
        return
    get, put = calls.by_argument(machine)["capget"], calls.always_refused(machine)["capset"]
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; the low words, then the high ones
    call(get, header, data)
    effective, permitted, _, effective_high, permitted_high, _ = struct.unpack("=6I", data.raw)
    mask = sum(1 << capability for capability in kept)
    if (effective | permitted) & ~mask or effective_high | permitted_high:
        call(put, header, struct.pack("=6I", effective & mask, permitted & mask, 0, 0, 0, 0))
