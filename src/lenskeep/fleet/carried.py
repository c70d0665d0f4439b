"""Records that came on a stick: the same as in a call, taken through the same intake, and acknowledged by a receipt.

Rules. Nothing is looked at before its signature, and the signature counts only by a key that is listed for the device
that it speaks for. Which way a record came does not matter: device, outbox and number decide whether it is new. What
goes on behind records that have not arrived is refused, because numbers are taken in order. The receipt is signed by
the fleet's authority, so a device believes it whoever carries it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from lenskeep.bundle import keys
from lenskeep.errors import CarriedRecordsError, LenskeepError, RecordsMissingError, SignatureError, UnlistedDeviceError
from lenskeep.fleet import answers
from lenskeep.fleet.authority import FleetAuthority
from lenskeep.fleet.intake import Intake
from lenskeep.fleet.operators import Operator, Route
from lenskeep.fleet.store.intake import Delivery
from lenskeep.fleet.store.store import Listed, Store
from lenskeep.fleet.sync import in_order
from lenskeep.messages.fleet import CarriedAnswer
from lenskeep.messages.sync import MEDIA_MSGPACK, Call, Carried, OutboxName, Receipt
from lenskeep.trust import envelope
from lenskeep.trust.stick import OUTBOX_BYTES_MAX

ReadCall = Callable[[bytes, str], Call]


class _Front(msgspec.Struct, frozen=True, kw_only=True):
    """All of a batch but its records, which may be newer than this fleet."""

    device: str
    outbox: OutboxName
    after: int


class CarriedRoom:
    """Where records come in that somebody carried.

    Args:
        read: reads a call, as the devices' own door does: a record that nobody knows costs the others nothing.
    """

    def __init__(
        self, store: Store, intake: Intake, authority: FleetAuthority, read: ReadCall, request_s_max: float
    ) -> None:
        self._store = store
        self._intake = intake
        self._authority = authority
        self._read = read
        self._request_s_max = request_s_max

    def routes(self) -> list[Route]:
        """Return the doors, for the operators' door."""
        return [("POST", "/v1/devices/{device}/outbox", "operator", self._take)]

    async def _take(self, request: web.Request, _who: Operator) -> web.Response:
        data = await answers.read_bytes(request, OUTBOX_BYTES_MAX, self._request_s_max)
        return answers.said(await self.take(data, request.match_info["device"]))

    async def take(self, data: bytes, device: str) -> CarriedAnswer:
        """Take records. Raises: CarriedRecordsError, RecordsMissingError, UnlistedDeviceError, StorageError."""
        try:
            opened = envelope.open_envelope(data)
        except SignatureError as error:
            raise CarriedRecordsError(str(error)) from error
        listed = await self._store.listed(opened.key_id)
        if listed is None or listed.device != device:
            raise UnlistedDeviceError(f"The records are signed by a key that is not listed for {device!r}.")
        said = self._verified(opened, listed)
        delivery = Delivery(device, said.outbox, said.after, said.records)
        await self._intake.take(delivery)
        if delivery.taken < said.records[-1].n:
            raise RecordsMissingError(
                f"Records of {device} from {said.records[0].n} on came, and it was taken up to {delivery.taken} so far."
            )
        receipt = self._authority.receipt(Receipt(device=device, outbox=said.outbox, taken=delivery.taken))
        fresh = len(delivery.fresh)
        return CarriedAnswer(
            device=device, outbox=said.outbox, taken=delivery.taken, fresh=fresh, receipt=receipt
        )  # fmt: skip

    def _verified(self, opened: envelope.Opened, listed: Listed) -> Carried:
        try:
            payload = envelope.verify(opened, envelope.OUTBOX, keys.admit(listed.pem))
            front = msgspec.msgpack.decode(payload, type=_Front)
            records = in_order(self._read(payload, MEDIA_MSGPACK).records)
        except (SignatureError, msgspec.MsgspecError, UnicodeDecodeError, LenskeepError) as error:
            raise CarriedRecordsError(f"The records cannot be believed: {error}") from error
        if front.device != listed.device:
            raise CarriedRecordsError(f"They are signed by {listed.device!r} and speak for {front.device!r}.")
        if not records or not -1 <= front.after < records[0].n:
            raise CarriedRecordsError("They contradict what they say is gone before them.")
        return Carried(device=front.device, outbox=front.outbox, after=front.after, records=list(records))
