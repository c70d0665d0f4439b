"""Who is let in: tokens, requests for certificates, renewals, and the list that decides.

Rules. A certificate that our authority made is needed and is not enough: its key must stand in the list, under the name
that the certificate gives. Whoever tries tokens is slowed down by address. What two requests at once could decide
differently is decided by the store.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import ssl
from collections import OrderedDict
from weakref import WeakKeyDictionary

from lenskeep.clock import Clock, rfc3339
from lenskeep.errors import (
    CertificateError,
    CertificateRequestError,
    EnrolmentTokenError,
    ForeignIdentityError,
    NotEnrolledError,
    TokenUsedError,
    TooManyTriesError,
    UnlistedDeviceError,
)
from lenskeep.fleet.authority import FleetAuthority
from lenskeep.fleet.store.store import Listed, Store
from lenskeep.messages.fleet import Enrolled, EnrolmentRequest, GrantAsk, InvitationAsk, InvitationMade
from lenskeep.trust import certificates, invitation
from lenskeep.trust.certificates import Certificate

ADDRESSES_MAX = 4096
PASSES_MAX = 200_000
WINDOW_S = 60.0


class Tries:
    """Failed attempts by address within the last minute; bounded, and kept in memory alone."""

    def __init__(self, clock: Clock, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._seen: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Let an attempt pass. Raises: TooManyTriesError."""
        now_s = self._clock.monotonic_s()
        recent = [at for at in self._seen.get(_network(address), []) if at > now_s - WINDOW_S]
        if len(recent) >= self._per_minute:
            raise TooManyTriesError(f"More than {self._per_minute} attempts within a minute.")

    def failed(self, address: str) -> None:
        """Count an attempt that did not prove itself."""
        now_s, name = self._clock.monotonic_s(), _network(address)
        recent = [at for at in self._seen.pop(name, []) if at > now_s - WINDOW_S]
        self._seen[name] = [*recent, now_s]
        while len(self._seen) > ADDRESSES_MAX:
            self._seen.popitem(last=False)


class Passes:
    """Whom certificates were found to belong to, so that a device that stays is asked after once.

    A pass goes at once when this server changes who is let in; `forget` and `forget_all` are for what others changed.
    """

    def __init__(self) -> None:
        self._passes: dict[bytes, tuple[Listed, float]] = {}
        self._held: WeakKeyDictionary[ssl.SSLObject, tuple[Listed, float, int]] = WeakKeyDictionary()
        self.changes = 0

    def of(self, connection: ssl.SSLObject, now_s: float) -> Listed | None:
        """Return whose connection this is, when it was asked before and nothing has changed since."""
        found = self._held.get(connection)
        return found[0] if found is not None and found[2] == self.changes and now_s < found[1] else None

    def get(self, shown: bytes, now_s: float, connection: ssl.SSLObject) -> Listed | None:
        """Return whose certificate this is, when that is known and its time is not over."""
        found = self._passes.get(hashlib.sha256(shown).digest())
        if found is None or now_s >= found[1]:
            return None
        self._held[connection] = (*found, self.changes)
        return found[0]

    def put(self, shown: bytes, listed: Listed, ends_s: float, changes: int) -> None:
        """Keep what was found, unless something changed since `changes` was read."""
        if changes == self.changes:
            if len(self._passes) >= PASSES_MAX:
                self._passes.clear()
            self._passes[hashlib.sha256(shown).digest()] = (listed, ends_s)

    def forget(self, device: str) -> None:
        """Ask the list again for one device."""
        self.changes += 1
        for shown in [shown for shown, (listed, _) in self._passes.items() if listed.device == device]:
            del self._passes[shown]

    def forget_all(self) -> None:
        """Ask the list again for everybody."""
        self.changes += 1
        self._passes.clear()


class Admission:
    """The fleet's decisions about who is let in."""

    def __init__(self, store: Store, authority: FleetAuthority, clock: Clock, *, tries_per_minute: int) -> None:
        self._store = store
        self._authority = authority
        self._clock = clock
        self._tries = Tries(clock, tries_per_minute)
        self.passes = Passes()

    async def revoke(self, device: str, *, reason: str, by: str) -> None:
        """Let a device in no longer, from this moment on, also where it is connected."""
        await self._store.revoke(device, reason=reason, by=by, now_ms=self._clock.now_ms())
        self.passes.forget(device)

    async def invite(self, ask: InvitationAsk, by: str) -> InvitationMade:
        """Make a token for a device."""
        made = invitation.invite(self._authority.key_id)
        now_ms = self._clock.now_ms()
        expires_ms = now_ms + ask.hours * 3_600_000
        await self._store.invite(made, ask.device, expires_ms=expires_ms, by=by, now_ms=now_ms)
        return InvitationMade(device=ask.device, token=made.text(), expires=rfc3339(expires_ms / 1000))

    async def enrol(self, request: EnrolmentRequest, address: str) -> Enrolled:
        """Let a device in by its token. Raises: TooManyTriesError, EnrolmentTokenError and what the store refuses."""
        self._tries.check(address)
        try:
            requested = certificates.read_request(request.csr, request.device)
            shown = invitation.read(request.token)
            certificate = await self._store.enrol(
                shown, request.device, requested.key,
                functools.partial(self._authority.certify, request.device, requested.key), now_ms=self._clock.now_ms(),
            )  # fmt: skip
        except TokenUsedError as error:  # the token was right: somebody has it who should not, or a key was lost
            self._tries.failed(address)
            text = f"{error} Tried from {address}."
            await self._store.note_alarm(request.device, error.code, text, now_ms=self._clock.now_ms())
            raise
        except (EnrolmentTokenError, ForeignIdentityError, CertificateRequestError):
            self._tries.failed(address)
            raise
        self.passes.forget(request.device)
        return self._enrolled(request.device, certificate)

    async def grant(self, ask: GrantAsk, by: str) -> Enrolled:
        """Answer a request that came on a stick; the operator has compared the key."""
        requested = certificates.read_request(ask.csr, ask.device)
        if requested.key.id != ask.key_id:
            raise CertificateRequestError("The request holds another key than the one that was compared.")
        certify = functools.partial(self._authority.certify, ask.device, requested.key)
        certificate = await self._store.grant(ask.device, requested.key, certify, by=by, now_ms=self._clock.now_ms())
        self.passes.forget(ask.device)
        return self._enrolled(ask.device, certificate)

    async def renew(self, listed: Listed, csr: str) -> Enrolled:
        """Certify a device again, with the same key or a new one."""
        requested = certificates.read_request(csr, listed.device)
        certify = functools.partial(self._authority.certify, listed.device, requested.key)
        certificate = await self._store.renew(listed, requested.key, certify, now_ms=self._clock.now_ms())
        return self._enrolled(listed.device, certificate)

    async def identify(self, connection: object) -> Listed:
        """Say whose connection this is; TLS has checked that our authority made its certificate and that the peer holds
        its key.

        Args:
            connection: the server's end of TLS; anything else is none.
        Raises: NotEnrolledError, UnlistedDeviceError, CertificateError.
        """
        if not isinstance(connection, ssl.SSLObject):
            raise NotEnrolledError("This needs a device's certificate, and the connection is not encrypted.")
        if (known := self.passes.of(connection, self._clock.now_s())) is not None:
            return known
        shown = connection.getpeercert(binary_form=True)
        if shown is None:
            raise NotEnrolledError("This needs a device's certificate, and the connection showed none.")
        if (known := self.passes.get(shown, self._clock.now_s(), connection)) is not None:
            return known
        changes = self.passes.changes
        certificate, device = _read(shown)
        listed = await self._store.listed(certificate.key.id)
        if listed is None or listed.device != device:
            raise UnlistedDeviceError(f"The key of {device!r} is not listed here.")
        if self._clock.now_s() >= certificate.ends_s:  # a connection may outlive its certificate
            raise CertificateError("The certificate's time is over.")
        if listed.current:
            self.passes.put(shown, listed, certificate.ends_s, changes)
        else:
            await self._store.promote(listed)
            self.passes.forget(device)  # the key before this one opens no door any more
        return listed

    def _enrolled(self, device: str, certificate: str) -> Enrolled:
        return Enrolled(device=device, certificate=certificate, authority=self._authority.pem)


@functools.lru_cache(maxsize=4096)
def _read(shown: bytes) -> tuple[Certificate, str]:
    certificate = certificates.read(shown)
    return certificate, certificates.device_of(certificate)


def _network(address: str) -> str:
    """Return what counts as one address: a whole IPv6 site has plenty of its own."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
