"""What every engine under the fleet's store can do: transactions, news between replicas, and one that leads.

Rules. One SQL text serves every engine: `?` marks, RETURNING, ON CONFLICT, BIGINT and TEXT; nothing that SQLite,
PostgreSQL, CockroachDB, YugabyteDB and Citus do not all have. `write()` is one door for all replicas: whoever is in it
sees what was committed before and nobody else decides meanwhile, so a step that reads and then writes is right. A
method of a store is one transaction, so `steps` may run it again when the engine says that nothing of it happened.
News says that something changed, never what: it may come twice, and whoever hears it looks.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from inspect import iscoroutinefunction
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

from lenskeep.errors import StoreBusyError

Channel = Literal["repository", "commands", "revocations", "rollouts"]
Told = Callable[[str], None]

STEP_TRIES = 6
STEP_PAUSE_S = 0.02

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class Row(Protocol):
    """A row; its columns by name."""

    def __getitem__(self, key: str, /) -> Any: ...

    def keys(self) -> Any:
        """Return the columns' names."""


class Transaction(Protocol):
    """What may be done between BEGIN and COMMIT."""

    async def run(self, sql: str, *values: Any) -> int:
        """Execute one statement and return how many rows it changed."""

    async def many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute one statement for every row."""

    async def one(self, sql: str, *values: Any) -> Row | None:
        """Return the first row, or None."""

    async def all(self, sql: str, *values: Any) -> Sequence[Row]:
        """Return every row."""

    def rows(self, table: str, columns: Sequence[str]) -> AsyncIterator[list[tuple[Any, ...]]]:
        """Give the rows of a whole table, many at a time; within `write` or `snapshot`."""


class WriteTransaction(Transaction, Protocol):
    """What may be done in the door."""

    async def tell(self, channel: Channel, subject: str = "") -> None:
        """Let every replica hear that something changed, once this is committed; the subject is a device, or all."""

    async def count_on(self, table: str, column: str) -> None:
        """Let the numbers that the engine gives go on above those that were brought."""


class Engine(Protocol):
    """An open database."""

    def write(self) -> AbstractAsyncContextManager[WriteTransaction]:
        """Change things: all of it is durable when the block ends, or none of it happened.

        Raises: StoreUnreachableError, StoreBusyError, StorageFullError.
        """

    def read(self) -> AbstractAsyncContextManager[Transaction]:
        """Look at what is committed; never waits for the door."""

    def snapshot(self) -> AbstractAsyncContextManager[Transaction]:
        """Look at everything as it was at one moment."""

    def listen(self, channel: Channel, told: Told) -> None:
        """Call this for news of a channel, within a second wherever it was told; '' = whatever is on it."""

    async def lead(self, name: str, seconds: float) -> bool:
        """Take or keep the lead in something for some time; False while another replica has it."""


class News:
    """Who in this process wants to hear what."""

    def __init__(self) -> None:
        self._told: dict[str, list[Told]] = {}

    def listen(self, channel: str, told: Told) -> None:
        """Call this for news of a channel."""
        self._told.setdefault(channel, []).append(told)

    def deliver(self, channel: str, subject: str) -> None:
        """Tell whoever listens to a channel."""
        for told in self._told.get(channel, ()):
            told(subject)

    def deliver_all(self) -> None:
        """Tell everybody that anything may have changed."""
        for channel in self._told:
            self.deliver(channel, "")


def steps(store: C) -> C:
    """Let the methods of a store run again when another replica was faster; each is one transaction."""
    for name, method in list(vars(store).items()):
        if iscoroutinefunction(method) and not name.startswith("_"):
            setattr(store, name, _again(method))
    return store


def _again(method: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    @functools.wraps(method)
    async def step(*args: P.args, **kwargs: P.kwargs) -> R:
        for tried in range(STEP_TRIES):
            try:
                return await method(*args, **kwargs)
            except StoreBusyError:
                await asyncio.sleep(STEP_PAUSE_S * 2**tried * random.uniform(0.5, 1.5))  # noqa: S311 - spreads
        return await method(*args, **kwargs)

    return step
