"""`model.sig`: an OpenSSF Model Signing 1.0 signature, written and read by its `key` method alone.

The document is a Sigstore bundle (JSON) around a DSSE envelope around an in-toto statement, which lists
every file with its sha256. Rules. Exactly one signature; the payload is parsed only after the signature
over it was verified; no field that is not understood is passed over, except inside a file's descriptor,
where the specification invites more. The statement carries no sizes, no version and nothing that expires:
manifest and trust store do that.
Source: OpenSSF Model Signing specification v1.0; in-toto Statement v1; DSSE v1.0.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from lenskeep.bundle import strictjson
from lenskeep.bundle.keys import PublicKey, Signer
from lenskeep.errors import BundleFormatError, SignatureError

SIGNATURE_NAME = "model.sig"
SIGNATURE_BYTES_MAX = 1 << 20

BundleType = Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
PayloadType = Literal["application/vnd.in-toto+json"]
StatementType = Literal["https://in-toto.io/Statement/v1"]
PredicateType = Literal["https://model_signing/signature/v1.0"]

_PAYLOAD_TYPE: PayloadType = "application/vnd.in-toto+json"
_IGNORED = [".git", ".gitattributes", ".github", ".gitignore", SIGNATURE_NAME]  # the OMS tool's default
_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_FILES_MAX = 4096  # the archive allows far fewer; this bounds the parser


class _Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class _Key(_Strict, frozen=True):
    hint: _Digest


class _Material(_Strict, frozen=True, rename="camel"):
    public_key: _Key
    tlog_entries: Annotated[list[None], Meta(max_length=0)] = []


class _Signature(_Strict, frozen=True):
    sig: str
    keyid: Literal[""] = ""


class _Dsse(_Strict, frozen=True, rename="camel"):
    payload: str
    payload_type: PayloadType
    signatures: Annotated[list[_Signature], Meta(min_length=1, max_length=1)]


class _Bundle(_Strict, frozen=True, rename="camel"):
    media_type: BundleType
    verification_material: _Material
    dsse_envelope: _Dsse


class _RootDigest(_Strict, frozen=True):
    sha256: _Digest


class _Subject(_Strict, frozen=True):
    name: str
    digest: _RootDigest


class _Resource(Struct, frozen=True, kw_only=True):
    name: str
    digest: _Digest
    algorithm: Literal["sha256"]


class _Serialization(_Strict, frozen=True):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool
    ignore_paths: Annotated[list[str], Meta(max_length=_FILES_MAX)] = []


class _Predicate(_Strict, frozen=True):
    serialization: _Serialization
    resources: Annotated[list[_Resource], Meta(min_length=1, max_length=_FILES_MAX)]


class _Statement(_Strict, frozen=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    type_: StatementType
    subject: Annotated[list[_Subject], Meta(min_length=1, max_length=1)]
    predicate_type: PredicateType
    predicate: _Predicate


_Document = TypeVar("_Document", _Bundle, _Statement)


@dataclass(frozen=True, slots=True)
class SignedFile:
    """One line of what was signed."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Statement:
    """What a verified signature says: these files, in the order in which the signer listed them."""

    subject: str  # for people only; nothing is decided by it
    files: tuple[SignedFile, ...]


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signature that was read and not yet verified; its payload has not been looked into."""

    key_id: str  # what the document claims
    payload: bytes
    signature: bytes


def sign(files: Iterable[SignedFile], signer: Signer, subject: str) -> bytes:
    """Sign a list of files and return the bytes of `model.sig`.

    Args:
        subject: a name for people, `name-version` by our custom.
    """
    ordered = sorted(files, key=lambda file: file.name.encode())
    payload = msgspec.json.format(msgspec.json.encode(_statement(ordered, subject)), indent=2)
    envelope = _Dsse(
        payload=_base64(payload),
        payload_type=_PAYLOAD_TYPE,
        signatures=[_Signature(sig=_base64(signer.sign(_authenticated(payload))))],
    )
    return msgspec.json.encode(
        _Bundle(
            media_type="application/vnd.dev.sigstore.bundle.v0.3+json",
            verification_material=_Material(public_key=_Key(hint=signer.public.id)),
            dsse_envelope=envelope,
        )
    )


def open_signature(data: bytes) -> Envelope:
    """Take a `model.sig` apart as far as that is safe before it is verified. Raises: SignatureError."""
    bundle = _strict(data, _Bundle)
    dsse = bundle.dsse_envelope
    return Envelope(
        key_id=bundle.verification_material.public_key.hint,
        payload=_unbase64(dsse.payload, "payload"),
        signature=_unbase64(dsse.signatures[0].sig, "signature"),
    )


def verify(envelope: Envelope, key: PublicKey) -> Statement:
    """Verify with a trusted key and read what was signed. Raises: SignatureError."""
    if envelope.key_id != key.id:
        raise SignatureError("The signature names another key than the one that it is judged by.")
    key.verify(envelope.signature, _authenticated(envelope.payload))
    return _read(envelope.payload)


def claimed(envelope: Envelope) -> Statement:
    """Read what an unverified signature says: to be shown, never to decide anything. Raises: SignatureError."""
    return _read(envelope.payload)


def _read(payload: bytes) -> Statement:
    statement = _strict(payload, _Statement)
    if statement.predicate.serialization.allow_symlinks:
        raise SignatureError("The signature was made with symbolic links allowed; a bundle has none.")
    files = tuple(SignedFile(resource.name, resource.digest) for resource in statement.predicate.resources)
    subject = statement.subject[0]
    if subject.digest.sha256 != _root_digest(files):
        raise SignatureError("The signature's own summary does not match the files that it lists.")
    return Statement(subject=subject.name, files=files)


def _statement(files: list[SignedFile], subject: str) -> _Statement:
    return _Statement(
        type_="https://in-toto.io/Statement/v1",
        subject=[_Subject(name=subject, digest=_RootDigest(sha256=_root_digest(files)))],
        predicate_type="https://model_signing/signature/v1.0",
        predicate=_Predicate(
            serialization=_Serialization(
                method="files", hash_type="sha256", allow_symlinks=False, ignore_paths=_IGNORED
            ),
            resources=[_Resource(name=file.name, digest=file.sha256, algorithm="sha256") for file in files],
        ),
    )


def _root_digest(files: Iterable[SignedFile]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(file.sha256) for file in files)).hexdigest()


def _authenticated(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the payload's type is signed with it."""
    return b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _strict(data: bytes, kind: type[_Document]) -> _Document:
    try:
        raw = strictjson.loads(data, bytes_max=SIGNATURE_BYTES_MAX, floats=False)
        return msgspec.convert(raw, kind, strict=True)
    except (BundleFormatError, msgspec.ValidationError) as error:
        raise SignatureError(f"{SIGNATURE_NAME}: {error}") from error


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(text: str, what: str) -> bytes:
    """Accept the one canonical spelling only, so that equal bytes are equal text."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"{SIGNATURE_NAME}: the {what} is not base64.") from error
    if _base64(data) != text:
        raise SignatureError(f"{SIGNATURE_NAME}: the {what} is not in canonical base64.")
    return data
