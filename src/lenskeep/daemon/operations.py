"""Long work with a name: it goes on by itself, anybody may look, wait, or come back later.

An operation is written when it begins and when it ends; one that was running when the daemon died is found failed,
with the reason, by whoever asks after the restart.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

import msgspec

from lenskeep.clock import Clock, rfc3339
from lenskeep.daemon.events import Events
from lenskeep.daemon.problems import problem
from lenskeep.database import Database
from lenskeep.errors import ConflictError, LenskeepError, UnknownNameError
from lenskeep.messages.control import Operation, Progress
from lenskeep.registry import journal

log = logging.getLogger(__name__)

Kind = Literal["import", "check", "activate", "rollback", "verify", "sync", "scrub"]

UNFINISHED = ("awaiting_approval", "running")


class Operations:
    """All operations of this daemon, newest last."""

    def __init__(self, database: Database, events: Events, clock: Clock, tasks: asyncio.TaskGroup) -> None:
        self._database = database
        self._events = events
        self._clock = clock
        self._tasks = tasks
        self._known: dict[str, Operation] = {}
        self._started_ms: dict[str, int] = {}
        self._changed = asyncio.Condition()

    async def load(self, standing: set[str], carried_out: set[str]) -> None:
        """Read what an earlier daemon left; unfinished work is marked as such, except wishes that still stand.

        Args:
            carried_out: activations whose version runs; the daemon may have died before it had said so.
        """
        async with self._database.read() as tx:
            stored = await journal.operations(tx)
        for operation in reversed(stored):
            self._known[operation.id] = operation
            self._started_ms[operation.id] = 0
            if operation.state in UNFINISHED and operation.id in carried_out:
                await self.succeed(operation.id, {"bundle": operation.subject})
            elif operation.state in UNFINISHED and operation.id not in standing:
                await self.fail(operation.id, ConflictError("The service was restarted while this was running."))

    async def begin(self, kind: Kind, subject: str, by: str, waits: str = "") -> Operation:
        """Name a piece of work; it may have to wait for people first."""
        operation = Operation(
            id=uuid.uuid4().hex[:12],
            kind=kind,
            state="awaiting_approval" if waits else "running",
            subject=subject,
            started=rfc3339(self._clock.now_s()),
            by=by,
            waits=waits,
        )
        self._started_ms[operation.id] = self._clock.now_ms()
        await self._put(operation)
        return operation

    async def await_approval(self, operation_id: str, waits: str) -> None:
        """Say what it waits for now."""
        current = self._known.get(operation_id)
        if current is not None and current.state == "awaiting_approval":
            await self._put(msgspec.structs.replace(current, waits=waits))

    async def go_on(self, operation_id: str) -> None:
        """Let work begin that has waited for people."""
        current = self._known.get(operation_id)
        if current is not None and current.state == "awaiting_approval":
            await self._put(msgspec.structs.replace(current, state="running", waits=""))

    def spawn(self, operation_id: str, work: Callable[[], Awaitable[Any]]) -> None:
        """Let work go on by itself and finish the operation with what it returns or raises."""
        self._tasks.create_task(self._carry(operation_id, work), name=f"operation {operation_id}")

    def aside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Let work go on by itself that nobody asked for and that says its own faults."""
        self._tasks.create_task(work, name=name)

    async def _carry(self, operation_id: str, work: Callable[[], Awaitable[Any]]) -> None:
        try:
            result = await work()
        except LenskeepError as error:
            await self.fail(operation_id, error)
        else:
            await self.succeed(operation_id, result)

    def progress(self, operation_id: str, stage: str, done: int, total: int, unit: str) -> None:
        """Say how far it is; kept in memory only."""
        current = self._known.get(operation_id)
        if current is None or current.state != "running":
            return
        changed = msgspec.structs.replace(current, progress=Progress(stage=stage, done=done, total=total, unit=unit))
        self._known[operation_id] = changed
        self._events.publish("operation", changed, keep=False)

    async def succeed(self, operation_id: str, result: Any) -> None:
        """Finish well."""
        await self._finish(operation_id, state="succeeded", result=result)

    async def fail(self, operation_id: str, error: LenskeepError, *, rolled_back: bool = False) -> None:
        """Finish with a fault."""
        known = self._known.get(operation_id)
        log.warning("%s %s: %s", error.code, known.subject if known else operation_id, error)
        state = "rolled_back" if rolled_back else "failed"
        await self._finish(operation_id, state=state, error=problem(error))

    async def _finish(self, operation_id: str, **changes: Any) -> None:
        current = self._known.get(operation_id)
        if current is None or current.state not in UNFINISHED:
            return
        await self._put(msgspec.structs.replace(current, finished=rfc3339(self._clock.now_s()), waits="", **changes))

    async def _put(self, operation: Operation) -> None:
        async with self._database.write() as tx:
            await journal.save_operation(tx, operation, started_ms=self._started_ms[operation.id])
        self._known[operation.id] = operation
        if len(self._known) > journal.KEEP_OPERATIONS:
            oldest = next(iter(self._known))
            del self._known[oldest], self._started_ms[oldest]
        self._events.publish("operation", operation)
        async with self._changed:
            self._changed.notify_all()

    def get(self, operation_id: str) -> Operation:
        """Return one operation. Raises: UnknownNameError."""
        if operation_id not in self._known:
            raise UnknownNameError(f"No operation has the id {operation_id!r}.")
        return self._known[operation_id]

    def list(self) -> list[Operation]:
        """Return all, newest first."""
        return list(reversed(self._known.values()))

    async def wait(self, operation_id: str, seconds: float) -> Operation:
        """Return the operation when it has ended, or as it is when the time is over."""
        self.get(operation_id)
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self.get(operation_id).state != "running")
        except TimeoutError:
            pass
        return self.get(operation_id)
