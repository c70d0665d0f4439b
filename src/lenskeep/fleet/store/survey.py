"""What the fleet knows of all its devices at once, for people: read only.

Rules. One statement per table over the whole fleet, never one per device. Rows become facts here; what they mean for a
person is judged elsewhere.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec

from lenskeep.fleet.standing import Known
from lenskeep.fleet.store import rows
from lenskeep.fleet.store.engine import Engine, Row, steps
from lenskeep.messages.fleetviews import HistoryLine
from lenskeep.messages.sync import SlotNow, Vitals

DEVICES = """
SELECT device.name, device.state, device.enrolled_ms, device.revoked_ms, device.revoked_reason, device_key.ends_s,
    standing.received_ms, standing.report, presence.heard_ms, vitals.hardware, vitals.body AS vitals,
    (SELECT count(*) FROM alarm WHERE alarm.device = device.name) AS alarms
FROM device
LEFT JOIN device_key ON device_key.device = device.name AND device_key.state = 'current'
LEFT JOIN standing ON standing.device = device.name
LEFT JOIN presence ON presence.device = device.name
LEFT JOIN vitals ON vitals.device = device.name
WHERE ? = '' OR device.name = ?
ORDER BY device.name
"""
DEEDS = "SELECT at_ms, actor, action, reason FROM deed WHERE subject = ? ORDER BY sequence DESC LIMIT ?"


@steps
class SurveyStore:
    """Reads the whole fleet."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    async def devices(self, only: str = "") -> list[Known]:
        """Return what is known of every device, by name, or of one only."""
        async with self._database.read() as tx:
            found = await tx.all(DEVICES, only, only)
            standing = await tx.all("SELECT * FROM slot_now WHERE ? = '' OR device = ?", only, only)
            tagged = await tx.all("SELECT device, key, value FROM device_tag WHERE ? = '' OR device = ?", only, only)
        slots: defaultdict[str, list[Row]] = defaultdict(list)
        tags: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for row in standing:
            slots[row["device"]].append(row)
        for row in tagged:
            tags[row["device"]][row["key"]] = row["value"]
        return [_known(row, slots[row["name"]], tags[row["name"]]) for row in found]

    async def deeds(self, device: str, limit: int) -> list[HistoryLine]:
        """Return what operators did to a device, newest first."""
        async with self._database.read() as tx:
            found = await tx.all(DEEDS, device, limit)
        return [
            HistoryLine(at=rows.moment(row["at_ms"]), device=device, kind="operator", text=_words(row)) for row in found
        ]


def _known(row: Row, standing: list[Row], tags: dict[str, str]) -> Known:
    return Known(
        device=row["name"], state=row["state"], revoked_reason=row["revoked_reason"],
        changed_ms=row["revoked_ms"] or row["enrolled_ms"] or 0,
        heard_ms=max(row["received_ms"] or 0, row["heard_ms"] or 0), certificate_ends_s=row["ends_s"] or 0,
        alarms=row["alarms"], report=rows.last_report(row),
        now={each["slot"]: _slot_now(each) for each in standing},
        now_since_ms={each["slot"]: each["since_ms"] for each in standing},
        vitals=msgspec.json.decode(row["vitals"], type=Vitals) if row["vitals"] else None, tags=tags,
        hardware=row["hardware"] or "",
    )  # fmt: skip


def _slot_now(row: Row) -> SlotNow:
    return SlotNow(
        slot=row["slot"], generation=row["generation"], state=row["state"], code=row["code"], reason=row["reason"],
        bundle=row["bundle"], digest=row["digest"], busy=bool(row["busy"]),
    )  # fmt: skip


def _words(row: Row) -> str:
    return f"{row['actor']}: {row['action']}" + (f" ({row['reason']})" if row["reason"] else "")
