"""The fleet's store in PostgreSQL, or in what speaks its wire, for any number of replicas.

Rules. The door is a row that is locked (`FOR UPDATE`), because a row can be locked on every such engine and advisory
locks are missing or do nothing on some. Whoever holds it sees, statement by statement, what was committed before. News
is a row in `signal`, looked for twice a second, so that none is lost with a connection; LISTEN makes it instant where
the engine has it. Who leads is a row with a time by the database's clock. The driver's exceptions are translated here
and nowhere else. A password is never part of a text.
Not here: a pooler that hands a connection on between statements; it breaks prepared statements.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from lenskeep.database import schema_steps
from lenskeep.errors import (
    ConfigError,
    DeviceError,
    StorageFullError,
    StoreBusyError,
    StoreUnreachableError,
)
from lenskeep.fleet.store import dialect, proving
from lenskeep.fleet.store.engine import Channel, News, Told

log = logging.getLogger("lenskeep.fleet")

CONNECTIONS_MAX = 6
CONNECT_S_MAX = 5.0
STATEMENT_S_MAX = 30.0
AGAIN_S = (0.05, 0.2, 0.5, 1.0)  # a server that is started again is back within these
LOOK_S = 0.5
SIGNAL_KEPT_MS = 600_000
DOOR_MS_MAX = "15000"  # a replica that was cut off in the door lets go then
ROWS_AT_ONCE = 1000

_NEWS = "lenskeep_fleet"
_DOOR = "SELECT name FROM door WHERE name = 'fleet' FOR UPDATE"
_BEGIN = f"BEGIN ISOLATION LEVEL READ COMMITTED; {_DOOR}"
_NOW_MS = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
_TELL = f"INSERT INTO signal SELECT coalesce(max(sequence), 0) + 1, $1, $2, {_NOW_MS} FROM signal"  # noqa: S608
_FORGET = f"DELETE FROM signal WHERE at_ms < {_NOW_MS} - {SIGNAL_KEPT_MS}"  # noqa: S608
_LEAD = (
    f"INSERT INTO lease VALUES ($1, $2, {_NOW_MS} + $3) ON CONFLICT (name) DO UPDATE SET holder = excluded.holder,"  # noqa: S608
    f" until_ms = excluded.until_ms WHERE lease.holder = excluded.holder OR lease.until_ms < {_NOW_MS} RETURNING holder"
)
_OWN_TABLES = (
    "CREATE TABLE IF NOT EXISTS door (name TEXT PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS schema_step (number BIGINT PRIMARY KEY, name TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS lease (name TEXT PRIMARY KEY, holder TEXT NOT NULL, until_ms BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS signal (sequence BIGINT PRIMARY KEY, channel TEXT NOT NULL, subject TEXT NOT NULL,"
    " at_ms BIGINT NOT NULL)",
    "INSERT INTO door VALUES ('fleet') ON CONFLICT (name) DO NOTHING",
)


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that is handed back clean without being asked about it: we leave nothing on it."""

    def get_reset_query(self) -> str:
        return ""


class PostgresTransaction:
    """What may be done between BEGIN and COMMIT."""

    def __init__(self, connection: asyncpg.Connection, where: str) -> None:
        self.connection = connection
        self.told: list[tuple[Channel, str]] = []
        self._where = where

    async def run(self, sql: str, *values: Any) -> int:
        """Execute one statement and return how many rows it changed."""
        with translated(self._where):
            status = str(await self.connection.execute(dialect.marks(sql), *dialect.values(values)))
        return int(status.rpartition(" ")[2]) if status[-1:].isdigit() else 0

    async def many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute one statement for every row, sent at once."""
        with translated(self._where):
            await self.connection.executemany(dialect.marks(sql), [dialect.values(row) for row in rows])

    async def one(self, sql: str, *values: Any) -> Any:
        """Return the first row, or None."""
        with translated(self._where):
            return await self.connection.fetchrow(dialect.marks(sql), *dialect.values(values))

    async def all(self, sql: str, *values: Any) -> Sequence[Any]:
        """Return every row."""
        with translated(self._where):
            return list(await self.connection.fetch(dialect.marks(sql), *dialect.values(values)))

    async def tell(self, channel: Channel, subject: str = "") -> None:
        """Let every replica hear it once it is committed; the door makes the numbers grow in the order of commits."""
        if (channel, subject) not in self.told:
            self.told.append((channel, subject))

    async def count_on(self, table: str, column: str) -> None:
        """Let the numbers that are given go on above those that were brought."""
        with translated(self._where):
            await self.connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'),"  # noqa: S608 - our own schema
                f" (SELECT coalesce(max({column}), 0) + 1 FROM {table}), false)"
            )

    async def rows(self, table: str, columns: Sequence[str]) -> AsyncIterator[list[tuple[Any, ...]]]:
        """Give the rows of a whole table, many at a time."""
        with translated(self._where):
            cursor = await self.connection.cursor(f"SELECT {', '.join(columns)} FROM {table}")  # noqa: S608
            while found := await cursor.fetch(ROWS_AT_ONCE):
                yield [tuple(row) for row in found]

    async def write_news(self, *, listens: bool) -> None:
        """Write down what was told, and wake those who listen at the commit; to be called last."""
        if self.told:
            await self.connection.executemany(_TELL, self.told)
            if listens:
                await self.connection.execute(f"NOTIFY {_NEWS}")


class PostgresEngine:
    """An open database; made by `open_postgres`."""

    def __init__(self, pool: asyncpg.Pool, where: str, *, shows: bool = False) -> None:
        self.where = where
        self._shows = shows  # a certificate of the fleet's own
        self._listens = self._deaf = False  # whether the engine has LISTEN, or not; found out when it is tried
        self._pool = pool
        self._door = asyncio.Lock()
        self._news = News()
        self._holder = uuid.uuid4().hex
        self._heard = 0
        self._look = asyncio.Event()

    # --- transactions ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def write(self) -> AsyncIterator[PostgresTransaction]:
        """Change things, whole or not at all."""
        async with self._door:  # one of a process waits at the database; the others leave its connections to readers
            connection = await self._begin(_BEGIN)
            try:
                tx = PostgresTransaction(connection, self.where)
                yield tx
                with translated(self.where):
                    await tx.write_news(listens=self._listens)
                    status = await connection.execute("COMMIT")
                if status != "COMMIT":  # one of its statements had failed, and that was caught
                    raise RuntimeError("A transaction went on after one of its statements had failed.")
            except BaseException:
                await self._undo(connection)
                raise
            finally:
                await self._give_back(connection)
        for channel, subject in tx.told:
            self._news.deliver(channel, subject)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[PostgresTransaction]:
        """Look at what is committed."""
        connection = await self._begin("")
        try:
            yield PostgresTransaction(connection, self.where)
        finally:
            await self._give_back(connection)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[PostgresTransaction]:
        """Look at everything as it was at one moment."""
        connection = await self._begin("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            yield PostgresTransaction(connection, self.where)
        finally:
            await self._undo(connection)
            await self._give_back(connection)

    async def _begin(self, words: str) -> asyncpg.Connection:
        """Take a connection that works; nothing was done on one that does not, so another one is tried."""
        for pause_s in (*AGAIN_S, None):
            connection = None
            try:
                with translated(self.where, shown=self._shows):
                    connection = await self._pool.acquire(timeout=CONNECT_S_MAX)
                with translated(self.where):
                    if words:
                        await connection.execute(words)
                    return connection
            except (StoreUnreachableError, StoreBusyError):
                await self._undo(connection)
                await self._give_back(connection)
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
            except BaseException:
                await self._undo(connection)
                await self._give_back(connection)
                raise
        raise AssertionError("unreachable")

    async def _undo(self, connection: Any) -> None:
        with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            if _alive(connection) and connection.is_in_transaction():
                await asyncio.shield(connection.execute("ROLLBACK"))

    async def _give_back(self, connection: asyncpg.Connection | None) -> None:
        if connection is not None:
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await self._pool.release(connection, timeout=CONNECT_S_MAX)

    # --- one of many ------------------------------------------------------------------------------------------------

    def listen(self, channel: Channel, told: Told) -> None:
        """Call this for news of a channel, of this replica's own and of the others'."""
        self._news.listen(channel, told)

    async def lead(self, name: str, seconds: float) -> bool:
        """Take or keep the lead; by the database's clock, so replicas need not agree on theirs."""
        connection = await self._begin("")
        try:
            with translated(self.where):
                found = await connection.fetchrow(_LEAD, name, self._holder, int(seconds * 1000))
        finally:
            await self._give_back(connection)
        return found is not None

    async def follow(self) -> None:
        """Hear what other replicas tell, for as long as this one runs."""
        listener: Any = None
        lost_since = 0.0
        clock = asyncio.get_running_loop().time
        try:
            while True:
                try:
                    if not self._deaf and not _alive(listener):
                        listener = await self._open_listener()
                    if lost_since and clock() - lost_since > SIGNAL_KEPT_MS / 2000:
                        self._news.deliver_all()
                    lost_since = 0.0
                    await self._look_for_news()
                except (StoreUnreachableError, StoreBusyError) as error:
                    if not lost_since:
                        log.warning("%s %s", error.code, error)
                    lost_since = lost_since or clock()
                # not wait_for: before Python 3.12 it passes over a cancellation that meets the news
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._look.wait()
                self._look.clear()
        finally:
            if _alive(listener):
                with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await listener.remove_listener(_NEWS, self._wake)
            await self._give_back(listener)

    def _wake(self, *_words: object) -> None:
        self._look.set()

    async def _open_listener(self) -> asyncpg.Connection | None:
        connection = await self._begin("")
        try:
            await connection.add_listener(_NEWS, self._wake)
        except asyncpg.PostgresError:  # no such statement here: news is looked for twice a second
            await self._give_back(connection)
            self._deaf = True
            return None
        self._listens = True
        return connection

    async def _look_for_news(self) -> None:
        async with self.read() as tx:
            found = await tx.all("SELECT sequence, channel, subject FROM signal WHERE sequence > ?", self._heard)
        for row in sorted(found, key=lambda row: int(row["sequence"])):
            self._heard = int(row["sequence"])
            self._news.deliver(row["channel"], row["subject"])

    async def prepare(self, schema: str) -> None:
        """Bring the schema up to date, whoever else does it at this moment, and begin to hear from now on."""
        connection = await self._begin("")
        try:
            with translated(self.where):
                for statement in _OWN_TABLES:
                    await _make(connection, statement)
        finally:
            await self._give_back(connection)
        steps = schema_steps(schema)
        async with self.write() as tx:
            done = {int(row["number"]) for row in await tx.all("SELECT number FROM schema_step")}
            if done and max(done) > max(steps):
                raise DeviceError(
                    "The fleet's database was written by a newer version of Lenskeep.",
                    hint="Install that version again, or a newer one.",
                )
            for number in sorted(set(steps) - done):
                name, statements = steps[number]
                for statement in statements:
                    await tx.connection.execute(dialect.definition(statement))
                await tx.run("INSERT INTO schema_step VALUES (?, ?)", number, name)
            await tx.run(_FORGET)
            newest = await tx.one("SELECT max(sequence) AS sequence FROM signal")
            self._heard = int(newest["sequence"] or 0)


def _alive(connection: Any) -> bool:
    """Say whether a connection can be used; the pool takes one back by itself when it breaks."""
    try:
        return connection is not None and not connection.is_closed()
    except asyncpg.InterfaceError:
        return False


async def _make(connection: asyncpg.Connection, statement: str) -> None:
    """Make one of our own tables; two replicas that begin at once collide in the catalogue, and one tries again."""
    for _ in range(5):
        try:
            await connection.execute(statement)
            return
        except (asyncpg.UniqueViolationError, asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError):
            await asyncio.sleep(0.1)
    raise StoreBusyError("The fleet's tables could not be made.")


@asynccontextmanager
async def open_postgres(
    url: str, password: str | None, schema: str, tls: proving.Proving | None = None
) -> AsyncIterator[PostgresEngine]:
    """Open a database and bring its schema up to date.

    Args:
        url: postgresql://USER@HOST:PORT/NAME.
        tls: how it proves itself; without it, as libpq's words in the address say (`sslmode`, `sslrootcert`).
    Raises: ConfigError, StoreUnreachableError.
    """
    where = dialect.place(url)
    pool = asyncpg.create_pool(
        url, password=password, ssl=tls, min_size=0, max_size=CONNECTIONS_MAX, timeout=CONNECT_S_MAX,
        command_timeout=STATEMENT_S_MAX, connection_class=_Connection, init=_prepare,
        server_settings={"application_name": "lenskeep-fleet"},
    )  # fmt: skip
    with translated(where):
        await pool
    following: asyncio.Task[None] | None = None
    try:
        engine = PostgresEngine(pool, where, shows=tls is not None and tls.shows)
        await engine.prepare(schema)
        following = asyncio.create_task(engine.follow())
        yield engine
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        try:
            await asyncio.wait_for(pool.close(), CONNECT_S_MAX)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pool.terminate()


async def _prepare(connection: asyncpg.Connection) -> None:
    """Let sums come as plain numbers, as from SQLite; and let go of the door when we are cut off.

    The last is said here because a pooler does not take it with the first words of a connection.
    """
    await connection.execute(f"SET idle_in_transaction_session_timeout = {DOOR_MS_MAX}")
    await connection.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=dialect.number, format="text")


@functools.cache
def _unreachable() -> tuple[type[BaseException], ...]:
    return (
        OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, asyncpg.InterfaceError,
        asyncpg.AdminShutdownError, asyncpg.CrashShutdownError, asyncpg.TooManyConnectionsError,
        asyncpg.ReadOnlySQLTransactionError, asyncpg.InternalClientError,
    )  # fmt: skip


@contextmanager
def translated(where: str, *, shown: bool = False) -> Iterator[None]:
    """Say in our words what the driver says. Args: `shown` = while connecting with a certificate of the fleet's own."""
    try:
        yield
    except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.InvalidCachedStatementError) as error:
        raise StoreBusyError(f"{where}: {error}") from error
    except asyncpg.DiskFullError as error:
        raise StorageFullError(f"The disk of {where} is full. Nothing was changed.") from error
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise ConfigError(f"storage.database: {where}: {error}") from error
    except _unreachable() as error:
        if (fault := proving.fault(where, error, shown=shown)) is not None:
            raise fault from error
        raise StoreUnreachableError(f"{where} does not answer: {error or type(error).__name__}.") from error
