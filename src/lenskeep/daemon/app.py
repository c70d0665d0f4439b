"""The device daemon, built once, in the order of a bundle's journey, and run until one of its loops ends.

This is the only place that constructs across rooms. Constructors start nothing; closing is the stack unwinding. An
unexpected exception in any loop ends the daemon, its runners go on, and the next daemon adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import platform
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from lenskeep.clock import Clock
from lenskeep.config import Config
from lenskeep.daemon.activator import Activator
from lenskeep.daemon.control.rooms import Rooms
from lenskeep.daemon.control.server import control_server
from lenskeep.daemon.downloads import Downloads
from lenskeep.daemon.events import Events
from lenskeep.daemon.follower import Follower
from lenskeep.daemon.health import Health
from lenskeep.daemon.importer import Importer
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.places import Places
from lenskeep.daemon.plans import Plans
from lenskeep.daemon.pointers import HeadStart
from lenskeep.daemon.qualifier import Qualifier, remove_leftovers_in_thread
from lenskeep.daemon.record import Record
from lenskeep.daemon.recovery import Recovery
from lenskeep.daemon.scrape import Scrape
from lenskeep.daemon.slotbook import SlotBook
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.daemon.sync import Sync
from lenskeep.daemon.systemd import Notifier
from lenskeep.daemon.trustees import Idempotency, Keys, Tokens
from lenskeep.daemon.trustkeeper import TrustKeeper, find_root
from lenskeep.daemon.views import Views
from lenskeep.database import Database, open_database
from lenskeep.errors import LenskeepError, RegistryCorruptError
from lenskeep.lifecycle import SlotState
from lenskeep.registry import bundles, journal, slots
from lenskeep.registry.blobs import MEBIBYTE, Blobs
from lenskeep.trust.identity import device_id, load_or_make_key

log = logging.getLogger(__name__)

REGISTRY_SCHEMA = "lenskeep.registry.schema"
METRICS_SCHEMA = "lenskeep.registry.metrics_schema"
EVENTS_PER_START = 1_000_000
START, ORDERLY_STOP = "start", "orderly stop"  # counters: a start whose number was noted ended orderly


async def serve(
    config: Config,
    config_folder: Path,
    places: Places,
    clock: Clock,
    notifier: Notifier,
    head_starts: dict[str, HeadStart],
) -> None:
    """Build the device daemon and run it until it is told to stop."""
    async with AsyncExitStack() as stack:
        notes: list[LenskeepError] = []
        names = [slot.name for slot in config.slot]
        database = await stack.enter_async_context(_open_or_renew(places.registry, REGISTRY_SCHEMA, clock, notes))
        windows = await stack.enter_async_context(_open_or_renew(places.metrics, METRICS_SCHEMA, clock, notes))
        name = device_id(places.identity, config.device.id, platform.node())
        key = await asyncio.to_thread(load_or_make_key, places.identity, _credentials())
        record = Record(database, clock, key, name, places.record_head, notes)
        async with database.write() as tx:
            await slots.ensure(tx, names, at_ms=clock.now_ms())
            orderly = await journal.noted(tx, ORDERLY_STOP) == await journal.noted(tx, START)
            start = await journal.count_up(tx, START)
            prepared = await bundles.prepared_files(tx)
            standing = {slot.operation for slot in await slots.everything(tx) if slot.state == SlotState.SWAPPING}

        await record.begin(config, starts=start, orderly=orderly)
        tasks = asyncio.TaskGroup()
        blobs = Blobs(places.state_dir, free_bytes_min=config.storage.free_mb_min * MEBIBYTE)
        events = Events(clock, start * EVENTS_PER_START)
        operations = Operations(database, events, clock, tasks)
        plans = Plans(config, places, database, blobs)
        await asyncio.to_thread(remove_leftovers_in_thread, places, prepared | plans.pointed_files())
        root = find_root(config.trust.root, config_folder, places.trust)
        trust = TrustKeeper(database, clock, places.trust, name, root)
        await trust.begin()
        qualifier = Qualifier(database, blobs, places, plans, operations, events, clock, config.trial, trust)
        importer = Importer(config, database, blobs, plans, qualifier, operations, events, clock, trust)
        metrics = Metrics(windows, events, clock, config.metrics)
        supervisor = Supervisor(config, places, plans, metrics, events, clock, head_starts)
        book = SlotBook(database, plans, metrics, operations, events, clock, config.probation, names)
        recovery = Recovery(book, operations, after_orderly_stop=orderly)
        activator = Activator(database, book, qualifier, supervisor, metrics, operations, config.probation, trust)
        follower = Follower(
            database, trust, Downloads(places.incoming, blobs), importer, activator, operations, clock, config.trust,
            names,
        )  # fmt: skip
        sync = Sync(config, database, trust, follower, operations, clock, lambda: None)
        health = Health(database, blobs, clock, notes, record)
        device = config.device.name or platform.node()
        views = Views(config, device, database, blobs, supervisor, book, metrics, health, clock)
        rooms = Rooms(
            operations=operations, importer=importer, qualifier=qualifier, activator=activator, views=views,
            supervisor=supervisor, keys=Keys(database, clock), tokens=Tokens(database, clock), events=events,
            metrics=Scrape(metrics, supervisor, blobs, clock), idempotency=Idempotency(database, clock),
            record=record,
            sync=sync, trust=trust,
        )  # fmt: skip

        await metrics.load(names)
        await importer.begin()
        await follower.begin()
        await operations.load(standing)
        await stack.enter_async_context(control_server(config, rooms, places.runtime_dir))
        stop = _stop_on_signals()
        try:
            async with tasks:
                tasks.create_task(supervisor.run(recovery), name="supervisor")
                tasks.create_task(activator.run(), name="activator")
                tasks.create_task(metrics.run(), name="metrics")
                tasks.create_task(sync.run(), name="sync")
                tasks.create_task(qualifier.resume("device"), name="resume")
                tasks.create_task(record.run(), name="record")
                tasks.create_task(_feed_watchdog(supervisor, notifier), name="watchdog")
                tasks.create_task(_stop_orderly(stop, supervisor, metrics, database, record, notifier), name="stop")
                notifier.ready("serving")
                gc.collect()
                gc.freeze()
        except* _Stopped:
            log.info("stopped")


def _credentials() -> Path | None:
    """Return the folder of what the service manager hands over."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) if folder else None


class _Stopped(Exception):
    pass


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    return stop


async def _stop_orderly(
    stop: asyncio.Event,
    supervisor: Supervisor,
    metrics: Metrics,
    database: Database,
    record: Record,
    notifier: Notifier,
) -> None:
    """Wait for the signal, end the runners while they are still heard, and leave."""
    await stop.wait()
    notifier.stopping()
    await supervisor.stop()
    await metrics.flush()
    async with database.write() as tx:
        await journal.note(tx, ORDERLY_STOP, await journal.noted(tx, START))
    await record.stop()
    raise _Stopped


async def _feed_watchdog(supervisor: Supervisor, notifier: Notifier) -> None:
    """Feed the watchdog while every slot makes progress, and keep systemd's status line true."""
    shown = ""
    while True:
        if supervisor.healthy():
            notifier.watchdog()
        line = "; ".join(process.line() for process in supervisor.processes.values())
        if line != shown:
            notifier.status(line)
            shown = line
        await asyncio.sleep(min(2.0, notifier.watchdog_s / 4 or 2.0))


@asynccontextmanager
async def _open_or_renew(path: Path, schema: str, clock: Clock, notes: list[LenskeepError]) -> AsyncIterator[Database]:
    """Open a database; a damaged one is set aside and a new one begun, so that the line comes up all the same."""
    async with AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(open_database(path, schema))
        except RegistryCorruptError as error:
            aside = await asyncio.to_thread(_set_aside, path, clock.now_ms())
            note = RegistryCorruptError(
                f"{error} It was set aside as {aside.name}; slots run from their pointer files."
            )
            log.error("%s %s", note.code, note)
            notes.append(note)
            database = await stack.enter_async_context(open_database(path, schema))
        yield database


def _set_aside(path: Path, now_ms: int) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{now_ms}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    return aside
