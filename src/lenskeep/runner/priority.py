"""Thread priorities: what prepares a swap or paints a preview must not take a core from the line.

Rules. Linux gives every thread a nice value of its own. Lowering is always allowed; raising back needs CAP_SYS_NICE or
RLIMIT_NICE (`LimitNICE=+0` in the unit). SCHED_IDLE is not used: on a saturated core it never ends. Threads inherit
the value of the thread that made them, so the pool of a session built by a lowered thread would stay slow for ever.
A lowered thread must not hold what the line waits for. Above all that is the interpreter's lock: its holder, put aside
by the scheduler, stops every other thread. So where it is permitted a thread is lowered only for long native calls.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOWERED_BY = 10
NICE_MAX = 19


@functools.cache
def normal() -> int:
    """Return the nice value of the process as it was started."""
    return os.getpriority(os.PRIO_PROCESS, os.getpid())


def lowered() -> int:
    """Return the nice value for work beside the line."""
    return min(NICE_MAX, normal() + LOWERED_BY)


def lower_own() -> None:
    """Lower the calling thread."""
    os.setpriority(os.PRIO_PROCESS, 0, lowered())  # 0 is this thread, not the process


def restore(native_id: int) -> bool:
    """Give a thread its normal priority back; say whether that was permitted."""
    try:
        os.setpriority(os.PRIO_PROCESS, native_id, normal())
    except OSError:  # not permitted, or the thread has ended
        return False
    return True


@contextmanager
def aside() -> Iterator[None]:
    """Run a long native call at low priority in the calling thread; it stays low where it may not be raised."""
    lower_own()
    try:
        yield
    finally:
        restore(threading.get_native_id())


@functools.cache
def may_restore() -> bool:
    """Find out once whether this process may raise a thread that it lowered; a thread of its own is tried on."""
    answers: list[bool] = []

    def probe() -> None:
        lower_own()
        answers.append(restore(threading.get_native_id()))

    thread = threading.Thread(target=probe, name="priority-probe", daemon=True)
    thread.start()
    thread.join()
    return answers[0]


def restore_pool_threads() -> None:
    """Raise lowered threads that Python did not start: the pool threads of a session built by a lowered thread."""
    known = {thread.native_id for thread in threading.enumerate()}
    for entry in Path("/proc/self/task").iterdir():
        native_id = int(entry.name)
        if native_id not in known and _nice(native_id) == lowered():
            restore(native_id)


def _nice(native_id: int) -> int | None:
    try:
        return os.getpriority(os.PRIO_PROCESS, native_id)
    except ProcessLookupError:
        return None
