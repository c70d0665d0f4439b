"""The fleet server, built once, in the order of a device's way into it, and run until it is told to stop.

This is the only place of the fleet that constructs. Constructors start nothing; closing is the stack unwinding.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from lenskeep.clock import Clock
from lenskeep.errors import ConfigError, ConflictError
from lenskeep.fleet.admission import Admission
from lenskeep.fleet.answers import guard
from lenskeep.fleet.authority import FleetAuthority, open_authority
from lenskeep.fleet.callline import CallLines
from lenskeep.fleet.carried import CarriedRoom
from lenskeep.fleet.conductor import Conductor
from lenskeep.fleet.config import FleetConfig, FleetPlaces, Limits
from lenskeep.fleet.devices import DeviceDoor
from lenskeep.fleet.director import Director
from lenskeep.fleet.exposition import Exposition
from lenskeep.fleet.held import HeldConnections, collect_gently
from lenskeep.fleet.intake import Intake
from lenskeep.fleet.operators import OperatorDoor
from lenskeep.fleet.pages import add_pages
from lenskeep.fleet.presence import Presence
from lenskeep.fleet.records import RecordRoom, Records
from lenskeep.fleet.renewal import Renewal
from lenskeep.fleet.reports import Reports
from lenskeep.fleet.repository import Repository
from lenskeep.fleet.rolloutdoor import RolloutDoor
from lenskeep.fleet.shelf import open_shelf
from lenskeep.fleet.sites import Sites
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.intake import IntakeStore
from lenskeep.fleet.store.opening import SQLITE, open_engine
from lenskeep.fleet.store.records import RecordStore
from lenskeep.fleet.store.rollouts import RolloutStore
from lenskeep.fleet.store.store import Store
from lenskeep.fleet.store.survey import SurveyStore
from lenskeep.fleet.store.telemetry import TelemetryStore
from lenskeep.fleet.store.trials import TrialStore
from lenskeep.fleet.survey import Survey
from lenskeep.fleet.sync import CALL_BYTES_MAX, Sync
from lenskeep.fleet.telemetry import Telemetry, TelemetryRoom
from lenskeep.fleet.views import Views
from lenskeep.systemd import Notifier

log = logging.getLogger("lenskeep.fleet")

SOCKET_MODE = 0o660
STOP_S = 2.0
LINGER_S = 1.0  # for the rest of a body that is refused
RENEWAL_LOOK_S = 3600.0
LEAD_S = 30.0  # after so long another replica conducts in the place of one that is gone


async def serve(
    config: FleetConfig, places: FleetPlaces, clock: Clock, begun: Callable[[str], None], notifier: Notifier
) -> None:
    """Build the fleet server and run it until it is told to stop; `begun` is told what a person should know then."""
    kept = config.storage
    async with AsyncExitStack() as stack:
        authority, made = await asyncio.to_thread(open_authority, places.authority, clock, config.certificates.days)
        database = await stack.enter_async_context(
            open_engine(kept.database, kept.database_password, places.database, os.environ, kept.proofs())
        )
        store = Store(database)
        admission = Admission(store, authority, clock, tries_per_minute=config.limits.enrolments_per_minute)
        reports = Reports(store, clock, kept=config.limits.reports_kept)
        shelf = await open_shelf(kept, database, places.repository, os.environ)
        repository = Repository(places.repository, shelf.serve if shelf else None)
        seconds = config.limits.request_s_max
        intake_store, telemetry = IntakeStore(database), TelemetryStore(database)
        presence = Presence(intake_store, places.repository, clock, alone=kept.database == SQLITE)
        intake = Intake(intake_store, clock)
        sync = Sync(store, intake_store, intake, presence, reports, config.sync, clock)
        records = _records(database, store, clock, config.limits)
        devices = DeviceDoor(admission, reports, repository, authority, sync, records, request_s_max=seconds)
        operators = OperatorDoor(
            store, admission, reports, authority, clock, group_role=config.operators.group_role, request_s_max=seconds
        )
        rollouts, trials = RolloutStore(database), TrialStore(database)
        survey = Survey(
            SurveyStore(database), rollouts, telemetry, trials, store, clock, silent_after_s=config.limits.silent_s
        )
        views = Views(survey, Exposition(survey, rollouts, places.repository, clock, sync.counts), clock)
        director = Director(places.repository, config.online.keys, os.environ)
        leads = functools.partial(database.lead, "conductor", LEAD_S)
        conductor = Conductor(rollouts, store, telemetry, trials, director, clock, news=presence, leads=leads)
        rollout_door = RolloutDoor(rollouts, conductor, director, clock, request_s_max=seconds)

        context = authority.server_context()
        rooms = (
            views, rollout_door, records, CarriedRoom(store, intake, authority, sync.read, seconds),
            TelemetryRoom(telemetry, intake_store, store, presence, clock, request_s_max=seconds),
        )  # fmt: skip
        operator_app = operators.app([route for each in rooms for route in each.routes()])
        operator_runner = await _runner(stack, add_pages(operator_app), config.limits.idle_s_max)
        await _open_socket(stack, operator_runner, places.socket)
        if config.operators.port:
            await _open(operator_runner, "operators.port", "127.0.0.1", config.operators.port)
        if config.devices.plain_port:
            await _open_plain(stack, config, repository)
        await conductor.begin()
        held, lines = await _device_door(stack, devices, context, config)
        port = _hold(held, config.devices.address, config.devices.port)
        _hear(database, admission, presence, conductor)

        begun(_words(authority, places, port, made))
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        renewal = Renewal(places.repository, config.online.keys, os.environ, store, clock, leads=leads)
        loops = [_renew(authority, context), renewal.run(), conductor.run(), intake.run(), presence.run()]
        loops += [
            Telemetry(telemetry, clock).run(),
            held.run(),
            lines.run(),
            collect_gently(lambda: held.taken),
            Sites(rollouts).run(presence),
            *([shelf.run()] if shelf else []),
            _feed_watchdog(notifier),
        ]
        await _until(stop, [asyncio.create_task(loop) for loop in loops])
        await presence.write()


async def _feed_watchdog(notifier: Notifier) -> None:
    """Say that the loop turns, while it does."""
    while True:
        notifier.watchdog()
        await asyncio.sleep(notifier.watchdog_s / 4 or 60.0)


def _records(database: Engine, store: Store, clock: Clock, limits: Limits) -> RecordRoom:
    copies = RecordStore(database)
    records = Records(store, copies, clock, mb_max=limits.record_mb_per_device)
    return RecordRoom(records, copies, store, limits.request_s_max)


async def _until(stop: asyncio.Event, loops: list[asyncio.Task[None]]) -> None:
    """Let the loops turn until it is time to stop; one that ends by a fault ends the server, which is started again."""
    stopped = asyncio.create_task(stop.wait())
    try:
        waited = {stopped, *loops}
        while not stop.is_set():
            done, waited = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()
    finally:
        for task in (stopped, *loops):
            task.cancel()
        await asyncio.gather(stopped, *loops, return_exceptions=True)


def _hear(database: Engine, admission: Admission, presence: Presence, conductor: Conductor) -> None:
    """Hear what was decided by whichever replica: who is let in no longer, what devices were asked, what they did."""

    def revoked(device: str) -> None:
        if device:
            admission.passes.forget(device)
            presence.forget(device)
        else:
            admission.passes.forget_all()
            presence.forget_all()

    database.listen("revocations", revoked)
    database.listen("commands", presence.asked)
    database.listen("rollouts", lambda _subject: conductor.wake())


async def _device_door(
    stack: AsyncExitStack, devices: DeviceDoor, context: ssl.SSLContext, config: FleetConfig
) -> tuple[HeldConnections, CallLines]:
    limits = config.limits
    runner = await _runner(stack, devices.app(), limits.idle_s_max)
    assert isinstance(runner.server, web.Server)  # it is set up
    lines = CallLines(
        devices.answer, runner.server, body_bytes_max=CALL_BYTES_MAX, request_s_max=limits.request_s_max,
        idle_s_max=limits.idle_s_max,
    )  # fmt: skip
    stack.callback(lines.close)
    held = HeldConnections(lines, context, config.sync.connections_per_second)
    stack.push_async_callback(held.close)
    return held, lines


def _hold(held: HeldConnections, address: str, port: int) -> int:
    """Open the devices' door. Raises: ConfigError."""
    try:
        return held.open(address, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"devices.port: {address}:{port} cannot be opened: {reason}.") from error


async def _renew(authority: FleetAuthority, context: ssl.SSLContext) -> None:
    """Give the server its next certificate in time; connections that are open keep theirs."""
    while True:
        await asyncio.sleep(RENEWAL_LOOK_S)
        try:
            if await asyncio.to_thread(authority.renew_server):
                authority.load_server(context)
                log.info("The server's certificate was renewed.")
        except Exception:  # the certificate in use is good for months yet; the next look tries again
            log.exception("The server's certificate could not be renewed.")


async def _runner(stack: AsyncExitStack, app: web.Application, idle_s_max: float) -> web.AppRunner:
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=STOP_S, handle_signals=False, auto_decompress=False,
        keepalive_timeout=idle_s_max, lingering_time=LINGER_S,
    )  # fmt: skip
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner


async def _open(runner: web.AppRunner, key: str, address: str, port: int, context: ssl.SSLContext | None = None) -> int:
    """Open a port and return its number; 0 lets the system choose. Raises: ConfigError."""
    site = web.TCPSite(runner, address, port, ssl_context=context, backlog=1024)
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(f"{key}: {address}:{port} cannot be opened: {error.strerror or error}.") from error
    return int(runner.addresses[-1][1])


async def _open_plain(stack: AsyncExitStack, config: FleetConfig, repository: Repository) -> None:
    """Serve the repository alone, without TLS."""
    plain = web.Application(middlewares=[guard])
    plain.add_routes(repository.routes())
    runner = await _runner(stack, plain, config.limits.idle_s_max)
    await _open(runner, "devices.plain_port", config.devices.address, config.devices.plain_port)


async def _open_socket(stack: AsyncExitStack, runner: web.AppRunner, path: Path) -> None:
    await web.SockSite(runner, _bind(path)).start()
    stack.callback(path.unlink, missing_ok=True)


def _bind(path: Path) -> socket.socket:
    """Take the path. The mode is set between bind and listen, so nobody can come in before it is right."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise ConflictError(
                f"Another fleet server answers at {path} already.", hint="Stop it first: systemctl stop lenskeep-fleet."
            )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)
    except OSError as error:
        listener.close()
        raise ConfigError(f"storage.runtime_dir: the socket {path} cannot be made: {error}.") from error
    listener.setblocking(False)
    return listener


def _words(authority: FleetAuthority, places: FleetPlaces, port: int, made: bool) -> str:
    """Say where the fleet is, whom to trust, and what to do next."""
    view = authority.view()
    lines = [
        f"The fleet answers devices on port {port} and operators at {places.socket}.",
        f"Its authority{' (made now)' if made else ''}: {view.fingerprint}",
        f"It serves the repository in {places.repository}.",
    ]
    if made:
        lines += [
            f"Keep a locked copy of {places.authority}: who has it lets devices in, and without it all enrol again.",
            "Next: lenskeep fleet token DEVICE    and on the device: lenskeep enrol https://HOST:PORT --token TOKEN",
        ]
    return "\n".join(lines)
