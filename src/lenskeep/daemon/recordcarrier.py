"""Brings the whole record to the fleet when it asks for it: the same lines as on a stick, streamed."""

from __future__ import annotations

from urllib.parse import quote

import aiohttp

from lenskeep.daemon.fleetline import fault_of, read_answer, translated
from lenskeep.daemon.identity import Identity
from lenskeep.daemon.record import Record
from lenskeep.daemon.way import REACH_S
from lenskeep.errors import NotEnrolledError

EVERYTHING_MS = 1 << 62
STALLED_S = 60.0


class RecordCarrier:
    """Sends the record."""

    def __init__(self, identity: Identity, record: Record) -> None:
        self._identity = identity
        self._record = record

    async def carry(self) -> None:
        """Send all of it. Raises: NotEnrolledError, PeerError, and what the fleet refuses with."""
        context, fleet = self._identity.tls(), self._identity.fleet
        if context is None or not fleet:
            raise NotEnrolledError("This device belongs to no fleet.")
        url = f"{fleet}/v1/devices/{quote(self._identity.device)}/record"
        limits = aiohttp.ClientTimeout(total=None, connect=REACH_S, sock_connect=10.0, sock_read=STALLED_S)
        way = self._identity.way
        with translated(url, way):
            async with (
                way.session(aiohttp.TCPConnector(ssl=context, force_close=True), timeout=limits) as session,
                session.put(
                    url, data=self._record.export(0, EVERYTHING_MS), allow_redirects=False,
                    **way.words(url, {"Content-Type": "application/jsonl"}),
                ) as answer,
            ):  # fmt: skip
                data = await read_answer(answer)
                if answer.status not in (200, 201, 204):
                    raise fault_of(answer.status, data, url)
