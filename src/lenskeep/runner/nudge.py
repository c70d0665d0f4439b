"""A tap on the shoulder of the reporter's thread: from the loop when there is news, or when a signal comes.

Signals are written into it by the C handler, so they arrive even while the main thread is inside native code.
"""

from __future__ import annotations

import contextlib
import os


class Nudge:
    """A pipe that never blocks; `fileno` is to be polled, `writer` is for `signal.set_wakeup_fd`."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Return the end to poll."""
        return self._reader

    def give(self) -> None:
        """Wake the reporter. Cost: about 1 us."""
        with contextlib.suppress(BlockingIOError):  # it is being woken a thousand times over
            os.write(self.writer, b"\0")

    def take(self) -> bytes:
        """Return what came: signal numbers, or zeros."""
        return os.read(self._reader, 64)
