"""What this device gives to whoever carries a stick to its fleet, beside reports: its outbox; and receipts back.

Rules. Records are only copied onto a stick. They are forgotten when the fleet has acknowledged them: in a call over the
network, or by a receipt that its authority signed for this device and this outbox. Whoever carries the stick can keep
all of that back, and change none of it.
"""

from __future__ import annotations

import asyncio

import msgspec

from lenskeep.bundle.keys import PublicKey
from lenskeep.daemon.identity import Identity
from lenskeep.daemon.outbox import Outbox
from lenskeep.errors import NotEnrolledError, ReceiptRefusedError, SignatureError
from lenskeep.messages.identity import ReceiptTaken, SignedRecords
from lenskeep.messages.sync import Carried, Receipt
from lenskeep.trust import envelope


class Post:
    """The outbox by stick."""

    def __init__(self, identity: Identity, outbox: Outbox) -> None:
        self._identity = identity
        self._outbox = outbox

    async def pack(self, above: int) -> SignedRecords:
        """Sign the oldest records above a number. A device that belongs to no fleet has none. Raises: StorageError."""
        device = self._identity.device
        found = await self._outbox.carry(above) if self._identity.member else None
        if found is None:
            return SignedRecords(device=device)
        outbox, after, records, left = found
        said = Carried(device=device, outbox=outbox.name, after=after, records=records)
        sealed = envelope.seal(msgspec.msgpack.encode(said), envelope.OUTBOX, self._identity.key)
        return SignedRecords(
            device=device, outbox=outbox.name, first=records[0].n, last=records[-1].n, records=len(records), left=left,
            envelope=sealed.decode(),
        )  # fmt: skip

    async def receive(self, sealed: str) -> ReceiptTaken:
        """Take a receipt. Raises: ReceiptRefusedError, NotEnrolledError; then nothing is forgotten."""
        if not self._identity.authority:
            raise NotEnrolledError("This device belongs to no fleet whose receipt it could believe.")
        authority = await asyncio.to_thread(_key_in_thread, self._identity.authority)
        try:
            payload = envelope.verify(envelope.open_envelope(sealed.encode()), envelope.RECEIPT, authority)
            said = msgspec.json.decode(payload, type=Receipt)
        except (SignatureError, msgspec.DecodeError, UnicodeError) as error:
            raise ReceiptRefusedError(f"The receipt cannot be believed: {error}") from error
        if said.device != self._identity.device:
            raise ReceiptRefusedError(f"The receipt was made for {said.device!r}.")
        gone = await self._outbox.acknowledged(said.outbox, said.taken)
        return ReceiptTaken(outbox=said.outbox, taken=said.taken, forgotten=gone)


def _key_in_thread(authority: str) -> PublicKey:
    from lenskeep.trust.certificates import check_authority

    return check_authority(authority).key
