"""`model.sig`: OpenSSF's own tool accepts ours, we accept its, and what is not exactly right is refused."""

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils

from lenskeep.bundle import disk, keys, signing
from lenskeep.bundle.keys import PrivateKey
from lenskeep.bundle.signing import SignedFile
from lenskeep.errors import RequestError, SignatureError
from tests import tinybundle
from tests.attacks import named

FILES = [SignedFile("b", "22" * 32), SignedFile("a/c", "11" * 32)]
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of the group P-256


def signed(private: PrivateKey | None = None) -> bytes:
    return signing.sign(FILES, private or tinybundle.key(), "cap-1.0.0")


def verified(data: bytes, private: PrivateKey | None = None) -> signing.Statement:
    return signing.verify(signing.open_signature(data), (private or tinybundle.key()).public)


def spoiled(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the outer document after signing."""
    document = json.loads(signed())
    change(document)
    return json.dumps(document).encode()


def resigned(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the statement and sign it rightly: what a careless signer would make."""
    document = json.loads(signed())
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    return with_payload(document, json.dumps(change(statement) or statement).encode())


def with_payload(document: dict[str, Any], payload: bytes) -> bytes:
    pae = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(tinybundle.key().sign(pae)).decode()
    return json.dumps(document).encode()


def with_signature(change: Callable[[int, int], bytes]) -> bytes:
    document = json.loads(signed())
    der = base64.b64decode(document["dsseEnvelope"]["signatures"][0]["sig"])
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(
        change(*utils.decode_dss_signature(der))
    ).decode()
    return json.dumps(document).encode()


def test_a_signature_lists_its_files_in_byte_order() -> None:
    assert verified(signed()).files == tuple(sorted(FILES, key=lambda file: file.name))
    assert verified(signed()).subject == "cap-1.0.0"


def test_signing_twice_gives_the_same_bytes() -> None:
    assert signed() == signed()


def test_key_id_is_the_sha256_of_the_pem_text() -> None:
    public = tinybundle.key().public
    assert public.id == hashlib.sha256(public.pem.encode()).hexdigest()
    assert json.loads(signed())["verificationMaterial"]["publicKey"]["hint"] == public.id


# --- with OpenSSF's own tool ----------------------------------------------------------------------------------------


def oms(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "model_signing", *arguments], capture_output=True, text=True)


def oms_verify(folder: Path, public_pem: Path) -> subprocess.CompletedProcess[str]:
    return oms("verify", "key", str(folder), "--signature", str(folder / "model.sig"), "--public_key", str(public_pem))


def test_the_openssf_tool_verifies_an_unpacked_bundle(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(tinybundle.key().public.pem)
    bundle = tmp_path / "cap.lkb"
    bundle.write_bytes(tinybundle.pack())
    disk.extract(bundle, tmp_path / "cap", tinybundle.trust(), tinybundle.NOW_S)
    done = oms_verify(tmp_path / "cap", tmp_path / "key.pub")
    assert done.returncode == 0, done.stderr
    (tmp_path / "cap" / "readme.md").write_text("another card")
    assert oms_verify(tmp_path / "cap", tmp_path / "key.pub").returncode != 0


def test_the_openssf_tool_verifies_what_plain_tar_unpacks(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(tinybundle.key().public.pem)
    (tmp_path / "cap.lkb").write_bytes(tinybundle.pack())
    (tmp_path / "cap").mkdir()
    subprocess.run(["tar", "xf", "../cap.lkb"], cwd=tmp_path / "cap", check=True)
    done = oms_verify(tmp_path / "cap", tmp_path / "key.pub")
    assert done.returncode == 0, done.stderr


def test_a_signature_of_the_openssf_tool_is_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "cap"
    for name, content in tinybundle.parts().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (tmp_path / "key.pem").write_bytes(tinybundle.key().pem())
    done = oms(
        "sign", "key", str(folder), "--signature", str(folder / "model.sig"), "--private_key", str(tmp_path / "key.pem")
    )
    assert done.returncode == 0, done.stderr
    bundle = disk.read_folder(folder, tinybundle.trust(), tinybundle.NOW_S)
    assert bundle.digest == tinybundle.read(tinybundle.pack()).digest
    packed = tinybundle.pack(sig=(folder / "model.sig").read_bytes())
    assert tinybundle.read(packed).digest == bundle.digest


# --- the document ---------------------------------------------------------------------------------------------------


def envelope(document: dict[str, Any]) -> dict[str, Any]:
    return document["dsseEnvelope"]


ATTACKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "55 empty signature list": lambda d: envelope(d).update(signatures=[]),
    "56 empty signature string": lambda d: envelope(d)["signatures"][0].update(sig=""),
    "57 two signatures with one key id": lambda d: envelope(d)["signatures"].append(envelope(d)["signatures"][0]),
    "57 a garbage second signature": lambda d: envelope(d)["signatures"].append({"sig": "AAAA", "keyid": ""}),
    "60 payloadType changed": lambda d: envelope(d).update(payloadType="application/vnd.other+json"),
    "61 another media type": lambda d: d.update(mediaType="application/vnd.dev.sigstore.bundle.v0.2+json"),
    "62 scheme named in the document": lambda d: d["verificationMaterial"]["publicKey"].update(scheme="ed25519"),
    "62 algorithm none beside the signature": lambda d: envelope(d)["signatures"][0].update(alg="none"),
    "44 unknown field outside": lambda d: d.update(extra=1),
    "44 unknown field in the envelope": lambda d: envelope(d).update(extra=1),
    "70 raw key of the old form": lambda d: d["verificationMaterial"].update(publicKey={"rawBytes": "AAAA"}),
    "certificate in place of a key": lambda d: d.update(verificationMaterial={"certificate": {"rawBytes": "AAAA"}}),
    "transparency log entries": lambda d: d["verificationMaterial"].update(tlogEntries=[{}]),
    "51 upper-case key id": lambda d: d["verificationMaterial"]["publicKey"].update(
        hint=d["verificationMaterial"]["publicKey"]["hint"].upper()
    ),
    "key id of 63 digits": lambda d: d["verificationMaterial"]["publicKey"].update(hint="a" * 63),
    "52 payload with a newline": lambda d: envelope(d).update(payload=envelope(d)["payload"] + "\n"),
    "52 payload with spaces": lambda d: envelope(d).update(payload=" " + envelope(d)["payload"]),
    "52 payload without padding": lambda d: envelope(d).update(payload=envelope(d)["payload"].rstrip("=") + "A"),
    "52 payload in the url alphabet": lambda d: envelope(d).update(payload="-_-_"),
    "52 payload with stray last bits": lambda d: envelope(d).update(payload="QQ==".replace("QQ", "QR")),
    "52 signature without padding": lambda d: envelope(d)["signatures"][0].update(sig="MEUCIQ"),
    "45 payload is a number": lambda d: envelope(d).update(payload=1),
    "45 signatures is an object": lambda d: envelope(d).update(signatures={}),
    "45 publicKey is a list": lambda d: d["verificationMaterial"].update(publicKey=[]),
    "no envelope": lambda d: d.pop("dsseEnvelope"),
    "no key": lambda d: d["verificationMaterial"].pop("publicKey"),
}


@pytest.mark.parametrize("attack", named(ATTACKS))
def test_a_changed_document_is_refused(attack: str) -> None:
    with pytest.raises(SignatureError):
        verified(spoiled(ATTACKS[attack]))


NO_STRICT_JSON = {
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "cut": b'{"a":1',
    "trailing": signed() + b"x",
    "43 byte order mark": b"\xef\xbb\xbf" + signed(),
    "43 UTF-16": signed().decode().encode("utf-16"),
    "one short": signed()[:-1],
    "38 NaN": signed().replace(b"[]", b"[NaN]"),
    "42 lone surrogate": signed().replace(b'"keyid":""', b'"keyid":"\\ud800"'),
}


@pytest.mark.parametrize("case", named(NO_STRICT_JSON))
def test_what_is_no_strict_json_is_refused(case: str) -> None:
    with pytest.raises(SignatureError):
        verified(NO_STRICT_JSON[case])


@pytest.mark.attack(37)
def test_37_duplicate_key_in_the_document_is_refused() -> None:
    with pytest.raises(SignatureError, match="twice"):
        signing.open_signature(signed().replace(b'{"mediaType"', b'{"mediaType":"x","mediaType"', 1))


def test_a_signature_document_over_1_mib_is_refused() -> None:
    with pytest.raises(SignatureError, match="at most"):
        signing.open_signature(signed() + b" " * (1 << 20))


# --- the statement, rightly signed ------------------------------------------------------------------------------------


def predicate(statement: dict[str, Any]) -> dict[str, Any]:
    return statement["predicate"]


STATEMENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "61 another statement type": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "61 a report in place of a model": lambda s: s.update(predicateType="https://example.org/report/v1"),
    "70 the v0.2 predicate": lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
    "70 shards": lambda s: predicate(s)["serialization"].update(method="shards", shard_size=1000),
    "70 symbolic links allowed": lambda s: predicate(s)["serialization"].update(allow_symlinks=True),
    "70 blake2b": lambda s: predicate(s)["serialization"].update(hash_type="blake2b"),
    "70 blake2b for one file": lambda s: predicate(s)["resources"][0].update(algorithm="blake2b"),
    "no files": lambda s: predicate(s).update(resources=[]),
    "two subjects": lambda s: s["subject"].append(s["subject"][0]),
    "no subject": lambda s: s.update(subject=[]),
    "a root digest of other files": lambda s: s["subject"][0]["digest"].update(sha256="00" * 32),
    "files in another order than the root digest": lambda s: predicate(s)["resources"].reverse(),
    "44 unknown field in the statement": lambda s: s.update(extra=1),
    "44 unknown field in the predicate": lambda s: predicate(s).update(extra=1),
    "44 unknown field in the serialization": lambda s: predicate(s)["serialization"].update(extra=1),
    "46 number in place of a truth value": lambda s: predicate(s)["serialization"].update(allow_symlinks=0),
    "51 upper-case digest": lambda s: predicate(s)["resources"][0].update(digest="AA" * 32),
    "51 digest with a prefix": lambda s: predicate(s)["resources"][0].update(digest="sha256:" + "11" * 32),
    "39 float": lambda s: predicate(s)["resources"][0].update(size=1.5),
    "40 number of 30 digits": lambda s: predicate(s)["resources"][0].update(size=10**29),
    "41 deep nesting": lambda s: predicate(s)["resources"][0].update(x=json.loads("[" * 40 + "]" * 40)),
    "5,000 files": lambda s: predicate(s).update(resources=predicate(s)["resources"] * 2500),
    "45 the statement is a list": lambda s: [s],
    "45 a name is a number": lambda s: predicate(s)["resources"][0].update(name=7),
}


@pytest.mark.parametrize("attack", named(STATEMENTS))
def test_a_statement_that_is_not_exactly_ours_is_refused(attack: str) -> None:
    with pytest.raises(SignatureError):
        verified(resigned(STATEMENTS[attack]))


def test_more_in_a_files_descriptor_is_passed_over_as_the_specification_asks() -> None:
    data = resigned(lambda s: predicate(s)["resources"][0].update(annotations={"size": 12}))
    assert len(verified(data).files) == 2


def test_statement_is_accepted_in_any_layout_of_its_json() -> None:
    assert verified(resigned(lambda s: None)).files == verified(signed()).files


def test_the_payload_is_not_parsed_before_it_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    real = signing.strictjson.loads
    monkeypatch.setattr(signing.strictjson, "loads", lambda data, **limits: seen.append(data) or real(data, **limits))
    document = json.loads(signed())
    document["dsseEnvelope"]["payload"] = base64.b64encode(b"{ hostile").decode()
    with pytest.raises(SignatureError, match="does not fit"):
        verified(json.dumps(document).encode())
    assert b"{ hostile" not in seen


# --- the arithmetic -------------------------------------------------------------------------------------------------


@pytest.mark.attack(53)
def test_53_wrong_key_is_refused() -> None:
    with pytest.raises(SignatureError):
        verified(signed(), tinybundle.other_key())


@pytest.mark.attack(59)
def test_59_key_id_of_one_key_with_the_signature_of_another_is_refused() -> None:
    data = spoiled(lambda d: d["verificationMaterial"]["publicKey"].update(hint=tinybundle.other_key().public.id))
    with pytest.raises(SignatureError):
        verified(data)
    with pytest.raises(SignatureError):
        verified(data, tinybundle.other_key())


@pytest.mark.attack(64)
def test_64_malleated_signature_is_still_a_signature() -> None:
    malleated = with_signature(lambda r, s: utils.encode_dss_signature(r, ORDER - s))
    assert malleated != signed()
    assert verified(malleated) == verified(signed())


@pytest.mark.attack(65)
@pytest.mark.parametrize(
    "pair",
    [(0, 1), (1, 0), (0, 0), (ORDER, 1), (1, ORDER), (ORDER + 1, ORDER + 1), (1, 1), (1 << 300, 1)],
    ids=str,
)
def test_65_r_or_s_out_of_range_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(SignatureError):
        verified(with_signature(lambda r, s: utils.encode_dss_signature(*pair)))


@pytest.mark.attack(65)
def test_65_r_plus_the_order_is_refused() -> None:
    with pytest.raises(SignatureError):
        verified(with_signature(lambda r, s: utils.encode_dss_signature(r + ORDER, s)))


@pytest.mark.attack(66)
@pytest.mark.parametrize(
    "change",
    [
        lambda der: der + b"\0",
        lambda der: der + der,
        lambda der: der[:-1],
        lambda der: b"\x30\x81" + der[1:],  # a length in the long form
        lambda der: b"\x30\x80" + der[2:] + b"\0\0",  # an open length
        lambda der: bytes([0x30, der[1] + 1, 2, der[3] + 1, 0]) + der[4:],  # a zero in front of r
        lambda der: bytes([0x30, der[1] + 2]) + der[2:] + b"\x05\0",  # a third member
        lambda der: b"\x30\x06\x02\x01\xff\x02\x01\x01",  # r = -1
        lambda der: b"",
        lambda der: b"\0" * 71,
        lambda der: der[4:36] + der[-32:],  # the raw pair
    ],
)
def test_66_any_other_spelling_of_the_pair_is_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SignatureError):
        verified(with_signature(lambda r, s: change(utils.encode_dss_signature(r, s))))


# --- keys -----------------------------------------------------------------------------------------------------------


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


FOREIGN = {
    "63 P-384": ec.generate_private_key(ec.SECP384R1()),
    "63 P-521": ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "62 ed25519": ed25519.Ed25519PrivateKey.generate(),
    "62 rsa": rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("kind", named(FOREIGN))
def test_keys_of_any_other_kind_are_not_admitted_and_do_not_sign(kind: str) -> None:
    with pytest.raises(RequestError, match="P-256"):
        keys.admit(public_pem(FOREIGN[kind]))
    with pytest.raises(RequestError, match="P-256"):
        keys.load_private_key(private_pem(FOREIGN[kind]))


@pytest.mark.attack(63)
def test_63_signature_of_a_p384_key_under_a_p256_key_id_is_refused() -> None:
    document = json.loads(signed())
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    pae = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    der = FOREIGN["63 P-384"].sign(pae, ec.ECDSA(hashes.SHA384()))
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(der).decode()
    with pytest.raises(SignatureError, match="longer"):
        verified(json.dumps(document).encode())


def test_a_pasted_private_key_is_named_as_such() -> None:
    with pytest.raises(RequestError, match="PRIVATE"):
        keys.admit(tinybundle.key().pem())
    with pytest.raises(RequestError, match="PRIVATE"):
        keys.admit(tinybundle.key().pem("secret"))


@pytest.mark.parametrize(
    "pem",
    ["", "hello", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "ä", "x" * 5000],
)
def test_what_is_no_key_is_not_admitted(pem: str) -> None:
    with pytest.raises(RequestError):
        keys.admit(pem)


def test_two_keys_at_once_are_not_admitted() -> None:
    with pytest.raises(RequestError, match="one public key"):
        keys.admit(tinybundle.key().public.pem + tinybundle.other_key().public.pem)


def test_a_certificate_is_named_as_such() -> None:
    with pytest.raises(RequestError, match="certificate"):
        keys.admit("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_one_key_in_two_spellings_has_one_id() -> None:
    pem = tinybundle.key().public.pem
    body = "".join(pem.splitlines()[1:-1])
    other = f"-----BEGIN PUBLIC KEY-----\r\n{body}\r\n-----END PUBLIC KEY-----"
    assert keys.admit(other).id == tinybundle.key().public.id
    assert keys.admit(pem).pem == pem


def test_an_encrypted_key_signs_with_its_passphrase_and_not_without() -> None:
    pem = tinybundle.key().pem("correct horse")
    assert b"ENCRYPTED" in pem
    assert keys.load_private_key(pem, "correct horse").public.id == tinybundle.key().public.id
    with pytest.raises(RequestError, match="passphrase is needed"):
        keys.load_private_key(pem)
    with pytest.raises(RequestError, match="wrong"):
        keys.load_private_key(pem, "battery staple")
    with pytest.raises(RequestError, match="not encrypted"):
        keys.load_private_key(tinybundle.key().pem(), "correct horse")
    with pytest.raises(RequestError, match="public half"):
        keys.load_private_key(tinybundle.key().public.pem.encode())
