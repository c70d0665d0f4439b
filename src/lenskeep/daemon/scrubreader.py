"""`python -m lenskeep.daemon.scrubreader RATE`: reads stored files slowly and says whether they have their digests.

A process of its own, because it runs only when nobody else wants the processor or the disk; a thread that is put aside
like that while it holds the interpreter would hold up the daemon. Lines in: `read SHA256 PATH`, `pause`, `go`,
`rate BYTES_PER_S`. Lines out, one a file: `whole BYTES`, `damaged BYTES`, `missing`, `unreadable ERRNO`. It ends with
its input. Only the standard library is imported: it weighs some 10 MB while it lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import select
import sys
import time

CHUNK_BYTES = 1 << 18
IOPRIO_IDLE = 3 << 13
# ioprio_set(2) has no wrapper in the C library.
IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "armv7l": 314, "riscv64": 30}


class Ended(Exception):
    """Nobody asks any more."""


class Orders:
    """What the daemon says, heard between two pieces of a file."""

    def __init__(self, rate_bytes_s: float) -> None:
        self.rate_bytes_s = rate_bytes_s
        self._paused = False
        self._waiting = b""
        self._files: list[tuple[str, str]] = []

    def next_file(self) -> tuple[str, str]:
        """Wait for a file to read. Raises: Ended."""
        while not self._files:
            self._hear(None)
        return self._files.pop(0)

    def pace(self, seconds: float) -> None:
        """Rest so long, and as long as there is a pause. Raises: Ended."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            self._hear(None if self._paused else max(0.0, left))
            if not self._paused and left <= 0:
                return

    def _hear(self, timeout_s: float | None) -> None:
        if not select.select([0], [], [], timeout_s)[0]:
            return
        data = os.read(0, 1 << 16)
        if not data:
            raise Ended
        *lines, self._waiting = (self._waiting + data).split(b"\n")
        for line in lines:
            self._take(os.fsdecode(line))

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "read":
            sha256, _, path = rest.partition(" ")
            self._files.append((sha256, path))
        elif word == "rate":
            self.rate_bytes_s = float(rest)
        else:
            self._paused = word == "pause"


def read(path: str, sha256: str, orders: Orders) -> str:
    """Read a file from the disk, not from memory, and say what it is."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable {error.errno}"
    try:
        return _read(fd, sha256, orders)
    except OSError as error:
        return f"unreadable {error.errno}"
    finally:
        os.close(fd)


def _read(fd: int, sha256: str, orders: Orders) -> str:
    found, size = hashlib.sha256(), 0
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    while chunk := os.read(fd, CHUNK_BYTES):
        found.update(chunk)
        # what was read for us alone must not push out what others need
        os.posix_fadvise(fd, size, len(chunk), os.POSIX_FADV_DONTNEED)
        size += len(chunk)
        orders.pace(len(chunk) / orders.rate_bytes_s)
    return f"{'whole' if found.hexdigest() == sha256 else 'damaged'} {size}"


def stand_aside() -> None:
    """Take the processor and the disk only when nobody else wants them; where that is not allowed, as little as is."""
    os.nice(19)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None, use_errno=True).syscall(number, 1, 0, IOPRIO_IDLE)


def main() -> None:
    """Read what is asked until the input ends."""
    stand_aside()
    orders = Orders(float(sys.argv[1]))
    with contextlib.suppress(Ended, BrokenPipeError):
        while True:
            sha256, path = orders.next_file()
            os.write(1, read(path, sha256, orders).encode() + b"\n")


if __name__ == "__main__":
    main()
