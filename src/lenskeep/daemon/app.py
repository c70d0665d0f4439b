"""The device daemon, built once, in the order of a bundle's journey, and run until one of its loops ends.

This is the only place that constructs across rooms. Constructors start nothing; closing is the stack unwinding. An
unexpected exception in any loop ends the daemon, its runners go on, and the next daemon adopts them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenskeep.clock import Clock
from lenskeep.config import Config
from lenskeep.daemon import memory
from lenskeep.daemon.activator import Activator
from lenskeep.daemon.confinements import Confinements
from lenskeep.daemon.control.rooms import Rooms
from lenskeep.daemon.control.server import control_server
from lenskeep.daemon.conversation import Conversation
from lenskeep.daemon.events import Events
from lenskeep.daemon.follower import Follower
from lenskeep.daemon.health import Examine, Health
from lenskeep.daemon.identity import Identity
from lenskeep.daemon.importer import Importer
from lenskeep.daemon.maintenance import Maintenance
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.places import Places
from lenskeep.daemon.plans import Plans
from lenskeep.daemon.pointers import HeadStart
from lenskeep.daemon.policy import Policy
from lenskeep.daemon.qualifier import Qualifier, remove_leftovers_in_thread
from lenskeep.daemon.quiet import Quiet
from lenskeep.daemon.recheck import Recheck
from lenskeep.daemon.record import Record
from lenskeep.daemon.recovery import Recovery
from lenskeep.daemon.reporter import Reporter
from lenskeep.daemon.scrape import Scrape
from lenskeep.daemon.scrubber import Scrubber
from lenskeep.daemon.slotbook import SlotBook
from lenskeep.daemon.stores import Stores, open_stores
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.daemon.supply import Supply
from lenskeep.daemon.sync import Sync
from lenskeep.daemon.timekeeper import Timekeeper
from lenskeep.daemon.trustees import Idempotency, Keys, Tokens
from lenskeep.daemon.trustkeeper import TrustKeeper, find_root
from lenskeep.daemon.views import Views
from lenskeep.daemon.way import Way
from lenskeep.daemon.withdrawals import Withdrawals
from lenskeep.messages.control import CheckRequest
from lenskeep.registry.blobs import MEBIBYTE, Blobs
from lenskeep.systemd import Notifier
from lenskeep.trust.identity import device_id, load_or_replace_key

log = logging.getLogger(__name__)

EVENTS_PER_START = 1_000_000


@dataclass(frozen=True, kw_only=True)
class House:
    """The parts that begin, loop or answer; everything else is held by them."""

    rooms: Rooms
    operations: Operations
    qualifier: Qualifier
    importer: Importer
    metrics: Metrics
    supervisor: Supervisor
    recovery: Recovery
    activator: Activator
    policy: Policy
    trust: TrustKeeper
    timekeeper: Timekeeper
    scrubber: Scrubber
    recheck: Recheck
    supply: Supply
    follower: Follower
    sync: Sync
    reporter: Reporter
    conversation: Conversation
    record: Record
    identity: Identity


async def serve(
    config: Config, config_folder: Path, places: Places, clock: Clock, notifier: Notifier,
    head_starts: dict[str, HeadStart],
) -> None:  # fmt: skip
    """Build the device daemon and run it until it is told to stop."""
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, places, clock, [slot.name for slot in config.slot])
        tasks = asyncio.TaskGroup()
        house = await _build(config, config_folder, places, clock, stores, tasks, head_starts)
        await _begin(house, stores, config)
        await stack.enter_async_context(control_server(config, house.rooms, places.runtime_dir))
        stop = _stop_on_signals()
        try:
            async with tasks:
                for name, loop in _loops(house, stores, notifier, stop).items():
                    tasks.create_task(loop, name=name)
                notifier.ready("serving")
                memory.settle()
        except* _Stopped:
            log.info("stopped")


async def _build(
    config: Config, config_folder: Path, places: Places, clock: Clock, stores: Stores, tasks: asyncio.TaskGroup,
    head_starts: dict[str, HeadStart],
) -> House:  # fmt: skip
    """Construct every part, in the order of a bundle's journey."""
    names, database = [slot.name for slot in config.slot], stores.registry
    blobs = Blobs(places.state_dir, free_bytes_min=config.storage.free_mb_min * MEBIBYTE)
    events = Events(clock, stores.start * EVENTS_PER_START)
    operations = Operations(database, events, clock, tasks)
    plans = Plans(config, places, database, blobs)
    await asyncio.to_thread(remove_leftovers_in_thread, places, stores.prepared | plans.pointed_files())
    identity, record, trust = await _oneself(config, config_folder, places, clock, stores)
    # from a file to a version that has proved itself
    qualifier = Qualifier(database, blobs, places, plans, operations, events, clock, config.trial, trust)
    scrubber = Scrubber(config.storage, places, database, blobs, plans, operations, events, clock)
    importer = Importer(config, database, blobs, plans, qualifier, operations, events, clock, trust, scrubber)
    # what slots run
    metrics = Metrics(stores.windows, events, clock, config.metrics)
    supervisor = Supervisor(config, places, plans, metrics, events, clock, head_starts)
    book = SlotBook(database, plans, metrics, operations, events, clock, config.probation, names)
    policy = Policy(database, operations, events, clock, config.slot)
    recheck = Recheck(database, blobs, trust, scrubber, policy, events, clock)
    recovery = Recovery(book, operations, recheck, after_orderly_stop=stores.orderly)
    activator = Activator(
        database, book, qualifier, supervisor, metrics, operations, config.probation, trust, policy, recheck
    )
    scrubber.busy = Quiet(qualifier, supervisor, metrics, clock).why_not
    scrubber.try_again = lambda ref: qualifier.check(CheckRequest(bundle=ref), "device")
    # level with the repository
    supply = Supply(config, places, database, blobs, scrubber, clock, scrubber.busy)
    follower = Follower(
        database, trust, supply.downloads, importer, activator, operations, clock, config.trust, names,
        Maintenance(config.fleet, metrics, clock),
    )  # fmt: skip
    withdrawals = Withdrawals(database, trust, book, activator, supervisor, config.trust)
    sync = Sync(config, database, trust, follower, operations, clock, identity, withdrawals)
    supply.repair_from(sync.http)
    # what people see
    looks: list[Examine] = [
        trust.checks, sync.checks, withdrawals.faults, record.checks, identity.checks, scrubber.checks,
        supply.checks, Confinements(supervisor, qualifier).checks,
    ]  # fmt: skip
    health = Health(database, blobs, clock, stores.notes, looks)
    views = Views(config, database, blobs, supervisor, book, metrics, health, clock)
    reporter = Reporter(identity, views, trust, sync, record, clock)
    conversation = Conversation(
        config, identity, record, trust, follower, sync, reporter, supervisor, metrics, stores.windows, database,
        blobs, health.box, events, clock, tasks, lambda answer: supply.neighbours.heard(answer.neighbours),
    )  # fmt: skip
    conversation.show_in(views, looks)
    rooms = Rooms(
        operations=operations, importer=importer, qualifier=qualifier, activator=activator, views=views,
        supervisor=supervisor, keys=Keys(database, clock), tokens=Tokens(database, clock), events=events,
        metrics=Scrape(metrics, supervisor, blobs, clock), idempotency=Idempotency(database, clock),
        record=record, sync=sync, trust=trust, policy=policy, identity=identity, reporter=reporter, scrubber=scrubber,
        post=conversation.post,
    )  # fmt: skip
    return House(
        rooms=rooms, operations=operations, qualifier=qualifier, importer=importer, metrics=metrics,
        supervisor=supervisor, recovery=recovery, activator=activator, policy=policy, trust=trust, follower=follower,
        sync=sync, reporter=reporter, conversation=conversation, record=record, identity=identity,
        timekeeper=Timekeeper(database, clock, events), scrubber=scrubber, recheck=recheck, supply=supply,
    )  # fmt: skip


async def _oneself(
    config: Config, config_folder: Path, places: Places, clock: Clock, stores: Stores
) -> tuple[Identity, Record, TrustKeeper]:
    """Construct what says who this device is, what is on record, and whose word counts here."""
    database = stores.registry
    device = device_id(places.identity, config.device.id, platform.node())
    key, lost = await asyncio.to_thread(load_or_replace_key, places.identity, _credentials())
    stores.notes.extend([lost] if lost is not None else [])
    way = Way.of(config.fleet)
    identity = Identity(device, key, places.identity, _credentials(), database, clock, config.fleet.url, way)
    record = Record(database, clock, key, device, places.record_head, stores.notes)
    trust = TrustKeeper(
        database, clock, places.trust, device, find_root(config.trust.root, config_folder, places.trust)
    )
    return identity, record, trust


async def _begin(house: House, stores: Stores, config: Config) -> None:
    """Put everything in order that an earlier daemon left."""
    await house.record.begin(config, starts=stores.start, orderly=stores.orderly)
    await house.trust.begin()
    await house.timekeeper.begin()
    await house.scrubber.begin()
    await house.supply.begin()
    await house.identity.begin()
    await house.metrics.load([slot.name for slot in config.slot])
    await house.importer.begin()
    await house.follower.begin()
    await house.conversation.begin()
    await house.operations.load(stores.standing | await house.policy.standing(), stores.carried_out)


def _loops(
    house: House, stores: Stores, notifier: Notifier, stop: asyncio.Event
) -> dict[str, Coroutine[Any, Any, None]]:
    """Name what goes on until the daemon ends."""
    return {
        "supervisor": house.supervisor.run(house.recovery),
        "activator": house.activator.run(),
        "metrics": house.metrics.run(),
        "sync": house.sync.run(),
        "conversation": house.conversation.run(),
        "record": house.record.run(),
        "timekeeper": house.timekeeper.run(),
        "scrubber": house.scrubber.run(),
        "neighbours": house.supply.run(),
        "recheck": house.recheck.at_start(),
        "identity": house.identity.run(),
        "resume": house.qualifier.resume("device"),
        "watchdog": _feed_watchdog(house.supervisor, notifier),
        "stop": _stop_orderly(stop, house, stores, notifier),
    }


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


async def _stop_orderly(stop: asyncio.Event, house: House, stores: Stores, notifier: Notifier) -> None:
    """Wait for the signal, end the runners while they are still heard, and leave."""
    await stop.wait()
    notifier.stopping()
    await house.supervisor.stop()
    await house.metrics.flush()
    await stores.note_orderly_stop()
    await house.record.stop()
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
