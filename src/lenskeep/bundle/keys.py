"""Keys that sign bundles: ECDSA on the curve P-256 with SHA-256, and nothing else.

Rules. The algorithm is a property of the key that somebody here trusted, never of the document that it
signed. A key is known by the sha256 of its public PEM text, the same hint that OpenSSF Model Signing
writes. `Signer` is the seam for keys that do not live in a file (PKCS#11, TPM). This module is the one seam
to `cryptography`.
Not here: what is signed (signing), who is trusted for what (trust).
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lenskeep.errors import RequestError, SignatureError

PEM_BYTES_MAX = 4000
SIGNATURE_BYTES_MAX = 72  # of a DER pair of two numbers below 2^256


class Signer(Protocol):
    """Something that holds a private P-256 key, wherever that is."""

    @property
    def public(self) -> PublicKey:
        """The public half."""

    def sign(self, data: bytes) -> bytes:
        """Return the DER signature, ECDSA with SHA-256, over `data`."""


class PublicKey:
    """A P-256 public key in its one spelling. Made by `admit` or taken from a private key."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key
        self.pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode(
            "ascii"
        )
        self.id = hashlib.sha256(self.pem.encode("ascii")).hexdigest()

    def verify(self, signature: bytes, data: bytes) -> None:
        """Check a DER signature over `data`. Raises: SignatureError."""
        if len(signature) > SIGNATURE_BYTES_MAX:
            raise SignatureError("The signature is longer than a P-256 signature can be.")
        try:
            self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise SignatureError("The signature does not fit the key that it names and these bytes.") from error


class PrivateKey:
    """A private P-256 key held in memory: the plainest `Signer`."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._scheme = _scheme()
        self._public = PublicKey(key.public_key())

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return self._public

    def sign(self, data: bytes) -> bytes:
        """Return the DER signature over `data`; equal data, equal signature where OpenSSL can (RFC 6979)."""
        return self._key.sign(data, self._scheme)

    def pem(self, passphrase: str | None = None) -> bytes:
        """Return the key as PKCS#8 PEM, encrypted when a passphrase is given."""
        lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            lock = serialization.BestAvailableEncryption(passphrase.encode())
        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


def generate_key() -> PrivateKey:
    """Make a new signing key."""
    return PrivateKey(ec.generate_private_key(ec.SECP256R1()))


def load_private_key(pem: bytes, passphrase: str | None = None) -> PrivateKey:
    """Read a private key from PEM. Raises: RequestError that says what was given instead."""
    secret = passphrase.encode() if passphrase else None
    try:
        key = serialization.load_pem_private_key(pem, secret)
    except TypeError as error:
        if secret is None:
            raise RequestError("The private key is encrypted; its passphrase is needed.") from error
        raise RequestError("The private key is not encrypted; no passphrase belongs to it.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if b"PUBLIC KEY" in pem:
            raise RequestError("This is the public half; signing needs the private key.") from error
        raise RequestError("The private key cannot be read; it is no PEM, or the passphrase is wrong.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestError("Bundles are signed with ECDSA keys on the curve P-256 only.", hint=_MAKE_ONE)
    return PrivateKey(key)


def admit(pem: str | bytes) -> PublicKey:
    """Read a public key that somebody wants to trust.

    Raises: RequestError when it is no single P-256 public key in PEM; a pasted private key is named as such.
    """
    data = pem.encode("utf-8") if isinstance(pem, str) else pem
    if b"PRIVATE KEY" in data:
        raise RequestError(
            "This is a PRIVATE key. It was not stored. Whoever saw it can now sign in your name.",
            hint="Give the public half (the .pub file), and make a new key if this one has travelled.",
        )
    if b"BEGIN CERTIFICATE" in data:
        raise RequestError("This is a certificate; a public key in PEM is expected.")
    if len(data) > PEM_BYTES_MAX or data.count(b"-----BEGIN") != 1:
        raise RequestError("This is not one public key in PEM.")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestError("This public key cannot be read.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestError("Only ECDSA keys on the curve P-256 are trusted here.", hint=_MAKE_ONE)
    return PublicKey(key)


_MAKE_ONE = "Make a key with `lenskeep keys gen NAME`."


def _scheme() -> ec.ECDSA:
    try:
        return ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm:  # OpenSSL before 3.2 draws nonces at random: as safe, not reproducible
        return ec.ECDSA(hashes.SHA256())
