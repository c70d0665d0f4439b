"""What the fleet asks of this device beside versions, and what became of it. None of it can change what may run."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable

from lenskeep.daemon.follower import Follower
from lenskeep.daemon.recordcarrier import RecordCarrier
from lenskeep.daemon.sync import Sync
from lenskeep.errors import FleetBusyError, FleetUnreachableError, LenskeepError
from lenskeep.messages.fleet import cut
from lenskeep.messages.sync import Command, Outcome

log = logging.getLogger(__name__)

REMEMBERED = 200
TOLD_TOGETHER = 64
RECORD_TRIES = 30
RECORD_AGAIN_S_MAX = 120.0


class Commands:
    """Carries commands out, each once; one that comes again is answered again."""

    def __init__(self, sync: Sync, follower: Follower, carrier: RecordCarrier, tasks: asyncio.TaskGroup) -> None:
        self._sync = sync
        self._follower = follower
        self._carrier = carrier
        self._tasks = tasks
        self._known: OrderedDict[str, Outcome | None] = OrderedDict()  # None = under way
        self._untold: dict[str, Outcome] = {}
        self.report_asked = False
        self.ended: Callable[[], None] = lambda: None  # called when there is an outcome to tell

    @property
    def paused(self) -> bool:
        """Say whether the fleet has paused this device."""
        return self._follower.paused

    def done(self) -> list[Outcome]:
        """Return what became of commands, as far as the fleet has not heard it."""
        return list(self._untold.values())[:TOLD_TOGETHER]

    def told(self, outcomes: Iterable[Outcome]) -> None:
        """Forget what the fleet has heard."""
        for outcome in outcomes:
            self._untold.pop(outcome.id, None)

    async def take(self, commands: list[Command]) -> bool:
        """Take up what is asked; say whether there is something to tell."""
        for command in commands:
            known = self._known.get(command.id)
            if known is not None:
                self._untold[command.id] = known
            elif command.id not in self._known:
                self._known[command.id] = None
                try:
                    await self._begin(command)
                except LenskeepError as error:
                    self._fail(command, error)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return bool(self._untold)

    async def _begin(self, command: Command) -> None:
        log.info("the fleet asks: %s %s", command.kind, cut(command.text, 200))
        match command.kind:
            case "sync":
                self._sync.ask()
            case "report":
                self.report_asked = True
            case "pause" | "resume":
                await self._follower.pause(command.kind == "pause")
                self._sync.ask()
            case "record":
                self._tasks.create_task(self._carry_record(command), name="record upload")
                return
        self._end(Outcome(id=command.id, state="done"))

    async def _carry_record(self, command: Command) -> None:
        try:
            await self._carry_through()
            self._end(Outcome(id=command.id, state="done"))
        except LenskeepError as error:
            self._fail(command, error)
        self.ended()

    async def _carry_through(self) -> None:
        """Go on when the fleet is away for a while, and give up when it is away for long."""
        for tried in range(RECORD_TRIES):
            try:
                await self._carrier.carry()
            except (FleetUnreachableError, FleetBusyError) as error:
                if tried + 1 == RECORD_TRIES:
                    raise
                log.info("%s the record is sent again later: %s", error.code, error)
                await asyncio.sleep(min(RECORD_AGAIN_S_MAX, 2.0**tried) * random.uniform(0.5, 1.0))  # noqa: S311 - spreads
            else:
                return

    def _fail(self, command: Command, error: LenskeepError) -> None:
        self._end(Outcome(id=command.id, state="failed", code=error.code, text=cut(str(error), 2000)))

    def _end(self, outcome: Outcome) -> None:
        self._known[outcome.id] = self._untold[outcome.id] = outcome
