"""`fleet op`: ask something of devices, and see what became of it."""

from __future__ import annotations

import time

import click

from lenskeep.cli.fleetclient import client_of
from lenskeep.cli.output import Progress, Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import Exit, moment, short
from lenskeep.clock import rfc3339
from lenskeep.messages.telemetry import CommandView

KINDS = ("sync", "report", "record", "pause", "resume")
LOOK_EVERY_S = 0.3


@click.group()
def op() -> None:
    """Ask something of devices, and see what became of it.

    A device is asked when it calls next; whoever waits for news hears it at once.

    \b
      lenskeep fleet op ask cam-7 sync
      lenskeep fleet op list cam-7
      lenskeep fleet op ask cam-7 pause --text "retooling until Friday"
    """


@op.command()
@click.argument("devices", metavar="DEVICE...", nargs=-1, required=True)
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--text", default="", metavar="TEXT", help="Why; it is shown at the device.")
@click.option("--wait", "wait_s", type=float, default=0.0, metavar="SECONDS", help="Wait until they have answered.")
@click.pass_context
def ask(context: click.Context, devices: tuple[str, ...], kind: str, text: str, wait_s: float) -> None:
    """Ask devices to sync now, to report, to send their record, to pause following assignments or to resume.

    \b
      lenskeep fleet op ask cam-7 sync --wait 10
      lenskeep fleet op ask cam-7 cam-8 report
      lenskeep fleet op ask cam-7 pause --text "retooling until Friday"
    """
    client = client_of(context)
    asked = {client.ask_device(name, kind, text).id: name for name in devices}
    progress, until = Progress(run_of(context).screen), time.monotonic() + wait_s
    views = [view for name in devices for view in client.asked_of(name) if view.id in asked]
    while any(not view.done_ms for view in views) and time.monotonic() < until:
        progress.show("Waiting", f"{sum(bool(view.done_ms) for view in views)} of {len(views)} have answered")
        time.sleep(LOOK_EVERY_S)
        views = [view for name in devices for view in client.asked_of(name) if view.id in asked]
    progress.clear()
    emit(context, "fleet-operations/1", views, lambda screen: _show(screen, views))
    if any(view.state in {"failed", "refused"} for view in views):
        context.exit(int(Exit.FAILED))
    if wait_s and any(not view.done_ms for view in views):
        context.exit(int(Exit.STILL_RUNNING))


@op.command("list")
@click.argument("device")
@click.pass_context
def list_operations(context: click.Context, device: str) -> None:
    """List what was asked of a device, newest first.

    \b
      lenskeep fleet op list cam-7
      lenskeep fleet op list cam-7 --json
      lenskeep fleet op ask cam-7 sync
    """
    found = client_of(context).asked_of(device)
    emit(context, "fleet-operations/1", found, lambda screen: _show(screen, found))


def _show(screen: Screen, found: list[CommandView]) -> None:
    if not found:
        screen.line("Nothing was asked of it.")
        return
    rows = [
        [
            one.device,
            one.kind,
            one.state,
            _when(one.made_ms),
            one.made_by,
            short(f"{one.code} {one.answer}".strip(), 60),
        ]
        for one in found
    ]
    screen.table(rows, ["DEVICE", "WHAT", "STATE", "ASKED", "BY", "ANSWER"])
    if waiting := sum(not one.done_ms for one in found):
        screen.line(f"{waiting} of {len(found)} not answered yet; a device hears of it with its next call.")


def _when(ms: int) -> str:
    return moment(rfc3339(ms / 1000), seconds=True) if ms else ""
