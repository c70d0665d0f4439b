"""Reads every stored file slowly, again and again, and sees to it that damage is found before somebody needs the file.

Rules. Reading is done by a process that gets the processor and the disk only when nobody else wants them, at a limited
rate, and not at all while a trial or a swap is under way or the line is late. It goes on where it was after a restart.
When the next pass is due is counted in hours that the device was up, so that no clock can put it off. A damaged file is
set aside at once: it is never served and never run. What runs was hashed when it was loaded and goes on; the pointer
file of its slot then names the previous version, if that is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from lenskeep.clock import Clock, rfc3339
from lenskeep.config import Storage
from lenskeep.daemon.events import Events
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.places import Places
from lenskeep.daemon.plans import Plans
from lenskeep.daemon.problems import fault_check
from lenskeep.database import Database
from lenskeep.errors import BlobDamagedError, ConflictError, DeviceError, LenskeepError, ScrubOverdueError
from lenskeep.lifecycle import SlotState
from lenskeep.messages.control import Check, DamageView, Operation, ScrubView
from lenskeep.registry import audit, scrub, slots
from lenskeep.registry.blobs import MEBIBYTE, Blobs
from lenskeep.registry.scrub import Damage, Progress, Stored

log = logging.getLogger(__name__)

DAY_S = 86400
BEGIN_SHARE = 0.8  # a pass begins when this part of its time is over, so that the rest is left for reading
REPAIR_TRIES = 3
REST_S = 60.0
SAVE_S = 20.0
COUNT_S = 900.0
LOOK_S = 0.5
NOW_BYTES_S = 1e12  # when a person waits: as fast as it goes beside everything else


class Repairer(Protocol):
    """Where a whole copy of a stored file may be had: a neighbour, the fleet."""

    def fetch(self, sha256: str, size_bytes: int) -> AsyncIterator[bytes]:
        """Yield the file's bytes; they are hashed here. Raises: PeerError, TrustError."""


class Scrubber:
    """Reads, finds, sets aside, repairs. `busy`, `repairer` and `try_again` are given by who builds the house."""

    def __init__(
        self, storage: Storage, places: Places, database: Database, blobs: Blobs, plans: Plans, operations: Operations,
        events: Events, clock: Clock,
    ) -> None:  # fmt: skip
        self.busy: Callable[[], str] = str  # what must not be disturbed now; nothing when nothing must
        self.repairer: Repairer | None = None
        self.try_again: Callable[[str], Awaitable[Any]] | None = None  # a version whose prepared model is gone
        self._every_s = storage.scrub_days * DAY_S
        self._rate_bytes_s = storage.scrub_mb_s * MEBIBYTE
        self._aside = places.state_dir / "damaged"
        self._prepared = places.prepared
        self._database = database
        self._blobs = blobs
        self._plans = plans
        self._operations = operations
        self._events = events
        self._clock = clock
        self._wake = asyncio.Event()
        self._asked: Operation | None = None
        self._reader: Reader | None = None
        self._files: list[Stored] = []
        self._damaged: set[str] = set()
        self._progress = Progress()
        self._counted_s = clock.boot_s()

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Find out how far the last daemon came."""
        async with self._database.read() as tx:
            self._progress = await scrub.progress(tx)
            kept = {one.file for one in await scrub.damages(tx)}
        await asyncio.to_thread(_forget_in_thread, self._aside, kept)

    async def run(self) -> None:
        """Read whenever it is time, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REST_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if self._asked or self._progress.cursor or self._due():
                    await self._pass()
                elif self._clock.boot_s() - self._counted_s >= COUNT_S:
                    await self._save(self._progress)
            except DeviceError as error:  # a full disk: reading goes on later, and nothing was forgotten
                log.warning("%s reading the store was put off: %s", error.code, error)
                if self._asked is not None:
                    await self._operations.fail(self._asked.id, error)
                    self._asked = None

    def _due(self) -> bool:
        """Say whether it is time, by the hours of service or, where it can be believed, by the calendar."""
        after_s, at = self._every_s * BEGIN_SHARE, self._progress
        believed = at.finished_ms is not None and at.finished_trusted and self._clock.trusted()
        calendar_s = self._clock.now_s() - (at.finished_ms or 0) / 1000 if believed else 0.0
        return self._never() or self._up_s() >= after_s or calendar_s >= after_s

    def _never(self) -> bool:
        return self._progress.whole_passes == 0

    def _up_s(self) -> int:
        return self._progress.up_s + int(self._clock.boot_s() - self._counted_s)

    async def _pass(self) -> None:
        if self._asked is not None:
            self._progress = msgspec.structs.replace(self._progress, cursor="", files_done=0, bytes_done=0)
        await self._repair_all()
        async with self._database.read() as tx:
            self._files = await scrub.stored(tx)
            self._damaged = {one.file for one in await scrub.damages(tx)}
        saved_at = self._clock.monotonic_s()
        async with Reader(NOW_BYTES_S if self._asked else self._rate_bytes_s, self._why_paused) as self._reader:
            for file in self._files:
                if file.cursor <= self._progress.cursor:
                    continue
                await self._look(file, "scrub")
                if self._clock.monotonic_s() - saved_at >= SAVE_S:
                    await self._save(self._progress)
                    saved_at = self._clock.monotonic_s()
        self._reader = None
        await self._finish()

    async def _look(self, file: Stored, by: str) -> None:
        assert self._reader is not None
        answer = await self._reader.read(self._path(file), file.sha256)
        word, _, size = answer.partition(" ")
        if word != "whole":
            await self._judge(file, word, by)
        elif file.file in self._damaged:
            await self.renewed({file.file})  # somebody has put it back
        self._progress = msgspec.structs.replace(
            self._progress, cursor=file.cursor, files_done=self._progress.files_done + 1,
            bytes_done=self._progress.bytes_done + (int(size) if word in ("whole", "damaged") else 0),
        )  # fmt: skip
        if self._asked is not None:
            done = min(self._progress.files_done, len(self._files))
            self._operations.progress(self._asked.id, "read", done, len(self._files), "files")

    async def _finish(self) -> None:
        total = (self._progress.files_done, self._progress.bytes_done)
        self._counted_s = self._clock.boot_s()
        await self._save(
            Progress(
                whole_passes=self._progress.whole_passes + 1, finished_ms=self._clock.now_ms(),
                finished_trusted=self._clock.trusted(),
            )
        )  # fmt: skip
        found = await self.damages()
        log.info("read %d stored files, %.1f MiB; %d are damaged", total[0], total[1] / MEBIBYTE, len(found))
        if self._asked is not None:
            result = {"files": total[0], "bytes": total[1], "damaged": msgspec.to_builtins(found)}
            await self._operations.succeed(self._asked.id, result)
            self._asked = None

    async def _save(self, progress: Progress) -> None:
        up_s = self._up_s() if progress is self._progress else progress.up_s
        self._progress, self._counted_s = msgspec.structs.replace(progress, up_s=up_s), self._clock.boot_s()
        async with self._database.write() as tx:
            await scrub.save_progress(tx, self._progress)

    def _why_paused(self) -> str:
        """A pass that is late does not wait for a line that is always late; it still takes only what nobody wants."""
        why = self.busy()
        late = self._up_s() > self._every_s or self._asked is not None
        return "" if late and why == LINE_LATE else why

    def _path(self, file: Stored) -> Path:
        return self._blobs.path(file.file) if file.kind == "blob" else self._prepared / file.file

    # --- damage -----------------------------------------------------------------------------------------------------

    async def look_at(self, digests: list[str], by: str) -> None:
        """Read these blobs again and set aside what is damaged."""
        for sha256 in digests:
            await self._judge(Stored("blob", sha256, sha256, 0), "", by)

    async def read_aside(self, digests: list[str], by: str) -> None:
        """Read these blobs now, as fast as it goes beside everything else, and set aside what is damaged."""
        async with Reader(NOW_BYTES_S, lambda: "") as reader:
            for sha256 in digests:
                answer = await reader.read(self._blobs.path(sha256), sha256)
                if not answer.startswith("whole"):
                    await self._judge(Stored("blob", sha256, sha256, 0), answer.partition(" ")[0], by)

    async def _judge(self, file: Stored, word: str, by: str) -> None:
        """Read once more what was not whole: it may have been removed or renewed meanwhile."""
        async with self._database.read() as tx:
            wanted = {(one.file, one.sha256) for one in await scrub.stored(tx)}
            known = {one.file for one in await scrub.damages(tx)}
        if (file.file, file.sha256) not in wanted or file.file in known:
            return
        answer = await asyncio.to_thread(_judge_in_thread, self._path(file), file.sha256)
        if answer != "whole":
            await self._set_aside(file, answer, by)
        elif word == "damaged":
            log.warning("%s was read wrong once and right the second time; the disk may be failing", file.file[:16])

    async def _set_aside(self, file: Stored, what: str, by: str) -> None:
        """Make a damaged file unusable, and say it loudly."""
        await asyncio.to_thread(_move_in_thread, self._path(file), self._aside)
        async with self._database.write() as tx:
            of = " ".join(await scrub.owners(tx, file.file))
            found = Damage(
                file=file.file, kind=file.kind, sha256=file.sha256, what=what, found_ms=self._clock.now_ms(),
                found_by=by,
            )  # fmt: skip
            if not await scrub.note_damage(tx, found):
                return
            await audit.add(
                tx, self._clock, by="device", action="damage", subject=of or file.file, before="stored",
                after="set aside", reason=f"{BlobDamagedError.code} {file.kind} {file.file} {what}, found by {by}",
            )  # fmt: skip
        fault = _fault(found, of)
        log.error("%s %s", fault.code, fault)
        self._events.publish("fault", {"code": fault.code, "message": str(fault), "hint": fault.hint})
        await self._point()
        await self._repair(found)

    async def _point(self) -> None:
        """Let every slot's pointer file name a version that is whole: the next start runs no damaged one."""
        async with self._database.read() as tx:
            broken = await scrub.damaged_models(tx)
            known = await slots.everything(tx)
        for slot in known:
            if slot.state in (SlotState.EMPTY, SlotState.PROBATION) or not slot.active:
                continue
            start = next((one for one in (slot.active, slot.previous) if one and one not in broken), "")
            if start:
                await self._plans.write_pointer(slot.name, await self._plans.bundle_ref(start))

    # --- repair -----------------------------------------------------------------------------------------------------

    async def renewed(self, files: set[str]) -> None:
        """Hear that files were stored anew, whole."""
        async with self._database.read() as tx:
            if not {one.file for one in await scrub.damages(tx)} & files:
                return
        async with self._database.write() as tx:
            healed = await scrub.heal(tx, files)
            for one in healed:
                of = " ".join(await scrub.owners(tx, one.file))
                await audit.add(
                    tx, self._clock, by="device", action="repair", subject=of or one.file, before="set aside",
                    after="whole", reason=f"{one.kind} {one.file}",
                )  # fmt: skip
        for one in healed:
            await asyncio.to_thread((self._aside / one.file).unlink, missing_ok=True)
        log.info("%d damaged files are whole again", len(healed))
        await self._point()

    async def _repair_all(self) -> None:
        async with self._database.read() as tx:
            found = await scrub.damages(tx)
        for one in found:
            await self._repair(one)

    async def _repair(self, found: Damage) -> None:
        try:
            if found.kind == "prepared":
                async with self._database.read() as tx:
                    of = await scrub.owners(tx, found.file)
                if of and self.try_again is not None:
                    await self.try_again(of[0])  # its trial prepares it anew
            elif self.repairer is not None and await self._fetched(self.repairer, found.sha256):
                await self.renewed({found.file})
        except LenskeepError as error:
            log.warning("%s %s could not be repaired: %s", error.code, found.file[:16], error)

    async def _fetched(self, repairer: Repairer, sha256: str) -> bool:
        """Try again when a copy was wrong: the repairer then asks somebody else."""
        for _ in range(REPAIR_TRIES):
            if await self._fetch(repairer, sha256):
                return True
        return False

    async def _fetch(self, repairer: Repairer, sha256: str) -> bool:
        async with self._database.read() as tx:
            size = next((one.size_bytes for one in await scrub.stored(tx) if one.file == sha256), None)
        if size is None:
            return False
        self._blobs.require_space(size)
        staging, digest, got = self._blobs.stage(), hashlib.sha256(), 0
        try:
            sink = staging.open_member("blob", size)
            async for chunk in repairer.fetch(sha256, size):
                got += len(chunk)
                if got > size:
                    return False
                digest.update(chunk)
                await asyncio.to_thread(sink.write, chunk)
            await asyncio.to_thread(sink.close)
            if digest.hexdigest() != sha256:
                return False
            await asyncio.to_thread(self._blobs.commit_in_thread, [(staging.path_of("blob"), sha256)])
        finally:
            await asyncio.to_thread(staging.close)
        return True

    # --- what others ask --------------------------------------------------------------------------------------------

    async def start(self, by: str) -> Operation:
        """Begin to read everything now. Raises: ConflictError while somebody else waits for that."""
        if self._asked is not None:
            raise ConflictError("The stored files are being read already.", hint=f"lenskeep op show {self._asked.id}")
        self._asked = await self._operations.begin("scrub", "stored files", by)
        if self._reader is not None:
            self._reader.hurry(NOW_BYTES_S)
        self._wake.set()
        return self._asked

    async def damages(self) -> list[DamageView]:
        """Return what is damaged now."""
        async with self._database.read() as tx:
            return [
                DamageView(
                    file=one.file, kind=one.kind, bundles=await scrub.owners(tx, one.file), what=one.what,
                    found=rfc3339(one.found_ms / 1000), by=one.found_by,
                )
                for one in await scrub.damages(tx)
            ]  # fmt: skip

    async def view(self) -> ScrubView:
        """Say how far it is and what was found."""
        at, reader = self._progress, self._reader
        paused = self._why_paused() if reader is not None else ""
        async with self._database.read() as tx:
            files = await scrub.stored(tx)
        return ScrubView(
            state="resting" if reader is None else "paused" if paused else "reading", reason=paused,
            files_done=at.files_done, files_total=len(files), bytes_done=at.bytes_done, whole_passes=at.whole_passes,
            finished=rfc3339(at.finished_ms / 1000) if at.finished_ms is not None else "",
            next_s=max(0, int(self._every_s * BEGIN_SHARE) - self._up_s()) if not self._never() else 0,
            damaged=await self.damages(),
        )  # fmt: skip

    async def checks(self) -> list[Check]:
        """Return the lines of `doctor` about stored files."""
        async with self._database.read() as tx:
            found = [(one, " ".join(await scrub.owners(tx, one.file))) for one in await scrub.damages(tx)]
        lines = [fault_check("stored files", _fault(one, of), "fault") for one, of in found]
        days = self._up_s() / DAY_S
        if self._up_s() > self._every_s:
            late = ScrubOverdueError(f"The last whole reading was {days:.0f} days of service ago.")
            lines.append(fault_check("stored files", late, "warn"))
        if not lines:
            text = "not read through yet" if self._never() else f"all whole when read {days:.0f} days of service ago"
            lines.append(Check(name="stored files", passed=True, text=text))
        return lines


LINE_LATE = "the line is late"


class Reader:
    """The reading process, paused while something forbids to read."""

    def __init__(self, rate_bytes_s: float, why_paused: Callable[[], str]) -> None:
        self._rate_bytes_s = rate_bytes_s
        self._why_paused = why_paused
        self._paused = False

    async def __aenter__(self) -> Reader:
        try:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lenskeep.daemon.scrubreader", str(self._rate_bytes_s),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise DeviceError(f"The process that reads stored files did not start: {error.strerror}.") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()
        await self._child.wait()

    def hurry(self, rate_bytes_s: float) -> None:
        """Read faster from now on."""
        self._say(f"rate {rate_bytes_s}")

    async def read(self, path: Path, sha256: str) -> str:
        """Return the reader's word about a file. Raises: DeviceError when the process ended."""
        assert self._child.stdout is not None
        self._heed()
        self._say(f"read {sha256} {path}")
        answer = asyncio.ensure_future(self._child.stdout.readline())
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=LOOK_S)
                self._heed()
        finally:
            answer.cancel()
        line = answer.result().decode().strip()
        if not line:
            raise DeviceError("The process that reads stored files ended.")
        return line

    def _heed(self) -> None:
        paused = bool(self._why_paused())
        if paused != self._paused:
            self._paused = paused
            self._say("pause" if paused else "go")

    def _say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(f"{line}\n".encode())


def _fault(found: Damage, of: str) -> BlobDamagedError:
    name = "The prepared model" if found.kind == "prepared" else "A stored file"
    return BlobDamagedError(
        f"{name} of {of or 'nothing known'} is {found.what} on the disk ({found.file[:16]}…). It was set aside and is "
        "not run; what runs now runs from memory."
    )


def _judge_in_thread(path: Path, sha256: str) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source:
            while chunk := source.read(MEBIBYTE):
                digest.update(chunk)
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "unreadable"
    return "whole" if digest.hexdigest() == sha256 else "damaged"


def _forget_in_thread(aside: Path, kept: set[str]) -> None:
    for path in aside.glob("*"):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _move_in_thread(path: Path, aside: Path) -> None:
    aside.mkdir(mode=0o750, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.replace(aside / path.name)
