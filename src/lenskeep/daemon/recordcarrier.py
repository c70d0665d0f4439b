"""Brings the whole record to the fleet when it asks for it: the same lines as on a stick, streamed."""

from __future__ import annotations

from urllib.parse import quote

import aiohttp

from lenskeep.daemon.fleetline import fault_of, read_answer, why
from lenskeep.daemon.identity import Identity
from lenskeep.daemon.record import Record
from lenskeep.errors import FleetUnreachableError, NotEnrolledError

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
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=STALLED_S)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=context, force_close=True), timeout=limits, trust_env=True
                ) as session,
                session.put(
                    url, data=self._record.export(0, EVERYTHING_MS), allow_redirects=False,
                    headers={"Content-Type": "application/jsonl"},
                ) as answer,
            ):  # fmt: skip
                data = await read_answer(answer)
                if answer.status not in (200, 201, 204):
                    raise fault_of(answer.status, data, url)
        except TimeoutError as error:
            raise FleetUnreachableError(f"{url} did not answer in time.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise FleetUnreachableError(f"{url} cannot be reached: {why(error)}.") from error
