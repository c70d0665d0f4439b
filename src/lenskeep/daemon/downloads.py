"""Bundle files on their way here: put together from what is here, resumed where they broke off, kept over a restart.

A file lies in `incoming/` under the digest that the repository lists, as `SHA256.part`, until the importer has taken
it. What it already has is hashed again before it goes on: nothing is believed because it was there. A file is first
gathered in pieces (gathering); when that leads to something else than what is listed, all of it is fetched once from
where the repository is read, and that counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Protocol

from lenskeep.daemon.allowance import Allowance
from lenskeep.daemon.gathering import Carrier, Gathering
from lenskeep.daemon.parts import Part
from lenskeep.daemon.sources import HttpSource, NoRangeError, RepositorySource
from lenskeep.errors import (
    BundleError,
    LenskeepError,
    ListingMismatchError,
    MeteredBudgetError,
    SourceTooSlowError,
    StorageFullError,
)
from lenskeep.messages.trust import Listing
from lenskeep.registry.blobs import MEBIBYTE, Blobs
from lenskeep.trust.names import target_file

log = logging.getLogger(__name__)

BREAKS_MAX = 3  # without gain; a break with a small gain counts less, but it counts: nobody is asked for ever
GAIN_BYTES_MIN, SMALL_GAIN = 64 << 10, 0.1
PAUSE_S = 1.0

Progress = Callable[[int, int], None]  # done, total in bytes


class Near(Protocol):
    """Who else may have bundle files."""

    def carriers(self, target: str) -> Sequence[Carrier]:
        """Return who to ask for a file, the best first."""
        ...


class Downloads:
    """Fetches what the repository lists. `neighbours` and `suspect` are given by who builds the house."""

    def __init__(self, folder: Path, blobs: Blobs, allowance: Allowance, *, pause_s: float = PAUSE_S) -> None:
        self.neighbours: Near | None = None
        self.suspect: Callable[[list[str]], Awaitable[None]] | None = None  # stored files that were read wrong
        self.moved: Counter[str] = Counter()  # bytes since the start, by where they came from
        self._folder = folder
        self._blobs = blobs
        self._allowance = allowance
        self._pause_s = pause_s
        self._under_way: dict[str, asyncio.Lock] = {}

    async def fetch(self, listing: Listing, source: RepositorySource, progress: Progress) -> Path:
        """Return the file as it is listed; a break is resumed as long as something comes.

        Raises: ListingMismatchError, StorageFullError; TrustError or PeerError when the source gives nothing more,
        then what came stays for the next time.
        """
        part = self._folder / f"{listing.sha256}.part"
        async with self._under_way.setdefault(listing.sha256, asyncio.Lock()):
            self._blobs.require_space(listing.length_bytes * 2 - await asyncio.to_thread(_size_in_thread, part))
            before = Counter(self.moved)
            try:
                await self._fetch(part, listing, source, progress)
            finally:
                await self._allowance.settle()
                new = self.moved - before
                shares = ", ".join(f"{count / MEBIBYTE:.2f} MiB from {name}" for name, count in new.most_common())
                log.info("%s: %s", listing.path, shares or "nothing came")
        return part

    async def _fetch(self, path: Path, listing: Listing, source: RepositorySource, progress: Progress) -> None:
        breaks, had, way = 0.0, 0, self._gather
        while True:
            async with _opened(path, listing) as part:
                try:
                    return await way(part, listing, source, progress)
                except (NoRangeError, ListingMismatchError, BundleError, StorageFullError) as error:
                    if not isinstance(error, NoRangeError):
                        part.remove()
                    if way == self._whole or isinstance(error, StorageFullError):
                        raise
                    log.info("%s is fetched whole: %s", listing.path, error)
                    way = self._whole
                    continue
                except (SourceTooSlowError, MeteredBudgetError):
                    raise
                except LenskeepError as error:
                    gain, had = part.size - had, max(had, part.size)
                    breaks = 0.0 if gain >= GAIN_BYTES_MIN else breaks + (SMALL_GAIN if gain > 0 else 1.0)
                    if not error.retryable or breaks >= BREAKS_MAX:
                        raise
            await asyncio.sleep(self._pause_s)

    async def _gather(self, part: Part, listing: Listing, source: RepositorySource, progress: Progress) -> None:
        def moved(name: str, count: int) -> None:
            self.moved[name] += count
            progress(part.size, listing.length_bytes)

        target = target_file(listing.path, listing.sha256)
        near = self.neighbours.carriers(target) if self.neighbours is not None else []
        work = Gathering(listing, part, self._blobs, Line(source, target, self._allowance), near, moved)
        try:
            await work.run()
        finally:
            if work.suspects and self.suspect is not None:
                await self.suspect(work.suspects)

    async def _whole(self, part: Part, listing: Listing, source: RepositorySource, progress: Progress) -> None:
        """Fetch all that is missing, as it comes."""
        if part.missing:
            line = Line(source, target_file(listing.path, listing.sha256), self._allowance)
            async with aclosing(line.piece(part.size, 0)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    await asyncio.to_thread(part.write, chunk)
                    self.moved[source.name] += len(chunk)
                    progress(part.size, listing.length_bytes)
        await asyncio.to_thread(part.finish)

    def done_with(self, path: Path) -> None:
        """Remove a file that has been taken, or that is not wanted any more."""
        path.unlink(missing_ok=True)

    def prepare_in_thread(self, wanted: set[str]) -> None:
        """Make the folder, and remove what no assignment wants."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        for path in self._folder.iterdir():
            if path.name.removesuffix(".part") not in wanted:
                path.unlink(missing_ok=True)


def _size_in_thread(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@asynccontextmanager
async def _opened(path: Path, listing: Listing) -> AsyncIterator[Part]:
    part = await asyncio.to_thread(Part, path, listing)
    try:
        yield part
    finally:
        await asyncio.to_thread(part.close)


class Line:
    """One file at the source that the repository is read from. What comes over a network counts."""

    def __init__(self, source: RepositorySource, target: str, allowance: Allowance) -> None:
        self.name = source.name
        self._source = source
        self._target = target
        self._allowance = allowance if isinstance(source, HttpSource) else None

    async def piece(self, offset: int, length: int) -> AsyncIterator[bytes]:
        """Yield so many bytes of the file, or all that follows; no more than the budget of the day has left."""
        left = None
        if self._allowance is not None:
            self._allowance.require(self._target.rpartition("/")[2].partition(".")[2])
            left = self._allowance.left()
        wanted = length if left is None or not length else min(length, left)
        async with aclosing(self._source.stream(self._target, offset, wanted)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if self._allowance is not None:
                    await self._allowance.use(len(chunk))
                yield chunk
                if self._allowance is not None:
                    await self._allowance.pace(len(chunk))
                    if not length:
                        self._allowance.require(self._target)
        if wanted < length and self._allowance is not None:
            self._allowance.require(self._target)

    def lied(self) -> None:
        """Nobody stands behind it: all of the file is fetched from it once more."""


async def pieces(path: Path) -> AsyncIterator[bytes]:
    """Yield a file as the importer takes it."""
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, MEBIBYTE):
            yield chunk
