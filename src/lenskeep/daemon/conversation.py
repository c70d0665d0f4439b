"""What this device and its fleet say to each other, as one part of the house: outbox, commands, and the call itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lenskeep.clock import Clock
from lenskeep.config import Config
from lenskeep.daemon.commands import Commands
from lenskeep.daemon.events import Events
from lenskeep.daemon.fleetsync import FleetSync
from lenskeep.daemon.follower import Follower
from lenskeep.daemon.health import Box, Examine
from lenskeep.daemon.identity import Identity
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.outbox import Outbox
from lenskeep.daemon.post import Post
from lenskeep.daemon.record import Record
from lenskeep.daemon.recordcarrier import RecordCarrier
from lenskeep.daemon.reporter import Reporter
from lenskeep.daemon.standing import Standing
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.daemon.sync import Sync
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.daemon.views import Views
from lenskeep.database import Database
from lenskeep.messages.sync import Answer
from lenskeep.registry.blobs import Blobs


class Conversation:
    """Holds the parts, and lets whatever moves on this device wake the call."""

    def __init__(
        self, config: Config, identity: Identity, record: Record, trust: TrustKeeper, follower: Follower, sync: Sync,
        reporter: Reporter, supervisor: Supervisor, metrics: Metrics, windows: Database, registry: Database,
        blobs: Blobs, box: Callable[[], Box], events: Events, clock: Clock, tasks: asyncio.TaskGroup,
        hear: Callable[[Answer], None],
    ) -> None:  # fmt: skip
        ends_s = lambda: identity.certificate_ends_s  # noqa: E731 - it changes with every renewal
        standing = Standing(registry, supervisor, follower, trust, blobs, box, ends_s, clock)
        self._outbox = Outbox(
            windows, registry, metrics, clock, config.fleet.outbox_mb, lambda: identity.member, standing.providers,
            standing.vitals,
        )  # fmt: skip
        self.post = Post(identity, self._outbox)
        commands = Commands(sync, follower, RecordCarrier(identity, record), tasks)
        self._call = FleetSync(config.fleet, identity, self._outbox, standing, reporter, sync, commands, clock)
        self._call.hear = hear
        events.heed = self._outbox.heed
        self._outbox.told = follower.moved = sync.moved = commands.ended = self._call.soon

    def show_in(self, views: Views, looks: list[Examine]) -> None:
        """Let people see how things stand with the fleet."""
        views.fleet = self._call.view
        looks.append(self._call.checks)

    async def begin(self) -> None:
        """Take up what waits for the fleet."""
        await self._outbox.begin()

    async def run(self) -> None:
        """Collect and speak until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._outbox.run(), name="outbox")
            tasks.create_task(self._call.run(), name="fleet call")
