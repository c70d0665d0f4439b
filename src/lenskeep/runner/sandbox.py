"""What the trial's process allows itself, set before the model's first byte is read.

A model is a program from outside: it may ask for any memory, run for ever, or crash the runtime. The limits here are
the kernel's, so nothing in the process can lift them. Not here: the wall clock and what a death means; the parent has
both.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

MB = 1 << 20
THREAD_SPACE_MB = 80  # of addresses, for a thread's stack and the C library's arena; hardly any of it is memory
CPU_GRACE_S = 3
FILES_MAX = 128
_PR_SET_PDEATHSIG = 1
_CHECK_EVERY_S = 0.1


def die_with_parent() -> None:
    """Let the kernel end this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit(*, memory_max_mb: int, threads: int, cpu_max_s: int, file_max_mb: int) -> list[str]:
    """Bound what this process may take from now on, beyond the libraries it has loaded; return the bounds in words.

    Not bounded is the count of processes: the kernel counts all threads of the account, and none of root's. That no
    process is begun is for `confine`, and threads need addresses.

    Args:
        cpu_max_s: of all threads together; `CpuWatch` reports at this time, the kernel ends the process a little later.
        file_max_mb: of any one file that it writes.
    """
    space = status_mb("VmSize") + memory_max_mb + THREAD_SPACE_MB * (threads + 3)
    _bound(resource.RLIMIT_AS, space * MB)
    _bound(resource.RLIMIT_CPU, cpu_max_s + CPU_GRACE_S)
    _bound(resource.RLIMIT_FSIZE, file_max_mb * MB)
    _bound(resource.RLIMIT_NOFILE, FILES_MAX)
    return [
        f"{memory_max_mb} MB of memory", f"{cpu_max_s} s of processor time", f"{file_max_mb} MB in a file",
        f"{FILES_MAX} open files",
    ]  # fmt: skip


def _bound(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most + 1 if kind == resource.RLIMIT_CPU else most))


def status_mb(field: str) -> int:
    """Return a size of this process as Linux counts it, in whole MB: VmSize, VmRSS, VmHWM."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return -(-int(line.split()[1]) // 1024)
    raise RuntimeError(f"this kernel does not count {field}")


def forget_peak() -> None:
    """Let the peak of resident memory (VmHWM) begin anew; kernels that cannot do it keep the old one."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


class CpuWatch(threading.Thread):
    """Calls `over` in its own thread once the process has used its processor time.

    A signal would not do: Python handles signals in the main thread, and that one is inside the runtime.
    """

    def __init__(self, cpu_max_s: int, over: Callable[[], None]) -> None:
        super().__init__(name="cpu-watch", daemon=True)
        self._cpu_max_s = cpu_max_s
        self._over = over

    def run(self) -> None:
        """Look ten times a second."""
        while time.process_time() < self._cpu_max_s:
            time.sleep(_CHECK_EVERY_S)
        self._over()


def end_at_once() -> None:
    """End the process without waiting for any thread; what was to be said has been said."""
    os._exit(0)
