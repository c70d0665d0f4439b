"""Certificates and the requests for them: only a name and a P-256 key are ever taken from a stranger."""

from __future__ import annotations

import time
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from lenskeep.bundle.keys import generate_key
from lenskeep.errors import CertificateError, CertificateRequestError, EnrolmentTokenError, ForeignIdentityError
from lenskeep.trust import ca, certificates, invitation
from lenskeep.trust.tls import SERVER_NAME

NOW_S = time.time()


def request(key: object, *names: str, hash_: object = None, **extensions: x509.ExtensionType) -> str:
    """A request as a stranger would write it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, said) for said in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    for extension in extensions.values():
        builder = builder.add_extension(extension, critical=False)
    signed = builder.sign(key, hash_)  # type: ignore[arg-type]
    return signed.public_bytes(serialization.Encoding.PEM).decode()


P256 = ec.generate_private_key(ec.SECP256R1())


def test_a_request_says_who_asks_and_nothing_of_the_key_but_its_public_half() -> None:
    key = generate_key()
    pem = certificates.write_request(key, "cam-7")
    asked = certificates.read_request(pem, "cam-7")
    assert (asked.device, asked.key.id) == ("cam-7", key.public.id)
    assert "PRIVATE" not in pem


@pytest.mark.attack(103)
def test_a_request_for_another_device_is_refused() -> None:
    with pytest.raises(ForeignIdentityError):
        certificates.read_request(certificates.write_request(generate_key(), "cam-8"), "cam-7")


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP224R1()),
        ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(), dsa.generate_private_key(2048),
    ],
    ids=lambda key: type(key).__name__,
)  # fmt: skip
def test_a_key_of_another_kind_is_not_certified(key: object) -> None:
    hash_ = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    with warnings.catch_warnings(), pytest.raises(CertificateRequestError, match="P-256"):
        warnings.simplefilter("ignore")
        certificates.read_request(request(key, "cam-7", hash_=hash_))


@pytest.mark.parametrize("hash_", [hashes.SHA384(), hashes.SHA224()])
def test_a_request_signed_with_another_digest_is_refused(hash_: object) -> None:
    with pytest.raises(CertificateRequestError, match="SHA-256"):
        certificates.read_request(request(P256, "cam-7", hash_=hash_))


@pytest.mark.parametrize(
    "names", [(), ("cam-7", "cam-8"), ("",), ("../x",), ("CAM",), ("cam-7\n",), ("*",), ("x" * 64,)]
)
def test_a_request_that_names_no_single_device_is_refused(names: tuple[str, ...]) -> None:
    try:
        pem = request(P256, *names, hash_=hashes.SHA256())
    except ValueError:
        return  # such a name cannot even be written
    with pytest.raises(CertificateRequestError):
        certificates.read_request(pem)


def test_a_request_whose_sender_does_not_hold_the_key_is_refused() -> None:
    der = x509.load_pem_x509_csr(certificates.write_request(generate_key(), "cam-7").encode())
    data = bytearray(der.public_bytes(serialization.Encoding.DER))
    data[-1] ^= 1
    try:
        spoiled = x509.load_der_x509_csr(bytes(data)).public_bytes(serialization.Encoding.PEM).decode()
    except ValueError:
        return
    with pytest.raises(CertificateRequestError):
        certificates.read_request(spoiled)


def test_what_a_request_wants_beside_its_name_is_ignored() -> None:
    pem = request(
        P256, "cam-7", hash_=hashes.SHA256(), ca=x509.BasicConstraints(ca=True, path_length=None),
        use=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        names=x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME), x509.DNSName("cam-8.devices.lenskeep.internal")]),
    )  # fmt: skip
    asked = certificates.read_request(pem, "cam-7")
    made = certificates._load(ca.certify_device(ca.make_authority(NOW_S), asked.device, asked.key, NOW_S))
    said = made.extensions
    assert said.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(said.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = said.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert names == ["cam-7.devices.lenskeep.internal"]
    assert made.subject.rfc4514_string() == "CN=cam-7"


def test_serials_are_random_and_a_certificate_lives_a_year() -> None:
    authority, key = ca.make_authority(NOW_S), generate_key().public
    made = [certificates._load(ca.certify_device(authority, "cam-7", key, NOW_S)) for _ in range(4)]
    assert len({one.serial_number for one in made}) == 4
    facts = certificates.read(ca.certify_device(authority, "cam-7", key, NOW_S))
    assert abs(facts.ends_s - NOW_S - 365 * 86400) <= 1
    assert facts.begins_s < NOW_S < facts.renew_s < facts.ends_s
    assert certificates.device_of(facts) == "cam-7"


@pytest.mark.parametrize(
    "said",
    ["", "garbage", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "A" * 10_000],
)
def test_garbage_is_no_request_and_no_certificate(said: str) -> None:
    with pytest.raises(CertificateRequestError):
        certificates.read_request(said)
    with pytest.raises(CertificateError):
        certificates.read(said)
    with pytest.raises(CertificateError):
        certificates.split_chain(said + said)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_spoiled_request_or_certificate_raises_anything_else(data: st.DataObject) -> None:
    for good, read, fault in (
        (REQUEST_DER, _read_request, CertificateRequestError), (CERTIFICATE_DER, certificates.read, CertificateError),
    ):  # fmt: skip
        spoiled = bytearray(good)
        for _ in range(data.draw(st.integers(1, 3))):
            spoiled[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        try:
            read(bytes(spoiled))
        except fault:
            continue


def _read_request(der: bytes) -> object:
    import base64

    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE REQUEST-----\n"
    return certificates.read_request(pem)


REQUEST_DER = x509.load_pem_x509_csr(certificates.write_request(generate_key(), "cam-7").encode()).public_bytes(
    serialization.Encoding.DER
)
CERTIFICATE_DER = certificates._load(
    ca.certify_device(ca.make_authority(NOW_S), "cam-7", generate_key().public, NOW_S)
).public_bytes(serialization.Encoding.DER)


def test_a_token_says_who_made_it_and_survives_being_pasted() -> None:
    key_id = generate_key().public.id
    made = invitation.invite(key_id)
    assert invitation.read(f"  {made.text()}\n") == made
    assert len(made.text()) <= invitation.TEXT_MAX
    assert made.names_authority(key_id)
    assert not made.names_authority(generate_key().public.id)
    assert len({invitation.invite(key_id).secret for _ in range(100)}) == 100


@given(st.text(max_size=80))
def test_no_text_makes_the_reading_of_a_token_raise_anything_else(text: str) -> None:
    for said in (text, invitation.PREFIX + text):
        try:
            invitation.read(said)
        except EnrolmentTokenError:
            continue
