"""Rows of the fleet's database as what people are shown."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lenskeep.clock import rfc3339
from lenskeep.fleet.store.engine import Row
from lenskeep.messages.fleet import AlarmView, DeedView, DeviceDetail, DeviceReport, DeviceRow
from lenskeep.trust.identity import fingerprint

DEVICES = """
SELECT device.*, device_key.key_id, device_key.ends_s, standing.received_ms, standing.counter, standing.report,
    (SELECT count(*) FROM alarm WHERE alarm.device = device.name) AS alarms
FROM device
LEFT JOIN device_key ON device_key.device = device.name AND device_key.state = 'current'
LEFT JOIN standing ON standing.device = device.name
"""


def device(row: Row) -> DeviceRow:
    """Show a row of `DEVICES`."""
    report = last_report(row)
    key_id = row["key_id"] or ""
    return DeviceRow(
        device=row["name"], state=row["state"], key_id=key_id, fingerprint=fingerprint(key_id) if key_id else "",
        enrolled=moment(row["enrolled_ms"]), certificate_ends=rfc3339(row["ends_s"]) if row["ends_s"] else "",
        revoked=moment(row["revoked_ms"]), revoked_reason=row["revoked_reason"], heard=moment(row["received_ms"]),
        counter=row["counter"] or 0, alarms=row["alarms"],
        running={slot.slot: slot.running for slot in report.slots} if report else {},
    )  # fmt: skip


def detail(row: Row, head: Row | None, keys: Sequence[Row]) -> DeviceDetail:
    """Show a row of `DEVICES` with what belongs to it."""
    return DeviceDetail(
        device=device(row), report=last_report(row), head_sequence=head["sequence"] if head else 0,
        head_hash=head["hash"] if head else "",
        keys=[{"key_id": key["key_id"], "state": key["state"], "ends": rfc3339(key["ends_s"])} for key in keys],
    )  # fmt: skip


def last_report(row: Row) -> DeviceReport | None:
    """Return the last report that was taken; it was verified before it was stored."""
    return msgspec.json.decode(row["report"], type=DeviceReport) if row["report"] else None


def alarm(row: Row) -> AlarmView:
    """Show an alarm."""
    return AlarmView(
        id=row["id"], device=row["device"], code=row["code"], text=row["text"], first=moment(row["first_ms"]),
        last=moment(row["last_ms"]), count=row["count"],
    )  # fmt: skip


def deed(row: Row) -> DeedView:
    """Show what an operator did."""
    return DeedView(
        at=moment(row["at_ms"]), by=row["actor"], action=row["action"], subject=row["subject"], reason=row["reason"]
    )


def moment(ms: int | None) -> str:
    """Show a time in milliseconds; nothing for none."""
    return rfc3339(ms / 1000) if ms else ""
