"""`fleet take`: what devices sent on a stick, taken in; and the receipts for it, which go back on the same stick."""

from __future__ import annotations

from pathlib import Path

import click
from msgspec import Struct

from lenskeep.cli.fleetclient import FleetClient, client_of
from lenskeep.cli.output import Progress, Screen, emit
from lenskeep.cli.recordsend import send_record
from lenskeep.cli.run import run_of
from lenskeep.cli.words import clean, plural
from lenskeep.errors import LenskeepError
from lenskeep.trust import stick as layout

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


class Refused(Struct, frozen=True, kw_only=True):
    """A file that was not taken."""

    device: str
    counter: int  # of a report; of records, the first number
    file: str
    code: str
    text: str


class TakenIn(Struct, kw_only=True):
    """What a stick brought."""

    taken: int = 0  # reports
    known: int = 0
    records: int = 0  # of outboxes
    records_known: int = 0  # files that told nothing new
    entries: int = 0  # of devices' records of changes
    receipts: list[str] = []
    refused: list[Refused] = []
    requests: list[str] = []


@click.command()
@click.argument("folder", type=FOLDER, metavar="STICK")
@click.pass_context
def take(context: click.Context, folder: Path) -> None:
    """Take what devices sent on a stick: reports, metrics and events, records; the same again does no harm.

    Receipts are written onto the stick. Bring it back to the devices: what is acknowledged they need not keep.

    \b
      lenskeep fleet take /media/stick
      lenskeep fleet take /media/stick --json
      lenskeep sync --import /media/stick               then on the device
    """
    screen, client, done = run_of(context).screen, client_of(context), TakenIn()
    _take_reports(client, folder, done)
    _take_records(screen, client, folder, done)
    _take_record_of_changes(context, client, folder, done)
    done.requests = [device for device, _ in layout.csrs(folder)]
    emit(context, "fleet-stick/1", done, lambda screen: _show(screen, folder, done))
    if done.refused:
        context.exit(4)


def _take_reports(client: FleetClient, folder: Path, done: TakenIn) -> None:
    for device, counter, name in layout.reports(folder):
        try:
            answer = client.take_report(device, layout.read(folder, name, layout.REPORT_BYTES_MAX))
        except LenskeepError as error:  # one bad file must not hide the others
            done.refused.append(_refused(device, counter, name, error))
            continue
        done.taken, done.known = done.taken + answer.taken, done.known + (not answer.taken)


def _take_records(screen: Screen, client: FleetClient, folder: Path, done: TakenIn) -> None:
    """Take devices' outboxes and write a receipt for each."""
    progress = Progress(screen)
    receipts: dict[tuple[str, str], str] = {}
    for batch in layout.batches(folder):
        try:
            answer = client.take_records(batch.device, layout.read(folder, batch.file, layout.OUTBOX_BYTES_MAX))
        except LenskeepError as error:
            done.refused.append(_refused(batch.device, batch.first, batch.file, error))
            continue
        done.records += answer.fresh
        done.records_known += not answer.fresh
        receipts[batch.device, answer.outbox] = answer.receipt  # the later, the farther
        progress.show("Taking metrics and events", f"{done.records}")
    progress.clear()
    for (device, outbox), receipt in receipts.items():
        name = layout.receipt_file(device, outbox)
        try:
            layout.write(folder, name, receipt.encode())
            done.receipts.append(name)
        except LenskeepError as error:  # a stick that cannot be written: the device hears it in another way
            screen.note(f"{screen.mark('warn')} {error.code} {clean(error)}")


def _take_record_of_changes(context: click.Context, client: FleetClient, folder: Path, done: TakenIn) -> None:
    for device in layout.records(folder):
        told = run_of(context).transfer(f"Taking the record of {clean(device)}")
        try:
            done.entries += send_record(client, folder, device, told)
        except LenskeepError as error:
            done.refused.append(_refused(device, 0, layout.record_file(device), error))


def _refused(device: str, counter: int, name: str, error: LenskeepError) -> Refused:
    return Refused(device=device, counter=counter, file=name, code=error.code, text=str(error))


def _show(screen: Screen, folder: Path, done: TakenIn) -> None:
    screen.line(f"{screen.mark('good')} {plural(done.taken, 'report')} taken, {done.known} told nothing new.")
    if done.records or done.records_known:
        said = plural(done.records, "metric or event", "metrics and events")
        screen.line(f"{screen.mark('good')} {said} taken, {plural(done.records_known, 'file')} told nothing new.")
    if done.entries:
        screen.line(f"{screen.mark('good')} {plural(done.entries, 'entry', 'entries')} of records taken.")
    if done.receipts:
        screen.line(f"  {plural(len(done.receipts), 'receipt')} written to the stick: bring it back to the devices.")
    for one in done.refused:
        screen.line(f"  {screen.mark('bad')} {clean(one.file)}: {one.code} {clean(one.text)}")
    for device in done.requests:
        screen.next(f"lenskeep fleet enrol --csr {clean(folder / layout.csr_file(device))} --out {clean(folder)}")
