"""`sync`: bring a device level with its repository, over the network or with a stick; and write such a stick."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lenskeep.cli.client import Client
from lenskeep.cli.commands.status import fleet_line
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import Run, run_of
from lenskeep.cli.takeback import TakenBack, write_back
from lenskeep.cli.takeback import show as show_taken_back
from lenskeep.cli.words import clean, size
from lenskeep.errors import LenskeepError, SourceError
from lenskeep.messages.control import Operation
from lenskeep.messages.identity import FleetView
from lenskeep.messages.repository import AssignmentView, RepositoryView, WantedFile
from lenskeep.trust.source import open_regular

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
STATES = {
    "new": ("info", "not fetched yet"),
    "staged": ("info", "here and tried, not active yet"),
    "asked": ("info", "being activated"),
    "followed": ("good", "active"),
    "refused": ("bad", "refused"),
    "rolled_back": ("bad", "taken back"),
}


@click.command()
@click.option("--import", "stick", type=FOLDER, metavar="DIR", help="Take the repository's files from a stick.")
@click.option("--export", "target", type=click.Path(path_type=Path), metavar="DIR", help="Write a stick.")
@click.option("--from", "origin", metavar="REPOSITORY", help="With --export: the repository's folder.")
@click.option("--for", "devices", multiple=True, metavar="DEVICE", help="With --export: for this device; repeatable.")
@click.option("--status", "show_status", is_flag=True, help="Show how things stand with the fleet; sync nothing.")
@click.option("--dry-run", is_flag=True, help="With --export: say what would be written, and write nothing.")
@click.pass_context
def sync(
    context: click.Context, stick: Path | None, target: Path | None, origin: str | None, devices: tuple[str, ...],
    dry_run: bool, show_status: bool,
) -> None:  # fmt: skip
    """Bring the device level with its repository; what runs goes on meanwhile.

    Without options it asks the repository over the network, now. A stick is checked exactly as the network is; a signed
    report, the record, and metrics and events that the fleet has not acknowledged yet go back on it.

    \b
      lenskeep sync
      lenskeep sync --status
      lenskeep sync --import /media/stick
      lenskeep sync --export /media/stick --from ~/repository --for cam-1 --for cam-2
    """
    if target is not None:
        if stick is not None or origin is None or not devices:
            raise click.UsageError("--export needs --from REPOSITORY and --for DEVICE, and goes without --import.")
        from lenskeep.cli.stick import export_stick

        export_stick(context, Path(origin), target, list(devices), dry_run=dry_run)
        return
    if origin is not None or devices or dry_run:
        raise click.UsageError("--from, --for and --dry-run belong to --export.")
    run = run_of(context)
    client = run.client()
    if show_status:
        now = client.status().fleet
        emit(context, "fleet/1", now, lambda screen: _show_fleet(screen, now))
        return
    operation = client.sync(carried=stick is not None, source=f"stick {stick}"[:200] if stick is not None else "")
    if stick is not None:
        operation = _carry(run, client, operation, stick)
    try:
        run.follow(client, operation)
    except LenskeepError:  # what the stick brought cannot be used; what the fleet should get goes onto it all the same
        if stick is not None:
            done = write_back(run.screen, client, stick, client.identity().device)
            run.screen.note(f"{len(done.files)} files for the fleet were written to the stick.")
        raise
    taken = write_back(run.screen, client, stick, client.identity().device) if stick is not None else TakenBack()
    view = client.repository()
    data = {"repository": view, "written": taken.files, "outbox": taken}
    emit(context, "sync/1", data, lambda screen: _show(screen, view, taken))


def _show_fleet(screen: Screen, now: FleetView | None) -> None:
    if now is None:
        screen.line("This device belongs to no fleet.")
        screen.next("lenskeep enrol URL --token TOKEN")
        return
    if now.url:
        screen.line(f"{screen.mark('good' if now.level else 'warn')} {clean(now.url)}: {fleet_line(now)}.")
    else:
        screen.line(f"This device and its fleet hear of each other by stick alone: {fleet_line(now)}.")
    if now.waiting:
        kinds = ", ".join(f"{number} {clean(kind)}" for kind, number in sorted(now.kinds.items()))
        screen.line(f"  In the outbox: {size(now.waiting_bytes)} ({kinds}).")
    if now.problem:
        screen.line(f"  {clean(now.problem)}")
        screen.line(f"  {screen.style('Fix:', 'strong')} {clean(now.fix)}")
    if not now.url:
        screen.next("lenskeep sync --import DIR")


def _carry(run: Run, client: Client, operation: Operation, stick: Path) -> Operation:
    """Bring each file that the device asks for, until it has ended."""
    while (operation := client.operation(operation.id)).state == "running":
        try:
            want = client.wanted(operation.id)
        except LenskeepError as error:
            if client.operation(operation.id).state == "running":
                raise
            run.screen.note(f"{error}") if operation.error is None else None
            break
        if want.done:
            break
        if want.number:
            _bring(run, client, operation.id, want, stick)
    return client.operation(operation.id)


def _bring(run: Run, client: Client, operation_id: str, want: WantedFile, stick: Path) -> None:
    try:
        descriptor = open_regular(stick, want.name)
        if descriptor is None:
            client.absent(operation_id, want)
            return
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if want.bytes_max and size > want.bytes_max:
                raise SourceError(f"{want.name} has {size} bytes; {want.bytes_max} are accepted.")
            shown = run.transfer(f"Bringing {clean(Path(want.name).name)}")
            client.bring(operation_id, want, file, shown if size > 1 << 20 else lambda _done, _total: None)
    except SourceError as error:
        run.screen.note(f"{run.screen.mark('bad')} {clean(want.name)}: {clean(error)}")
        if client.operation(operation_id).state == "running":
            _tell_fault(client, operation_id, want, str(error))


def _tell_fault(client: Client, operation_id: str, want: WantedFile, message: str) -> None:
    try:
        client.carry_fault(operation_id, want, message)
    except SourceError:
        return  # it noticed by itself that the file broke off


def _show(screen: Screen, view: RepositoryView, taken: TakenBack) -> None:
    versions = ", ".join(f"{clean(role.name)} {role.version}" for role in view.roles)
    screen.line(f"{screen.mark('good')} {clean(view.device)} is level with its repository ({versions}).")
    for one in view.assignments:
        screen.line(_assignment_line(screen, one))
    if not view.assignments:
        screen.line("  Nothing is assigned to this device.")
    for ref in view.withdrawn:
        screen.line(f" {screen.mark('warn')} {clean(ref)} was withdrawn: it is not activated any more.")
    show_taken_back(screen, taken)
    screen.next("lenskeep status")


def _assignment_line(screen: Screen, one: AssignmentView) -> str:
    mark, words = STATES[one.state]
    reason = f": {clean(f'{one.code} {one.reason}'.strip())}" if one.code or one.reason else ""
    return f" {screen.mark(mark)} slot {clean(one.slot)}: {clean(one.bundle)} {words}{reason}"
