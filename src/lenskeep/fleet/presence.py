"""Who is there: what the fleet has in mind of each device that calls, when it was heard, and who waits for news.

Rules. It is memory: a device is read from the store when it first calls, and an unchanged call asks and writes nothing.
When devices were heard is written together every few seconds, and a crash loses those seconds. Whoever waits is woken
in small groups, so that a thousand who wake do not hold up the others. A few come first, of those whom the news
concern, and have a head start: a canary need not fetch what is new in a crowd.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lenskeep.clock import Clock
from lenskeep.errors import LenskeepError, UnlistedDeviceError
from lenskeep.fleet.store.intake import IntakeStore
from lenskeep.messages.sync import Command, SlotNow
from lenskeep.trust.names import METADATA

log = logging.getLogger("lenskeep.fleet")

HEARD_EVERY_S = 5.0
LOOK_EVERY_S = 0.2
WRITTEN_TOGETHER = 500
WOKEN_TOGETHER = 32
WOKEN_PAUSE_S = 0.005
EARLY = 16
HEAD_START_S = 0.25
LATE_S = 0.05  # a loop that turns this much too late has too much to do
SLOWER_MAX = 4.0


@dataclass(slots=True, eq=False)
class Present:
    """One device, as the fleet has it in mind."""

    device: str
    known: str = ""
    counter: int = 0
    head_sequence: int = 0
    taken: dict[str, int] = field(default_factory=dict)  # by outbox
    slots: dict[str, SlotNow] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)
    heard_ms: int = 0
    address: str = ""
    seen: int = 0
    connection: int = 0
    stale: bool = False  # to be read anew at the next call
    report_hash: bytes = b""  # of the envelope that was taken last
    waiting: set[asyncio.Future[None]] = field(default_factory=set)


class Presence:
    """The devices that call, and the room where they wait."""

    def __init__(self, store: IntakeStore, repository: Path, clock: Clock, *, alone: bool = True) -> None:
        self._store = store
        self._timestamp = repository / METADATA / "timestamp.json"
        self._clock = clock
        self._alone = alone  # no other replica: what is in mind is the truth
        self._present: dict[str, Present] = {}
        self._heard: dict[str, Present] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._waking: OrderedDict[asyncio.Future[None], None] = OrderedDict()  # each once, however much news there is
        self._wakes = asyncio.Event()
        self._crowd_from_s = 0.0
        self._concerned: list[str] = []
        self._asked: set[str] = set()
        self._asks = asyncio.Event()
        self.wakes = 0
        self._stamp: tuple[int, int, int] = (0, 0, 0)
        self.newest = 0  # version of the repository's timestamp
        self.slower = 1.0  # how much longer devices are asked to stay away than usual
        self.neighbours: Callable[[str], list[str]] = lambda _device: []

    # --- one device -----------------------------------------------------------------------------------------------

    async def of(self, device: str, connection: int = 0) -> Present:
        """Return what is in mind of a device, read from the store at its first call.

        With other replicas it is read again at every new connection, because the device may have been at another one.
        """
        present = self._present.get(device)
        if present is None or present.stale or (not self._alone and present.connection != connection):
            standing = await self._store.standing(device)
            present = self._present.setdefault(device, Present(device))
            present.connection, present.stale = connection, False
            present.known, present.counter = standing.known, standing.counter
            present.head_sequence = standing.head_sequence
            present.slots, present.commands = dict(standing.slots), list(standing.commands)
            present.taken.clear()
        return present

    def heard(self, present: Present, address: str, seen: int) -> None:
        """Note that a device called."""
        present.heard_ms = self._clock.now_ms()
        present.address, present.seen = address, seen
        self._heard[present.device] = present

    def there(self, device: str) -> bool:
        """Say whether a device waits at this moment."""
        present = self._present.get(device)
        return present is not None and bool(present.waiting)

    def heard_ms(self, device: str) -> int:
        """Return when a device called this server last; 0 = not since it began."""
        present = self._present.get(device)
        return 0 if present is None else present.heard_ms

    @property
    def waiting(self) -> int:
        """How many calls wait for news."""
        return len(self._waiting)

    def asked(self, device: str) -> None:
        """Take notice that a device was asked something; whoever is named by nothing is everybody."""
        if device:
            self._asked.add(device)
        else:
            self._asked.update(self._present)
        self._asks.set()

    async def _tell_asked(self) -> None:
        while True:
            await self._asks.wait()
            self._asks.clear()
            asked, self._asked = self._asked, set()
            for device in asked:
                if (present := self._present.get(device)) is not None:
                    try:
                        present.commands = await self._store.open_commands(device)
                    except LenskeepError:  # a database that is away: asked again soon
                        self._asked.add(device)
                    else:
                        self.wake(device)
            if self._asked:
                await asyncio.sleep(LOOK_EVERY_S)
                self._asks.set()

    def wake(self, device: str) -> None:
        """Let a device that waits have its answer now."""
        if (present := self._present.get(device)) is not None:
            self.wakes += len(present.waiting)
            for each in present.waiting:
                _wake(each)

    def forget(self, device: str) -> None:
        """Send a device that is let in no longer away, also where it waits."""
        if (present := self._present.pop(device, None)) is not None:
            for each in tuple(present.waiting):
                if not each.done():
                    each.set_exception(UnlistedDeviceError(f"{device} is not let in any more."))

    def forget_all(self) -> None:
        """Read every device anew: the store was changed by somebody else. Who waits meanwhile is still told."""
        for each in self._present.values():
            each.stale = True

    # --- waiting --------------------------------------------------------------------------------------------------

    async def wait(self, present: Present, seconds: float) -> None:
        """Return when there is news or the time is over. Raises: UnlistedDeviceError."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, woken)
        present.waiting.add(woken)
        self._waiting.add(woken)
        try:
            await woken
        finally:
            timer.cancel()
            present.waiting.discard(woken)
            self._waiting.discard(woken)
            self._waking.pop(woken, None)

    def expect(self, concerned: Iterable[str]) -> None:
        """Hear whom the next news concern, before anybody can see them."""
        self._concerned = list(concerned)

    def news(self, version: int) -> None:
        """Take notice of a newer repository; whoever waits is woken, some of those whom it concerns first."""
        if version == self.newest:
            return
        self.newest = version
        concerned, self._concerned = self._concerned, []
        waiting = (each for device in concerned for each in self._waiting_of(device))
        early = list(itertools.islice(waiting, EARLY)) or list(itertools.islice(self._waiting, EARLY))
        for each in early:
            _wake(each)
        self._crowd_from_s = self._clock.monotonic_s() + HEAD_START_S
        self._waking.update(dict.fromkeys(self._waiting.difference(early)))
        self.wakes += len(self._waiting)
        self._wakes.set()

    def _waiting_of(self, device: str) -> Iterable[asyncio.Future[None]]:
        present = self._present.get(device)
        return present.waiting if present is not None else ()

    async def look(self) -> None:
        """Look whether the repository's timestamp is another one; what signs it calls this, and a loop does."""
        found = await asyncio.to_thread(_timestamp_in_thread, self._timestamp, self._stamp)
        if found is not None:
            self._stamp, version = found
            self.news(version)

    # --- loops ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Wake, look and write down, until cancelled."""
        async with asyncio.TaskGroup() as loops:
            for loop in (self._wake_some, self._tell_asked, self._look_often, self._write_often):
                loops.create_task(loop(), name=f"presence {loop.__name__}")

    async def _wake_some(self) -> None:
        while True:
            await self._wakes.wait()
            await asyncio.sleep(max(0.0, self._crowd_from_s - self._clock.monotonic_s()))
            for _ in range(min(WOKEN_TOGETHER, len(self._waking))):
                _wake(self._waking.popitem(last=False)[0])
            if not self._waking:
                self._wakes.clear()
            await asyncio.sleep(WOKEN_PAUSE_S)

    async def _look_often(self) -> None:
        while True:
            due_s = self._clock.monotonic_s() + LOOK_EVERY_S
            await self.look()
            await asyncio.sleep(max(0.0, due_s - self._clock.monotonic_s()))
            late_s = self._clock.monotonic_s() - due_s
            aim = min(SLOWER_MAX, max(1.0, late_s / LATE_S))
            self.slower += (aim - self.slower) * 0.1

    async def _write_often(self) -> None:
        while True:
            await asyncio.sleep(HEARD_EVERY_S * random.uniform(0.9, 1.1))  # noqa: S311 - replicas take turns
            await self.write()

    async def write(self) -> None:
        """Write down who was heard since the last time."""
        heard, self._heard = list(self._heard.values()), {}
        try:
            for start in range(0, len(heard), WRITTEN_TOGETHER):  # calls with records come in between
                some = heard[start : start + WRITTEN_TOGETHER]
                await self._store.heard([(each.device, each.heard_ms, each.address, each.seen) for each in some])
        except LenskeepError as error:  # a full disk: they are written when they call again
            log.warning("%s Who was heard could not be written: %s", error.code, error)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _timestamp_in_thread(path: Path, before: tuple[int, int, int]) -> tuple[tuple[int, int, int], int] | None:
    """Return the file's stamp and its version when it is another file than before."""
    try:
        found = path.stat()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp == before:
            return None
        return stamp, int(msgspec.json.decode(path.read_bytes())["signed"]["version"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or not whole: the next look sees it
        return None
