"""Bundle files on their way here: resumed where they broke off, checked while they are written, kept over a restart.

A file lies in `incoming/` under the digest that the repository lists, as `SHA256.part`, until the importer has taken
it. What it already has is hashed again before it goes on: nothing is believed because it was there.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

from lenskeep.daemon.sources import RepositorySource
from lenskeep.errors import FleetAnswerError, LenskeepError, ListingMismatchError, StorageFullError
from lenskeep.messages.trust import Listing
from lenskeep.registry.blobs import Blobs, sync_folder, translated
from lenskeep.trust.names import target_file

READ_BYTES = 1 << 20
SYNC_BYTES = 16 << 20
TRIES_WITHOUT_GAIN_MAX = 3
PAUSE_S = 1.0

Progress = Callable[[int, int], None]  # done, total in bytes


class Downloads:
    """Fetches what the repository lists."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._folder = folder
        self._blobs = blobs

    async def fetch(self, listing: Listing, source: RepositorySource, progress: Progress) -> Path:
        """Return the file as it is listed; a break is resumed as long as something comes.

        Raises: ListingMismatchError, StorageFullError; TrustError or PeerError when the source gives nothing more,
        then what came stays for the next time.
        """
        part = self._folder / f"{listing.sha256}.part"
        self._blobs.require_space(listing.length_bytes * 2)
        left, had = TRIES_WITHOUT_GAIN_MAX, 0
        while True:
            try:
                await self._go_on(part, listing, source, progress)
            except LenskeepError as error:
                has = part.stat().st_size if part.exists() else 0
                if isinstance(error, StorageFullError):
                    part.unlink(missing_ok=True)
                left = TRIES_WITHOUT_GAIN_MAX if has > had else left - 1
                had = has
                if not error.retryable or not left:
                    raise
                await asyncio.sleep(PAUSE_S)
            else:
                return part

    async def _go_on(self, part: Path, listing: Listing, source: RepositorySource, progress: Progress) -> None:
        writer = await asyncio.to_thread(_Part, part, listing)
        try:
            if writer.size < listing.length_bytes:
                chunks = source.stream(target_file(listing.path, listing.sha256), writer.size)
                async with aclosing(chunks):  # type: ignore[type-var]
                    async for chunk in chunks:
                        await asyncio.to_thread(writer.write, chunk)
                        progress(writer.size, listing.length_bytes)
            await asyncio.to_thread(writer.finish)
        finally:
            await asyncio.to_thread(writer.close)

    def done_with(self, path: Path) -> None:
        """Remove a file that has been taken, or that is not wanted any more."""
        path.unlink(missing_ok=True)

    def prepare_in_thread(self, wanted: set[str]) -> None:
        """Make the folder, and remove what no assignment wants."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        for path in self._folder.iterdir():
            if path.name.removesuffix(".part") not in wanted:
                path.unlink(missing_ok=True)


class _Part:
    """A file that grows; made, it has read what is there. Every method blocks on the disk."""

    def __init__(self, path: Path, listing: Listing) -> None:
        self._path = path
        self._listing = listing
        self._hash = hashlib.sha256()
        self.size = self._unsynced = 0
        with translated(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            while chunk := os.read(self._fd, READ_BYTES):
                self._hash.update(chunk)
                self.size += len(chunk)
            if self.size > listing.length_bytes:
                self._begin_anew()

    def _begin_anew(self) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash, self.size = hashlib.sha256(), 0

    def write(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self._listing.length_bytes:
            self._refuse(f"is longer than the {self._listing.length_bytes} bytes that are listed")
        self._hash.update(chunk)
        with translated(self._path):
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._fd, view) :]
            self._unsynced += len(chunk)
            if self._unsynced >= SYNC_BYTES:
                os.fdatasync(self._fd)
                self._unsynced = 0

    def finish(self) -> None:
        """Prove the whole. Raises: ListingMismatchError; the file is gone then, unless it is merely short."""
        if self.size < self._listing.length_bytes:
            raise FleetAnswerError(
                f"{self._listing.path} broke off after {self.size} of {self._listing.length_bytes} bytes."
            )
        if self._hash.hexdigest() != self._listing.sha256:
            self._refuse("is not the file that is listed")
        with translated(self._path):
            os.fsync(self._fd)
        sync_folder(self._path.parent)

    def _refuse(self, how: str) -> None:
        self._path.unlink(missing_ok=True)
        raise ListingMismatchError(f"{self._listing.path} {how}. Nothing was changed.")

    def close(self) -> None:
        os.close(self._fd)


async def pieces(path: Path) -> AsyncIterator[bytes]:
    """Yield a file as the importer takes it."""
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, READ_BYTES):
            yield chunk
