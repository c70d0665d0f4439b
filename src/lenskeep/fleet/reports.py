"""Signed reports, judged: whose they are, what they say, and what they witness of the device's record.

Rules. Nothing of a report is looked at before its signature, and the signature counts only by a key that is listed
for the device that the report speaks for. It is the same on the wire and on a stick: who carries it does not matter.
A report that was told before is acknowledged and changes nothing, so that a lost answer and a stick that comes late
do no harm; a different content under a number that was told raises an alarm.
"""

from __future__ import annotations

import hashlib

import msgspec

from lenskeep.bundle import keys, strictjson
from lenskeep.bundle.keys import PublicKey
from lenskeep.clock import Clock
from lenskeep.errors import BundleFormatError, ReportRefusedError, SignatureError, UnlistedDeviceError
from lenskeep.fleet.store.store import Listed, Store, VerifiedReport
from lenskeep.messages.fleet import DeviceReport, RecordHead, ReportAnswer
from lenskeep.trust import envelope
from lenskeep.trust.envelope import Opened
from lenskeep.trust.stick import REPORT_BYTES_MAX


class Reports:
    """Where reports come in."""

    def __init__(self, store: Store, clock: Clock, *, kept: int) -> None:
        self._store = store
        self._clock = clock
        self._kept = kept

    async def take(self, data: bytes, device: str) -> ReportAnswer:
        """Take one device's signed report. Raises: ReportRefusedError, UnlistedDeviceError."""
        opened = _open(data)
        listed = await self._store.listed(opened.key_id)
        if listed is None or listed.device != device:
            raise UnlistedDeviceError(f"The report is signed by a key that is not listed for {device!r}.")
        report = _verified(opened, listed, data)
        return await self._store.take(report, now_ms=self._clock.now_ms(), kept=self._kept)


def _open(data: bytes) -> Opened:
    if len(data) > REPORT_BYTES_MAX:
        raise ReportRefusedError(f"The report has more than the {REPORT_BYTES_MAX} bytes that one may have.")
    try:
        return envelope.open_envelope(data)
    except SignatureError as error:
        raise ReportRefusedError(str(error)) from error


def _verified(opened: Opened, listed: Listed, data: bytes) -> VerifiedReport:
    key = keys.admit(listed.pem)
    try:
        payload = envelope.verify(opened, envelope.REPORT, key)
        raw = strictjson.loads(payload, bytes_max=REPORT_BYTES_MAX, floats=True)
        report = msgspec.convert(raw, DeviceReport, strict=True)
    except (SignatureError, BundleFormatError, msgspec.ValidationError) as error:
        raise ReportRefusedError(f"The report cannot be believed: {error}") from error
    if report.device != listed.device:
        raise ReportRefusedError(f"The report is signed by {listed.device!r} and speaks for {report.device!r}.")
    head, fault = _head(report, key)
    return VerifiedReport(
        device=report.device, key_id=listed.key_id, counter=report.counter, payload=payload,
        payload_sha256=hashlib.sha256(payload).hexdigest(), envelope=data, head=head,
        head_envelope=report.record_head, head_fault=fault,
    )  # fmt: skip


def _head(report: DeviceReport, key: PublicKey) -> tuple[RecordHead | None, str]:
    """Read the record's head inside a report, which the device has signed apart; or say why it is no witness."""
    if not report.record_head:
        return None, ""
    try:
        payload = envelope.verify(envelope.open_envelope(report.record_head.encode()), envelope.RECORD_HEAD, key)
        raw = strictjson.loads(payload, bytes_max=REPORT_BYTES_MAX, floats=True)
        head = msgspec.convert(raw, RecordHead, strict=True)
    except (SignatureError, BundleFormatError, msgspec.ValidationError) as error:
        return None, f"The head of the record in report {report.counter} cannot be believed: {error}"
    if head.device != report.device:
        return None, f"The head of the record in report {report.counter} is of {head.device!r}."
    return head, ""
