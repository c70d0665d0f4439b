"""Signed documents of a repository: read strictly, signed, and counted key by key.

Rules. A document is what the standard's library reads from JSON that no two readers can understand differently. A key
counts once towards a threshold, under however many ids it is listed. Only ECDSA P-256 counts.
Not here: which document is in force (state), what stands in it (changes, releases, director, online).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Key, Signature, SSlibKey
from securesystemslib.signer import Signer as TufSigner
from tuf.api.metadata import Delegations, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import SerializationError
from tuf.api.serialization.json import JSONSerializer

from lenskeep.bundle import strictjson
from lenskeep.bundle.keys import PublicKey, Signer, admit
from lenskeep.errors import BundleFormatError, MetadataFormatError, RequestError, SignatureError
from lenskeep.trust.names import ROOT, SNAPSHOT, TIMESTAMP

DOCUMENT_BYTES_MAX = 5_000_000  # what the standard's client accepts of a targets role
NAME_FIELD = "x-lenskeep-name"  # in a key: whose it is, for people
HOLDER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
KEY_TYPE, KEY_SCHEME = "ecdsa", "ecdsa-sha2-nistp256"
# What the standard's library raises for a document that is JSON and yet not its kind of document.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, SerializationError)

Body = Root | Targets | Snapshot | Timestamp
Delegator = Root | Targets


@dataclass(frozen=True, slots=True)
class Document:
    """One document as it was read; whether its signatures count is another question."""

    role: str
    raw: bytes
    metadata: Metadata[Any] = field(repr=False)

    @property
    def version(self) -> int:
        """The version that it names itself."""
        return int(self.metadata.signed.version)

    @property
    def expires_s(self) -> float:
        """When its signatures stop to count."""
        return float(self.metadata.signed.expires.timestamp())

    @property
    def file(self) -> str:
        """Its name in a repository's metadata folder."""
        return f"{TIMESTAMP}.json" if self.role == TIMESTAMP else f"{self.version}.{self.role}.json"

    @property
    def signed_bytes(self) -> bytes:
        """What is signed: the canonical form of the signed part."""
        return _canonical(self.metadata.signed)

    @property
    def digest(self) -> str:
        """The sha256 of what is signed; it stays the same while signatures come in."""
        return hashlib.sha256(self.signed_bytes).hexdigest()

    @property
    def root(self) -> Root:
        """The signed part of a root."""
        assert isinstance(self.metadata.signed, Root), self.role
        return self.metadata.signed

    @property
    def targets(self) -> Targets:
        """The signed part of `targets` or of a role below it."""
        assert isinstance(self.metadata.signed, Targets), self.role
        return self.metadata.signed

    @property
    def snapshot(self) -> Snapshot:
        """The signed part of a snapshot."""
        assert isinstance(self.metadata.signed, Snapshot), self.role
        return self.metadata.signed

    @property
    def timestamp(self) -> Timestamp:
        """The signed part of a timestamp."""
        assert isinstance(self.metadata.signed, Timestamp), self.role
        return self.metadata.signed


@dataclass(frozen=True, slots=True)
class Holder:
    """A key with the name of whoever holds it."""

    id: str  # sha256 of the PEM text, as in bundle signatures
    name: str
    pem: str
    tuf_id: str

    def __str__(self) -> str:
        return self.name or self.id[:12]


@dataclass(frozen=True, slots=True)
class Tally:
    """Who has signed a document and who may still do so."""

    threshold: int
    signed: tuple[Holder, ...]
    missing: tuple[Holder, ...]

    @property
    def met(self) -> bool:
        """Whether enough different keys have signed."""
        return len(self.signed) >= self.threshold


def read(role: str, raw: bytes) -> Document:
    """Read a document of a role. Raises: MetadataFormatError."""
    kinds: dict[str, type[Body]] = {ROOT: Root, SNAPSHOT: Snapshot, TIMESTAMP: Timestamp}
    try:
        plain = strictjson.loads(raw, bytes_max=DOCUMENT_BYTES_MAX, floats=False)
        metadata: Metadata[Any] = Metadata.from_dict(plain)  # type: ignore[arg-type]
        document = Document(role, raw, metadata)
        _ = document.signed_bytes, document.expires_s
    except (BundleFormatError, *_MALFORMED) as error:
        raise MetadataFormatError(f"The metadata of {role} cannot be read: {error}") from error
    if not isinstance(metadata.signed, kinds.get(role, Targets)):
        raise MetadataFormatError(f"The metadata of {role} is of another kind: {metadata.signed.type}.")
    return document


def write(role: str, body: Body, signatures: dict[str, Signature] | None = None) -> Document:
    """Make a document of a signed part and the signatures that there are."""
    metadata: Metadata[Any] = Metadata(body, dict(sorted((signatures or {}).items())))
    return read(role, metadata.to_bytes(JSONSerializer(compact=True)))


def make(role: str, body: Body, signers: Iterable[Signer], entitled: Iterable[Holder]) -> Document:
    """Make a document that those signers have signed whose key is entitled. Cost: 15 ms for 400 targets."""
    by_id, payload = {holder.id: holder for holder in entitled}, _canonical(body)
    signatures: dict[str, Signature] = {}
    for signer in signers:
        holder = by_id.get(signer.public.id)
        if holder is not None:
            signatures[holder.tuf_id] = Signature(holder.tuf_id, signer.sign(payload).hex())
    return write(role, body, signatures)


def _canonical(body: Body) -> bytes:
    """Return the canonical form of a signed part; only texts with characters to be escaped need the slow way."""
    plain = body.to_dict()
    fast = msgspec.json.encode(plain, order="deterministic")
    return fast if b"\\" not in fast else str(encode_canonical(plain)).encode()


class _Ending(msgspec.Struct, frozen=True):
    expires: Annotated[datetime, msgspec.Meta(tz=True)]


class _Ends(msgspec.Struct, frozen=True):
    signed: _Ending


_ends = msgspec.json.Decoder(_Ends)


def ends_s(raw: bytes) -> float:
    """Return when a document's signatures stop to count, read quickly: of one that was read in full before.

    Raises: MetadataFormatError.
    """
    try:
        return _ends.decode(raw).signed.expires.timestamp()
    except ValueError as error:  # the decoder's own faults are ValueErrors
        raise MetadataFormatError(f"The metadata cannot be read: {error}") from error


def body_of(document: Document) -> Any:
    """Return the signed part as a copy to be changed."""
    return read(document.role, document.raw).metadata.signed


def tuf_key(public: PublicKey, name: str = "") -> Key:
    """Return a public key in the standard's form, under the standard's id."""
    plain = {"keytype": KEY_TYPE, "scheme": KEY_SCHEME, "keyval": {"public": public.pem}}
    key_id = hashlib.sha256(str(encode_canonical(plain)).encode()).hexdigest()
    return SSlibKey(key_id, KEY_TYPE, KEY_SCHEME, {"public": public.pem}, {NAME_FIELD: name} if name else None)


def holders_of(delegator: Delegator, role: str) -> tuple[int, list[Holder]]:
    """Return a role's threshold and its keys, each key once and only keys that can count."""
    try:
        delegated = delegator.get_delegated_role(role)
    except ValueError:
        return 1, []
    keys = delegator.keys if isinstance(delegator, Root) else _keys(delegator.delegations)
    found: dict[str, Holder] = {}
    for tuf_id in delegated.keyids:
        holder = _holder(tuf_id, keys.get(tuf_id))
        if holder is not None:
            found.setdefault(holder.id, holder)
    return delegated.threshold, list(found.values())


def _keys(delegations: Delegations | None) -> dict[str, Key]:
    return {} if delegations is None else delegations.keys


def _holder(tuf_id: str, key: Key | None) -> Holder | None:
    if key is None or key.keytype != KEY_TYPE or key.scheme != KEY_SCHEME:
        return None
    try:
        public = admit(str(key.keyval.get("public", "")))
    except RequestError:
        return None
    name = key.unrecognized_fields.get(NAME_FIELD, "")
    return Holder(public.id, name if isinstance(name, str) and HOLDER_NAME.fullmatch(name) else "", public.pem, tuf_id)


def tally(document: Document, delegator: Delegator) -> Tally:
    """Count the signatures of a document by what a delegator says about its role."""
    threshold, holders = holders_of(delegator, document.role)
    payload, given = document.signed_bytes, document.metadata.signatures
    signed = tuple(
        holder
        for holder in holders
        if holder.tuf_id in given and signs(holder, given[holder.tuf_id].signature, payload)
    )
    return Tally(threshold, signed, tuple(holder for holder in holders if holder not in signed))


def signs(holder: Holder, signature: str, payload: bytes) -> bool:
    """Say whether a holder's key has made this signature (hexadecimal DER) over these bytes."""
    try:
        admit(holder.pem).verify(bytes.fromhex(signature), payload)
    except (SignatureError, ValueError):
        return False
    return True


class _Adapter(TufSigner):
    """A `Signer` of ours in the form that the standard's library signs with."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._key = tuf_key(signer.public)

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> TufSigner:  # noqa: ARG003
        """Signers are handed in; none is found by an address."""
        raise ValueError("no signer has an address here")

    @property
    def public_key(self) -> Key:
        """The public half."""
        return self._key

    def sign(self, payload: bytes) -> Signature:
        """Return the signature in the standard's form."""
        return Signature(self._key.keyid, self._signer.sign(payload).hex())


def sign(document: Document, signers: Iterable[Signer], entitled: Iterable[Holder]) -> Document:
    """Add the signatures of those signers whose key is entitled; keys that signed before keep their signature."""
    by_id = {holder.id: holder for holder in entitled}
    signatures = dict(document.metadata.signatures)
    for signer in signers:
        holder = by_id.get(signer.public.id)
        if holder is not None:
            made = _Adapter(signer).sign(document.signed_bytes)
            signatures[holder.tuf_id] = Signature(holder.tuf_id, made.signature)
    return write(document.role, body_of(document), signatures)


def meta_of(document: Document) -> MetaFile:
    """Describe a document for the one that lists it: version, length and sha256."""
    return MetaFile(document.version, len(document.raw), {"sha256": hashlib.sha256(document.raw).hexdigest()})


def target_of(path: str, length_bytes: int, sha256: str) -> TargetFile:
    """Describe a file for the role that lists it."""
    return TargetFile(length_bytes, {"sha256": sha256}, path)


def moment(seconds: float) -> datetime:
    """Return a time as the standard's library wants it: UTC, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC)
