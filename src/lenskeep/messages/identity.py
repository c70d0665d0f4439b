"""What the control API says and is asked about who this device is."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Pem = Annotated[str, Meta(max_length=16384)]
Fingerprint = Annotated[str, Meta(max_length=80)]


class IdentityView(Struct, frozen=True, kw_only=True):
    """Who this device is, and which fleet it belongs to."""

    device: str
    key_id: str
    fingerprint: str
    enrolled: bool
    fleet: str = ""  # the fleet's address; empty = by stick alone
    authority_fingerprint: str = ""
    certificate_ends: str = ""
    certificate_renews: str = ""
    fault: str = ""  # why the last renewal did not succeed
    public_key: str = ""  # PEM; what verifies this device's reports and record


class CertificateRequestView(Struct, frozen=True, kw_only=True):
    """A request for a certificate, for a stick."""

    device: str
    fingerprint: str
    csr: str


class InstallRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Install a certificate that came on a stick.

    `authority_fingerprint` is what a person has compared; it may be left out for the fleet that is known already.
    """

    chain: Pem
    authority_fingerprint: Fingerprint = ""


class EnrolRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Enrol into a fleet over the network. The token names the fleet's authority; it may be named once more."""

    url: Annotated[str, Meta(pattern=r"^https://[^\s?#]+$", max_length=300)]
    token: Annotated[str, Meta(max_length=64)]
    authority_fingerprint: Fingerprint = ""


class SignedReport(Struct, frozen=True, kw_only=True):
    """A signed report, for a stick."""

    device: str
    counter: int
    envelope: str


class OutboxRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sign the oldest records above a number, for a stick."""

    above: Annotated[int, Meta(ge=-1)] = -1


class SignedRecords(Struct, frozen=True, kw_only=True):
    """Records for the fleet, signed, for a stick. Without an envelope there is nothing more to be told."""

    device: str
    outbox: str = ""
    first: int = 0
    last: int = -1
    records: int = 0
    left: int = 0  # records with higher numbers
    envelope: str = ""


class ReceiptRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take the fleet's receipt that came on a stick."""

    envelope: Annotated[str, Meta(max_length=4096)]


class ReceiptTaken(Struct, frozen=True, kw_only=True):
    """What a receipt said, and how many records could be forgotten."""

    outbox: str
    taken: int
    forgotten: int


class FleetView(Struct, frozen=True, kw_only=True):
    """How things stand with the fleet, and what waits for it."""

    url: str  # empty = by stick alone
    level: bool  # it was heard, and what it has is here
    heard_s: float | None  # how long ago; None = not since the service was started
    waiting: int  # records
    waiting_bytes: int = 0
    kinds: dict[str, int] = {}
    oldest: str = ""
    dropped: int = 0  # ever, because the fleet could not be reached for too long
    paused: bool = False  # the fleet asked to follow nothing for a while
    problem: str = ""
    fix: str = ""
