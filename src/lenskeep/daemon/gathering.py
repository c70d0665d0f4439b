"""Puts a listed bundle file together from what lies on this disk, what neighbours have, and what only the fleet has.

A bundle is a canonical archive: from its list of files and their bytes every other byte follows. So the signature at
its beginning is fetched and its list read; a file whose digest is a stored blob is copied from here, its header written
anew; of the others headers and contents are fetched. Rules. Nothing is believed: a copied or fetched file is hashed
before the next one begins, and the whole must be what the repository lists; until then the list is a claim that costs
a few bytes when it is false. What is there already is gone on with, wherever it broke off.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from lenskeep.bundle import archive, signing
from lenskeep.bundle.archive import BLOCK_BYTES, END
from lenskeep.bundle.signing import SIGNATURE_BYTES_MAX, SIGNATURE_NAME, SignedFile
from lenskeep.daemon.parts import Part
from lenskeep.daemon.sources import NoRangeError
from lenskeep.errors import FleetAnswerError, ListingMismatchError, PeerError, TrustError
from lenskeep.messages.trust import Listing
from lenskeep.registry.blobs import MEBIBYTE, Blobs

log = logging.getLogger(__name__)

LOOK_BYTES = 2048  # a header is asked for with what follows it: a small file costs one question
NEIGHBOUR_BYTES_MIN = 64 << 10  # smaller things are not worth a question to somebody else


class Carrier(Protocol):
    """Who has the file, and can give pieces of it."""

    name: str

    def piece(self, offset: int, length: int) -> AsyncIterator[bytes]:
        """Yield so many bytes of the file. Raises: PeerError, TrustError, NoRangeError."""
        ...

    def lied(self) -> None:
        """Hear that what it gave was not the file."""
        ...


class Gathering:
    """One bundle file being put together.

    Raises, of `run`: ListingMismatchError, BundleError, NoRangeError when it cannot be done in pieces; PeerError,
    TrustError when nobody gives more now, StorageError.
    """

    def __init__(
        self, listing: Listing, part: Part, blobs: Blobs, fleet: Carrier, neighbours: Sequence[Carrier],
        moved: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        self._listing = listing
        self._part = part
        self._blobs = blobs
        self._fleet = fleet
        self._neighbours = list(neighbours)
        self._moved = moved  # from where ("disk" or a carrier's name), so many bytes
        self.suspects: list[str] = []  # stored files that were not what they should be
        self._at = 0  # where the next piece of the archive begins
        self._ahead, self._ahead_at = b"", 0  # fetched with a header, not used yet

    async def run(self) -> None:
        """Go on until the file is whole."""
        for file in await self._signed():
            await self._member(file)
        await self._know(END)
        await asyncio.to_thread(self._part.finish)

    async def _signed(self) -> list[SignedFile]:
        """Read what the signature claims. Raises: BundleError when it is not one."""
        head = await self._need(BLOCK_BYTES)
        size = archive.proven_size(head, SIGNATURE_NAME, 0)
        if size > SIGNATURE_BYTES_MAX:
            raise ListingMismatchError(f"{self._listing.path} begins with a signature of {size} bytes.")
        signature = await self._need(size)
        await self._know(bytes(-size % BLOCK_BYTES))
        files = signing.claimed(signing.open_signature(signature)).files
        archive.check_names([file.name for file in files], archive.Limits())
        return sorted(files, key=lambda file: file.name)

    async def _member(self, file: SignedFile) -> None:
        blob = self._blobs.path(file.sha256)
        size = await asyncio.to_thread(_size_in_thread, blob)
        if size is not None:
            await self._know(archive.header(file.name, size))
        else:
            head = await self._need(BLOCK_BYTES)
            size = archive.proven_size(head, file.name, self._at - BLOCK_BYTES)
        if self._at + size > self._listing.length_bytes:
            raise ListingMismatchError(f"{self._listing.path} holds a file that is longer than all of it.")
        await self._content(file, size, blob)
        await self._know(bytes(-size % BLOCK_BYTES))

    # --- what follows from what is known, and what has to be asked for ----------------------------------------------

    async def _know(self, data: bytes) -> None:
        """Write bytes that need not be fetched, as far as they are not there."""
        have = self._part.size - self._at
        if have < len(data):
            await asyncio.to_thread(self._part.write, data[max(have, 0) :], fetched=False)
        self._at += len(data)

    async def _need(self, length: int) -> bytes:
        """Have a small piece here and return it."""
        begin, self._at = self._at, self._at + length
        while self._part.size < self._at:
            try:
                if not self._take_ahead(1):
                    await self._look(self._part.size, self._at - self._part.size)
            finally:  # what came before a break is kept
                await asyncio.to_thread(self._part.write, self._take_ahead(self._at - self._part.size))
        return await asyncio.to_thread(self._part.read, begin, length)

    def _take_ahead(self, length: int) -> bytes:
        offset = self._part.size - self._ahead_at
        return self._ahead[offset : offset + length] if 0 <= offset < len(self._ahead) else b""

    async def _look(self, at: int, length: int) -> None:
        """Fetch a small piece with what follows it, from the first who has it: the fleet before all others."""
        length = min(max(length, LOOK_BYTES), self._listing.length_bytes - at)
        first: Exception = FleetAnswerError(f"{self._listing.path} broke off after {at} bytes.")
        for carrier in (self._fleet, *self._neighbours):
            data = bytearray()
            try:
                async with aclosing(carrier.piece(at, length)) as chunks:  # type: ignore[type-var]
                    async for chunk in chunks:
                        data += chunk
            except (PeerError, TrustError, NoRangeError) as error:
                first = error if carrier is self._fleet else first
            self._moved(carrier.name, len(data))
            if len(data) >= max(1, len(self._ahead) if self._ahead_at == at else 0):
                self._ahead, self._ahead_at = bytes(data), at
            if len(data) == length:
                return
        raise first

    # --- contents ---------------------------------------------------------------------------------------------------

    async def _content(self, file: SignedFile, size: int, blob: Path) -> None:
        """Have a file of the bundle here, from the nearest who has it; what proves wrong is thrown away again."""
        begin, end = self._at, self._at + size
        self._at = end
        if self._part.size >= end:
            return
        digest = await self._resume(begin)
        if await asyncio.to_thread(_size_in_thread, blob) == size:
            if await self._copied(blob, end, digest.copy(), file.sha256):
                return
            self.suspects.append(file.sha256)
            await asyncio.to_thread(self._part.rewind)
            digest = hashlib.sha256()
        near, fleet = self._neighbours, self._fleet
        refused: Exception | None = None
        for carrier in (*near, fleet, fleet) if size >= NEIGHBOUR_BYTES_MIN else (fleet, *near, fleet):
            if carrier is fleet and refused is not None:
                break
            started = self._part.size
            try:
                await self._fetch(carrier, end, digest)
            except (PeerError, TrustError, NoRangeError) as error:
                log.info("%s does not give %s: %s", carrier.name, file.name, error)
                refused = error if carrier is fleet else refused
                continue
            if digest.hexdigest() == file.sha256:
                return
            await asyncio.to_thread(self._part.rewind)
            digest = hashlib.sha256()
            if started == begin:  # all of it came from there
                carrier.lied()
                if carrier is fleet:
                    break
        raise refused or ListingMismatchError(f"{file.name} in {self._listing.path} is not what its signature says.")

    async def _resume(self, begin: int) -> hashlib._Hash:
        """Hash what is here of a file already, and remember where it begins."""
        digest = hashlib.sha256()
        if self._part.size <= begin:
            self._part.mark()
            return digest
        await asyncio.to_thread(self._part.mark_back, begin)
        for at in range(begin, self._part.size, MEBIBYTE):
            chunk = await asyncio.to_thread(self._part.read, at, min(MEBIBYTE, self._part.size - at))
            await asyncio.to_thread(digest.update, chunk)
        return digest

    async def _copied(self, blob: Path, end: int, digest: hashlib._Hash, sha256: str) -> bool:
        """Copy a stored file; say whether it is still what it was stored as."""

        def copy_in_thread() -> bool:
            with blob.open("rb") as source:
                source.seek(blob.stat().st_size - (end - self._part.size))
                while chunk := source.read(MEBIBYTE):
                    digest.update(chunk)
                    self._part.write(chunk, fetched=False)
            return digest.hexdigest() == sha256

        before = self._part.size
        try:
            whole = await asyncio.to_thread(copy_in_thread)
        except OSError as error:
            log.warning("a stored file cannot be read: %s", error.strerror)
            return False
        except ListingMismatchError:
            return False
        self._moved("disk", self._part.size - before)
        return whole

    async def _fetch(self, carrier: Carrier, end: int, digest: hashlib._Hash) -> None:
        """Fetch up to a place. Raises: what the carrier raises; PeerError when it broke off."""
        ahead = self._take_ahead(end - self._part.size)
        if ahead:
            await asyncio.to_thread(self._write, ahead, digest)
        if self._part.size < end:
            async with aclosing(carrier.piece(self._part.size, end - self._part.size)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    await asyncio.to_thread(self._write, chunk, digest)
                    self._moved(carrier.name, len(chunk))
        if self._part.size < end:
            raise FleetAnswerError(f"{self._listing.path} broke off after {self._part.size} bytes.")

    def _write(self, chunk: bytes, digest: hashlib._Hash) -> None:
        digest.update(chunk)
        self._part.write(chunk)


def _size_in_thread(blob: Path) -> int | None:
    try:
        return blob.stat().st_size
    except OSError:
        return None
