"""What devices and operators say to the fleet, and what it answers.

Rules. Sequences order things, not clocks; times that a device tells are whole numbers and labels only. What a device
reports may grow new fields, and an older fleet passes over them; what is asked of either side is read strictly. Texts
are cut by their writer, with a mark, so that no report is ever refused for its size.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

DeviceName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z")]
Digest = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
Number = Annotated[int, Meta(ge=0, le=9_999_999_999_999_999)]
Line = Annotated[str, Meta(max_length=200)]
Text = Annotated[str, Meta(max_length=2000)]
Pem = Annotated[str, Meta(max_length=16384)]
CUT_MARK = " […]"


def cut(text: str, length_max: int) -> str:
    """Return a text that fits, marked where it was cut."""
    return text if len(text) <= length_max else text[: length_max - len(CUT_MARK)] + CUT_MARK


class _Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class _Answer(Struct, frozen=True, kw_only=True):
    pass


# --- reports -------------------------------------------------------------------------------------------------------


class TrustedVersions(Struct, frozen=True, kw_only=True):
    """The repository's versions that a device trusts; 0 = none."""

    root: Number = 0
    timestamp: Number = 0
    snapshot: Number = 0
    director: Number = 0


class SlotReport(Struct, frozen=True, kw_only=True):
    """What one slot really runs."""

    slot: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,30}\Z")]
    running: Line = ""  # NAME@VERSION; empty = nothing
    digest: Digest = ""  # sha256 of the model bytes that the loaded session was made from
    assigned: Line = ""  # what the fleet assigned, NAME@VERSION
    state: Line = ""
    since_ms: Number = 0


class LastRefusal(Struct, frozen=True, kw_only=True):
    """The last thing that this device refused."""

    code: Annotated[str, Meta(pattern=r"^LK-[0-9]{4}\Z")]
    text: Text = ""
    at_ms: Number = 0


class DeviceReport(Struct, frozen=True, kw_only=True):
    """What a device says about itself, signed by its key. `counter` grows with every report that it signs."""

    device: DeviceName
    counter: Annotated[int, Meta(ge=1, le=9_999_999_999_999_999)]
    at_ms: Number
    clock_trusted: bool
    clock_floor_s: Number = 0
    trusted: TrustedVersions = TrustedVersions()
    slots: Annotated[list[SlotReport], Meta(max_length=64)] = []
    refusal: LastRefusal | None = None
    record_head: Annotated[str, Meta(max_length=8192)] = ""  # the signed envelope of the record's newest head


class RecordHead(Struct, frozen=True, kw_only=True):
    """What the fleet witnesses of a record's signed head."""

    device: str
    sequence: Number
    hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class ReportAnswer(_Answer, frozen=True, kw_only=True):
    """What was taken. A report that was told before changes nothing and is acknowledged all the same.

    `counter` is the highest one that the fleet has of this key; a device whose own is not above it goes on above it.
    """

    taken: bool
    counter: int
    head_sequence: int = 0  # the newest head of this device's record that the fleet has witnessed
    head_hash: str = ""
    head: str = ""  # its signed envelope: a device whose registry was put back learns from it how far it was


class CarriedAnswer(_Answer, frozen=True, kw_only=True):
    """What was taken of records that came on a stick, and the receipt that goes back to the device."""

    device: str
    outbox: str
    taken: int  # every record of this outbox up to this number is durable here
    fresh: int  # records that were not here before
    receipt: str  # signed envelope


class RecordCopy(_Answer, frozen=True, kw_only=True):
    """A copy of a device's record, as far as it is here. One that began anew at the device is another copy."""

    copy: int
    sequence: int  # of the newest entry
    hash: str
    head_sequence: int  # up to here the device has signed; -1 = not yet
    head_hash: str
    head: str  # the signed envelope
    named: str
    key_id: str
    public_key: str
    bytes: int
    changed_ms: int


class RecordState(_Answer, frozen=True, kw_only=True):
    """What the fleet has of a device's record, the newest copy first; and what became of a piece that came."""

    device: str
    copies: list[RecordCopy]
    entries: int = 0  # that were taken
    known: bool = False  # the head that came alone is one of an entry that is here


class RecordWitness(_Answer, frozen=True, kw_only=True):
    """What a copy is judged by: the device's key, and a head that it signed, of an entry that is in the copy."""

    public_key: str
    head: str
    newest: int  # the newest entry that was witnessed; above the copy's = the device has gone on


# --- enrolment -----------------------------------------------------------------------------------------------------


class EnrolmentRequest(_Request, frozen=True, kw_only=True):
    """A device asks to be let in."""

    device: DeviceName
    token: Annotated[str, Meta(max_length=64)]
    csr: Annotated[str, Meta(max_length=4096)]


class CertificateAsk(_Request, frozen=True, kw_only=True):
    """A device that is let in asks for its next certificate."""

    csr: Annotated[str, Meta(max_length=4096)]


class Enrolled(_Answer, frozen=True, kw_only=True):
    """A certificate, and the authority that made it."""

    device: str
    certificate: Pem
    authority: Pem


class AuthorityView(_Answer, frozen=True, kw_only=True):
    """The fleet's own authority."""

    certificate: Pem
    key_id: str
    fingerprint: str
    ends: str


# --- the operator's door -------------------------------------------------------------------------------------------

FleetRole = Literal["viewer", "auditor", "operator", "admin"]
FLEET_ROLES: tuple[FleetRole, ...] = ("viewer", "auditor", "operator", "admin")  # each may do what those before it may


class InvitationAsk(_Request, frozen=True, kw_only=True):
    """Invite a device."""

    device: DeviceName
    hours: Annotated[int, Meta(ge=1, le=24)] = 24


class InvitationMade(_Answer, frozen=True, kw_only=True):
    """The token; it is in this answer and nowhere else."""

    device: str
    token: str
    expires: str


class GrantAsk(_Request, frozen=True, kw_only=True):
    """Answer a request for a certificate that came on a stick. `key_id` is the key that the operator has compared."""

    device: DeviceName
    csr: Annotated[str, Meta(max_length=4096)]
    key_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class RevocationAsk(_Request, frozen=True, kw_only=True):
    """Let a device in no longer."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class DeviceRow(_Answer, frozen=True, kw_only=True):
    """A device as the fleet knows it."""

    device: str
    state: Literal["invited", "enrolled", "revoked"]
    key_id: str = ""
    fingerprint: str = ""
    enrolled: str = ""
    certificate_ends: str = ""
    revoked: str = ""
    revoked_reason: str = ""
    heard: str = ""  # when the fleet took its last report
    counter: int = 0
    running: dict[str, str] = {}  # slot -> NAME@VERSION
    alarms: int = 0


class DeviceDetail(_Answer, frozen=True, kw_only=True):
    """A device with its last report and what was witnessed of its record."""

    device: DeviceRow
    report: DeviceReport | None = None
    head_sequence: int = 0
    head_hash: str = ""
    keys: list[dict[str, Any]] = []


class AlarmView(_Answer, frozen=True, kw_only=True):
    """Something that a person should look at; the same thing again raises its count."""

    id: int
    device: str
    code: str
    text: str
    first: str
    last: str
    count: int


class OperatorTokenAsk(_Request, frozen=True, kw_only=True):
    """Make a token for a tool or a person."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
    role: FleetRole
    days: Annotated[int, Meta(ge=1, le=3650)] = 365


class OperatorToken(_Answer, frozen=True, kw_only=True):
    """A token of the operator's door; its secret is in the first answer alone."""

    name: str
    role: FleetRole
    expires: str
    secret: str = ""


class DeedView(_Answer, frozen=True, kw_only=True):
    """What an operator did."""

    at: str
    by: str
    action: str
    subject: str
    reason: str
