"""`audit`: the record of every change: look at it, verify it, take it away, print it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from lenskeep.bundle.keys import PublicKey, admit
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import Exit, clean, moment, plural, short
from lenskeep.errors import RecordFormatError, RequestError, StorageError
from lenskeep.messages.control import AuditEntry
from lenskeep.messages.record import RecordHead, RecordVerdict
from lenskeep.trust import evidence
from lenskeep.trust.chain import Entry
from lenskeep.trust.identity import fingerprint
from lenskeep.trust.recordfile import LINE_BYTES_MAX, Reading

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
TARGET = click.Path(path_type=Path, dir_okay=False)
KEY = click.option("--key", type=FILE, metavar="DEVICE.pub", help="The device's public key, from a place you trust.")
WITNESS = click.option(
    "--witness", "witnesses", type=FILE, multiple=True, metavar="HEAD.json", help="A head that was kept elsewhere."
)
DEVICE = "device"


class _ListsByDefault(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take `lenskeep audit --limit 50` as `lenskeep audit list --limit 50`."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListsByDefault)
def audit() -> None:
    """Show, verify and export the record of every change.

    \b
      lenskeep audit                                the newest changes
      lenskeep audit verify                         read the whole record on the device
      lenskeep audit export -o record.jsonl         take it away, with its proof
      lenskeep audit pack record.jsonl -o evidence.html
    """


@audit.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many lines.")
@click.pass_context
def list_(context: click.Context, limit: int) -> None:
    """Show who changed what, when and why.

    Newest first.

    \b
      lenskeep audit
      lenskeep audit --limit 500 --json
      lenskeep history
    """
    rows = run_of(context).client().audit(limit=limit)
    emit(context, "audit/1", rows, lambda screen: _show_entries(screen, rows))


def _show_entries(screen: Screen, rows: list[AuditEntry]) -> None:
    if not rows:
        screen.line("Nothing has been changed yet.")
        return
    header = ["NO", "WHEN", "WHO", "WHAT", "ON", "BEFORE", "AFTER", "WHY"]
    cells = [
        [
            str(row.sequence), moment(row.at, seconds=True) + ("" if row.clock_trusted else " ?"), row.by, row.action,
            row.subject, short(row.before), short(row.after), short(row.reason, 80),
        ]
        for row in rows
    ]  # fmt: skip
    screen.table(cells, header)


# --- verify -----------------------------------------------------------------------------------------------------------


@audit.command()
@click.argument("file", type=FILE, required=False)
@KEY
@WITNESS
@click.pass_context
def verify(context: click.Context, file: Path | None, key: Path | None, witnesses: tuple[Path, ...]) -> None:
    """Find any change, removal or reordering in the record.

    Without FILE the device reads its own. With FILE no device is needed: the export is verified here.

    \b
      lenskeep audit verify
      lenskeep audit verify record.jsonl --key cam-07.pub
      lenskeep audit verify record.jsonl --key cam-07.pub --witness head-2027-01.json
    """
    if file is None and not (key or witnesses):
        verdict, given = run_of(context).client().verify_record(), True
    else:
        with _lines_of(context, file) as lines:
            verdict, given = _read(lines, key, witnesses).verdict(), key is not None or file is None
    emit(context, "record-verdict/1", verdict, lambda screen: show_verdict(screen, verdict, given))
    if not verdict.whole:
        context.exit(int(Exit.REFUSED))


def show_verdict(screen: Screen, verdict: RecordVerdict, key_given: bool) -> None:
    """Say what a verification found."""
    finding = verdict.finding
    if verdict.whole and key_given:
        screen.line(f"{screen.mark('good')} The record of {clean(verdict.device)} is whole.")
    elif verdict.whole:
        screen.line(f"{screen.mark('warn')} The record of {clean(verdict.device)} fits itself and the key in it.")
    elif finding is not None:
        screen.line(f"{screen.mark('bad')} The record of {clean(verdict.device)} is not whole.")
        screen.line(f"  First wrong: entry {finding.sequence} ({finding.kind}). {clean(finding.text)}")
    else:
        screen.line(f"{screen.mark('bad')} The record of {clean(verdict.device)} has gaps; what is there is genuine.")
    for gap in verdict.gaps:
        screen.line(f"  Lost: entries {gap.first} to {gap.last}, noted {moment(gap.noted)}: {clean(gap.text)}")
    left_out = f", {verdict.left_out} of them left out" if verdict.left_out else ""
    screen.line(f"  entries {verdict.first} to {verdict.last}{left_out}")
    screen.line(f"  signed up to {verdict.head_sequence}, {moment(verdict.head_at)}")
    if verdict.witnesses:
        screen.line(f"  {plural(verdict.witnesses, 'signed head')} on the way {'fit' if verdict.whole else 'fitted'}")
    screen.line(f"  key {fingerprint(verdict.key_id)}")
    if not key_given:
        screen.note(f"{screen.mark('warn')} The key came with the file: compare it with the device's, or give --key.")


def _read(lines: Iterable[bytes], key: Path | None, witnesses: tuple[Path, ...], seen: Any = None) -> Reading:
    try:
        heads = [path.read_bytes() for path in witnesses]
        public = _public_key(key) if key is not None else None
    except OSError as error:
        raise RequestError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return Reading(lines, key=public, witnesses=heads, seen=seen)


def _public_key(path: Path) -> PublicKey:
    return admit(path.read_bytes())


@contextmanager
def _lines_of(context: click.Context, file: Path | None, first: str = "", until: str = "") -> Iterator[Iterator[bytes]]:
    """Give the lines of an export: of a file, or fetched from the device into a file that goes away again."""
    with ExitStack() as stack:
        if file is not None:
            try:
                source: BinaryIO = stack.enter_context(file.open("rb"))
            except OSError as error:
                raise RequestError(f"{file} cannot be read: {error.strerror}.") from error
        else:
            source = stack.enter_context(tempfile.TemporaryFile("w+b"))
            run_of(context).client().export_record(source, first, until)
            source.seek(0)
        yield iter(lambda: source.readline(LINE_BYTES_MAX + 1), b"")


# --- take away --------------------------------------------------------------------------------------------------------


@audit.command()
@click.option("-o", "--out", type=TARGET, metavar="FILE", help="Where to; else standard output.")
@click.pass_context
def head(context: click.Context, out: Path | None) -> None:
    """Show or keep how far the record goes, signed.

    Kept elsewhere it is a witness: a record that was cut short after it is found.

    \b
      lenskeep audit head
      lenskeep audit head -o head-2027-01.json
      lenskeep audit verify --witness head-2027-01.json
    """
    found = run_of(context).client().record_head()
    if out is not None:
        write_file(out, [found.envelope.encode()])
    emit(context, "record-head/1", found, lambda screen: _show_head(screen, found, out))


def _show_head(screen: Screen, found: RecordHead, out: Path | None) -> None:
    if out is not None:
        screen.line(f"Wrote {clean(out)}.")
    screen.line(f"{clean(found.device)}: entries up to {found.sequence}, signed {moment(found.at, seconds=True)}")
    screen.line(f"  hash {clean(found.hash)}")
    screen.line(f"  key  {fingerprint(found.key_id)}")
    if found.witnessed >= 0:
        screen.line(f"  the fleet has it up to {found.witnessed}")


@audit.command()
@click.option("--format", "form", type=click.Choice(["jsonl", "csv", "html"]), default="jsonl", show_default=True)
@click.option("-o", "--out", type=TARGET, metavar="FILE", help="Where to; else standard output.")
@click.option("--from", "first", default="", metavar="DAY", help="From this day on, as 2027-01-31 (UTC).")
@click.option("--until", default="", metavar="DAY", help="To the end of this day.")
@click.pass_context
def export(context: click.Context, form: str, out: Path | None, first: str, until: str) -> None:
    """Write the record to a file.

    Only jsonl carries the proof: it can be verified anywhere with the device's public key alone. Entries outside of the
    days are left out; their digests stand in their place, so that the rest can still be verified.

    \b
      lenskeep audit export -o record.jsonl
      lenskeep audit export --from 2027-01-01 --until 2027-01-31 -o january.jsonl
      lenskeep audit export --format csv -o record.csv
    """
    with _lines_of(context, None, first, until) as lines:
        if form == "jsonl":
            write_file(out, lines)
        else:
            entries: list[Entry] = []
            reading = _read(lines, None, (), entries.append)
            _require_readable(reading)
            parts = evidence.pack(entries, reading.verdict(), key_given=True) if form == "html" else _csv(entries)
            write_file(out, (part.encode() for part in parts))
    if out is not None:
        data = {"file": str(out), "format": form, "size_bytes": out.stat().st_size}
        emit(context, "record-export/1", data, lambda screen: screen.line(f"Wrote {clean(out)}."))


def _csv(entries: list[Entry]) -> Iterator[str]:
    yield evidence.csv_head()
    for entry in entries:
        yield evidence.csv_line(entry)


def _require_readable(reading: Reading) -> None:
    finding = reading.walk.finding
    if finding is not None and finding.kind == "unreadable":
        raise RecordFormatError(f"The record cannot be read: {finding.text}")


@audit.command()
@click.argument("source", metavar="FILE|device")
@click.option("-o", "--out", type=TARGET, metavar="FILE", required=True, help="Where to.")
@KEY
@WITNESS
@click.pass_context
def pack(context: click.Context, source: str, out: Path, key: Path | None, witnesses: tuple[Path, ...]) -> None:
    """Make a readable evidence pack of a record.

    One HTML page to read, print and file: what ran, who decided and why, trials, refusals, and whether the record is
    whole. FILE is a jsonl export; `device` asks the device.

    \b
      lenskeep audit pack device -o evidence.html
      lenskeep audit pack record.jsonl --key cam-07.pub -o evidence.html
      lenskeep audit pack january.jsonl --witness head.json -o january.html
    """
    file = None if source == DEVICE else Path(source)
    entries: list[Entry] = []
    with _lines_of(context, file) as lines:
        reading = _read(lines, key, witnesses, entries.append)
    verdict = reading.verdict()
    write_file(
        out, (part.encode() for part in evidence.pack(entries, verdict, key_given=key is not None or file is None))
    )

    def human(screen: Screen) -> None:
        show_verdict(screen, verdict, key is not None or file is None)
        screen.line(f"Wrote {clean(out)}.")

    emit(context, "record-pack/1", {"file": str(out), "verdict": verdict}, human)
    if not verdict.whole:
        context.exit(int(Exit.REFUSED))


def write_file(out: Path | None, parts: Iterable[bytes]) -> None:
    """Write a file whole or not at all; without a name to standard output."""
    if out is None:
        for part in parts:
            sys.stdout.write(part.decode())
        return
    staged = out.with_name(f".{out.name}.part")
    try:
        with staged.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(out)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise StorageError(f"{out} cannot be written: {error.strerror}. Nothing was left there.") from error
