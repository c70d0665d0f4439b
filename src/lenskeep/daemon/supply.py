"""How bundles come over the air, as one part of the house: downloads, what they may cost, and neighbours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from lenskeep.clock import Clock
from lenskeep.config import Config
from lenskeep.daemon.allowance import Allowance
from lenskeep.daemon.downloads import Downloads
from lenskeep.daemon.neighbourdoor import NeighbourDoor
from lenskeep.daemon.neighbours import Neighbours
from lenskeep.daemon.places import Places
from lenskeep.daemon.repairs import Repairs
from lenskeep.daemon.scrubber import Scrubber
from lenskeep.daemon.sources import HttpSource
from lenskeep.database import Database
from lenskeep.messages.control import Check
from lenskeep.registry.blobs import Blobs


class Supply:
    """Holds the parts; `busy` says what must not be disturbed now."""

    def __init__(
        self, config: Config, places: Places, database: Database, blobs: Blobs, scrubber: Scrubber, clock: Clock,
        busy: Callable[[], str],
    ) -> None:  # fmt: skip
        self._database = database
        self._scrubber = scrubber
        self._allowance = Allowance(config.fleet, database, clock)
        self.neighbours = Neighbours(config.neighbours.ask, self._allowance, clock)
        self.downloads = Downloads(places.incoming, blobs, self._allowance)
        self.downloads.neighbours = self.neighbours
        self.downloads.suspect = lambda digests: scrubber.look_at(digests, "download")
        self.door = NeighbourDoor(config.neighbours, database, blobs, busy, clock)

    def repair_from(self, open_source: Callable[[], AbstractAsyncContextManager[HttpSource]]) -> None:
        """Let damaged files be fetched again from neighbours and from there."""
        self._scrubber.repairer = Repairs(self._database, self.neighbours, self._allowance, open_source)

    async def begin(self) -> None:
        """Find out what was used of the budget before."""
        await self._allowance.begin()

    async def run(self) -> None:
        """Keep the neighbours' door open, where it is wanted, until cancelled."""
        await self.door.run()

    async def checks(self) -> list[Check]:
        """Return the lines of `doctor` about it."""
        return [*await self._allowance.checks(), *await self.door.checks()]
