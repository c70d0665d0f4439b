"""One input at a time, watched: a foreign exception, more than two seconds or more than 200 MB is a crash."""

from __future__ import annotations

import contextlib
import hashlib
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenskeep.errors import LenskeepError

HANG_S = 2.0
GROWTH_MB_MAX = 200
SCRATCH = "LENSKEEP_FUZZ_SCRATCH"  # a folder that the parent process removes
KEPT = Path(__file__).parent / "kept"


@dataclass(frozen=True)
class Target:
    """A parser that reads what strangers wrote."""

    name: str
    feed: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    refusals: tuple[type[Exception], ...] = (LenskeepError,)

    def kept(self) -> list[bytes]:
        """Inputs that once were crashes."""
        return [path.read_bytes() for path in sorted((KEPT / self.name).glob("*"))]


@dataclass(frozen=True)
class Crash:
    """An input that did what no input may do."""

    data: bytes
    what: str

    def keep(self, target: Target) -> Path:
        """Write the input where the tests find it again."""
        path = KEPT / target.name / hashlib.sha256(self.data).hexdigest()[:16]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data)
        return path


class HungError(BaseException):
    """The time of one input is over; no parser may catch it."""


def tried(target: Target, data: bytes) -> Crash | None:
    """Feed one input. Cost: a few microseconds more than the parser."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with _bounded(HANG_S):
            target.feed(data)
    except target.refusals:
        pass
    except HungError:
        return Crash(data, f"no answer within {HANG_S} s")
    except Exception:
        return Crash(data, traceback.format_exc(limit=-6))
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return Crash(data, f"{grown_mb:.0f} MB for one input") if grown_mb > GROWTH_MB_MAX else None


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    def over(_number: int, _frame: Any) -> None:
        raise HungError

    previous = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
