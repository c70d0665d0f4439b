"""`fleet record`: a device's record of changes, as far as the fleet has it; taken away, verified, shown."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import msgspec

from lenskeep.bundle.keys import admit
from lenskeep.cli.commands.audit import show_verdict, write_file
from lenskeep.cli.fleetclient import FleetClient, client_of
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.wire import CHUNK_BYTES
from lenskeep.cli.words import Exit, clean, moment, size
from lenskeep.clock import rfc3339
from lenskeep.messages.fleet import RecordState, RecordWitness
from lenskeep.messages.record import RecordVerdict
from lenskeep.trust.recordfile import LINE_BYTES_MAX, Reading

TARGET = click.Path(path_type=Path, dir_okay=False)


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What was given out."""

    device: str
    file: str
    newest: int  # the newest entry that the fleet has witnessed
    verdict: RecordVerdict | None


@click.command()
@click.argument("name", metavar="DEVICE")
@click.option("-o", "--out", type=TARGET, metavar="FILE", help="Write the record there, as the device exports it.")
@click.option("--verify", is_flag=True, help="Verify it by the device's listed key and what the fleet has witnessed.")
@click.option("--copy", type=click.IntRange(1), metavar="NUMBER", help="Another copy than the newest one.")
@click.option("--key", type=TARGET, metavar="FILE", help="Write the device's public key there.")
@click.option("--witness", type=TARGET, metavar="FILE", help="Write the witnessed head there.")
@click.pass_context
def record(
    context: click.Context, name: str, out: Path | None, verify: bool, copy: int | None, key: Path | None,
    witness: Path | None,
) -> None:  # fmt: skip
    """Show, verify or take away a device's record of changes, as far as it is here.

    \b
      lenskeep fleet op ask cam-7 record                have the device send what is missing
      lenskeep fleet record cam-7                       how far it is here
      lenskeep fleet record cam-7 --verify -o cam-7.jsonl --key cam-7.pub --witness head.json
      lenskeep audit verify cam-7.jsonl --key cam-7.pub --witness head.json      then on any laptop
    """
    client = client_of(context)
    if not (out or verify or key or witness):
        state = client.record(name)
        emit(context, "fleet-record/1", state, lambda screen: _show_state(screen, state))
        return
    judge = client.record_witness(name, copy)
    for path, text in ((key, judge.public_key), (witness, judge.head)):
        if path is not None and text:
            write_file(path, [text.encode()])
    verdict = _take(client, name, copy, judge, out, verify=verify) if out or verify else None
    given = Given(device=name, file=str(out or ""), newest=judge.newest, verdict=verdict)
    emit(context, "fleet-record-given/1", given, lambda screen: _show(screen, given))
    if verdict is not None and not verdict.whole:
        context.exit(int(Exit.REFUSED))


def _take(
    client: FleetClient, name: str, copy: int | None, judge: RecordWitness, out: Path | None, *, verify: bool
) -> RecordVerdict | None:
    """Fetch a copy; verify it, and write it out."""
    with tempfile.TemporaryFile("w+b") as file:
        client.export_record(name, file, copy)
        verdict = None
        if verify:
            file.seek(0)
            lines = iter(lambda: file.readline(LINE_BYTES_MAX + 1), b"")
            heads = [judge.head.encode()] if judge.head else []
            verdict = Reading(lines, key=admit(judge.public_key), witnesses=heads).verdict()
        if out is not None:
            file.seek(0)
            write_file(out, iter(lambda: file.read(CHUNK_BYTES), b""))
    return verdict


def _show_state(screen: Screen, state: RecordState) -> None:
    if not state.copies:
        screen.line(f"Nothing of the record of {clean(state.device)} is here.")
        screen.next(f"lenskeep fleet op ask {clean(state.device)} record")
        return
    rows = [
        [
            str(each.copy), str(each.head_sequence) if each.head_sequence >= 0 else "not signed yet",
            str(each.sequence), size(each.bytes), moment(rfc3339(each.changed_ms / 1000)),
        ]
        for each in state.copies
    ]  # fmt: skip
    screen.table(rows, ["COPY", "SIGNED UP TO", "ENTRIES UP TO", "SIZE", "CHANGED"])
    screen.next(f"lenskeep fleet record {clean(state.device)} --verify -o {clean(state.device)}.jsonl")


def _show(screen: Screen, given: Given) -> None:
    if given.verdict is not None:
        show_verdict(screen, given.verdict, key_given=True)
        if given.newest > given.verdict.last:
            screen.line(f"  The device has gone on to entry {given.newest} since.")
            screen.next(f"lenskeep fleet op ask {clean(given.device)} record")
    if given.file:
        screen.line(f"Wrote {clean(given.file)}.")
