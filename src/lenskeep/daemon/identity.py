"""This device as a member of a fleet: its certificate, how it got it and renews it, and what it signs.

Rules. The key never leaves; whoever wants to be sure of it compares fingerprints. What a fleet gave (address,
authority, certificate) is one file, replaced as a whole, and a certificate is installed only after it was checked
against key, name and authority. An authority is believed because a token or a person named its fingerprint. A
certificate is renewed at two thirds of its life. Every report carries the next number of a counter in the registry; a
registry that came back from an old copy learns from the fleet's answer where to go on.
Cost: the library of certificates is loaded only when a certificate is really handled: at enrolment and renewal.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from lenskeep.bundle.keys import PrivateKey
from lenskeep.clock import Clock, rfc3339
from lenskeep.daemon import fleetline
from lenskeep.daemon.problems import fault_check
from lenskeep.daemon.way import Way
from lenskeep.database import Database
from lenskeep.errors import (
    CertificateError,
    FleetNotProvenError,
    LenskeepError,
    NotEnrolledError,
    RequestError,
    StorageError,
)
from lenskeep.messages.control import Check
from lenskeep.messages.fleet import (
    AuthorityView,
    CertificateAsk,
    DeviceReport,
    Enrolled,
    EnrolmentRequest,
    ReportAnswer,
)
from lenskeep.messages.identity import CertificateRequestView, EnrolRequest, IdentityView, InstallRequest
from lenskeep.registry import audit, journal
from lenskeep.trust import envelope, identity, invitation, tls

log = logging.getLogger(__name__)

MEMBERSHIP_FILE, CHAIN_FILE = "membership.json", "device.crt"
REPORT_COUNTER = "report"
RENEWAL_LOOK_S = 6 * 3600.0
RENEWAL_AGAIN_S = 600.0

_ENROL_AGAIN = "Enrol it again: lenskeep enrol URL --token TOKEN, or by stick: lenskeep identity csr STICK."

MakeReport = Callable[[str, int], DeviceReport]  # device, counter -> what is said


class _Membership(Struct, frozen=True, kw_only=True):
    """What a fleet gave this device."""

    fleet: str
    key_id: str
    certificate: str
    authority: str
    authority_key_id: str
    renew_s: float
    ends_s: float


class Identity:
    """Who this device is."""

    def __init__(
        self, device: str, key: PrivateKey, folder: Path, credentials: Path | None, database: Database, clock: Clock,
        configured_fleet: str, way: Way | None = None,
    ) -> None:  # fmt: skip
        self.way = way or Way()  # how its fleet is reached
        self.device = device
        self.key = key
        self.fault: LenskeepError | None = None  # why the last renewal did not succeed
        self._folder = folder
        self._key_file = identity.key_path(folder, credentials)
        self._database = database
        self._clock = clock
        self._configured_fleet = configured_fleet.rstrip("/")
        self._one_report = asyncio.Lock()
        self._changing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._membership: _Membership | None = None
        self._context: ssl.SSLContext | None = None

    # --- what is so -----------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Take up what a fleet gave before. Whatever is wrong with it is told; the device comes up all the same."""
        try:
            data = await asyncio.to_thread(_read_in_thread, self._folder / MEMBERSHIP_FILE)
            if data:
                await self._take_up(msgspec.json.decode(data, type=_Membership))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.fault = StorageError(f"{MEMBERSHIP_FILE} cannot be read: {error}.", hint=_ENROL_AGAIN)
        except LenskeepError as error:
            self.fault = error

    async def _take_up(self, membership: _Membership) -> None:
        if membership.key_id != self.key.public.id:
            raise NotEnrolledError("The certificate is for another key than this device has now.", hint=_ENROL_AGAIN)
        await self._use(membership)

    @property
    def fleet(self) -> str:
        """The fleet's address: the configured one, else the one that this device enrolled at; empty = none."""
        return self._configured_fleet or (self._membership.fleet if self._membership else "")

    @property
    def belongs(self) -> bool:
        """Say whether this device belongs to a fleet that it can speak with."""
        return bool(self.fleet) and self._context is not None

    @property
    def member(self) -> bool:
        """Say whether a fleet has let this device in, be it by stick alone."""
        return self._context is not None

    @property
    def authority(self) -> str:
        """The certificate of the fleet's authority, which was proven when this device became a member; empty = none."""
        return self._membership.authority if self._membership else ""

    def tls(self) -> ssl.SSLContext | None:
        """Return the context in which this device proves itself to its fleet; None when it belongs to none."""
        return self._context

    def view(self) -> IdentityView:
        """Show who this device is."""
        member = self._membership
        return IdentityView(
            device=self.device, key_id=self.key.public.id, fingerprint=identity.fingerprint(self.key.public.id),
            enrolled=member is not None, fleet=self.fleet,
            authority_fingerprint=identity.fingerprint(member.authority_key_id) if member else "",
            certificate_ends=rfc3339(member.ends_s) if member else "",
            certificate_renews=rfc3339(member.renew_s) if member else "",
            fault=f"{self.fault.code} {self.fault}" if self.fault else "", public_key=self.key.public.pem,
        )  # fmt: skip

    async def checks(self) -> list[Check]:
        """Return what people should look at."""
        if self.fault is not None:
            return [fault_check("identity", self.fault, "warn")]
        member = self._membership
        if member is None or self._clock.now_s() < member.ends_s or not self._clock.trusted():
            return []
        over = CertificateError("This device's certificate is over; the fleet does not let it in.", hint=_ENROL_AGAIN)
        return [fault_check("identity", over, "warn")]

    # --- becoming a member ----------------------------------------------------------------------------------------

    async def request(self) -> CertificateRequestView:
        """Write a request for a certificate."""
        csr = await asyncio.to_thread(_request_in_thread, self.key, self.device)
        return CertificateRequestView(device=self.device, fingerprint=identity.fingerprint(self.key.public.id), csr=csr)

    async def enrol(self, ask: EnrolRequest, by: str) -> IdentityView:
        """Enrol at a fleet. Raises: FleetNotProvenError before anything is sent, and what the fleet refuses with."""
        invited, url = invitation.read(ask.token), ask.url.rstrip("/")
        async with self._changing, self._recording_refusal(by, f"enrol at {url}"):
            shown = await fleetline.ask(f"{url}/v1/authority", tls.unproven_context(), AuthorityView, way=self.way)
            authority = await asyncio.to_thread(_authority_in_thread, shown.certificate)
            said = ask.authority_fingerprint
            if not invited.names_authority(authority) or (said and not identity.same_fingerprint(said, authority)):
                raise FleetNotProvenError(
                    f"{url} shows the authority {identity.fingerprint(authority)}, which the token was not made by."
                    " Nothing was sent."
                )
            csr = (await self.request()).csr
            body = EnrolmentRequest(device=self.device, token=ask.token.strip(), csr=csr)
            pinned = tls.fleet_context(shown.certificate, self._clock)
            answer = await fleetline.ask(f"{url}/v1/enrolment", pinned, Enrolled, msgspec.json.encode(body), self.way)
            await self._install(answer.certificate, shown.certificate, url, by, "enrol")
        return self.view()

    async def install(self, ask: InstallRequest, by: str) -> IdentityView:
        """Install a certificate that came on a stick. Raises: CertificateError, FleetNotProvenError."""
        from lenskeep.trust.certificates import split_chain

        parts = split_chain(ask.chain)
        if len(parts) != 2:
            raise RequestError("The file must hold the device's certificate and the authority's behind it.")
        async with self._changing, self._recording_refusal(by, "install a certificate"):
            authority = await asyncio.to_thread(_authority_in_thread, parts[1])
            known = self._membership is not None and self._membership.authority_key_id == authority
            named = ask.authority_fingerprint
            if named and not identity.same_fingerprint(named, authority):
                raise FleetNotProvenError(f"The authority is {identity.fingerprint(authority)}, not {named}.")
            if not known and not named:
                raise FleetNotProvenError(
                    f"The authority {identity.fingerprint(authority)} is not known here.",
                    hint="Compare it with the operator's `lenskeep fleet ca show` and name it: --ca-fingerprint.",
                )
            await self._install(parts[0], parts[1], self._membership.fleet if self._membership else "", by, "install")
        return self.view()

    @asynccontextmanager
    async def _recording_refusal(self, by: str, what: str) -> AsyncIterator[None]:
        """Put a refusal on record: somebody tried to move this device to a fleet."""
        try:
            yield
        except LenskeepError as error:
            async with self._database.write() as tx:
                await audit.add(
                    tx, self._clock, by=by, action="refuse membership", subject=self.device,
                    reason=f"{what}: {error.code} {error}",
                )  # fmt: skip
            raise

    async def renew(self) -> None:
        """Get the next certificate from the fleet. Raises: NotEnrolledError, and what the fleet refuses with."""
        async with self._changing:
            member, context = self._membership, self._context
            if member is None or context is None or not self.fleet:
                raise NotEnrolledError("This device belongs to no fleet that it could ask.")
            body = msgspec.json.encode(CertificateAsk(csr=(await self.request()).csr))
            url = f"{self.fleet}/v1/devices/{self.device}/certificate"
            answer = await fleetline.ask(url, context, Enrolled, body, self.way)
            await self._install(answer.certificate, member.authority, member.fleet, "daemon", "renew")

    async def run(self) -> None:
        """Renew the certificate when two thirds of its life are over."""
        while True:
            pause_s = RENEWAL_LOOK_S
            if self._due():
                try:
                    await self.renew()
                    self.fault = None
                except LenskeepError as error:
                    self.fault, pause_s = error, RENEWAL_AGAIN_S
                    log.warning("%s The certificate was not renewed: %s", error.code, error)
            self._changed.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _due(self) -> bool:
        member = self._membership
        return (
            member is not None and bool(self.fleet) and self._clock.trusted() and self._clock.now_s() >= member.renew_s
        )

    # --- what it signs --------------------------------------------------------------------------------------------

    async def signed_report(self, make: MakeReport) -> tuple[int, bytes]:
        """Sign a report under the next number, for the wire or for a stick."""
        async with self._database.write() as tx:
            counter = await journal.count_up(tx, REPORT_COUNTER)
        payload = msgspec.json.encode(make(self.device, counter))
        return counter, envelope.seal(payload, envelope.REPORT, self.key)

    async def report(self, make: MakeReport) -> ReportAnswer:
        """Report to the fleet; what it had already under this number is said again under one above its own."""
        if self._context is None or not self.fleet:
            raise NotEnrolledError("This device belongs to no fleet that it could report to.")
        async with self._one_report:
            answer = await self._send(self._context, make)
            if not answer.taken:
                await self.count_reports_from(answer.counter)
                answer = await self._send(self._context, make)
            return answer

    async def count_reports_from(self, counter: int) -> None:
        """Go on above a number that the fleet has a report under: the registry was put back."""
        async with self._database.write() as tx:
            await journal.note(tx, REPORT_COUNTER, max(counter, await journal.noted(tx, REPORT_COUNTER)))

    @property
    def certificate_ends_s(self) -> float:
        """When the certificate is over; 0 = there is none."""
        return self._membership.ends_s if self._membership else 0.0

    async def _send(self, context: ssl.SSLContext, make: MakeReport) -> ReportAnswer:
        _, data = await self.signed_report(make)
        url = f"{self.fleet}/v1/devices/{self.device}/reports"
        return await fleetline.ask(url, context, ReportAnswer, data, self.way)

    # --- the file -------------------------------------------------------------------------------------------------

    async def _install(self, certificate: str, authority: str, fleet: str, by: str, action: str) -> None:
        """Check a certificate and make it this device's own."""
        now_s = self._clock.now_s() if self._clock.trusted() else None
        membership = await asyncio.to_thread(
            _checked_in_thread, certificate, authority, fleet, self.device, self.key, now_s
        )
        await asyncio.to_thread(_write_in_thread, self._folder / MEMBERSHIP_FILE, msgspec.json.encode(membership))
        before = self._membership.authority_key_id[:12] if self._membership else ""
        await self._use(membership)
        async with self._database.write() as tx:
            await audit.add(
                tx, self._clock, by=by, action=f"{action} certificate", subject=self.device, before=before,
                after=f"authority {membership.authority_key_id[:12]}, ends {rfc3339(membership.ends_s)}",
            )  # fmt: skip
        self.fault = None
        self._changed.set()

    async def _use(self, membership: _Membership) -> None:
        chain = self._folder / CHAIN_FILE
        text = (membership.certificate + membership.authority).encode()
        self._context = await asyncio.to_thread(
            _context_in_thread, chain, text, self._key_file, membership.authority, self._clock
        )
        self._membership = membership


def _read_in_thread(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error


def _write_in_thread(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        identity.write_durably(path, data, 0o644)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}. Nothing was changed.") from error


def _context_in_thread(chain: Path, text: bytes, key: Path, authority: str, clock: Clock) -> ssl.SSLContext:
    """The chain's file is for the TLS library alone; what counts is the membership that it is written from."""
    if _read_in_thread(chain) != text:
        _write_in_thread(chain, text)
    try:
        return tls.fleet_context(authority, clock, chain, key)
    except (OSError, ssl.SSLError) as error:
        raise StorageError(f"The device's key and certificate cannot be used together: {error}.") from error


def _request_in_thread(key: PrivateKey, device: str) -> str:
    from lenskeep.trust.certificates import write_request

    return write_request(key, device)


def _authority_in_thread(pem: str) -> str:
    """Return the id of the key of an authority."""
    from lenskeep.trust.certificates import check_authority

    return check_authority(pem).key.id


def _checked_in_thread(
    certificate: str, authority: str, fleet: str, device: str, key: PrivateKey, now_s: float | None
) -> _Membership:
    from lenskeep.trust.certificates import check_authority, check_device

    said = check_device(certificate, authority, device=device, key=key.public, now_s=now_s)
    return _Membership(
        fleet=fleet, key_id=key.public.id, certificate=said.pem, authority=authority,
        authority_key_id=check_authority(authority).key.id, renew_s=said.renew_s, ends_s=said.ends_s,
    )  # fmt: skip
