"""A bundle file that grows in `incoming/`: hashed while it is written, hashed again when it is gone on with.

Rules. Every method blocks on the disk. What came over a line is on the disk after each mebibyte, so that neither a
killed process nor a power cut costs more than that; what a cut left wrong is found by the hash of the whole.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from lenskeep.errors import FleetAnswerError, ListingMismatchError
from lenskeep.messages.trust import Listing
from lenskeep.registry.blobs import MEBIBYTE, sync_folder, translated

SYNC_BYTES = MEBIBYTE


class Part:
    """The file that a listing asks for, as far as it is here; made, it has read what is there."""

    def __init__(self, path: Path, listing: Listing) -> None:
        self._path = path
        self._listing = listing
        self._hash = hashlib.sha256()
        self._mark = self._hash.copy()
        self._mark_at = self.size = self._unsynced = 0
        with translated(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            while chunk := os.read(self._fd, MEBIBYTE):
                self._hash.update(chunk)
                self.size += len(chunk)
        if self.size > listing.length_bytes:
            self.begin_anew()

    @property
    def missing(self) -> int:
        """How many bytes are still to come."""
        return self._listing.length_bytes - self.size

    def begin_anew(self) -> None:
        """Forget everything that came."""
        self._cut(0, hashlib.sha256())

    def mark(self) -> None:
        """Remember this place, to come back to it."""
        self._mark, self._mark_at = self._hash.copy(), self.size

    def mark_back(self, at: int) -> None:
        """Remember an earlier place: what lies before it is read once more for its hash."""
        self._mark, self._mark_at = hashlib.sha256(), at
        offset = 0
        while offset < at:
            chunk = self.read(offset, min(MEBIBYTE, at - offset))
            self._mark.update(chunk)
            offset += len(chunk)

    def rewind(self) -> None:
        """Forget what came after the mark."""
        self._cut(self._mark_at, self._mark.copy())

    def _cut(self, at: int, hash_: hashlib._Hash) -> None:
        with translated(self._path):
            os.ftruncate(self._fd, at)
            os.lseek(self._fd, at, os.SEEK_SET)
        self._hash, self.size, self._unsynced = hash_, at, 0

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes that are here."""
        with translated(self._path):
            return os.pread(self._fd, length, offset)

    def write(self, chunk: bytes, *, fetched: bool = True) -> None:
        """Append bytes. Args: `fetched` = they came over a line and are worth a sync."""
        if self.size + len(chunk) > self._listing.length_bytes:
            raise self._refusal(f"is longer than the {self._listing.length_bytes} bytes that are listed")
        with translated(self._path):
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._fd, view) :]
            self._hash.update(chunk)
            self.size += len(chunk)
            self._unsynced += len(chunk) if fetched else 0
            if self._unsynced >= SYNC_BYTES:
                os.fdatasync(self._fd)
                self._unsynced = 0

    def finish(self) -> None:
        """Prove the whole. Raises: ListingMismatchError; FleetAnswerError when it is merely short."""
        if self.missing:
            raise FleetAnswerError(
                f"{self._listing.path} broke off after {self.size} of {self._listing.length_bytes} bytes."
            )
        if self._hash.hexdigest() != self._listing.sha256:
            raise self._refusal("is not the file that is listed")
        with translated(self._path):
            os.fsync(self._fd)
        sync_folder(self._path.parent)

    def _refusal(self, how: str) -> ListingMismatchError:
        return ListingMismatchError(f"{self._listing.path} {how}. Nothing was changed.")

    def remove(self) -> None:
        """Remove the file; nothing that came is worth keeping."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the file as it is."""
        os.close(self._fd)
