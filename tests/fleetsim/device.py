"""One simulated device: it signs, calls, verifies and follows as a real one does, and misbehaves as it was told to.

Not here: frames, cameras, bundles' bytes (`downloading` is a time that passes), the rules of a real outbox on a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from lenskeep.bundle.keys import load_private_key
from lenskeep.clock import Clock
from lenskeep.messages.fleet import DeviceReport, SlotReport, TrustedVersions
from lenskeep.messages.sync import MEDIA_MSGPACK, RECORDS_MAX, Answer, Call, Happening, Outcome, Trial, Vitals, Window
from lenskeep.sketch import Sketch
from lenskeep.trust import envelope
from tests.fleetsim.enrolment import AUTHORITY
from tests.fleetsim.following import SLOT, Line
from tests.fleetsim.habits import Habits, Sample
from tests.fleetsim.journal import Journal
from tests.fleetsim.plan import Event, Plan
from tests.fleetsim.view import View, ViewError, thorough
from tests.fleetsim.wire import Reply, Wire, WireError

BACK_OFF_S = (0.5, 30.0)
BACKLOG_BATCH = 200
ANSWER_S = 20.0
SCORES = (0.99, 1.0)  # of a trial that went well
WORSE = 0.93

_calls = msgspec.msgpack.Encoder()
_answers = msgspec.msgpack.Decoder(Answer)


class OffsetClock(Clock):
    """A clock that is wrong by so much."""

    def __init__(self, by_s: float) -> None:
        self._by_s = by_s
        super().__init__()

    def wall_s(self) -> float:
        return time.time() + self._by_s


class Crowd:
    """What the devices of one process share: the plan, the authority, minutes of work to choose from, and notes."""

    def __init__(self, plan: Plan, usual: list[Sample], slow: list[Sample]) -> None:
        self.plan = plan
        self.authority = (Path(plan.identities) / AUTHORITY).read_text()
        self.root = Path(plan.root).read_bytes() if plan.root else b""
        self.usual, self.slow = usual, slow
        self.counts: Counter[str] = Counter()
        self.calls = Sketch()
        self.events: list[Event] = []

    def note(self, device: str, what: str, value: str) -> None:
        self.events.append(Event(time.monotonic(), device, what, value))


class SimDevice:
    """A device, from a start to a restart."""

    def __init__(self, name: str, crowd: Crowd, dice: random.Random) -> None:
        self.name = name
        self._crowd, self._plan, self._dice = crowd, crowd.plan, dice
        self.habits = Habits.draw(random.Random(f"{crowd.plan.seed} {name}"), crowd.plan.chances)
        path = Path(self._plan.journals) / f"{name}.journal" if self._plan.journals else None
        self.journal = Journal(path, records_max=self._plan.outbox_records)
        self._identity = Path(self._plan.identities) / f"{name}.pem"
        self._key = load_private_key(self._identity.read_bytes().partition(b"-----BEGIN CERT")[0])
        self._clock = OffsetClock(self.habits.clock_lie_s)
        self._wire = self._new_wire()
        self._path = f"/v1/devices/{name}/sync"
        self._line = Line(
            self.journal, self.habits, dice, self._plan.running, hashlib.sha256(name.encode()).hexdigest(),
            self._plan.step_s,
        )  # fmt: skip
        self._view = View(name, crowd.root) if crowd.root else None
        self._done: list[Outcome] = []
        self._known = ""
        self._told: list[object] = []  # slots as they were told last
        self._facts, self._sealed, self._digest = "", "", "none yet"
        self._failures = 0
        self._old: bytes = b""
        self._late: bytes = b""
        self._next_window_s = self._now_s() + self._plan.window_s * dice.random()
        self._silent = False
        self._newest = 0  # what a device that verifies nothing says that it has seen
        self._rushing = self._cut = False
        if not self.journal.next_number:
            self._produce(self._plan.backlog)
            if self._view is not None:
                self._tried(self._line.running, self._line.digest)

    def _new_wire(self) -> Wire:
        return Wire(self._plan.host, self._plan.port, self._crowd.authority, self._clock, self._identity)

    def _now_s(self) -> float:
        """The device's own passing time."""
        return time.monotonic() * self._plan.speed

    @property
    def finished(self) -> bool:
        return len(self.journal) == 0

    # --- what it produces -------------------------------------------------------------------------------------------

    def _produce(self, count: int) -> None:
        plan, line = self._plan, self._line
        slow = line.running == plan.slow_version and self.habits.hardware == plan.slow_hardware
        for _ in range(count):
            minute = self._dice.choice(self._crowd.slow if slow else self._crowd.usual)
            wall_s = max(0, int(self._clock.wall_s()))
            self.journal.put(
                Window(
                    n=self.journal.next_number, slot=SLOT, bundle=line.running, digest=line.digest, provider="cpu",
                    start_s=wall_s, seconds=int(plan.window_s), frames=minute.frames, sketches=minute.sketches,
                    outcomes={"OK": minute.frames - 2, "NG": 2},
                )
            )  # fmt: skip
            if self._dice.random() < plan.vitals_share:
                self.journal.put(
                    Vitals(
                        n=self.journal.next_number, at_ms=wall_s * 1000, clock_trusted=self._clock.trusted(),
                        disk_free_mb=4000, memory_free_mb=900, load=0.4, temperature_c=51.0, version="0.1",
                        hardware=self.habits.hardware,
                    )
                )  # fmt: skip
            self._crowd.counts["windows"] += 1

    def _happened(self, kind: str, text: str) -> None:
        happening = Happening(
            n=self.journal.next_number, kind=kind, at_ms=max(0, int(self._clock.wall_s() * 1000)), slot=SLOT,  # type: ignore[arg-type]
            bundle=self._line.running, code=self._line.code, text=text,
        )  # fmt: skip
        self.journal.put(happening)

    def _tried(self, bundle: str, digest: str, code: str = "") -> None:
        """Tell how a version did here: never below its own tolerance, and on some hardware perhaps worse than before."""
        worse = bundle == self._plan.worse_version and self.habits.hardware == self._plan.worse_hardware
        self.journal.put(
            Trial(
                n=self.journal.next_number, at_ms=max(0, int(self._clock.wall_s() * 1000)), bundle=bundle,
                digest=digest, provider="cpu", hardware=self.habits.hardware, code=code, golden_passed=8,
                golden_total=8, golden_score=WORSE if worse else round(self._dice.uniform(*SCORES), 4), p50_ms=9.0,
                p99_ms=14.0, memory_mb=60,
            )
        )  # fmt: skip
        self._crowd.counts["trials"] += 1

    def _catch_up(self) -> None:
        """Do what has become due."""
        if self._plan.drain:
            return
        now_s = self._now_s()
        if now_s >= self._next_window_s:
            due = 1 + int((now_s - self._next_window_s) / self._plan.window_s)
            self._produce(min(due, BACKLOG_BATCH))
            self._next_window_s += due * self._plan.window_s
        while self._line.step(now_s):
            self._happened("assignment", self._line.state)
            if self._line.state == "staged":
                self._tried(self._line.wanted, self._line.wanted_digest)
            self._crowd.note(self.name, "state", self._line.state)

    def _due_in_s(self) -> float:
        """Return how long nothing will be due, in our seconds."""
        due_s = self._next_window_s if self._line.due_s is None else min(self._next_window_s, self._line.due_s)
        return max(0.0, (due_s - self._now_s()) / self._plan.speed)

    # --- what it says -----------------------------------------------------------------------------------------------

    def _report(self) -> str:
        """Return a signed report while the fleet does not have the newest one; a new one when there is news to say."""
        line = self._line
        facts = f"{line.running} {line.digest} {self._view.timestamp if self._view else 0}"
        if facts != self._facts:
            self._facts, self._sealed, self._digest = facts, *self._seal()
        return "" if self._known == self._digest else self._sealed

    def _seal(self) -> tuple[str, str]:
        line = self._line
        counter = int(self.journal.noted("counter", 0)) + 1
        self.journal.note("counter", counter)
        said = DeviceReport(
            device=self.name, counter=counter, at_ms=max(0, int(self._clock.wall_s() * 1000)),
            clock_trusted=self._clock.trusted(),
            trusted=TrustedVersions(root=1, timestamp=self._view.timestamp if self._view else 0),
            slots=[
                SlotReport(
                    slot=SLOT, running=line.running, digest=line.digest, assigned=line.wanted, state=line.state
                )
            ],
        )  # fmt: skip
        payload = msgspec.json.encode(said)
        self._crowd.counts["reports"] += 1
        return envelope.seal(payload, envelope.REPORT, self._key).decode(), hashlib.sha256(payload).hexdigest()

    def _hear_of_report(self, call: Call, answer: Answer) -> None:
        """Note what the fleet has; a report under a number that it had already is said again under a higher one."""
        self._known = answer.known
        if answer.problem:
            self._crowd.counts[f"report refused {answer.problem}"] += 1
            self._known = self._digest
        elif call.report and self._known != self._digest:
            self.journal.note("counter", max(answer.counter, int(self.journal.noted("counter", 0))))
            self._facts = ""

    def _call(self) -> Call:
        self._catch_up()
        records = self.journal.batch(RECORDS_MAX)
        slots = [self._line.told()] if self._line.state else []
        report = self._report()
        quiet = not records and not self._done and slots == self._told and not report
        wait_s = min(self._plan.wait_s, self._due_in_s()) if quiet and not self._plan.drain and not self._cut else 0.0
        self._told = list(slots)
        return Call(
            seen=self._view.timestamp if self._view else self._newest, known=self._known, report=report, slots=slots,
            records=records, outbox=self.journal.outbox, after=self.journal.after, done=self._done,
            wait_s=round(wait_s, 3),
        )  # fmt: skip

    async def run(self, stop: Callable[[], bool]) -> None:
        """Live until told to stop; a drain ends by itself."""
        await asyncio.sleep(self._dice.random() * self._plan.spread_s)
        while not stop() and not (self._plan.drain and self.finished):
            try:
                pause_s = await self._round()
                self._failures = 0
            except WireError as error:
                self._crowd.counts[f"cut: {str(error).split(' ')[0]}"] += 1
                pause_s = 0.0 if self._rushing else self._back_off()
                self._rushing = False
            if self._silent:
                return
            limit_s = pause_s if self._plan.drain else min(pause_s, self._due_in_s() + 0.01)
            await asyncio.sleep(limit_s if self._failures == 0 else pause_s)
        self._wire.drop()

    def cut_off(self) -> None:
        """Lose the connection and come back at once, without the pause that would spread a crowd."""
        self._rushing = self._cut = True
        self._wire.drop()

    def _back_off(self, at_least_s: float = 0.0) -> float:
        self._failures += 1
        first, last = BACK_OFF_S
        longest = min(last, first * 2 ** min(self._failures, 10)) / max(1.0, self._plan.speed / 60)
        return at_least_s + self._dice.uniform(0.0, max(longest, at_least_s))

    async def _round(self) -> float:
        """Call once, do what the answer asks; return how long to stay away. Raises: WireError."""
        call = self._call()
        body = _calls.encode(call)
        await self._misbehave(body)
        began = time.monotonic()
        reply = await self._say(body, call.wait_s)
        took_s = time.monotonic() - began
        if not call.wait_s and reply.status == 200:
            self._crowd.calls.add(took_s * 1e6)
        self._old = body
        return await self._heard(reply, call, took_s)

    async def _say(self, body: bytes, wait_s: float) -> Reply:
        chances = self._plan.chances
        if self._dice.random() < chances.drop_answer:
            await self._wire.connect()
            self._wire.send("POST", self._path, body, MEDIA_MSGPACK)
            await asyncio.sleep(self._dice.random() * 0.05)
            self._wire.drop()
            self._crowd.counts["answers dropped"] += 1
            raise WireError("dropped by itself")
        return await self._wire.ask("POST", self._path, body, MEDIA_MSGPACK, seconds=wait_s + ANSWER_S)

    async def _misbehave(self, body: bytes) -> None:
        """Say things twice, again, or too late, on a connection beside the usual one; the answers do not matter."""
        chances = self._plan.chances
        extra = []
        if self._dice.random() < chances.duplicate:
            self._crowd.counts["duplicates"] += 1
            extra.append(body)
        if self._old and self._dice.random() < chances.replay:
            self._crowd.counts["replays"] += 1
            extra.append(self._old)
        if self._late:
            self._crowd.counts["late copies"] += 1
            extra.append(self._late)
            self._late = b""
        if self._dice.random() < chances.late:
            self._late = body
        for copy in extra:
            beside = self._new_wire()
            with contextlib.suppress(WireError):
                await beside.ask("POST", self._path, copy, MEDIA_MSGPACK, seconds=5.0)
            beside.drop()

    # --- what it hears ----------------------------------------------------------------------------------------------

    async def _heard(self, reply: Reply, call: Call, took_s: float) -> float:
        counts = self._crowd.counts
        counts[f"status {reply.status}"] += 1
        if reply.status != 200:
            return self._back_off(min(reply.retry_after_s or 0.0, 120.0))
        if self._cut:
            self._cut = False
            self._crowd.note(self.name, "back", "")
        answer = _answers.decode(reply.body)
        if answer.taken < self.journal.taken:
            counts["went back"] += 1
            self.journal.put_back(answer.taken)
        assert answer.taken < self.journal.next_number, f"{self.name}: {answer.taken} was never made"
        self.journal.acknowledged(answer.taken)
        self._done = [Outcome(id=one.id, state="done") for one in answer.commands]
        self._hear_of_report(call, answer)
        self._newest = answer.newest
        news = self._view is not None and answer.newest > self._view.timestamp
        if news:
            await self._look()
        if self._dice.random() < self._plan.chances.restart:
            self._forget()
            return 0.0
        if self.journal or self._done or news:
            return 0.0
        if self._plan.wait_s and (not call.wait_s or took_s > call.wait_s - 0.2):
            return 0.0
        return answer.next_s / self._plan.speed

    def _forget(self) -> None:
        """Start anew: all that is left is the journal and the key."""
        self._crowd.counts["restarts"] += 1
        self.journal.close()
        self._wire.drop()
        old = self._next_window_s
        SimDevice.__init__(self, self.name, self._crowd, self._dice)
        self._next_window_s = old

    async def _fetch(self, name: str) -> bytes | None:
        reply = await self._wire.ask("GET", f"/v1/repository/{name}", seconds=ANSWER_S)
        self._crowd.counts["files"] += reply.status == 200
        if reply.status not in (200, 404):
            raise WireError(f"repository: {reply.status}")
        return reply.body if reply.status == 200 else None

    async def _look(self) -> None:
        """Verify what is new and take up what is assigned."""
        assert self._view is not None
        self._crowd.note(self.name, "news", "")
        counts = self._crowd.counts
        try:
            made = await self._view.refresh(self._fetch)
            if self.habits.thorough and self.habits.clock_lie_s == 0.0:
                again = await thorough(self._view, self._fetch, time.time())
                older = 0 if made is None else made.generation
                assert again == made or (again and again.generation > older), (again, made)
                counts["thorough looks"] += 1
        except ViewError as error:
            counts[f"not proven: {str(error)[:60]}"] += 1
            return
        counts["looks"] += 1
        if made is not None and self._line.assign(made, self._now_s(), self._view.lists):
            self._crowd.note(self.name, "assigned", f"{made.generation} {self._line.wanted}")
            if self._line.state == "refused":
                self._happened("refusal", f"no publisher lists {self._line.wanted}")
                counts["assignments refused"] += 1
            self._silent = self.habits.outcome == "silent"
