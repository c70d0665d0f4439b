"""What a device gives back on a stick: a signed report, what its fleet has not acknowledged yet, and its record.

Rules. First the fleet's receipts that came on the stick, so that what it has is not carried twice. Each file is written
whole or not at all; a stick that is full, read-only or pulled out costs what was not written yet, and the device keeps
its records until they are acknowledged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from lenskeep.cli.client import Client
from lenskeep.cli.output import Progress, Screen
from lenskeep.cli.words import clean, plural, size
from lenskeep.errors import LenskeepError, StorageError
from lenskeep.trust import stick as layout
from lenskeep.trust.stick import Batch


class TakenBack(Struct, kw_only=True):
    """What was written onto a stick for the fleet, and what came from there."""

    files: list[str] = []
    records: int = 0  # of the outbox
    records_bytes: int = 0  # their files
    left: int = 0  # records for which there was no room on this stick
    acknowledged: int = 0  # records that a receipt on the stick let the device forget
    faults: list[str] = []  # codes of what went wrong


def write_back(screen: Screen, client: Client, stick: Path, device: str, bytes_max: int | None = None) -> TakenBack:
    """Take receipts, and write what the fleet should get. What goes wrong is told and noted; the rest goes on.

    Args:
        bytes_max: of the outbox; the oldest records come first.
    """
    done = TakenBack()
    bytes_max = layout.CARRIED_BYTES_MAX if bytes_max is None else bytes_max
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("Receipts were not taken", lambda: _take_receipts(client, stick, device, done)),
        ("The report was not written", lambda: _write_report(client, stick, done)),
        ("Metrics and events were not all written", lambda: _write_outbox(screen, client, stick, done, bytes_max)),
        ("The record was not written", lambda: _write_record(client, stick, device, done)),
    )
    for failed, step in steps:
        try:
            step()
        except (LenskeepError, OSError) as error:
            code = error.code if isinstance(error, LenskeepError) else StorageError.code
            done.faults.append(code)
            screen.note(f"{screen.mark('warn')} {failed}: {code} {clean(error)}")
    return done


def show(screen: Screen, done: TakenBack) -> None:
    """Say what lies on the stick now."""
    if done.acknowledged:
        said = plural(done.acknowledged, "metric or event", "metrics and events")
        screen.line(f"  The fleet has acknowledged {said}.")
    if done.files:
        screen.line(f"  {plural(len(done.files), 'file')} for the fleet written to the stick.")
    if done.records:
        said = plural(done.records, "metric or event", "metrics and events")
        screen.line(f"  Among them {said} ({size(done.records_bytes)}); they stay here until the fleet has them.")
    if done.left:
        screen.line(f" {screen.mark('warn')} {done.left} more had no room: bring the stick again when it is taken.")


def _take_receipts(client: Client, stick: Path, device: str, done: TakenBack) -> None:
    """Bring the fleet's receipts; what they acknowledge needs not lie on the stick any longer."""
    fault: LenskeepError | None = None
    for name in layout.receipts(stick, device):
        try:
            data = layout.read(stick, name, layout.RECEIPT_BYTES_MAX)
            taken = client.take_receipt(data.decode("utf-8", "replace"))
        except LenskeepError as error:  # one bad receipt must not hide the others
            fault = error
            continue
        done.acknowledged += taken.forgotten
        for batch in layout.batches(stick, device):
            if batch.outbox == taken.outbox and batch.last <= taken.taken:
                layout.remove(stick, batch.file)
    if fault is not None:
        raise fault


def _write_report(client: Client, stick: Path, done: TakenBack) -> None:
    report = client.signed_report()
    name = layout.report_file(report.device, report.counter)
    layout.write(stick, name, report.envelope.encode())
    done.files.append(name)


def _write_outbox(screen: Screen, client: Client, stick: Path, done: TakenBack, bytes_max: int) -> None:
    """Write the outbox, the oldest records first, as far as there is room."""
    progress = Progress(screen)
    written: list[Batch] = []
    above = -1
    try:
        while (packed := client.pack_outbox(above)).envelope:
            data = packed.envelope.encode()
            if written and done.records_bytes + len(data) > bytes_max:
                done.left = packed.records + packed.left
                break
            batch = Batch(packed.device, packed.outbox, packed.first, packed.last)
            done.left = packed.records + packed.left
            layout.write(stick, batch.file, data)
            written.append(batch)
            done.files.append(batch.file)
            done.records += packed.records
            done.records_bytes += len(data)
            done.left = packed.left
            above = packed.last
            progress.show("Writing metrics and events", f"{done.records}, {packed.left} to go")
    finally:
        progress.clear()
        _remove_replaced(stick, written)


def _remove_replaced(stick: Path, written: list[Batch]) -> None:
    """Remove older files whose records all lie in those that were written now."""
    if not written:
        return
    outbox, first, last = written[0].outbox, written[0].first, written[-1].last
    for batch in layout.batches(stick, written[0].device):
        if batch not in written and batch.outbox == outbox and first <= batch.first and batch.last <= last:
            layout.remove(stick, batch.file)


def _write_record(client: Client, stick: Path, device: str, done: TakenBack) -> None:
    name = layout.record_file(device)
    with layout.written(name):
        path = layout.place(stick, name)
        part = path.with_name(f".{path.name}.part")
        try:
            part.unlink(missing_ok=True)
            with part.open("xb") as sink:
                client.export_record(sink)
                os.fsync(sink.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    done.files.append(name)
