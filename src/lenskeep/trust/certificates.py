"""Certificates of devices and what a device asks for: read, checked, and installed.

Rules. A certificate only carries a key over a wire; who is let in is decided by a list of keys at the fleet. Names are
under one internal domain, so that an authority that is stolen or misused can speak for nothing else. Of a request only
the name and the key are taken. Times are judged by the caller's clock, never by the library's.
Cost: this module loads the library of certificates (some MB); import it where one is really handled.
Source: RFC 5280, RFC 2986.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lenskeep.bundle import keys
from lenskeep.bundle.keys import PrivateKey, PublicKey
from lenskeep.errors import CertificateError, CertificateRequestError, ForeignIdentityError, RequestError
from lenskeep.trust.names import DEVICE_ID
from lenskeep.trust.tls import DOMAIN

REQUEST_BYTES_MAX = 4096
CHAIN_BYTES_MAX = 16384
_PEM_END = "-----END CERTIFICATE-----"
_UNREADABLE = (
    ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Requested:
    """What a certificate request asks for, proved to come from the holder of the key."""

    device: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says; whether it is true is another question."""

    name: str
    key: PublicKey
    begins_s: float
    ends_s: float
    pem: str

    @property
    def renew_s(self) -> float:
        """When two thirds of its life are over."""
        return self.begins_s + (self.ends_s - self.begins_s) * 2 / 3


def device_name(device: str) -> str:
    """Return a device's name in certificates."""
    return f"{device}.devices.{DOMAIN}"


def write_request(key: PrivateKey, device: str) -> str:
    """Ask for a certificate: PEM of a PKCS#10 request that names the device and is signed by its key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(foreign_key(key), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def read_request(pem: str, device: str = "") -> Requested:
    """Read a request and check that its sender holds the key.

    Args:
        device: in whose name it must be; empty takes the name that it gives.
    Raises: CertificateRequestError, ForeignIdentityError when it is in another device's name.
    """
    try:
        if len(pem) > REQUEST_BYTES_MAX or pem.count("-----BEGIN") != 1:
            raise CertificateRequestError("This is not one certificate request in PEM.")
        request = x509.load_pem_x509_csr(pem.encode())
        names = [attribute.value for attribute in request.subject]
        key = _p256(request.public_key())
        proved = request.is_signature_valid and isinstance(request.signature_hash_algorithm, hashes.SHA256)
    except _UNREADABLE as error:
        raise CertificateRequestError("The certificate request cannot be read.") from error
    if key is None:
        raise CertificateRequestError(
            "Only keys on the curve P-256 are certified; this one is weaker or of another kind."
        )
    if not proved:
        raise CertificateRequestError("The request is not signed with SHA-256 by the key that is in it.")
    name = str(names[0]) if len(names) == 1 else ""
    if not DEVICE_ID.fullmatch(name):
        raise CertificateRequestError("The request does not name one device.")
    if device and name != device:
        raise ForeignIdentityError(f"The request is in the name of {name!r}; this is about {device!r}.")
    return Requested(name, key)


def read(data: str | bytes) -> Certificate:
    """Read one certificate, PEM text or DER bytes. Raises: CertificateError."""
    return _facts(_load(data))


def device_of(certificate: Certificate) -> str:
    """Return the device that a certificate names. Raises: CertificateError when it names none."""
    device = certificate.name.removesuffix(f".devices.{DOMAIN}")
    if device == certificate.name or not DEVICE_ID.fullmatch(device):
        raise CertificateError("The certificate names no device.")
    return device


def split_chain(pem: str) -> list[str]:
    """Take a text with several certificates apart. Raises: CertificateError."""
    if len(pem) > CHAIN_BYTES_MAX:
        raise CertificateError(f"The file is longer than the {CHAIN_BYTES_MAX} characters that certificates may have.")
    parts = [f"{part.strip()}\n{_PEM_END}\n" for part in pem.split(_PEM_END)[:-1]]
    if not parts:
        raise CertificateError("The file holds no certificate in PEM.")
    return parts


def check_device(pem: str, authority_pem: str, *, device: str, key: PublicKey, now_s: float | None) -> Certificate:
    """Check that a certificate is this device's, and return what it says.

    Args:
        now_s: the time to judge by; None when the clock is known to be wrong: the fleet judges by its own.
    Raises: CertificateError, ForeignIdentityError.
    """
    issued, authority = _load(pem), _load(authority_pem)
    facts = _facts(issued)
    check_authority(authority_pem)
    try:
        issued.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CertificateError("The certificate was not made by the authority beside it.") from error
    if facts.key.id != key.id:
        raise CertificateError("The certificate is for another key than this device's.")
    if device_of(facts) != device:
        raise ForeignIdentityError(f"The certificate is for {device_of(facts)!r}; this device is {device!r}.")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in _uses(issued):
        raise CertificateError("The certificate is not one for a device.")
    if now_s is not None and not facts.begins_s <= now_s < facts.ends_s:
        raise CertificateError("The certificate is not valid now.", hint="Check the device's clock; then ask again.")
    return facts


def check_authority(pem: str) -> Certificate:
    """Check that a certificate is an authority's own. Raises: CertificateError."""
    authority = _load(pem)
    try:
        basic = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        authority.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise CertificateError("The second certificate is not an authority's own.") from error
    if not basic.ca:
        raise CertificateError("The second certificate is not an authority's.")
    return _facts(authority)


def foreign_key(key: PrivateKey) -> ec.EllipticCurvePrivateKey:
    """Return a key as the library of certificates wants it."""
    loaded = serialization.load_pem_private_key(key.pem(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    return loaded


def foreign_public(key: PublicKey) -> ec.EllipticCurvePublicKey:
    """Return a public key as the library of certificates wants it."""
    loaded = serialization.load_pem_public_key(key.pem.encode())
    assert isinstance(loaded, ec.EllipticCurvePublicKey)
    return loaded


def _load(data: str | bytes) -> x509.Certificate:
    try:
        if isinstance(data, str):
            return x509.load_pem_x509_certificate(data.encode())
        return x509.load_der_x509_certificate(data)
    except _UNREADABLE as error:
        raise CertificateError("The certificate cannot be read.") from error


def _facts(certificate: x509.Certificate) -> Certificate:
    try:
        key = _p256(certificate.public_key())
        name = _name(certificate)
    except _UNREADABLE as error:
        raise CertificateError("The certificate cannot be read.") from error
    if key is None:
        raise CertificateError("The certificate is for a key of another kind than P-256.")
    return Certificate(
        name=name, key=key, begins_s=certificate.not_valid_before_utc.timestamp(),
        ends_s=certificate.not_valid_after_utc.timestamp(),
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
    )  # fmt: skip


def _name(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""  # an authority has none
    found = names.get_values_for_type(x509.DNSName)
    return found[0] if len(found) == 1 else ""


def _uses(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return []


def _p256(key: object) -> PublicKey | None:
    """Return a key in its one spelling, or None when it is of another kind."""
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return None
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        return keys.admit(pem)
    except RequestError:
        return None
