"""How a device speaks TLS with its fleet: by the fleet's authority, by one fixed name, by the device's own time.

Rules. Only the pinned authority counts, no other that the system trusts. The server shows the name that the authority
gives to the fleet alone, so any address will do to reach it and no device can stand in for it. OpenSSL would judge
times by the wall clock and shut a device with a wrong one out for good; so it is told not to, and the times of the
server's certificate are judged here: by the clock where that can be right, else by the latest time known to have
passed. The fleet judges the device's certificate by the fleet's clock.
Source: X509_VERIFY_PARAM_set_flags(3); Python's SSLContext.sslobject_class.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lenskeep.clock import Clock, rfc3339

DOMAIN = "lenskeep.internal"
SERVER_NAME = f"fleet.{DOMAIN}"
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; not among the names of the ssl module


def unproven_context() -> ssl.SSLContext:
    """Return a context that believes anybody: for asking a stranger for his certificate, and for nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class _Resuming(ssl.SSLContext):
    """A context whose next connection goes on with the session of the last one: no signatures on either side."""

    session: ssl.SSLSession | None = None

    def wrap_bio(self, *args: Any, **words: Any) -> ssl.SSLObject:
        return super().wrap_bio(*args, **{"session": self.session} | words)


def fleet_context(
    authority_pem: str, clock: Clock, chain: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return the context for the fleet of this authority.

    Args:
        chain, key: files of the device's certificate and key; without them the device is nobody yet.
    """
    context = _Resuming(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the name is checked below: it is a fixed one, not the address's
    context.load_verify_locations(cadata=authority_pem)
    context.verify_flags |= _NO_CHECK_TIME
    if chain is not None:
        context.load_cert_chain(chain, key)

    class Judged(ssl.SSLObject):
        """A connection whose server is judged before a byte is said to it; also when it goes on with a session."""

        def do_handshake(self) -> None:
            super().do_handshake()
            check_server(self.getpeercert() or {}, clock)
            self._kept = False

        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            data = super().read(len, buffer) if buffer is not None else super().read(len)
            if not self._kept and (session := self.session) is not None and session.has_ticket:
                context.session, self._kept = session, True  # the server sends it behind the handshake
            return data

    context.sslobject_class = Judged
    return context


def check_server(shown: Mapping[str, Any], clock: Clock) -> None:
    """Check name and times of a certificate that the pinned authority made. Raises: ssl.SSLCertVerificationError."""
    if ("DNS", SERVER_NAME) not in shown.get("subjectAltName", ()):
        raise _refusal("it is not the fleet's server")
    begins_s, ends_s = (ssl.cert_time_to_seconds(shown[name]) for name in ("notBefore", "notAfter"))
    if ends_s <= clock.floor_s or (clock.trusted() and not begins_s <= clock.wall_s() < ends_s):
        here = rfc3339(clock.wall_s())
        raise _refusal(f"its certificate is good from {rfc3339(begins_s)} to {rfc3339(ends_s)}; here it is {here}")


def _refusal(why: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, f"the server did not prove itself: {why}")
    error.verify_message = why
    error.verify_code = 1
    return error
