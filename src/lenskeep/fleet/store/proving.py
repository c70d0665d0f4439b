"""How the fleet and its database prove themselves to each other by TLS.

Rules. With an authority named, the database is judged in full: its certificate must be made by that authority and for
the host in the address, and a server without TLS is refused before anything is said to it. Files are read when the
fleet starts. What the driver meets in a handshake is put into words here.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from lenskeep.credentials import secret_path
from lenskeep.errors import ConfigError, StoreNotProvenError

SYSTEM = "system"
_OURS = "Check [storage] database_certificate and database_key, and ssl_ca_file and the log at the database."
_NO_TLS = "rejected SSL upgrade"  # the driver's words, and its only sign


class Proving(ssl.SSLContext):
    """How to speak TLS with the database."""

    shows = False  # a certificate of the fleet's own


@dataclass(frozen=True, slots=True)
class Proofs:
    """Where the files are, as [storage] database_ca, _certificate and _key say it: a path or `credential:NAME`."""

    authority: str = ""  # "system" = the system's authorities; empty = as the address says
    certificate: str = ""
    key: str = ""

    def context(self, address: str, environment: Mapping[str, str]) -> Proving | None:
        """Return how to speak TLS with the database at an address. Raises: ConfigError."""
        if not self.authority:
            if self.certificate or self.key:
                raise ConfigError("storage.database_certificate: it needs database_ca beside it.")
            return None
        parts = urlsplit(address)
        if twice := [name for name, _ in parse_qsl(parts.query) if name.startswith("ssl")]:
            raise ConfigError(
                f"storage.database: the address says {twice[0]}, and database_ca is there as well.",
                hint="Take the words about TLS out of the address; with database_ca all is checked.",
            )
        if not parts.hostname:
            raise ConfigError("storage.database: the address names no host that could prove itself.")
        context = Proving(ssl.PROTOCOL_TLS_CLIENT)  # checks the certificate and the name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._trust(context, environment)
        if self.certificate or self.key:
            self._show(context, environment)
            context.shows = True
        return context

    def _trust(self, context: ssl.SSLContext, environment: Mapping[str, str]) -> None:
        if self.authority == SYSTEM:
            context.load_default_certs()
            return
        path = secret_path(self.authority, environment, "storage.database_ca")
        _require(path, "storage.database_ca")
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"storage.database_ca: {path} holds no certificate in PEM.") from error

    def _show(self, context: ssl.SSLContext, environment: Mapping[str, str]) -> None:
        if not self.certificate:
            raise ConfigError("storage.database_key: it needs database_certificate beside it.")
        chain = secret_path(self.certificate, environment, "storage.database_certificate")
        key = secret_path(self.key, environment, "storage.database_key") if self.key else chain
        _require(chain, "storage.database_certificate")
        _require(key, "storage.database_key")
        try:
            context.load_cert_chain(chain, key, password=_no_passphrase)
        except (OSError, ValueError, ssl.SSLError) as error:
            raise ConfigError(
                f"storage.database_certificate: {chain} and the key in {key} cannot be used together.",
                hint="Both in PEM, the key without a passphrase and belonging to the certificate.",
            ) from error


def _require(path: Path, key: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}.") from error


def _no_passphrase() -> str:
    raise ValueError("a key with a passphrase")


def fault(where: str, error: BaseException, *, shown: bool) -> StoreNotProvenError | None:
    """Return what a handshake failed by; None when it was something else.

    Args:
        shown: it was met while connecting, and the fleet had shown a certificate of its own.
    """
    if isinstance(error.__cause__, ssl.SSLError):  # in TLS 1.3 a certificate of ours is refused behind the handshake
        error = error.__cause__
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreNotProvenError(
            f"{where}: {error.verify_message.rstrip('.')}. Nothing was sent.", hint=_hint(error.verify_message)
        )
    if isinstance(error, ssl.SSLError) and "alert" in str(error).lower():
        return StoreNotProvenError(f"{where} does not accept the fleet's certificate: {error.reason}.", hint=_OURS)
    if isinstance(error, ConnectionError) and _NO_TLS in str(error):
        return StoreNotProvenError(
            f"{where} speaks no TLS, and that is asked for. Nothing was sent.",
            hint="Switch it on there (ssl = on), or check the port; without TLS leave database_ca empty.",
        )
    if shown and "closed in the middle" in str(error):  # its reason may be lost with the connection
        return StoreNotProvenError(
            f"{where} closed the connection when it saw the fleet's certificate, or is just being stopped.", hint=_OURS
        )
    return None


def _hint(words: str) -> str:
    if "ostname" in words or "IP address" in words:
        return "Name the database in [storage] database by a name that its certificate is made for."
    if "expired" in words or "not yet valid" in words:
        return "Renew the database's certificate, and check this machine's clock."
    return "Name the authority that made the database's certificate: [storage] database_ca."
