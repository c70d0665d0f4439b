"""The fleet's own authority: it certifies devices and the fleet's server, and nothing outside its internal domain.

Rules. Pure functions: keys, requests and `now` in, certificates out. Names are constrained to the internal domain,
paths end here, uses are split (a device cannot pose as the server), serials are random, a certificate lives a year.
What a request says beside its name and its key is ignored. Nothing is revoked by lists: the fleet lists the keys that
it lets in.
Cost: loads the library of certificates; import it where one is really made.
Source: RFC 5280 §4.2.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lenskeep.bundle.keys import PrivateKey, PublicKey, generate_key
from lenskeep.trust import certificates
from lenskeep.trust.certificates import device_name, foreign_key
from lenskeep.trust.tls import DOMAIN, SERVER_NAME

AUTHORITY_DAYS = 7300
LEAF_DAYS = 365
BACKDATED_S = 3600.0  # two clocks of one fleet may differ a little


@dataclass(frozen=True, slots=True)
class Authority:
    """A key that certifies, and its own certificate."""

    key: PrivateKey
    pem: str


def make_authority(now_s: float, key: PrivateKey | None = None) -> Authority:
    """Make an authority's own certificate, of a new key or of the one that it has."""
    key = key or generate_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Lenskeep fleet {key.public.id[:12]}")])
    builder = (
        _builder(name, name, key.public, now_s, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certifies=True), critical=True)
        .add_extension(x509.NameConstraints([x509.DNSName(DOMAIN)], [x509.IPAddress(net) for net in _everywhere()]),
                       critical=True)
    )  # fmt: skip
    return Authority(key, _sign(builder, key))


def certify_device(authority: Authority, device: str, key: PublicKey, now_s: float, *, days: int = LEAF_DAYS) -> str:
    """Certify that a key is a device's. Returns: PEM."""
    return _leaf(authority, device, device_name(device), key, now_s, days, ExtendedKeyUsageOID.CLIENT_AUTH)


def certify_server(authority: Authority, key: PublicKey, now_s: float, *, days: int = LEAF_DAYS) -> str:
    """Certify that a key is the fleet's server's. Returns: PEM."""
    return _leaf(authority, SERVER_NAME, SERVER_NAME, key, now_s, days, ExtendedKeyUsageOID.SERVER_AUTH)


def _leaf(
    authority: Authority, title: str, name: str, key: PublicKey, now_s: float, days: int, use: x509.ObjectIdentifier
) -> str:
    issuer = x509.load_pem_x509_certificate(authority.pem.encode())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    issuer_key = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(subject, issuer.subject, key, now_s, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certifies=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
    )
    return _sign(builder, authority.key)


def _builder(subject: x509.Name, issuer: x509.Name, key: PublicKey, now_s: float, days: int) -> x509.CertificateBuilder:
    public = certificates.foreign_public(key)
    now = datetime.fromtimestamp(now_s, UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=BACKDATED_S))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _sign(builder: x509.CertificateBuilder, key: PrivateKey) -> str:
    made = builder.sign(foreign_key(key), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _key_usage(*, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certifies, key_cert_sign=certifies, crl_sign=certifies, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _everywhere() -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """No address may be certified."""
    return [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]
