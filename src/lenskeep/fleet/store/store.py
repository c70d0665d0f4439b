"""The fleet's memory as few coarse steps: each is one question or one decision, whole or not at all.

Rules. A step takes facts that were verified already, and decides inside its transaction whatever two requests at once
could decide differently. Nothing outside this folder knows that there is SQL.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from lenskeep.bundle.keys import PublicKey
from lenskeep.errors import (
    EnrolmentTokenError,
    ForeignIdentityError,
    RecordContradictedError,
    ReportForkError,
    TokenUsedError,
    UnknownNameError,
    UnlistedDeviceError,
)
from lenskeep.fleet.store import rows
from lenskeep.fleet.store.engine import Engine, Row, Transaction, WriteTransaction, steps
from lenskeep.messages.fleet import AlarmView, DeedView, DeviceDetail, DeviceRow, RecordHead, ReportAnswer
from lenskeep.trust.invitation import Invitation

Certify = Callable[[], "Certified"]


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate that was just made."""

    pem: str
    ends_s: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A key that is let in."""

    device: str
    key_id: str
    pem: str
    current: bool


@dataclass(frozen=True, slots=True)
class VerifiedReport:
    """A report whose signature and shape are right."""

    device: str
    key_id: str
    counter: int
    payload: bytes
    payload_sha256: str
    envelope: bytes
    head: RecordHead | None
    head_envelope: str
    head_fault: str = ""  # why the head that came along cannot be witnessed


@steps
class Store:
    """The fleet's memory."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    # --- letting devices in ---------------------------------------------------------------------------------------

    async def invite(self, invitation: Invitation, device: str, *, expires_ms: int, by: str, now_ms: int) -> None:
        """Remember an invitation; what was forgotten in time goes."""
        async with self._database.write() as tx:
            await tx.run("DELETE FROM invitation WHERE expires_ms < ?", now_ms)
            await tx.run("INSERT INTO device (name, state) VALUES (?, 'invited') ON CONFLICT (name) DO NOTHING", device)
            await tx.run(
                "INSERT INTO invitation (handle, device, secret_sha256, made_ms, made_by, expires_ms)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                invitation.handle, device, invitation.secret_sha256, now_ms, by, expires_ms,
            )  # fmt: skip
            await _deed(tx, now_ms, by, "invite", device)

    async def enrol(self, shown: Invitation, device: str, key: PublicKey, certify: Certify, *, now_ms: int) -> str:
        """Let a device in by its token and return its certificate; the same key with the same token gets the same.

        Raises: EnrolmentTokenError, ForeignIdentityError, TokenUsedError, UnlistedDeviceError.
        """
        async with self._database.write() as tx:
            row = await tx.one("SELECT * FROM invitation WHERE handle = ?", shown.handle)
            known = row["secret_sha256"] if row is not None else "0" * 64
            proved = hmac.compare_digest(known, shown.secret_sha256)
            if row is None or not proved or row["expires_ms"] <= now_ms:
                raise EnrolmentTokenError("The token is not known here or its day is over.")
            if row["device"] != device:
                raise ForeignIdentityError(f"The token was not made for {device!r}.")
            if row["used_key_id"]:
                if row["used_key_id"] != key.id:
                    raise TokenUsedError("The token was used by another key.")
                return str(row["certificate"])
            made = await _admit(tx, device, key, certify, now_ms)
            await tx.run(
                "UPDATE invitation SET used_key_id = ?, certificate = ? WHERE handle = ?",
                key.id,
                made.pem,
                shown.handle,
            )
            await _deed(tx, now_ms, f"token:{shown.handle}", "enrol", device, f"key {key.id}")
            return made.pem

    async def grant(self, device: str, key: PublicKey, certify: Certify, *, by: str, now_ms: int) -> str:
        """Let a device in because an operator compared its key. Raises: UnlistedDeviceError for a revoked key."""
        async with self._database.write() as tx:
            await tx.run("INSERT INTO device (name, state) VALUES (?, 'invited') ON CONFLICT (name) DO NOTHING", device)
            made = await _admit(tx, device, key, certify, now_ms)
            await _deed(tx, now_ms, by, "enrol by request", device, f"key {key.id}")
            return made.pem

    async def renew(self, listed: Listed, key: PublicKey, certify: Certify, *, now_ms: int) -> str:
        """Certify a listed device again; a new key waits as the next one until its first use."""
        async with self._database.write() as tx:
            if await tx.one("SELECT 1 FROM device_key WHERE key_id = ?", listed.key_id) is None:
                raise UnlistedDeviceError(f"{listed.device} is not let in any more.")
            taken = await tx.one("SELECT device FROM device_key WHERE key_id = ?", key.id)
            if taken is not None and taken["device"] != listed.device:
                raise ForeignIdentityError("The key belongs to another device.")
            await _refuse_revoked(tx, key)
            made = certify()
            if taken is None:
                await tx.run("DELETE FROM device_key WHERE device = ? AND state = 'next'", listed.device)
            await tx.run(
                "INSERT INTO device_key VALUES (?, ?, ?, 'next', ?, ?, ?) ON CONFLICT (key_id) DO UPDATE"
                " SET certificate = excluded.certificate, ends_s = excluded.ends_s",
                key.id, listed.device, key.pem, made.pem, made.ends_s, now_ms,
            )  # fmt: skip
            await _deed(tx, now_ms, f"device:{listed.device}", "renew", listed.device, f"key {key.id}")
            return made.pem

    async def listed(self, key_id: str) -> Listed | None:
        """Return whom a key lets in; None = nobody."""
        async with self._database.read() as tx:
            row = await tx.one("SELECT * FROM device_key WHERE key_id = ?", key_id)
        return None if row is None else Listed(row["device"], key_id, row["pem"], row["state"] == "current")

    async def keys_of(self, device: str) -> list[Listed]:
        """Return the keys that a device may speak with."""
        async with self._database.read() as tx:
            found = await tx.all("SELECT * FROM device_key WHERE device = ?", device)
        return [Listed(device, row["key_id"], row["pem"], row["state"] == "current") for row in found]

    async def promote(self, listed: Listed) -> None:
        """Make a key that was used for the first time the device's only one."""
        async with self._database.write() as tx:
            changed = await tx.run("UPDATE device_key SET state = 'current' WHERE key_id = ?", listed.key_id)
            if changed:
                await tx.run("DELETE FROM device_key WHERE device = ? AND key_id <> ?", listed.device, listed.key_id)

    async def revoke(self, device: str, *, reason: str, by: str, now_ms: int) -> None:
        """Let a device in no longer: its keys go from the list for good, its tokens as well."""
        async with self._database.write() as tx:
            await _known(tx, device)
            await tx.run(
                "INSERT INTO revoked_key SELECT key_id, device, ? FROM device_key WHERE device = ?"
                " ON CONFLICT (key_id) DO NOTHING",
                now_ms, device,
            )  # fmt: skip
            await tx.run("DELETE FROM device_key WHERE device = ?", device)
            await tx.run("DELETE FROM invitation WHERE device = ?", device)
            await tx.tell("revocations", device)
            await tx.run(
                "UPDATE device SET state = 'revoked', revoked_ms = ?, revoked_reason = ? WHERE name = ?",
                now_ms, reason, device,
            )  # fmt: skip
            await _deed(tx, now_ms, by, "revoke", device, reason)

    # --- what devices say -----------------------------------------------------------------------------------------

    async def take(self, report: VerifiedReport, *, now_ms: int, kept: int) -> ReportAnswer:
        """Take a report, or find that it tells nothing new. What contradicts an earlier one raises an alarm."""
        async with self._database.write() as tx:
            if await tx.one("SELECT 1 FROM device_key WHERE key_id = ?", report.key_id) is None:
                raise UnlistedDeviceError(f"{report.device} is not let in any more.")
            newest = await tx.one("SELECT max(counter) AS counter FROM report WHERE key_id = ?", report.key_id)
            highest = int(newest["counter"] or 0) if newest is not None else 0
            if report.counter <= highest:
                await _compare(tx, report, now_ms)
                return await _answer(tx, report, taken=False, counter=highest)
            await tx.run(
                "INSERT INTO report VALUES (?, ?, ?, ?, ?, ?)",
                report.key_id, report.counter, report.device, report.payload_sha256, now_ms, report.envelope.decode(),
            )  # fmt: skip
            await tx.run(
                "INSERT INTO standing VALUES (?, ?, ?, ?, ?) ON CONFLICT (device) DO UPDATE SET key_id ="
                " excluded.key_id, counter = excluded.counter, received_ms = excluded.received_ms,"
                " report = excluded.report",
                report.device, report.key_id, report.counter, now_ms, report.payload.decode(),
            )  # fmt: skip
            await tx.run(
                "DELETE FROM report WHERE key_id = ? AND counter <="
                " (SELECT counter FROM report WHERE key_id = ? ORDER BY counter DESC LIMIT 1 OFFSET ?)",
                report.key_id, report.key_id, kept,
            )  # fmt: skip
            await _witness(tx, report, now_ms)
            return await _answer(tx, report, taken=True, counter=report.counter)

    # --- what operators ask ---------------------------------------------------------------------------------------

    async def devices(self) -> list[DeviceRow]:
        """Return every device."""
        async with self._database.read() as tx:
            return [rows.device(row) for row in await tx.all(f"{rows.DEVICES} ORDER BY device.name")]

    async def device(self, name: str) -> DeviceDetail:
        """Return one device with all that is known of it. Raises: UnknownNameError."""
        async with self._database.read() as tx:
            row = await tx.one(f"{rows.DEVICES} WHERE device.name = ?", name)
            if row is None:
                raise UnknownNameError(f"No device is named {name!r} here.", hint="List them: lenskeep fleet devices.")
            head = await _newest_head(tx, name)
            listed = await tx.all("SELECT * FROM device_key WHERE device = ? ORDER BY added_ms", name)
        return rows.detail(row, head, listed)

    async def note_alarm(self, device: str, code: str, text: str, *, now_ms: int) -> None:
        """Note what a person should look at; an empty name is the fleet itself."""
        async with self._database.write() as tx:
            await note_alarm_in(tx, device, code, text, now_ms)

    async def alarms(self) -> list[AlarmView]:
        """Return what a person should look at, newest first."""
        async with self._database.read() as tx:
            return [rows.alarm(row) for row in await tx.all("SELECT * FROM alarm ORDER BY last_ms DESC, id DESC")]

    async def accept(self, alarm: int, *, reason: str, by: str, now_ms: int) -> None:
        """Close an alarm. Where a record began anew, it is witnessed anew from here."""
        async with self._database.write() as tx:
            row = await tx.one("SELECT * FROM alarm WHERE id = ?", alarm)
            if row is None:
                raise UnknownNameError(f"There is no alarm {alarm}.", hint="List them: lenskeep fleet alarms.")
            await tx.run("DELETE FROM alarm WHERE id = ?", alarm)
            if row["code"] == RecordContradictedError.code:
                await tx.run("UPDATE device SET chain = chain + 1 WHERE name = ?", row["device"])
            await _deed(tx, now_ms, by, f"accept alarm {row['code']}", row["device"], reason)

    async def deeds(self, limit: int) -> list[DeedView]:
        """Return what operators did, newest first."""
        async with self._database.read() as tx:
            found = await tx.all("SELECT * FROM deed ORDER BY sequence DESC LIMIT ?", limit)
        return [rows.deed(row) for row in found]

    # --- who may ask ----------------------------------------------------------------------------------------------

    async def add_operator(
        self, name: str, role: str, secret_sha256: str, *, expires_ms: int, by: str, now_ms: int
    ) -> None:
        """Let a secret stand for a role; a name that is there already gets the new one."""
        async with self._database.write() as tx:
            await tx.run(
                "INSERT INTO operator_token VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET role = excluded.role,"
                " secret_sha256 = excluded.secret_sha256, expires_ms = excluded.expires_ms",
                name, role, secret_sha256, expires_ms,
            )  # fmt: skip
            await _deed(tx, now_ms, by, "add operator token", name, role)

    async def operators(self) -> list[tuple[str, str, int]]:
        """Return name, role and end of every operator's token."""
        async with self._database.read() as tx:
            found = await tx.all("SELECT name, role, expires_ms FROM operator_token ORDER BY name")
        return [(row["name"], row["role"], row["expires_ms"]) for row in found]

    async def operator(self, secret_sha256: str, *, now_ms: int) -> tuple[str, str] | None:
        """Return name and role that a secret stands for."""
        async with self._database.read() as tx:
            row = await tx.one(
                "SELECT name, role FROM operator_token WHERE secret_sha256 = ? AND expires_ms > ?",
                secret_sha256,
                now_ms,
            )
        return None if row is None else (row["name"], row["role"])

    async def remove_operator(self, name: str, *, by: str, now_ms: int) -> None:
        """Forget an operator's token. Raises: UnknownNameError."""
        async with self._database.write() as tx:
            if not await tx.run("DELETE FROM operator_token WHERE name = ?", name):
                raise UnknownNameError(f"No operator's token is named {name!r}.")
            await _deed(tx, now_ms, by, "remove operator token", name)


async def _known(tx: Transaction, device: str) -> Row:
    row = await tx.one("SELECT * FROM device WHERE name = ?", device)
    if row is None:
        raise UnknownNameError(f"No device is named {device!r} here.", hint="List them: lenskeep fleet devices.")
    return row


async def _refuse_revoked(tx: Transaction, key: PublicKey) -> None:
    if await tx.one("SELECT 1 FROM revoked_key WHERE key_id = ?", key.id) is not None:
        raise UnlistedDeviceError(
            "This key was revoked, and a revoked key does not come back. The device gets a new one when its service is"
            " stopped, identity/device.key is set aside, and the service is started again."
        )


async def _admit(tx: WriteTransaction, device: str, key: PublicKey, certify: Certify, now_ms: int) -> Certified:
    """Make a key the only one of a device; whatever it had before is let in no longer."""
    await _refuse_revoked(tx, key)
    taken = await tx.one("SELECT device FROM device_key WHERE key_id = ? AND device <> ?", key.id, device)
    if taken is not None:
        raise ForeignIdentityError(f"The key belongs to {taken['device']!r} already.")
    made = certify()
    await tx.tell("revocations", device)
    await tx.run("DELETE FROM device_key WHERE device = ?", device)
    await tx.run(
        "INSERT INTO device_key VALUES (?, ?, ?, 'current', ?, ?, ?)",
        key.id, device, key.pem, made.pem, made.ends_s, now_ms,
    )  # fmt: skip
    await tx.run(
        "UPDATE device SET state = 'enrolled', enrolled_ms = ?, revoked_ms = NULL, revoked_reason = '' WHERE name = ?",
        now_ms, device,
    )  # fmt: skip
    return made


async def _compare(tx: Transaction, report: VerifiedReport, now_ms: int) -> None:
    """Raise an alarm when a number that was told before is told with another content."""
    row = await tx.one(
        "SELECT payload_sha256 FROM report WHERE key_id = ? AND counter = ?", report.key_id, report.counter
    )
    if row is not None and row["payload_sha256"] != report.payload_sha256:
        text = f"Report {report.counter} was told twice with different contents."
        await note_alarm_in(tx, report.device, ReportForkError.code, text, now_ms)


async def _witness(tx: Transaction, report: VerifiedReport, now_ms: int) -> None:
    """Keep a head of a device's record, or raise an alarm when the record goes back or differs."""
    if report.head_fault:
        await note_alarm_in(tx, report.device, RecordContradictedError.code, report.head_fault, now_ms)
    if report.head is None:
        return
    chain = int((await _known(tx, report.device))["chain"])
    newest = await _newest_head(tx, report.device)
    if newest is not None and newest["chain"] == chain and report.head.sequence <= newest["sequence"]:
        if text := _contradiction(newest, report.head):
            await note_alarm_in(tx, report.device, RecordContradictedError.code, text, now_ms)
        return
    await tx.run(
        "INSERT INTO witness VALUES (?, ?, ?, ?, ?, ?)",
        report.device, chain, report.head.sequence, report.head.hash, report.head_envelope, now_ms,
    )  # fmt: skip


def _contradiction(newest: Row, head: RecordHead) -> str:
    """Say how a head that is not newer differs from the one that was witnessed; empty when it is the same."""
    seen = f"entry {newest['sequence']} ({newest['hash'][:12]}…)"
    if head.sequence < newest["sequence"]:
        return f"The record ends at {head.sequence} now; its {seen} was witnessed before."
    if head.hash != newest["hash"]:
        return f"The record's {seen} was witnessed before; it is {head.hash[:12]}… now."
    return ""


async def _newest_head(tx: Transaction, device: str) -> Row | None:
    return await tx.one("SELECT * FROM witness WHERE device = ? ORDER BY chain DESC, sequence DESC LIMIT 1", device)


async def _answer(tx: Transaction, report: VerifiedReport, *, taken: bool, counter: int) -> ReportAnswer:
    head = await _newest_head(tx, report.device)
    if head is None:
        return ReportAnswer(taken=taken, counter=counter)
    return ReportAnswer(
        taken=taken, counter=counter, head_sequence=head["sequence"], head_hash=head["hash"], head=head["envelope"]
    )


async def note_alarm_in(tx: Transaction, device: str, code: str, text: str, now_ms: int) -> None:
    """Note what a person should look at, in the step that found it."""
    await tx.run(
        "INSERT INTO alarm (device, code, text, first_ms, last_ms, count) VALUES (?, ?, ?, ?, ?, 1)"
        " ON CONFLICT (device, code) DO UPDATE SET text = excluded.text, last_ms = excluded.last_ms,"
        " count = alarm.count + 1",
        device, code, text, now_ms, now_ms,
    )  # fmt: skip


async def _deed(tx: Transaction, now_ms: int, by: str, action: str, subject: str, reason: str = "") -> None:
    await tx.run(
        "INSERT INTO deed (at_ms, actor, action, subject, reason) VALUES (?, ?, ?, ?, ?)",
        now_ms, by, action, subject, reason,
    )  # fmt: skip
