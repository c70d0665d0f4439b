"""`models`, `export`, `pin`, `unpin`, `remove`: the versions on this device."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lenskeep.cli.options import REF
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import clean, milliseconds, moment, plural, size
from lenskeep.errors import LenskeepError, StorageError
from lenskeep.messages.control import Bundle

STATE_WORDS = {"imported": "not tried yet", "qualified": "passed", "rejected": "refused", "retired": "removed"}
ROLE_WORDS = {"active": "active", "previous": "previous", "wanted": "wanted", "pinned": "pinned"}


@click.command()
@click.option("--all", "everything", is_flag=True, help="With those that were removed.")
@click.pass_context
def models(context: click.Context, everything: bool) -> None:
    """List the versions on this device.

    \b
      lenskeep models                    what is here and where it is used
      lenskeep models --all              with what was removed
      lenskeep models --json             the same for a script
    """
    found = run_of(context).client().bundles(everything=everything)
    emit(context, "models/1", found, lambda screen: _show(screen, found))


def _show(screen: Screen, found: list[Bundle]) -> None:
    if not found:
        screen.line("No model is on this device yet.")
        screen.next("plug in a stick and run lenskeep usb, or lenskeep import FILE")
        return
    rows = [
        [f"{each.name}@{each.version}", _roles(each), trial_words(each), each.signer, size(each.size_bytes),
         moment(each.imported)]
        for each in found
    ]  # fmt: skip
    screen.table(rows, ["VERSION", "USED", "TRIAL ON THIS DEVICE", "SIGNED BY", "SIZE", "IMPORTED"])
    total = size(sum(each.size_bytes for each in found))
    screen.line(f"{plural(len(found), 'version')}, {total}.")


def _roles(bundle: Bundle) -> str:
    words = []
    for role in bundle.roles:
        kind, _, slot = role.partition(":")
        words.append(ROLE_WORDS.get(kind, kind) + (f" in {slot}" if slot and slot != "main" else ""))
    return ", ".join(words) or "-"


def trial_words(bundle: Bundle) -> str:
    """Say on one line how the newest trial ended."""
    report = bundle.trial
    if report is None:
        return STATE_WORDS[bundle.state]
    if not report.passed:
        return f"refused {report.code}"
    golden = f", golden {report.golden_passed}/{report.golden_total}" if report.golden_total else ""
    return f"{STATE_WORDS[bundle.state]}{golden}, p99 {milliseconds(report.p99_ms)}"


@click.command()
@click.argument("ref", type=REF, metavar="NAME@VERSION")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.pass_context
def export(context: click.Context, ref: str, file: Path | None) -> None:
    """Write a stored bundle to a file, as it was signed.

    Byte for byte; any other device can import it.

    \b
      lenskeep export cap-inspect@1.0.0
      lenskeep export cap-inspect@1.0.0 /media/stick/cap-inspect.lkb
      lenskeep bundle verify cap-inspect-1.0.0.lkb --key plant.pub
    """
    run = run_of(context)
    client = run.client()
    stored = client.bundle(ref).bundle
    target = file or Path(f"{stored.name}-{stored.version}.lkb")
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as sink:
            client.export(f"{stored.name}@{stored.version}", sink, run.transfer(f"Writing {target.name}"))
            sink.flush()
            os.fsync(sink.fileno())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"{target} cannot be written: {error.strerror}. Nothing was left there.") from error
    except LenskeepError:
        part.unlink(missing_ok=True)
        raise
    data = {"bundle": f"{stored.name}@{stored.version}", "file": str(target), "size_bytes": stored.size_bytes}
    emit(context, "export/1", data, lambda screen: screen.line(f"Wrote {target} ({size(stored.size_bytes)})."))


@click.command()
@click.argument("ref", type=REF, metavar="NAME@VERSION")
@click.pass_context
def pin(context: click.Context, ref: str) -> None:
    """Keep a version from being removed.

    \b
      lenskeep pin cap-inspect@1.0.0
      lenskeep unpin cap-inspect@1.0.0
      lenskeep models
    """
    _pin(context, ref, True)


@click.command()
@click.argument("ref", type=REF, metavar="NAME@VERSION")
@click.pass_context
def unpin(context: click.Context, ref: str) -> None:
    """Let a version be removed again.

    \b
      lenskeep unpin cap-inspect@1.0.0
      lenskeep pin cap-inspect@1.0.0
      lenskeep models
    """
    _pin(context, ref, False)


def _pin(context: click.Context, ref: str, pinned: bool) -> None:
    bundle = run_of(context).client().pin(ref, pinned)
    said = "is pinned and stays" if pinned else "is no longer pinned"
    emit(
        context, "bundle/1", bundle, lambda screen: screen.line(f"{clean(bundle.name)}@{clean(bundle.version)} {said}.")
    )


@click.command()
@click.argument("ref", type=REF, metavar="NAME@VERSION")
@click.option("--reason", default="", metavar="TEXT", help="Why; it goes on record.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where nobody can answer.")
@click.pass_context
def remove(context: click.Context, ref: str, reason: str, yes: bool) -> None:
    """Remove a version that is not in use.

    It can be imported again. What runs goes on.

    \b
      lenskeep remove cap-inspect@0.9.0
      lenskeep remove cap-inspect@0.9.0 --yes --reason "makes room"
      lenskeep models --all
    """
    run = run_of(context)
    client = run.client()
    bundle = client.bundle(ref).bundle
    name = f"{bundle.name}@{bundle.version}"
    if not yes:
        if not run.screen.stderr.isatty() or run.screen.json:
            raise click.UsageError("Nobody can be asked here; add --yes to remove it.")
        click.confirm(f"Remove {clean(name)} ({size(bundle.size_bytes)})? What runs goes on", abort=True, err=True)
    client.remove(name, reason)
    emit(
        context, "remove/1", {"bundle": name},
        lambda screen: screen.line(f"Removed {clean(name)}. What runs goes on."),
    )  # fmt: skip
