"""Keeps this device level with its repository: by itself over the network, or with the files that somebody carries.

One sync at a time, whatever its source: look at the metadata, write down what is assigned, fetch, try, activate. The
network's rounds come at the configured pace with a random share, so that a thousand devices do not come together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from lenskeep.clock import Clock, rfc3339
from lenskeep.config import Config
from lenskeep.daemon.follower import Follower
from lenskeep.daemon.identity import Identity
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.problems import fault_check
from lenskeep.daemon.sources import Courier, HttpSource, RepositorySource, open_session
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.daemon.withdrawals import Withdrawals
from lenskeep.database import Database
from lenskeep.errors import ConflictError, LenskeepError, NoRepositoryError, UnknownNameError
from lenskeep.messages.control import Check, Operation
from lenskeep.messages.repository import AssignmentView, RepositoryView, SyncRequest, TrustRole
from lenskeep.registry import repository
from lenskeep.registry.repository import Assigned
from lenskeep.trust.names import TIMESTAMP, model_of

log = logging.getLogger(__name__)

JITTER = 0.2
LOOK_S = 3600.0  # while the fleet says that there is nothing new, it is looked up by ourselves this often
LOOKED_S_MAX = 10.0  # so long the fleet's next call waits for our look
TOLD_PACES = 3.0  # so long the fleet's word counts
BACK_OFF_MAX = 16  # a repository that does not answer is asked this many paces apart at most


class Sync:
    """Syncs, one at a time."""

    def __init__(
        self, config: Config, database: Database, trust: TrustKeeper, follower: Follower, operations: Operations,
        clock: Clock, identity: Identity, withdrawals: Withdrawals,
    ) -> None:  # fmt: skip
        self._withdrawals = withdrawals
        self._config = config
        self._database = database
        self._trust = trust
        self._follower = follower
        self._operations = operations
        self._clock = clock
        self._identity = identity
        self._one_at_a_time = asyncio.Lock()
        self._couriers: dict[str, Courier] = {}
        self._last_fault: LenskeepError | None = None
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()
        self._looked_s = self._level_s = float("-inf")
        self.moved: Callable[[], None] = lambda: None  # called when a sync has ended

    @property
    def address(self) -> str:
        """Where the repository is read from by itself; empty = brought by hand."""
        fleet = self._identity.fleet
        return self._config.trust.repository or (f"{fleet}/v1/repository" if fleet else "")

    @property
    def last_fault(self) -> LenskeepError | None:
        """Why the last sync did not succeed."""
        return self._last_fault

    # --- what people ask ------------------------------------------------------------------------------------------

    async def begin(self, request: SyncRequest, by: str) -> Operation:
        """Begin a sync. Raises: NoRepositoryError, ConflictError when one with carried files is going on."""
        if not self._trust.follows:
            raise NoRepositoryError("This device follows no repository; it trusts its administrator's keys.")
        if not request.carried and not self.address:
            raise NoRepositoryError(
                "No address of a repository is configured.", hint="Bring it on a stick: lenskeep sync --import DIR."
            )
        if self._couriers:
            raise ConflictError("Somebody is bringing files already.", hint="Wait until that sync has ended.")
        where = request.source or "carried files" if request.carried else self.address
        operation = await self._operations.begin("sync", where, by)
        if request.carried:
            courier = self._couriers[operation.id] = Courier(where)
            self._operations.spawn(operation.id, lambda: self._with_courier(operation.id, courier))
        else:
            self._operations.spawn(operation.id, lambda: self._over_network(operation.id))
        return operation

    def courier(self, operation_id: str) -> Courier:
        """Return the one who carries for a sync. Raises: UnknownNameError when it has ended."""
        if operation_id not in self._couriers:
            raise UnknownNameError(f"No sync {operation_id!r} waits for files.")
        return self._couriers[operation_id]

    async def view(self) -> RepositoryView:
        """Return the repository as this device sees it."""
        known = await self._trust.known()
        async with self._database.read() as tx:
            assigned = await repository.assigned(tx)
        faults = [*await self._trust.checks(), *await self.checks(), *await self._withdrawals.faults()]
        return RepositoryView(
            follows=self._trust.follows, device=self._trust.device, source=self.address,
            checked=rfc3339(known.checked_ms / 1000) if known and known.checked_ms else "",
            roles=[
                TrustRole(
                    name=role.name, version=role.version, expires=rfc3339(role.expires_s), keys=len(role.keys),
                    threshold=role.threshold, paths=role.paths,
                )
                for role in (known.roles if known else [])
            ],
            assignments=[assignment_view(one) for one in assigned], withdrawn=sorted(await self._trust.withdrawn()),
            faults=[check for check in faults if not check.passed],
        )  # fmt: skip

    async def checks(self) -> list[Check]:
        """Return the line of `doctor` about the last sync that failed."""
        return [] if self._last_fault is None else [fault_check("sync", self._last_fault, "warn")]

    def ask(self) -> None:
        """Look at the repository soon: the fleet said that there is news."""
        self._wake.set()

    # --- the work -------------------------------------------------------------------------------------------------

    async def level(self, newest: int) -> bool:
        """Take the fleet's word for its newest timestamp; look if ours is older, and say whether it is not any more."""
        known = await self._trust.known()
        if not self._trust.follows or (known is not None and known.version(TIMESTAMP) >= newest):
            self._level_s = self._clock.monotonic_s()
            return True
        self._looked.clear()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOKED_S_MAX):
                await self._looked.wait()
        known = await self._trust.known()
        return known is not None and known.version(TIMESTAMP) >= newest

    async def seen(self) -> int:
        """Return the version of the repository's timestamp that was verified."""
        known = await self._trust.known()
        return known.version(TIMESTAMP) if known is not None else 0

    async def run(self) -> None:
        """Look at the repository at the configured pace, or when the fleet has news, until cancelled."""
        failed = 0
        while True:
            pace_s = self._config.fleet.poll_s * min(BACK_OFF_MAX, 2**failed)
            try:
                async with asyncio.timeout(pace_s * random.uniform(1 - JITTER, 1 + JITTER)):  # noqa: S311 - to spread, not to hide
                    await self._wake.wait()
            except TimeoutError:
                pass
            try:
                if self._trust.follows and self.address and (self._wake.is_set() or await self._due()):
                    self._wake.clear()
                    await self._over_network("")
                failed = 0
            except LenskeepError as error:
                failed += 1
                log.warning("%s sync: %s", error.code, error)
            self._wake.clear()

    async def _due(self) -> bool:
        """Say whether to look unasked: not while the fleet tells us that there is nothing, and nothing is open."""
        now_s = self._clock.monotonic_s()
        if now_s - self._level_s > TOLD_PACES * self._config.fleet.poll_s or now_s - self._looked_s > LOOK_S:
            return True
        return self._last_fault is not None or await self._follower.has_open()

    async def _over_network(self, operation_id: str) -> list[AssignmentView]:
        async with self.http() as source:
            return await self._round(source, operation_id)

    async def _with_courier(self, operation_id: str, courier: Courier) -> list[AssignmentView]:
        try:
            return await self._round(courier, operation_id)
        finally:
            await courier.close()
            del self._couriers[operation_id]

    async def _round(self, source: RepositorySource, operation_id: str) -> list[AssignmentView]:
        def told(stage: str, done: int, total: int, unit: str) -> None:
            self._operations.progress(operation_id, stage, done, total, unit)

        async with self._one_at_a_time:
            told("metadata", 0, 0, "")
            try:
                assignment = await self._trust.refresh(source)
                self._looked_s = self._clock.monotonic_s()
                self._looked.set()
                await self._withdrawals.apply()
                await self._follower.take(assignment)
                assigned = await self._follower.follow(source, told)
            except LenskeepError as error:
                self._last_fault = error
                raise
            finally:
                self._looked.set()
                self.moved()
            self._last_fault = None
            return [assignment_view(one) for one in assigned]

    @asynccontextmanager
    async def http(self) -> AsyncIterator[HttpSource]:
        """Open the repository's own server as a source."""
        ours = bool(self._identity.fleet) and self.address.startswith(f"{self._identity.fleet}/")
        # another server than the fleet's is known by the system's authorities
        async with open_session(self._identity.way) as session:
            yield HttpSource(session, self.address, self._identity.tls() if ours else None, way=self._identity.way)


def assignment_view(one: Assigned) -> AssignmentView:
    """Say an assignment in the words of the API."""
    name, version = model_of(one.target) or (one.target, "")
    fields = msgspec.structs.asdict(one)
    del fields["target"], fields["operation"]
    return AssignmentView(bundle=f"{name}@{version}", **fields)
