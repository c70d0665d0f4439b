"""What `doctor` looks at: this box, its clock, its keys, its runtime. Each line has a code and a next step."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version

import psutil
from msgspec import Struct

from lenskeep.clock import Clock, rfc3339
from lenskeep.daemon.problems import fault_check
from lenskeep.daemon.timekeeper import clock_fault
from lenskeep.database import Database
from lenskeep.errors import (
    LenskeepError,
    MemoryBudgetError,
    StorageFullError,
)
from lenskeep.messages.control import Check
from lenskeep.registry.blobs import MEBIBYTE, Blobs

MEMORY_FREE_MB_MIN = 128
HOT_C = 85.0


class Box(Struct, frozen=True):
    """The device's own state."""

    memory_free_mb: int
    load: float
    temperature_c: float | None
    daemon_rss_mb: float


Examine = Callable[[], Awaitable[list[Check]]]


class Health:
    """Looks at the device."""

    def __init__(
        self, database: Database, blobs: Blobs, clock: Clock, notes: list[LenskeepError], looks: Sequence[Examine]
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._notes = notes  # what went wrong at the start and was survived
        self._looks = looks  # what other parts know of themselves
        self._process = psutil.Process()

    def box(self) -> Box:
        """Return load, memory and temperature."""
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
        readings = [reading.current for group in sensors.values() for reading in group]
        return Box(
            memory_free_mb=psutil.virtual_memory().available // MEBIBYTE, load=round(os.getloadavg()[0], 2),
            temperature_c=max(readings) if readings else None,
            daemon_rss_mb=round(self._process.memory_info().rss / MEBIBYTE, 1),
        )  # fmt: skip

    async def checks(self) -> list[Check]:
        """Return every line of `doctor`, root causes first."""
        box = self.box()
        lines = [fault_check("start", note) for note in self._notes]
        lines += [self._clock_line(), self._disk_line(), _memory_line(box), *_heat_lines(box)]
        for examine in self._looks:
            lines += await examine()
        lines += [_runtime_line()]
        return lines

    def _clock_line(self) -> Check:
        shown = rfc3339(self._clock.wall_s())
        if (fault := clock_fault(self._clock)) is not None:
            return fault_check("clock", fault, "warn")
        return Check(name="clock", passed=True, text=f"{shown}, plausible")

    def _disk_line(self) -> Check:
        free = self._blobs.free_bytes() // MEBIBYTE
        if free <= 0:
            return fault_check("disk", StorageFullError(f"{-free} MiB more must be free before anything is stored."))
        return Check(name="disk", passed=True, text=f"{free} MiB may be used")


def _memory_line(box: Box) -> Check:
    if box.memory_free_mb < MEMORY_FREE_MB_MIN:
        return fault_check("memory", MemoryBudgetError(f"Only {box.memory_free_mb} MiB of memory are free."), "warn")
    return Check(name="memory", passed=True, text=f"{box.memory_free_mb} MiB free")


def _heat_lines(box: Box) -> list[Check]:
    if box.temperature_c is None:
        return []
    hot = box.temperature_c >= HOT_C
    return [
        Check(
            name="temperature", passed=not hot, text=f"{box.temperature_c:.0f} °C", code="LK-5000" if hot else "",
            hint="Improve the cooling; a hot processor slows down." if hot else "", severity="warn" if hot else "ok",
        )
    ]  # fmt: skip


def _runtime_line() -> Check:
    return Check(
        name="runtime", passed=True,
        text=f"Lenskeep {version('lenskeep')}, Python {sys.version.split()[0]}, ONNX Runtime {version('onnxruntime')}, "
        f"OpenCV {version('opencv-python-headless')}, SQLite {sqlite3.sqlite_version}",
    )  # fmt: skip
