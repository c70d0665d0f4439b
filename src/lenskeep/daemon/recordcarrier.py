"""Brings the record to the fleet when it asks for it: the same lines as on a stick, in pieces, those that it lacks.

Rules. The fleet says up to where it has the record, after every piece as well; what it says is compared with what is
here. A piece may be sent twice, and a break costs one piece. Where the fleet's copies end with entries that are not
here (the registry was lost or put back), another copy is begun; the fleet keeps what it has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import quote

from lenskeep.daemon import fleetline
from lenskeep.daemon.identity import Identity
from lenskeep.daemon.record import Record
from lenskeep.errors import FleetAnswerError, NotEnrolledError
from lenskeep.messages.fleet import RecordState
from lenskeep.registry.audit import StoredHead
from lenskeep.trust.recordpiece import PIECE_BYTES

STANDSTILLS_MAX = 3  # pieces in a row that brought nothing forward


class RecordCarrier:
    """Sends the record."""

    def __init__(self, identity: Identity, record: Record) -> None:
        self._identity = identity
        self._record = record

    async def carry(self) -> None:
        """Send what the fleet lacks. Raises: NotEnrolledError, PeerError, and what the fleet refuses with."""
        head = await self._record.sign(anew=True)
        state, standstills = await self._ask(""), 0
        while not (state.known or _has(state, head)):
            copy, after = await self._place(state)
            async with aclosing(self._pieces(after, head)) as pieces:
                async for last, piece in pieces:
                    state = await self._ask(f"?copy={copy}&after={after}", piece)
                    now = next((each for each in state.copies if each.copy == copy), None)
                    if now is None or now.sequence != last or not await self._record.holds(last, now.hash):
                        standstills += 1
                        break  # it is elsewhere than was thought: look again
                    after, standstills = last, 0 if last > after else standstills + 1
            if standstills > STANDSTILLS_MAX:
                raise FleetAnswerError("The fleet takes no more of the record and does not say why.")

    async def _ask(self, query: str, piece: bytes | None = None) -> RecordState:
        context, fleet = self._identity.tls(), self._identity.fleet
        if context is None or not fleet:
            raise NotEnrolledError("This device belongs to no fleet.")
        url = f"{fleet}/v1/devices/{quote(self._identity.device)}/record{query}"
        return await fleetline.ask(url, context, RecordState, piece, self._identity.way)

    async def _place(self, state: RecordState) -> tuple[int, int]:
        """Return the copy to go on with, and the entry behind which; else another copy, from the beginning."""
        for each in state.copies:
            if await self._record.holds(each.sequence, each.hash):
                return each.copy, each.sequence
        return max((each.copy for each in state.copies), default=0) + 1, -1

    async def _pieces(self, after: int, head: StoredHead) -> AsyncGenerator[tuple[int, bytes], None]:
        """Put the lines together to pieces that are as large as one should be, each with its last entry."""
        waiting: list[bytes] = []
        length, last = 0, after
        async for number, line in self._record.lines(after, head):
            if waiting and length + len(line) > PIECE_BYTES:
                yield last, b"".join(waiting)
                waiting, length = [], 0
            waiting.append(line)
            length, last = length + len(line), number
        yield last, b"".join(waiting)


def _has(state: RecordState, head: StoredHead) -> bool:
    return any((each.head_sequence, each.head_hash) == (head.sequence, head.hash) for each in state.copies)
