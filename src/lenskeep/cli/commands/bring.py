"""`import` and `usb`: bundle files from outside, judged before anything is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from msgspec import Struct

from lenskeep.cli.client import Client
from lenskeep.cli.commands.change import activate_and_follow
from lenskeep.cli.commands.models import trial_words
from lenskeep.cli.options import DURATION, reason_option, slot_option
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import Run, run_of
from lenskeep.cli.words import clean, exit_of, plural, size
from lenskeep.errors import BundleError, DeviceError, LenskeepError, UnknownNameError
from lenskeep.messages.control import Bundle, Verification

STICK_ROOTS = (Path("/media"), Path("/run/media"), Path("/mnt"))
FOLDERS_DEEP = 3  # a stick is looked through this far
FILES_MAX = 200


class Found(Struct, frozen=True):
    """One bundle file and what the device says of it."""

    file: str
    verification: Verification | None = None
    code: str = ""
    refusal: str = ""
    hint: str = ""


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True), required=False)
@click.pass_context
def usb(context: click.Context, path: Path | None) -> None:
    """Look through a USB stick; changes nothing.

    Says which bundles are on it, whether they are genuine, and whether they are new here.

    \b
      lenskeep usb                       look through every stick that is plugged in
      lenskeep usb /media/stick/models   look through one folder
      lenskeep import /media/stick       take what is new
    """
    run = run_of(context)
    places = [path] if path else mounted_sticks(Path("/proc/self/mounts").read_text(encoding="utf-8"))
    if not places:
        raise UnknownNameError(
            "No stick is mounted under /media, /run/media or /mnt.", hint="Plug it in, or name it: lenskeep usb PATH"
        )
    files = [file for place in places for file in bundle_files(place)]
    found = _judge(run, run.client(), files)
    emit(context, "usb/1", found, lambda screen: _show_found(screen, places, found))


def mounted_sticks(mounts: str) -> list[Path]:
    """Return where removable media are mounted; `mounts` is the kernel's table."""
    places = []
    for line in mounts.splitlines():
        place = Path(line.split(" ")[1].encode().decode("unicode_escape"))
        if any(root in place.parents for root in STICK_ROOTS):
            places.append(place)
    return sorted(places)


def bundle_files(place: Path) -> list[Path]:
    """Return the bundle files in a folder, not too deep and not too many; links are not followed."""
    if place.is_file():
        return [place]
    return sorted(_walk(place, FOLDERS_DEEP))[:FILES_MAX]


def _walk(folder: Path, deep: int) -> Iterator[Path]:
    try:
        entries = list(folder.iterdir())
    except OSError:
        return  # a damaged folder on a stick hides only what is in it
    for entry in entries:
        if entry.is_symlink() or entry.name.startswith("."):
            continue
        if entry.is_file() and entry.suffix == ".lkb":
            yield entry
        elif deep and entry.is_dir():
            yield from _walk(entry, deep - 1)


def _judge(run: Run, client: Client, files: list[Path]) -> list[Found]:
    found = []
    for file in files:
        try:
            said = client.verify(file, run.transfer(f"Verifying {clean(file.name)}"))
        except (BundleError, DeviceError) as error:
            found.append(Found(file=str(file), code=error.code, refusal=str(error), hint=error.hint))
        except OSError as error:
            found.append(Found(file=str(file), code=DeviceError.code, refusal=f"It cannot be read: {error.strerror}."))
        else:
            found.append(Found(file=str(file), verification=said))
    return found


def _show_found(screen: Screen, places: list[Path], found: list[Found]) -> None:
    where = ", ".join(clean(place) for place in places)
    if not found:
        screen.line(f"No bundle file (*.lkb) on {where}.")
        return
    screen.line(f"{plural(len(found), 'bundle file')} on {where}")
    for each in found:
        screen.lines(_found_lines(screen, each))
    new = [each for each in found if each.verification and not each.verification.here]
    if new:
        screen.next(f"lenskeep import {clean(new[0].file)}")
    elif hints := [each.hint for each in found if each.hint]:
        screen.line(f"{screen.style('Fix:', 'strong')} {clean(hints[0])}")


def _found_lines(screen: Screen, each: Found) -> Iterator[str]:
    name = clean(Path(each.file).name)
    if each.verification is None:
        yield f" {screen.mark('bad')} {name}  {clean(each.code)} {clean(each.refusal)}"
        return
    said = each.verification
    news = "is here already" if said.here else "older than the active one" if said.older else "new here"
    sign = "info" if said.here or said.older else "good"
    about = f"{clean(said.name)} {clean(said.version)}  {size(said.size_bytes)}  signed by {clean(said.signer)}"
    yield f" {screen.mark(sign)} {name}  {about}  {news}"
    for warning in said.warnings:
        yield f"   {screen.mark('warn')} {clean(warning)}"


@click.command("import")
@click.argument("path", metavar="FILE|FOLDER", type=click.Path(path_type=Path, exists=True))
@click.option("--activate", "activate_", is_flag=True, help="Swap it in when it has passed its trial.")
@click.option("--trial", type=DURATION, metavar="TIME", help="With --activate: back by itself unless confirmed.")
@slot_option
@reason_option
@click.pass_context
def import_(
    context: click.Context, path: Path, activate_: bool, trial: float | None, slot: str | None, reason: str
) -> None:
    """Verify, store and try a bundle file or a folder of them.

    From a folder, it takes what is new. What runs on the line goes on.

    \b
      lenskeep import cap-inspect-1.1.0.lkb
      lenskeep import /media/stick
      lenskeep import cap-inspect-1.1.0.lkb --activate --trial 30s
    """
    run = run_of(context)
    client = run.client()
    if trial is not None and not activate_:
        raise click.UsageError("--trial has a meaning only with --activate.")
    files = [path] if path.is_file() else _new_files(run, client, path)
    if activate_ and len(files) != 1:
        raise click.UsageError(f"--activate needs one bundle; {plural(len(files), 'new one')} found there.")
    stored, failed = [], []
    for file in files:
        try:
            stored.append(_import_one(run, client, file))
        except LenskeepError as error:
            if len(files) == 1:
                raise
            failed.append(error)
            run.screen.note(f"{run.screen.mark('bad')} {clean(file.name)}  {error.code} {clean(error)}")
    if activate_:
        ref = f"{stored[0].name}@{stored[0].version}"
        activate_and_follow(context, ref, slot=slot, trial_s=trial, reason=reason)
        return
    emit(context, "import/1", stored, lambda screen: _show_stored(screen, stored))
    if failed:
        context.exit(int(exit_of(failed[0])))


def _new_files(run: Run, client: Client, folder: Path) -> list[Path]:
    """Return what may be taken from a folder; say why the rest is left."""
    files = []
    for each in _judge(run, client, bundle_files(folder)):
        said = each.verification
        if said is not None and not said.here and not said.older:
            files.append(Path(each.file))
        else:
            for line in _found_lines(run.screen, each):
                run.screen.note(line)
    return files


def _import_one(run: Run, client: Client, file: Path) -> Bundle:
    try:
        operation = client.upload(file, run.transfer(f"Verifying and storing {clean(file.name)}"))
    except KeyboardInterrupt:
        run.screen.note(f"\n{clean(file.name)} was not stored; what runs goes on.")
        raise
    run.follow(client, operation)
    return client.bundle(operation.subject).bundle


def _show_stored(screen: Screen, stored: list[Bundle]) -> None:
    if not stored:
        screen.line("Nothing new was found; nothing was changed.")
        return
    for bundle in stored:
        name = f"{clean(bundle.name)} {clean(bundle.version)}"
        screen.line(f"{screen.mark('good')} Imported {name}, signed by {clean(bundle.signer)}.")
        screen.line(f"  On this device: {trial_words(bundle)}.")
    screen.line("What runs goes on unchanged.")
    screen.next(f"lenskeep activate {clean(stored[0].name)}@{clean(stored[0].version)} --trial 30s")
