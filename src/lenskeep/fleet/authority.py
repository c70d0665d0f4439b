"""The fleet's authority and its server's certificate, as files: made at the first start, renewed in time.

Rules. The authority's key is made once, 0600, and never replaced; with it gone every device must be enrolled again, so
a start that finds the certificate without the key says so and ends. The server's certificate is a derivative: it is
made anew whenever two thirds of its life are over or it does not fit.
Cost: blocks on the disk; a certificate is about a millisecond.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec

from lenskeep.bundle.keys import PrivateKey, PublicKey, generate_key, load_private_key
from lenskeep.clock import Clock, rfc3339
from lenskeep.errors import (
    CertificateError,
    CertificateRequestError,
    ClockUntrustedError,
    ConfigError,
    RequestError,
    StorageError,
)
from lenskeep.fleet.store.store import Certified
from lenskeep.messages.fleet import AuthorityView
from lenskeep.messages.sync import Receipt
from lenskeep.trust import ca, certificates, envelope
from lenskeep.trust.ca import Authority
from lenskeep.trust.identity import fingerprint, write_durably

AUTHORITY_KEY, AUTHORITY_CERTIFICATE = "authority.key", "authority.crt"
SERVER_KEY, SERVER_CHAIN = "server.key", "server.crt"


class FleetAuthority:
    """The authority of this fleet; made by `open_authority`."""

    def __init__(self, folder: Path, authority: Authority, clock: Clock, device_days: int) -> None:
        self.pem = authority.pem
        self.key_id = authority.key.public.id
        self._folder = folder
        self._authority = authority
        self._clock = clock
        self._device_days = device_days
        self._certificate = certificates.check_authority(authority.pem)

    def certify(self, device: str, key: PublicKey) -> Certified:
        """Certify a device's key for the configured time. Raises: ClockUntrustedError, CertificateRequestError."""
        _check(self._clock)
        if key.id == self.key_id:
            raise CertificateRequestError("This is the authority's own key.")
        pem = ca.certify_device(self._authority, device, key, self._clock.wall_s(), days=self._device_days)
        return Certified(pem, int(certificates.read(pem).ends_s))

    def receipt(self, said: Receipt) -> str:
        """Sign how far a device's records are durable here. Cost: one signature."""
        return envelope.seal(msgspec.json.encode(said), envelope.RECEIPT, self._authority.key).decode()

    def view(self) -> AuthorityView:
        """Show the authority to people."""
        return AuthorityView(
            certificate=self.pem, key_id=self.key_id, fingerprint=fingerprint(self.key_id),
            ends=rfc3339(self._certificate.ends_s),
        )  # fmt: skip

    def renew_server(self) -> bool:
        """Make the server's certificate anew when its time has come; say whether it was."""
        chain = self._folder / SERVER_CHAIN
        if chain.exists() and self._fits(chain):
            return False
        _check(self._clock)
        key = generate_key()
        made = ca.certify_server(self._authority, key.public, self._clock.wall_s())
        write_durably(self._folder / SERVER_KEY, key.pem(), 0o600)
        write_durably(chain, (made + self.pem).encode(), 0o644)
        return True

    def load_server(self, context: ssl.SSLContext) -> None:
        """Let a context speak with the server's certificate, from its next connection on."""
        context.load_cert_chain(self._folder / SERVER_CHAIN, self._folder / SERVER_KEY)

    def server_context(self) -> ssl.SSLContext:
        """Return the context of the devices' door: TLS 1.3; a certificate, when one is shown, must be ours."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=self.pem)
        context.num_tickets = 1  # enough to come back with; each is made and sent at every handshake
        self.load_server(context)
        return context

    def _fits(self, chain: Path) -> bool:
        """Say whether the server's files are whole, of this authority, and good for a while."""
        try:
            first, second = certificates.split_chain(chain.read_text(encoding="ascii"))
            server = certificates.read(first)
            key = load_private_key((self._folder / SERVER_KEY).read_bytes())
        except (OSError, ValueError, CertificateError, RequestError):
            return False  # half written by a power cut, or damaged: it is made anew
        fits = server.key.id == key.public.id and certificates.read(second).key.id == self.key_id
        return fits and server.begins_s <= self._clock.wall_s() < server.renew_s


def open_authority(folder: Path, clock: Clock, device_days: int) -> tuple[FleetAuthority, bool]:
    """Open the authority in a folder, made now when the folder is empty; say whether it was made.

    Raises: ConfigError when a part of it is missing, StorageError, ClockUntrustedError.
    """
    key, certificate = folder / AUTHORITY_KEY, folder / AUTHORITY_CERTIFICATE
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = not key.exists() and not certificate.exists()
        if made:
            _check(clock)
            write_durably(key, generate_key().pem(), 0o600)
        opened = FleetAuthority(folder, _read(key, certificate, clock), clock, device_days)
        opened.renew_server()
    except OSError as error:
        raise StorageError(f"The authority in {folder} cannot be had: {error}.") from error
    return opened, made


def _check(clock: Clock) -> None:
    if not clock.trusted():
        raise ClockUntrustedError(f"The fleet's clock shows {rfc3339(clock.wall_s())}; no certificate is made with it.")


def _read(key: Path, certificate: Path, clock: Clock) -> Authority:
    lost = "Restore the folder from its backup. Without it, set the folder aside and enrol every device again."
    if not key.exists():
        raise ConfigError(f"The authority's key {key} is missing. Nothing was changed.", hint=lost)
    try:
        private: PrivateKey = load_private_key(key.read_bytes())
        if not certificate.exists():  # a power cut at the first start; the certificate is made of the key
            _check(clock)
            write_durably(certificate, ca.make_authority(clock.wall_s(), private).pem.encode(), 0o644)
        pem = certificate.read_text(encoding="ascii")
        said = certificates.check_authority(pem)
    except (ValueError, CertificateError, RequestError) as error:
        raise ConfigError(f"The authority in {key.parent} cannot be read: {error}", hint=lost) from error
    if said.key.id != private.public.id:
        raise ConfigError(f"Key and certificate in {key.parent} do not belong together.", hint=lost)
    return Authority(private, pem)
