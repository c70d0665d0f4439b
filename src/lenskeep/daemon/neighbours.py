"""Other devices on the same site that may have a bundle already: asked for large pieces before the fleet is.

Rules. Nothing that a neighbour says is believed: what it gives is hashed by whoever asked, and one that gave something
else is not asked again for an hour; one that does not answer, not for a minute. It costs no more than that. The list
comes from the configuration and from the fleet; only plain addresses are taken from there.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from lenskeep.clock import Clock
from lenskeep.config import NEIGHBOUR, NO_PROXY
from lenskeep.daemon.allowance import Allowance
from lenskeep.daemon.sources import HttpSource, NoRangeError, Pace, open_session
from lenskeep.daemon.way import Way
from lenskeep.errors import LenskeepError

log = logging.getLogger(__name__)

PATH = "/v1/repository"
HEARD_MAX = 16
ASKED_MAX = 3  # of one file; then the fleet
NEAR = Pace(connect_s=1.0, silence_s=5.0, grace_s=5.0, bytes_s_min=64 << 10)
LIED_S, FAILED_S = 3600.0, 60.0


class Neighbours:
    """Who is near, and who of them is worth asking."""

    def __init__(self, ask: Sequence[str], allowance: Allowance, clock: Clock) -> None:
        self._configured = list(ask)
        self._heard: list[str] = []
        self._allowance = allowance
        self._clock = clock
        self._aside: dict[tuple[str, str], float] = {}  # address and file ("" = all of them) -> until when

    def heard(self, addresses: Sequence[str]) -> None:
        """Take over whom the fleet names; an address that is none is passed over."""
        self._heard = [one for one in addresses[:HEARD_MAX] if re.fullmatch(NEIGHBOUR, one)]

    def carriers(self, target: str) -> list[Neighbour]:
        """Return who to ask for a file now, in an order that spreads the load."""
        now_s = self._clock.monotonic_s()
        self._aside = {key: until_s for key, until_s in self._aside.items() if until_s > now_s}
        near = [
            address
            for address in dict.fromkeys((*self._configured, *self._heard))
            if not {(address, ""), (address, target)} & self._aside.keys()
        ]
        random.shuffle(near)
        return [Neighbour(self, self._allowance, address, target) for address in near[:ASKED_MAX]]

    def set_aside(self, address: str, target: str, seconds: float) -> None:
        """Ask a neighbour for a file, or for anything, no more for a while."""
        self._aside[address, target] = self._clock.monotonic_s() + seconds


class Neighbour:
    """One file at one neighbour."""

    def __init__(self, book: Neighbours, allowance: Allowance, address: str, target: str) -> None:
        self.name = address
        self._book = book
        self._allowance = allowance
        self._target = target

    async def piece(self, offset: int, length: int) -> AsyncIterator[bytes]:
        """Yield so many bytes of the file; they cost no budget. Raises: PeerError, TrustError, NoRangeError."""
        try:
            async with open_session(Way(NO_PROXY)) as session:
                source = HttpSource(session, f"{self.name.rstrip('/')}{PATH}", pace=NEAR)
                async with aclosing(source.stream(self._target, offset, length)) as chunks:  # type: ignore[type-var]
                    async for chunk in chunks:
                        yield chunk
                        await self._allowance.pace(len(chunk))
        except (LenskeepError, NoRangeError):
            self._book.set_aside(self.name, self._target, FAILED_S)
            raise

    def lied(self) -> None:
        """Hear that it gave something else."""
        log.warning("%s gave other bytes than were asked for; it is not asked again for an hour", self.name)
        self._book.set_aside(self.name, "", LIED_S)
