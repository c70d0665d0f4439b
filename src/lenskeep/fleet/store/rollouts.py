"""Rollouts, groups and tags in the fleet's memory.

Rules. A rollout and its devices are changed by `revise` alone, in one transaction, by a pure decision over what stands
there; so whatever two replicas, two operators or a kill do, nothing is decided twice and nothing halfway. What a device
says goes through `note_progress`, in the transaction that takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec import Struct

from lenskeep.clock import rfc3339
from lenskeep.errors import ConflictError, UnknownNameError
from lenskeep.fleet.rollouts.facts import Member, Rollout, hear
from lenskeep.fleet.rollouts.lifecycle import MemberState, RolloutState
from lenskeep.fleet.rollouts.selecting import Candidate
from lenskeep.fleet.store.engine import Engine, Row, Transaction, WriteTransaction, steps
from lenskeep.messages.fleet import DeviceReport
from lenskeep.messages.rollouts import DeploymentView, GateView, Plan
from lenskeep.messages.sync import SlotNow

Decide = Callable[[Rollout, list[Member]], tuple[Rollout, list[Member]]]


class Enrolled(Struct, frozen=True):
    """A device that may take part: what it is called by, and what it runs by its last signed report."""

    candidate: Candidate
    running: dict[str, str]  # by slot


class Desired(Struct, frozen=True, kw_only=True):
    """What the fleet decided last for one slot of a device, and why."""

    device: str
    slot: str
    bundle: str
    state: str
    reason: str
    since_ms: int
    rollout: int
    generation: int


async def note_progress(tx: WriteTransaction, device: str, told: SlotNow, *, now_ms: int) -> bool:
    """Take what a device says of a slot; to be called in the transaction that takes the call, when it says news.

    Returns: whether it changed something; then the conductor is woken after the commit.
    Cost: one SELECT by index; nothing more for a device in no rollout.
    """
    row = await tx.one(
        "SELECT rollout_member.*, rollout.bundle FROM rollout_member JOIN rollout ON rollout.id ="
        " rollout_member.rollout WHERE rollout_member.device = ? AND rollout_member.slot = ?"
        " ORDER BY rollout_member.rollout DESC LIMIT 1",
        device, told.slot,
    )  # fmt: skip
    if row is None:
        return False
    before = _member(row)
    after = hear(before, told, row["bundle"], now_ms)
    if after == before:
        return False
    await _save_members(tx, [after], {device: before})
    await tx.tell("rollouts", str(before.rollout))
    return True


@steps
class RolloutStore:
    """Rollouts, groups and tags."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    # --- the conductor --------------------------------------------------------------------------------------------

    async def steady(self, owner: str, passed_ms: int) -> int:
        """Let the conductor's time pass and return it; where another one conducted last, none has passed."""
        async with self._database.write() as tx:
            row = await tx.one("SELECT owner, steady_ms FROM conductor WHERE id = 1")
            at = 1 if row is None else row["steady_ms"] + (passed_ms if row["owner"] == owner else 0)
            await tx.run(
                "INSERT INTO conductor (id, owner, steady_ms) VALUES (1, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, steady_ms = excluded.steady_ms",
                owner, at,
            )  # fmt: skip
            return int(at)

    async def read_steady(self) -> int:
        """Return the conductor's time as it was written last."""
        async with self._database.read() as tx:
            row = await tx.one("SELECT steady_ms FROM conductor WHERE id = 1")
        return 1 if row is None else int(row["steady_ms"])

    async def due(self) -> list[int]:
        """Return the rollouts that a conductor has to look at: those not over, and those with devices on their way."""
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT id FROM rollout WHERE state NOT IN ('finished', 'aborted') UNION SELECT DISTINCT rollout"
                " FROM rollout_member WHERE state IN ('assigned', 'downloading', 'staged', 'activating', 'probation',"
                " 'reverting') ORDER BY 1"
            )
        return [row["id"] for row in found]

    async def revise(self, number: int, decide: Decide) -> tuple[Rollout, list[Member]]:
        """Change a rollout by a decision over what stands there; return it as it is then.

        Raises: UnknownNameError, and what the decision raises; then nothing was changed.
        """
        async with self._database.write() as tx:
            rollout, members = await _load(tx, number)
            after, changed = decide(rollout, members)
            if after != rollout:
                await _save_rollout(tx, after)
            known = {one.device: one for one in members}
            await _save_members(tx, [one for one in changed if one != known[one.device]], known)
            return after, changed

    async def unsigned(self) -> list[Member]:
        """Return the devices for which the director has not signed yet what was decided; the newest rollout counts."""
        async with self._database.read() as tx:
            if await tx.one("SELECT 1 FROM rollout_member WHERE signed = 0 LIMIT 1") is None:
                return []
        async with self._database.write() as tx:
            await tx.run(
                "UPDATE rollout_member SET signed = 1 WHERE signed = 0 AND EXISTS (SELECT 1 FROM rollout_member AS n"
                " WHERE n.device = rollout_member.device AND n.slot = rollout_member.slot"
                " AND n.rollout > rollout_member.rollout AND n.attempts > 0)"
            )
            found = await tx.all("SELECT * FROM rollout_member WHERE signed = 0 ORDER BY rollout, device")
        return [_member(row) for row in found]

    async def earlier(self) -> dict[tuple[int, str], str]:
        """Return what devices were asked in the rollout before, by rollout and device, while this one is not signed."""
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT m.rollout, m.device, p.want FROM rollout_member AS m JOIN rollout_member AS p ON p.device ="
                " m.device AND p.slot = m.slot WHERE m.signed = 0 AND p.rollout = (SELECT max(n.rollout) FROM"
                " rollout_member AS n WHERE n.device = m.device AND n.slot = m.slot AND n.rollout < m.rollout"
                " AND n.attempts > 0)"
            )
        return {(row["rollout"], row["device"]): row["want"] for row in found}

    async def superseded(self, number: int) -> frozenset[str]:
        """Return the devices of a rollout whose slot a later one has taken over."""
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT m.device FROM rollout_member AS m WHERE m.rollout = ? AND EXISTS (SELECT 1 FROM rollout_member"
                " AS n WHERE n.device = m.device AND n.slot = m.slot AND n.rollout > m.rollout AND n.attempts > 0)",
                number,
            )
        return frozenset(row["device"] for row in found)

    async def number(self, members: Iterable[tuple[Member, int]]) -> None:
        """Write which generation tells a device what was decided, before the device can see it."""
        async with self._database.write() as tx:
            await tx.many(
                "UPDATE rollout_member SET generation = ?, renumber = 0 WHERE rollout = ? AND device = ? AND want = ?"
                " AND renumber = 1",
                [(generation, one.rollout, one.device, one.want) for one, generation in members],
            )

    async def signed(self, members: Iterable[Member]) -> None:
        """Write that what was decided is signed, unless something else was decided meanwhile."""
        async with self._database.write() as tx:
            await tx.many(
                "UPDATE rollout_member SET signed = 1 WHERE rollout = ? AND device = ? AND want = ? AND activate = ?"
                " AND renumber = 0",
                [(one.rollout, one.device, one.want, one.activate) for one in members],
            )

    async def gone(self) -> frozenset[str]:
        """Return the devices that are let in no longer."""
        async with self._database.read() as tx:
            return frozenset(row["name"] for row in await tx.all("SELECT name FROM device WHERE state = 'revoked'"))

    # --- operators --------------------------------------------------------------------------------------------------

    async def add(self, make: Callable[[int], tuple[Rollout, list[Member]]], *, by: str, now_ms: int) -> int:
        """Write a new rollout. Raises: ConflictError when a device's slot is in another one that is not over."""
        async with self._database.write() as tx:
            row = await tx.one("SELECT max(id) AS id FROM rollout")
            number = int(row["id"] or 0) + 1 if row is not None else 1
            rollout, members = make(number)
            await _refuse_overlap(tx, rollout, members)
            await _insert(tx, rollout, members)
            await tx.run(
                "INSERT INTO deed (at_ms, actor, action, subject, reason) VALUES (?, ?, ?, ?, ?)",
                now_ms, by, "start rollout", f"{number} {rollout.plan.bundle}", rollout.plan.reason,
            )  # fmt: skip
            await tx.tell("rollouts", str(number))
        return number

    async def note_deed(self, by: str, action: str, subject: str, reason: str, *, now_ms: int) -> None:
        """Write down what an operator did."""
        async with self._database.write() as tx:
            await tx.run(
                "INSERT INTO deed (at_ms, actor, action, subject, reason) VALUES (?, ?, ?, ?, ?)",
                now_ms, by, action, subject, reason,
            )  # fmt: skip
            await tx.tell("rollouts")

    async def get(self, number: int) -> tuple[Rollout, list[Member]]:
        """Return a rollout and its devices. Raises: UnknownNameError."""
        async with self._database.read() as tx:
            return await _load(tx, number)

    async def all(self, limit: int = 200) -> list[tuple[Rollout, dict[str, int]]]:
        """Return rollouts, newest first, with how many devices are in which state."""
        async with self._database.read() as tx:
            found = await tx.all("SELECT * FROM rollout ORDER BY id DESC LIMIT ?", limit)
            counts = await tx.all(
                "SELECT rollout, state, count(*) AS count FROM rollout_member WHERE rollout >= ?"
                " GROUP BY rollout, state",
                found[-1]["id"] if found else 0,
            )
        states: dict[int, dict[str, int]] = {}
        for row in counts:
            states.setdefault(row["rollout"], {})[row["state"]] = row["count"]
        return [(_rollout(row), states.get(row["id"], {})) for row in found]

    async def enrolled(self) -> list[Enrolled]:
        """Return every device that may take part, with its tags and what it runs."""
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT device.name, standing.report, vitals.hardware FROM device LEFT JOIN standing ON standing.device"
                " = device.name LEFT JOIN vitals ON vitals.device = device.name WHERE device.state = 'enrolled'"
                " ORDER BY device.name"
            )
            told: dict[str, dict[str, str]] = {}
            for row in await tx.all("SELECT device, slot, bundle FROM slot_now WHERE bundle <> ''"):
                told.setdefault(row["device"], {})[row["slot"]] = row["bundle"]
            tags: dict[str, dict[str, str]] = {}
            for row in await tx.all("SELECT device, key, value FROM device_tag"):
                tags.setdefault(row["device"], {})[row["key"]] = row["value"]
        return [_enrolled(row, tags.get(row["name"], {}), told.get(row["name"], {})) for row in found]

    async def failed_there(self, bundle: str, slot: str) -> dict[str, str]:
        """Return the devices on which a version failed in an earlier rollout and did not succeed later, with why."""
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT rollout_member.device, rollout_member.reason, rollout_member.failed, rollout.id FROM"
                " rollout_member JOIN rollout ON rollout.id = rollout_member.rollout WHERE rollout.bundle = ?"
                " AND rollout_member.slot = ? AND rollout_member.attempts > 0 ORDER BY rollout.id",
                bundle, slot,
            )  # fmt: skip
        newest = {row["device"]: row for row in found}
        return {device: f"in rollout {row['id']}: {row['reason']}" for device, row in newest.items() if row["failed"]}

    async def desired(self, device: str | None = None) -> list[Desired]:
        """Return what the fleet decided last for every slot, of one device or of all."""
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT * FROM rollout_member AS m WHERE m.attempts > 0 AND (? = '' OR m.device = ?) AND m.rollout ="
                " (SELECT max(n.rollout) FROM rollout_member AS n WHERE n.device = m.device AND n.slot = m.slot"
                " AND n.attempts > 0) ORDER BY m.device, m.slot",
                device or "", device or "",
            )  # fmt: skip
        return [
            Desired(
                device=row["device"], slot=row["slot"], bundle=row["want"], state=row["state"], reason=row["reason"],
                since_ms=row["since_ms"], rollout=row["rollout"], generation=row["generation"],
            )
            for row in found
        ]  # fmt: skip

    async def history(self, *, device: str = "", bundle: str = "", limit: int = 500) -> list[DeploymentView]:
        """Return the steps of a device, of a version, or of both, newest first."""
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT rollout_step.*, rollout.bundle, rollout.slot FROM rollout_step JOIN rollout ON rollout.id ="
                " rollout_step.rollout WHERE (? = '' OR rollout_step.device = ?) AND (? = '' OR rollout.bundle = ?)"
                " ORDER BY rollout_step.at_ms DESC, rollout_step.rollout DESC, rollout_step.step DESC LIMIT ?",
                device, device, bundle, bundle, limit,
            )  # fmt: skip
        return [
            DeploymentView(
                at=rfc3339(row["at_ms"] / 1000), device=row["device"], rollout=row["rollout"], slot=row["slot"],
                bundle=row["bundle"], state=row["state"], reason=row["reason"], code=row["code"],
            )
            for row in found
        ]  # fmt: skip

    # --- groups and tags ----------------------------------------------------------------------------------------------

    async def groups(self) -> dict[str, str]:
        """Return selectors by name."""
        async with self._database.read() as tx:
            found = await tx.all("SELECT name, selector FROM device_group ORDER BY name")
        return {row["name"]: row["selector"] for row in found}

    async def set_group(self, name: str, selector: str) -> None:
        """Give a selector a name."""
        async with self._database.write() as tx:
            await tx.run(
                "INSERT INTO device_group (name, selector) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET selector = excluded.selector",
                name, selector,
            )  # fmt: skip

    async def remove_group(self, name: str) -> None:
        """Forget a group. Raises: UnknownNameError."""
        async with self._database.write() as tx:
            if not await tx.run("DELETE FROM device_group WHERE name = ?", name):
                raise UnknownNameError(f"There is no group {name!r}.", hint="List them: lenskeep fleet groups.")

    async def tagged(self, *keys: str) -> dict[str, dict[str, str]]:
        """Return these tags of every device that has one of them."""
        found: dict[str, dict[str, str]] = {}
        async with self._database.read() as tx:
            for key in keys:
                for row in await tx.all("SELECT device, value FROM device_tag WHERE key = ?", key):
                    found.setdefault(row["device"], {})[key] = row["value"]
        return found

    async def tag(self, devices: Sequence[str], tags: dict[str, str | None]) -> None:
        """Tag devices, or take tags away. Raises: UnknownNameError; then nothing was changed."""
        async with self._database.write() as tx:
            for device in devices:
                if await tx.one("SELECT 1 FROM device WHERE name = ?", device) is None:
                    raise UnknownNameError(f"No device is named {device!r} here.", hint="lenskeep fleet devices.")
            for key, value in tags.items():
                await tx.many("DELETE FROM device_tag WHERE device = ? AND key = ?", [(one, key) for one in devices])
                if value is not None:
                    rows = [(one, key, value) for one in devices]
                    await tx.many("INSERT INTO device_tag (device, key, value) VALUES (?, ?, ?)", rows)


# --- rows -------------------------------------------------------------------------------------------------------------


async def _load(tx: Transaction, number: int) -> tuple[Rollout, list[Member]]:
    row = await tx.one("SELECT * FROM rollout WHERE id = ?", number)
    if row is None:
        raise UnknownNameError(f"There is no rollout {number}.", hint="List them: lenskeep fleet rollout list.")
    found = await tx.all("SELECT * FROM rollout_member WHERE rollout = ? ORDER BY wave, device", number)
    return _rollout(row), [_member(each) for each in found]


async def _refuse_overlap(tx: Transaction, rollout: Rollout, members: Sequence[Member]) -> None:
    others = await tx.all(
        "SELECT rollout_member.device, rollout.id FROM rollout_member JOIN rollout ON rollout.id ="
        " rollout_member.rollout WHERE rollout_member.slot = ? AND rollout.state NOT IN ('finished', 'aborted')"
        " AND rollout_member.state <> 'skipped'",
        rollout.plan.slot,
    )
    mine = {one.device for one in members if one.state == MemberState.SCHEDULED}
    for row in others:
        if row["device"] in mine:
            raise ConflictError(
                f"Slot {rollout.plan.slot} of {row['device']} is in rollout {row['id']}, which is not over.",
                hint=f"Wait for it, or end it: lenskeep fleet rollout abort {row['id']}.",
            )


def _rollout(row: Row) -> Rollout:
    return Rollout(
        id=row["id"], plan=msgspec.json.decode(row["plan"], type=Plan), state=RolloutState(row["state"]),
        reason=row["reason"], since_ms=row["since_ms"], by=row["made_by"], made_ms=row["made_ms"], waves=row["waves"],
        opened=row["opened"], through_steady_ms=row["through_steady_ms"],
        forgiven=msgspec.json.decode(row["forgiven"], type=dict[str, float]),
        gates=msgspec.json.decode(row["gates"], type=list[GateView]),
        approvals=msgspec.json.decode(row["approvals"], type=list[str]),
    )  # fmt: skip


def _member(row: Row) -> Member:
    return Member(
        rollout=row["rollout"], device=row["device"], slot=row["slot"], wave=row["wave"],
        state=MemberState(row["state"]), reason=row["reason"], since_ms=row["since_ms"], code=row["code"],
        due_steady_ms=row["due_steady_ms"], attempts=row["attempts"], hardware=row["hardware"],
        before=row["before_bundle"], want=row["want"], activate=row["activate"], signed=bool(row["signed"]),
        renumber=bool(row["renumber"]), generation=row["generation"], steps=row["steps"], failed=bool(row["failed"]),
    )  # fmt: skip


def _enrolled(row: Row, tags: dict[str, str], told: dict[str, str]) -> Enrolled:
    report = msgspec.json.decode(row["report"], type=DeviceReport) if row["report"] else None
    running = {slot.slot: slot.running for slot in report.slots if slot.running} if report else {}
    hardware = row["hardware"] or tags.get("hardware", "")
    return Enrolled(Candidate(row["name"], tags, hardware), told | running)  # what is signed counts


def _values(one: Member) -> tuple[str | int, ...]:
    """Return a device's columns in the order of the two statements that write them, its names last."""
    return (
        one.slot, one.wave, str(one.state), one.reason, one.code, one.since_ms, one.due_steady_ms, one.attempts,
        one.hardware, one.before, one.want, one.activate, int(one.signed), int(one.renumber), one.generation,
        one.steps, int(one.failed), one.rollout, one.device,
    )  # fmt: skip


async def _insert(tx: Transaction, rollout: Rollout, members: Sequence[Member]) -> None:
    await tx.run(
        "INSERT INTO rollout (id, bundle, slot, plan, state, reason, since_ms, made_by, made_ms, waves)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        rollout.id, rollout.plan.bundle, rollout.plan.slot, msgspec.json.encode(rollout.plan).decode(),
        str(rollout.state), rollout.reason, rollout.since_ms, rollout.by, rollout.made_ms, rollout.waves,
    )  # fmt: skip
    await tx.many(
        "INSERT INTO rollout_member (slot, wave, state, reason, code, since_ms, due_steady_ms, attempts, hardware,"
        " before_bundle, want, activate, signed, renumber, generation, steps, failed, rollout, device)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_values(one) for one in members],
    )
    await _add_steps(tx, members)


async def _save_rollout(tx: Transaction, rollout: Rollout) -> None:
    await tx.run(
        "UPDATE rollout SET state = ?, reason = ?, since_ms = ?, opened = ?, through_steady_ms = ?, forgiven = ?,"
        " gates = ?, approvals = ? WHERE id = ?",
        str(rollout.state), rollout.reason, rollout.since_ms, rollout.opened, rollout.through_steady_ms,
        msgspec.json.encode(rollout.forgiven).decode(), msgspec.json.encode(rollout.gates).decode(),
        msgspec.json.encode(rollout.approvals).decode(), rollout.id,
    )  # fmt: skip


async def _save_members(tx: Transaction, changed: Sequence[Member], before: dict[str, Member]) -> None:
    await tx.many(
        "UPDATE rollout_member SET slot = ?, wave = ?, state = ?, reason = ?, code = ?, since_ms = ?,"
        " due_steady_ms = ?, attempts = ?, hardware = ?, before_bundle = ?, want = ?, activate = ?, signed = ?,"
        " renumber = ?, generation = ?, steps = ?, failed = ? WHERE rollout = ? AND device = ?",
        [_values(one) for one in changed],
    )
    await _add_steps(tx, [one for one in changed if one.steps != before[one.device].steps])


async def _add_steps(tx: Transaction, members: Sequence[Member]) -> None:
    rows = [(one.rollout, one.device, one.steps, one.since_ms, str(one.state), one.reason, one.code) for one in members]
    await tx.many(
        "INSERT INTO rollout_step (rollout, device, step, at_ms, state, reason, code) VALUES (?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
