"""Judges where a device stands, from what it signed and when it was heard. No store, no clock of its own.

Rules. What runs is what a signed report says. A device that is silent is judged silent whatever it said last; one that
refused or took itself back is shown before one that is merely behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lenskeep.clock import rfc3339
from lenskeep.messages.fleet import DeviceReport, SlotReport
from lenskeep.messages.fleetviews import DeviceLine, DriftLine, Health, SlotLine
from lenskeep.messages.sync import SlotNow, Vitals

REFUSING = frozenset({"refused", "rolled_back", "failed", "rejected"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the fleet decided last for a slot in a rollout."""

    bundle: str
    generation: int
    text: str  # why, or how far it is


@dataclass(frozen=True, slots=True)
class Known:
    """What the fleet knows of a device."""

    device: str
    state: str  # invited, enrolled, revoked
    revoked_reason: str = ""
    changed_ms: int = 0  # when it was enrolled or revoked
    heard_ms: int = 0
    certificate_ends_s: int = 0
    alarms: int = 0
    report: DeviceReport | None = None
    now: Mapping[str, SlotNow] = field(default_factory=dict)  # by slot: where it stands with its assignment
    now_since_ms: Mapping[str, int] = field(default_factory=dict)
    wanted: Mapping[str, Wanted] = field(default_factory=dict)  # by slot: what the fleet decided last
    vitals: Vitals | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""


def judge(known: Known, *, now_ms: int, silent_after_s: float) -> DeviceLine:
    """Say where a device stands."""
    slots = slot_lines(known)
    health, reason, since_ms = _health(known, slots, now_ms, silent_after_s)
    vitals = known.vitals
    return DeviceLine(
        device=known.device, health=health, reason=reason, since=_moment(since_ms), heard=_moment(known.heard_ms),
        heard_s=round((now_ms - known.heard_ms) / 1000, 1) if known.heard_ms else None, slots=slots,
        tags=dict(known.tags), hardware=known.hardware or (vitals.hardware if vitals else ""),
        version=vitals.version if vitals else "",
        clock_trusted=(vitals.clock_trusted if vitals else known.report.clock_trusted if known.report else True),
        certificate_ends=_moment(known.certificate_ends_s * 1000),
        metadata_ends=_moment(vitals.metadata_ends_s * 1000) if vitals else "", alarms=known.alarms,
    )  # fmt: skip


def slot_lines(known: Known) -> list[SlotLine]:
    """Return a line for each slot that was reported or assigned."""
    reported = {slot.slot: slot for slot in known.report.slots} if known.report else {}
    return [_slot(name, reported.get(name), known) for name in sorted({*reported, *known.now, *known.wanted})]


def _slot(name: str, reported: SlotReport | None, known: Known) -> SlotLine:
    running, digest, desired, state, since_ms = "", "", "", "", 0
    if reported is not None:
        running, digest, desired = reported.running, reported.digest, reported.assigned
        state, since_ms = reported.state, reported.since_ms
    now, wanted = known.now.get(name), known.wanted.get(name)
    code, reason = (now.code, now.reason) if now else ("", "")
    if wanted is not None and wanted.generation > (now.generation if now else 0):
        desired, reason = wanted.bundle, reason or wanted.text  # decided, and not heard by the device yet
    refusal = known.report.refusal if known.report else None
    if desired and desired != running and not (code or reason) and refusal is not None:
        code, reason, since_ms = refusal.code, refusal.text, refusal.at_ms
    return SlotLine(
        slot=name, desired=desired, running=running, digest=digest, pinned=bool(now and now.busy),
        state=(now.state if now and now.state else state), reason=reason, code=code,
        since=_moment(known.now_since_ms.get(name, since_ms)),
    )  # fmt: skip


def _health(known: Known, slots: list[SlotLine], now_ms: int, silent_after_s: float) -> tuple[Health, str, int]:
    """Return the worst that can be said of a device, why, and since when."""
    if known.state == "revoked":
        return "revoked", known.revoked_reason, known.changed_ms
    if known.state == "invited":
        return "invited", "It has not enrolled yet.", known.changed_ms
    last_ms = max(known.heard_ms, known.changed_ms)
    if now_ms - last_ms > silent_after_s * 1000:
        return "silent", "Nothing was heard of it." if known.heard_ms else "It never reported.", last_ms
    apart = [slot for slot in slots if slot.desired and slot.desired != slot.running]
    for slot in apart:
        if slot.state in REFUSING or (slot.code and not slot.pinned):
            return "refused", slot.reason or f"{slot.slot}: {slot.state}", last_ms
    if apart:
        first = apart[0]
        return "behind", first.reason or f"{first.slot}: {first.running or 'nothing'} → {first.desired}", last_ms
    return "healthy", "", last_ms


def drift(lines: Iterable[DeviceLine]) -> list[DriftLine]:
    """Return every slot that does not run what it should, of devices that are let in."""
    return [
        DriftLine(
            device=line.device, slot=slot.slot, desired=slot.desired, running=slot.running, digest=slot.digest,
            pinned=slot.pinned, state=slot.state, reason=slot.reason or line.reason, code=slot.code, since=slot.since,
            health=line.health,
        )
        for line in lines
        if line.health not in {"revoked", "invited"}
        for slot in line.slots
        if slot.desired and slot.desired != slot.running
    ]  # fmt: skip


def _moment(ms: int) -> str:
    return rfc3339(ms / 1000) if ms > 0 else ""
