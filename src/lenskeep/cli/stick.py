"""Sticks: the slice of a repository that some devices need. Not here: what devices give back on them (takeback).

The slice is found by letting each device's own check run over the repository and writing down which files it asked
for: what it needs is what it asks, no more and no less.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import click
from msgspec import Struct

from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import Run, run_of
from lenskeep.cli.words import clean, plural, size
from lenskeep.clock import rfc3339
from lenskeep.errors import AssignmentError, ListingMismatchError, SourceError, fault_book
from lenskeep.messages.trust import Listing, Look, Refusal, Verdict
from lenskeep.trust import assignment as assignments
from lenskeep.trust import stick as layout
from lenskeep.trust.client import look
from lenskeep.trust.names import METADATA, target_file
from lenskeep.trust.source import FolderSource, Source, open_regular

ROOT_BYTES_MAX = 512_000
COPY_BYTES = 1 << 20


class _Noting:
    """A source that remembers what was asked of it."""

    def __init__(self, inner: Source) -> None:
        self._inner = inner
        self.files: dict[str, bytes] = {}

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """Return a file's bytes, or None when it is not there."""
        data = self._inner.read(name, bytes_max)
        if data is not None:
            self.files[name] = data
        return data


class Slice(Struct, frozen=True, kw_only=True):
    """What a stick holds for some devices."""

    devices: list[str]
    metadata_files: int
    bundles: list[str]
    bundle_bytes: int
    good_until: str  # when the metadata on it expires


def export_stick(context: click.Context, origin: Path, target: Path, devices: list[str], *, dry_run: bool) -> None:
    """Write the slice of a repository that these devices need onto a stick."""
    run = run_of(context)
    source = _Noting(FolderSource(origin))
    listings: dict[str, Listing] = {}
    ends = []
    for device in devices:
        verdict = _needed(source, device)
        listings |= {one.path: one for one in verdict.listings}
        ends.append(min(role.expires_s for role in verdict.roles))
    _all_roots(source)
    said = Slice(
        devices=devices, metadata_files=len(source.files), bundles=sorted(listings),
        bundle_bytes=sum(one.length_bytes for one in listings.values()), good_until=rfc3339(min(ends)),
    )  # fmt: skip
    if not dry_run:
        for one in listings.values():
            _copy(run, origin, target, one)
        # the timestamp makes the rest current: it comes last
        for name in sorted(source.files, key=lambda name: name.endswith("timestamp.json")):
            layout.write(target, name, source.files[name])
    emit(context, "stick/1", said, lambda screen: _show(screen, said, target, dry_run=dry_run))


def _needed(source: Source, device: str) -> Verdict:
    """Judge the repository as the device will. Raises: the fault that the device would raise."""
    bootstrap = source.read(f"{METADATA}/1.root.json", ROOT_BYTES_MAX)
    if bootstrap is None:
        raise SourceError("This folder is no repository: metadata/1.root.json is not there.")
    verdict = _look(Look(bootstrap=bootstrap, stored={}, now_s=time.time(), device=device), source)
    if verdict.assignment is None:
        raise AssignmentError(
            f"Nothing is assigned to {device}.",
            hint=f"Assign a version: lenskeep trust assign {device} SLOT=NAME@VERSION",
        )
    paths = [one.target for one in assignments.read(verdict.assignment, device).slots.values()]
    return _look(Look(bootstrap=bootstrap, stored={}, now_s=time.time(), device=device, paths=paths), source)


def _look(request: Look, source: Source) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        judged = look(request, source, Path(folder))
    if isinstance(judged, Refusal):
        raise fault_book().get(judged.code, SourceError)(judged.message)
    if judged.unlisted:
        raise AssignmentError(f"{', '.join(judged.unlisted)} is assigned to {request.device} and listed by nobody.")
    return judged


def _all_roots(source: Source) -> None:
    """Take every root along: a device that was away long follows them one by one."""
    version = 1
    while source.read(f"{METADATA}/{version}.root.json", ROOT_BYTES_MAX) is not None:
        version += 1


def _copy(run: Run, origin: Path, target: Path, one: Listing) -> None:
    """Copy a bundle, checked while it is copied; one that is there and right is left alone."""
    name = target_file(one.path, one.sha256)
    if _digest(target, name) == one.sha256:
        return
    descriptor = open_regular(origin, name)
    if descriptor is None:
        raise SourceError(f"{name} is listed and not in the repository.")
    told = run.transfer(f"Writing {clean(one.path)}")
    digest, done = hashlib.sha256(), 0
    with os.fdopen(descriptor, "rb") as source, layout.written(name):
        path = layout.place(target, name)
        part = path.with_name(f".{path.name}.part")
        part.unlink(missing_ok=True)  # also a link, which somebody may have laid there
        try:
            with part.open("xb") as sink:
                while chunk := source.read(COPY_BYTES):
                    sink.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    told(done, one.length_bytes)
                os.fsync(sink.fileno())
            if digest.hexdigest() != one.sha256:
                raise ListingMismatchError(f"{name} in the repository is damaged; the stick was not finished.")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _digest(folder: Path, name: str) -> str:
    descriptor = open_regular(folder, name) if folder.is_dir() else None
    if descriptor is None:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _show(screen: Screen, said: Slice, target: Path, *, dry_run: bool) -> None:
    verb = "Would write" if dry_run else "Wrote"
    what = f"{plural(len(said.bundles), 'bundle')} ({size(said.bundle_bytes)})"
    screen.line(f"{screen.mark('good')} {verb} {what} and the proofs for {_names(said.devices)} to {clean(target)}.")
    screen.line(f"  Devices accept it until {said.good_until}.")
    if not dry_run:
        screen.next(f"at the device: lenskeep sync --import {clean(target)}")


def _names(devices: Iterable[str]) -> str:
    return ", ".join(clean(device) for device in devices)
