"""A fleet's memory filled through every method of its stores, the same way on every engine."""

from __future__ import annotations

from typing import Any

import msgspec

from lenskeep.bundle.keys import PublicKey, generate_key
from lenskeep.fleet.rollouts.facts import Member, Rollout
from lenskeep.fleet.rollouts.lifecycle import MemberState, RolloutState
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.intake import Delivery, IntakeStore
from lenskeep.fleet.store.records import Offer, RecordStore
from lenskeep.fleet.store.rollouts import RolloutStore
from lenskeep.fleet.store.store import Certified, Listed, Store, VerifiedReport
from lenskeep.fleet.store.survey import SurveyStore
from lenskeep.fleet.store.telemetry import TelemetryStore, merge
from lenskeep.fleet.store.trials import TrialStore
from lenskeep.messages.fleet import DeviceReport, RecordHead, SlotReport
from lenskeep.messages.rollouts import Plan
from lenskeep.messages.sync import Happening, Outcome, SlotNow, Trial, Vitals, Window
from lenskeep.sketch import Sketch
from lenskeep.trust import invitation
from lenskeep.trust.chain import BEFORE_ALL, BEGIN, Entry, Facts, Head, Point, put
from lenskeep.trust.recordfile import entry_line
from lenskeep.trust.recordpiece import Piece

NOW_MS = 1_800_000_000_000
NOW_S = NOW_MS // 1000
ENDS_MS = NOW_MS + 3_600_000
KEYS: dict[str, PublicKey] = {}


def key(name: str) -> PublicKey:
    return KEYS.setdefault(name, generate_key().public)


def certify() -> Certified:
    return Certified("certificate", NOW_S + 86400)


def listed(device: str) -> Listed:
    return Listed(device, key(device).id, key(device).pem, True)


def report(device: str, counter: int, *, head: RecordHead | None = None, text: str = "") -> VerifiedReport:
    slot = SlotReport(slot="line", running="ocr@1.0.0", digest="d" * 64, assigned="ocr@1.1.0", state="settled")
    said = DeviceReport(device=device, counter=counter, at_ms=NOW_MS, clock_trusted=True, slots=[slot])
    payload = msgspec.json.encode(said)
    return VerifiedReport(
        device,
        key(device).id,
        counter,
        payload,
        f"{counter:064x}{text}"[-64:],
        b"envelope",
        head,
        "head" if head else "",
    )


def _head(sequence: int) -> RecordHead:
    return RecordHead(device="cam-1", sequence=sequence, hash=str(sequence) * 64)


def window(n: int, *, bundle: str = "ocr@1.0.0") -> Window:
    sketch = Sketch()
    for value in range(1, 50):
        sketch.add(value / 3)
    return Window(
        n=n, slot="line", bundle=bundle, digest="d" * 64, provider="CPU", start_s=NOW_S - 60, seconds=60, frames=49,
        misses=1, outcomes={"ok": 40, "ng": 9}, sketches={"infer": sketch.to_bytes()},
    )  # fmt: skip


def happening(n: int, text: str = "") -> Happening:
    return Happening(n=n, kind="swap", at_ms=NOW_MS, slot="line", bundle="ocr@1.0.0", text=text)


def trial(n: int, score: float, *, bundle: str = "ocr@1.1.0", code: str = "", hardware: str = "arm") -> Trial:
    return Trial(
        n=n, at_ms=NOW_MS, bundle=bundle, digest="e" * 64, provider="CPU", hardware=hardware, code=code,
        golden_passed=0 if code else 4, golden_total=4, golden_score=score, p50_ms=3.25, p99_ms=7.5 + n, memory_mb=40 + n,
    )  # fmt: skip


def entries(device: str, number: int, *, after: Point = BEFORE_ALL, text: str = "") -> list[Entry]:
    """A device's record."""
    made: list[Entry] = []
    for _ in range(number):
        begins = after == BEFORE_ALL
        facts = Facts(
            at_ms=NOW_MS, monotonic_ms=1, boot="", clock_trusted=True, actor="test", action=BEGIN if begins else "note",
            subject=device if begins else "slot main", reason=text, before="", after="",
        )  # fmt: skip
        made.append(put(after, facts))
        after = made[-1].point
    return made


def offer(device: str, found: list[Entry], after: Point = BEFORE_ALL, *, copy: int = 1, signed: bool = False) -> Offer:
    """A piece of it, as it was verified; its head when it is signed."""
    lines = b"".join(entry_line(each, True) for each in found)
    at = found[-1].point
    head = Head(device=device, sequence=at.sequence, hash=at.hash, at="", counter=1) if signed else None
    piece = Piece(
        after, at, lines, device, found[0].sequence, len(found), {each.sequence: each.hash for each in found}, head,
        "head" if signed else "",
    )  # fmt: skip
    return Offer(device, copy, piece, key(device) if signed else None, proven=True)


class Filled:
    """The stores over one engine, and what each of their methods answered."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.store, self.intake = Store(engine), IntakeStore(engine)
        self.telemetry, self.rollouts, self.survey = TelemetryStore(engine), RolloutStore(engine), SurveyStore(engine)
        self.trials = TrialStore(engine)
        self.records = RecordStore(engine)
        self.said: dict[str, Any] = {}

    async def fill(self) -> dict[str, Any]:
        await self._admit()
        await self._report()
        await self._sync()
        await self._roll_out()
        await self._record()
        await self.look()
        return self.said

    async def _admit(self) -> None:
        store, made = self.store, invitation.invite("ab" * 32)
        for device in ("cam-1 first", "cam-2", "cam-10", "cam_x"):
            await store.grant(device.split()[0], key(device), certify, by="ann", now_ms=NOW_MS)
        await store.invite(made, "cam-3", expires_ms=ENDS_MS, by="ann", now_ms=NOW_MS)
        self.said["enrol"] = await store.enrol(made, "cam-3", key("cam-3"), certify, now_ms=NOW_MS)
        self.said["again"] = await store.enrol(made, "cam-3", key("cam-3"), certify, now_ms=NOW_MS + 1)
        first = Listed("cam-1", key("cam-1 first").id, "", True)
        await store.renew(first, key("cam-1"), certify, now_ms=NOW_MS + 2)
        self.said["next"] = [each.current for each in await store.keys_of("cam-1")]
        fresh = await store.listed(key("cam-1").id)
        assert fresh is not None
        await store.promote(fresh)
        self.said["promoted"] = [await store.listed(key("cam-1").id) is not None, await store.listed("0" * 64)]
        await store.revoke("cam-10", reason="gone", by="ann", now_ms=NOW_MS + 3)

    async def _report(self) -> None:
        store = self.store
        head, short = _head(5), _head(4)
        for said in (
            report("cam-1", 1), report("cam-1", 2, head=head), report("cam-1", 2, text="f"), report("cam-1", 3, head=short),
            *(report("cam-2", counter) for counter in range(1, 8)),
        ):  # fmt: skip
            answer = await store.take(said, now_ms=NOW_MS + said.counter, kept=3)
            self.said.setdefault("take", []).append(answer)
        await store.note_alarm("", "LK-1000", "something", now_ms=NOW_MS)
        await store.note_alarm("", "LK-1000", "something else", now_ms=NOW_MS + 1)
        self.said["alarms"] = [msgspec.structs.replace(each, id=0) for each in await store.alarms()]
        for each in await store.alarms():
            if each.device:
                await store.accept(each.id, reason="seen", by="ann", now_ms=NOW_MS + 9)
        await store.add_operator("bot", "operator", "c" * 64, expires_ms=ENDS_MS, by="ann", now_ms=NOW_MS)
        await store.add_operator("bot", "viewer", "e" * 64, expires_ms=ENDS_MS, by="ann", now_ms=NOW_MS)
        await store.add_operator("old", "viewer", "f" * 64, expires_ms=ENDS_MS, by="ann", now_ms=NOW_MS)
        await store.remove_operator("old", by="ann", now_ms=NOW_MS)

    async def _sync(self) -> None:
        intake, slot = self.intake, SlotNow(slot="line", generation=1, state="new", bundle="ocr@1.0.0", busy=True)
        asked = await intake.ask("cam-1", "sync", "please", by="ann", now_ms=NOW_MS)
        await intake.ask("cam-1", "report", "", by="ann", now_ms=NOW_MS + 1)
        self.said["open"] = len(await intake.open_commands("cam-1"))
        first = Delivery(
            "cam-1",
            "a",
            None,
            [window(0), happening(1, "with \0 inside"), Vitals(n=2, at_ms=NOW_MS, hardware="arm")],
            [slot],
        )
        again = Delivery(
            "cam-1",
            "a",
            None,
            [happening(1), happening(2), window(3), trial(4, 0.5, code="LK-8001"), trial(5, 0.98)],
            [],
            [Outcome(id=asked, state="done")],
        )
        other = Delivery(
            "cam-2",
            "b",
            None,
            [window(0, bundle="ocr@1.1.0"), trial(1, 1.0), trial(2, 0.9, bundle="ocr@1.0.0")],
            [slot],
        )
        await intake.keep([first], now_ms=NOW_MS)
        self.said["keep"] = await intake.keep([again, other], now_ms=NOW_MS + 1)
        self.said["taken"] = [
            first.taken,
            again.taken,
            other.taken,
            len(again.fresh),
            await intake.taken("cam-1", "a"),
            await intake.taken("x", "a"),
        ]
        await intake.heard([("cam-1", NOW_MS, "10.0.0.1", 3), ("cam-2", NOW_MS, "10.0.0.2", 2)])
        await intake.heard([("cam-1", NOW_MS + 5, "10.0.0.9", 4)])
        waiting = await self.telemetry.waiting(100)
        self.said["added"] = await self.telemetry.add(merge(waiting, await self.telemetry.hardware()))
        self.said["nothing left"] = await self.telemetry.waiting(100)
        await intake.keep([Delivery("cam-2", "b", None, [window(3, bundle="ocr@1.1.0")])], now_ms=NOW_MS + 2)

    async def _roll_out(self) -> None:
        rollouts, plan = self.rollouts, Plan(bundle="ocr@1.1.0", slot="line")

        def make(number: int) -> tuple[Rollout, list[Member]]:
            rollout = Rollout(
                id=number,
                plan=plan,
                state=next(iter(RolloutState)),
                reason="r",
                since_ms=NOW_MS,
                by="ann",
                made_ms=NOW_MS,
                waves=1,
            )
            members = [
                Member(rollout=number, device=device, slot="line", wave=0, state=MemberState.SCHEDULED, reason="r",
                       since_ms=NOW_MS, want="ocr@1.1.0", signed=False, attempts=1, renumber=True)
                for device in ("cam-1", "cam-2")
            ]  # fmt: skip
            return rollout, members

        number = await rollouts.add(make, by="ann", now_ms=NOW_MS)
        self.said["steady"] = [
            await rollouts.steady("me", 5),
            await rollouts.steady("me", 5),
            await rollouts.steady("you", 5),
            await rollouts.read_steady(),
        ]
        unsigned = await rollouts.unsigned()
        await rollouts.number([(each, 7) for each in unsigned])
        await rollouts.signed(unsigned)
        self.said["revised"] = await rollouts.revise(
            number,
            lambda rollout, members: (
                msgspec.structs.replace(rollout, reason="x"),
                [msgspec.structs.replace(members[0], reason="y", steps=1)],
            ),
        )
        await rollouts.note_deed("ann", "pause rollout", str(number), "lunch", now_ms=NOW_MS)
        await rollouts.set_group("site", "site=a")
        await rollouts.set_group("site", "site=b")
        await rollouts.set_group("gone", "site=c")
        await rollouts.remove_group("gone")
        await rollouts.tag(["cam-1", "cam-2"], {"site": "a", "line": "3"})
        await rollouts.tag(["cam-1"], {"line": None})

    async def _record(self) -> None:
        records, found = self.records, entries("cam-2", 9, text="a \0 within")
        forged = entries("cam-2", 5, after=found[3].point, text="other")
        said = []
        for each in (
            offer("cam-2", found[:4]), offer("cam-2", found[:4]), offer("cam-2", found[4:], found[3].point, signed=True),
            offer("cam-2", found[:4] + forged, copy=2, signed=True),
        ):  # fmt: skip
            said.append(await records.add(each, bytes_max=1 << 20, now_ms=NOW_MS))
        for place in (found[2].point, forged[0].point, Point(99, "0" * 64)):
            said.append(await records.compare("cam-2", place, now_ms=NOW_MS))
        self.said["record"] = said

    async def look(self) -> dict[str, Any]:
        """Ask everything that can be asked."""
        store, intake, telemetry, rollouts = self.store, self.intake, self.telemetry, self.rollouts
        trials = self.trials
        self.said |= {
            "devices": await store.devices(), "device": await store.device("cam-1"), "operators": await store.operators(),
            "operator": await store.operator("e" * 64, now_ms=NOW_MS), "no operator": await store.operator("c" * 64, now_ms=NOW_MS),
            "late operator": await store.operator("e" * 64, now_ms=ENDS_MS), "deeds": await store.deeds(100),
            "standing": msgspec.structs.replace(await intake.standing("cam-1"), commands=[]), "presence": await intake.presence(),
            "slots": [await intake.slots(), await intake.slots("cam-2")],
            "commands": [msgspec.structs.replace(each, id="") for each in await intake.commands("cam-1")],
            "hardware": await telemetry.hardware(), "latency": await telemetry.latency("ocr@1.0.0", since_s=1),
            "behaviour": await telemetry.behaviour(by=("hardware", "hour"), until_s=NOW_S + 1), "running": await telemetry.running(),
            "happenings": [await telemetry.happenings(limit=5), await telemetry.happenings(device="cam-1", bundle="ocr@1.0.0", kind="swap")],
            "vitals": [await telemetry.vitals(), await telemetry.vitals("cam-9")], "recent": await telemetry.recent("cam-1"),
            "trials": [await trials.of_device("cam-1"), await trials.now(), await trials.now("ocr@1.1.0"), await trials.ever()],
            "trials of a rollout": [await trials.of_rollout("ocr@1.1.0", 1), await trials.untold("ocr@1.0.0", 1)],
            "copies": await self.records.copies("cam-2"), "piece": await self.records.piece("cam-2", 1, -1), "no piece": await self.records.piece("cam-2", 1, 9),
            "witness": [await self.records.witness("cam-2", each) for each in await self.records.copies("cam-2")],
            "due": await rollouts.due(), "gone": await rollouts.gone(), "get": await rollouts.get(1), "all": await rollouts.all(),
            "enrolled": await rollouts.enrolled(), "failed": await rollouts.failed_there("ocr@1.1.0", "line"),
            "desired": [await rollouts.desired(), await rollouts.desired("cam-1")], "history": await rollouts.history(device="cam-1"),
            "superseded": await rollouts.superseded(1), "earlier": await rollouts.earlier(),
            "tagged": await rollouts.tagged("site", "line"), "groups": await rollouts.groups(), "survey": await self.survey.devices(), "deeds of": await self.survey.deeds("cam-1", 9),
        }  # fmt: skip
        return self.said
