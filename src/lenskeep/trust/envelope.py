"""Signed statements of a device, and of its fleet to it: DSSE envelopes, one payload type for each thing to be said.

The payload's type is signed with it, so that a report is never taken for the head of a record, for a bundle's
signature, or for anything of TLS. Source: DSSE v1.0.2.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from lenskeep.bundle import strictjson
from lenskeep.bundle.keys import PublicKey, Signer
from lenskeep.errors import BundleFormatError, SignatureError

ENVELOPE_BYTES_MAX = 4 << 20
REPORT = "application/vnd.lenskeep.report+json"
RECORD_HEAD = "application/vnd.lenskeep.record-head+json"
OUTBOX = "application/vnd.lenskeep.outbox+msgpack"
RECEIPT = "application/vnd.lenskeep.receipt+json"  # signed by the fleet's authority


class _Signature(Struct, frozen=True, forbid_unknown_fields=True):
    keyid: Annotated[str, Meta(max_length=64)]
    sig: str


class _Dsse(Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    payload: str
    payload_type: Annotated[str, Meta(max_length=128)]
    signatures: Annotated[list[_Signature], Meta(min_length=1, max_length=1)]


@dataclass(frozen=True, slots=True)
class Opened:
    """An envelope that was read and not yet verified; its payload has not been looked into."""

    key_id: str  # what the document claims
    payload_type: str
    payload: bytes
    signature: bytes


def seal(payload: bytes, payload_type: str, signer: Signer) -> bytes:
    """Sign a payload and return the envelope as JSON."""
    signature = _Signature(signer.public.id, _text(signer.sign(_authenticated(payload_type, payload))))
    return msgspec.json.encode(_Dsse(payload=_text(payload), payload_type=payload_type, signatures=[signature]))


def open_envelope(data: bytes) -> Opened:
    """Take an envelope apart as far as that is safe before it is verified. Raises: SignatureError."""
    try:
        raw = strictjson.loads(data, bytes_max=ENVELOPE_BYTES_MAX, floats=False)
        dsse = msgspec.convert(raw, _Dsse, strict=True)
    except (BundleFormatError, msgspec.ValidationError) as error:
        raise SignatureError(f"The envelope cannot be read: {error}") from error
    first = dsse.signatures[0]
    return Opened(first.keyid, dsse.payload_type, _bytes(dsse.payload), _bytes(first.sig))


def verify(opened: Opened, payload_type: str, key: PublicKey) -> bytes:
    """Return the payload when this key signed it as this type. Raises: SignatureError."""
    if opened.payload_type != payload_type:
        raise SignatureError(f"The envelope holds {opened.payload_type!r} in place of {payload_type!r}.")
    if opened.key_id != key.id:
        raise SignatureError("The envelope names another key than the one that it is judged by.")
    key.verify(opened.signature, _authenticated(opened.payload_type, opened.payload))
    return opened.payload


def _authenticated(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    """Accept the one canonical spelling only, so that equal bytes are equal text."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError("The envelope is not in base64.") from error
    if _text(data) != text:
        raise SignatureError("The envelope is not in canonical base64.")
    return data
