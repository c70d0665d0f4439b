"""The token by which a device is invited into a fleet: one line of text that a technician pastes or types.

Rules. It holds a handle to find it by, 128 random bits that prove it, and the fingerprint of the fleet's authority, so
that the device knows whom it may show the token to before it has ever met the fleet. The fleet keeps a hash alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass

from lenskeep.errors import EnrolmentTokenError
from lenskeep.trust.identity import FINGERPRINT_BYTES

PREFIX = "lke_"
TEXT_MAX = 64
_HANDLE_BYTES, _SECRET_BYTES = 4, 16


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a token says."""

    handle: str
    secret: bytes
    authority: bytes  # the first bytes of the id of the authority's key

    @property
    def secret_sha256(self) -> str:
        """What the fleet keeps of it."""
        return hashlib.sha256(self.secret).hexdigest()

    def text(self) -> str:
        """Return the token as it is handed on."""
        raw = bytes.fromhex(self.handle) + self.secret + self.authority
        return PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def names_authority(self, key_id: str) -> bool:
        """Say whether this is the key of the authority that the token was made by."""
        return bytes.fromhex(key_id)[:FINGERPRINT_BYTES] == self.authority


def invite(authority_key_id: str) -> Invitation:
    """Make a token that nobody can guess."""
    return Invitation(
        handle=secrets.token_hex(_HANDLE_BYTES), secret=secrets.token_bytes(_SECRET_BYTES),
        authority=bytes.fromhex(authority_key_id)[:FINGERPRINT_BYTES],
    )  # fmt: skip


def read(text: str) -> Invitation:
    """Read a token as it was pasted. Raises: EnrolmentTokenError."""
    plain = text.strip()
    try:
        raw = base64.b64decode(plain.removeprefix(PREFIX) + "==", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise EnrolmentTokenError("This is no enrolment token.") from error
    if not plain.startswith(PREFIX) or len(raw) != _HANDLE_BYTES + _SECRET_BYTES + FINGERPRINT_BYTES:
        raise EnrolmentTokenError("This is no enrolment token, or a part of it is missing.")
    secret = raw[_HANDLE_BYTES : _HANDLE_BYTES + _SECRET_BYTES]
    return Invitation(raw[:_HANDLE_BYTES].hex(), secret, raw[_HANDLE_BYTES + _SECRET_BYTES :])
