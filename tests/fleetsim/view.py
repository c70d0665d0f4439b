"""What a simulated device believes of a repository: the house's own strict reading and proofs, without a process each.

Rules. Every byte is fetched by every device and judged by its signatures, versions and digests. What was proved once
of the very same bytes in this process is not proved again for the next device: that is the one short cut.
Not here: the rules for lost clocks and rotated keys; `thorough` asks the house's own `look` for those.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from lenskeep.errors import LenskeepError
from lenskeep.messages.trust import Listing, Look, Verdict
from lenskeep.trust import assignment as assignments
from lenskeep.trust import names
from lenskeep.trust.assignment import Assignment
from lenskeep.trust.client import look
from lenskeep.trust.proven import Proven
from lenskeep.trust.strict import Document, Rules, SnapshotBody, TimestampBody, read

Fetch = Callable[[str], Awaitable[bytes | None]]  # `metadata/timestamp.json` -> its bytes
PROVED_MAX = 64


class ViewError(Exception):
    """The repository does not prove what it says."""


_read: dict[tuple[str, bytes], Document] = {}
_proved: dict[bytes, Proven] = {}


def _document(role: str, raw: bytes) -> Document:
    key = (role, hashlib.sha256(raw).digest())
    if key not in _read:
        if len(_read) > PROVED_MAX:
            _read.clear()
        _read[key] = read(role, raw, Rules.HOUSE)
    return _read[key]


def _prove(documents: dict[str, bytes]) -> Proven:
    key = hashlib.sha256(b"".join(hashlib.sha256(documents[role]).digest() for role in sorted(documents))).digest()
    if key not in _proved:
        if len(_proved) > PROVED_MAX:
            _proved.clear()
        proven = Proven({role: _document(role, raw) for role, raw in documents.items()}, again=True)
        proven.top()
        _proved[key] = proven
    return _proved[key]


@dataclass
class View:
    """One device's trust."""

    device: str
    root: bytes
    timestamp: int = 0
    generation: int = 0

    def __post_init__(self) -> None:
        self._documents: dict[str, bytes] = {names.ROOT: self.root}
        self._assignment: tuple[str, Assignment] | None = None
        self._proven: Proven | None = None

    async def refresh(self, fetch: Fetch) -> Assignment | None:
        """Fetch what is new, prove it, and return this device's assignment. Raises: ViewError."""
        try:
            return await self._refresh(fetch)
        except LenskeepError as error:
            raise ViewError(f"{error.code} {error}") from error

    async def _refresh(self, fetch: Fetch) -> Assignment | None:
        found = dict(self._documents)
        found[names.TIMESTAMP] = await _have(fetch, f"{names.METADATA}/timestamp.json")
        while (root := await fetch(f"{names.METADATA}/{self._version(found, names.ROOT) + 1}.root.json")) is not None:
            found[names.ROOT] = root
        stamp = _document(names.TIMESTAMP, found[names.TIMESTAMP])
        assert isinstance(stamp.body, TimestampBody)
        if stamp.body.version < self.timestamp:
            raise ViewError("the repository shows an older timestamp than before")
        await self._fill(fetch, found, names.SNAPSHOT, stamp.body.meta["snapshot.json"].version)
        snapshot = _document(names.SNAPSHOT, found[names.SNAPSHOT])
        assert isinstance(snapshot.body, SnapshotBody)
        for file, facts in snapshot.body.meta.items():
            await self._fill(fetch, found, file.removesuffix(".json"), facts.version)
        proven = _prove(found)
        made = None
        if names.DIRECTOR in found and (listing := proven.lists(names.device_path(self.device))) is not None:
            made = await self._assigned(fetch, listing)
        self._documents, self.timestamp = found, stamp.body.version
        self._proven = proven
        return made

    def lists(self, target: str, sha256: str) -> bool:
        """Say whether a publisher lists this file; without that an assignment is only the director's word."""
        if self._proven is None:
            return False
        self._proven.ways.pop(target, None)  # another device has asked the same already
        listing = self._proven.lists(target)
        return listing is not None and listing.sha256 == sha256

    async def _fill(self, fetch: Fetch, found: dict[str, bytes], role: str, version: int) -> None:
        if role not in found or self._version(found, role) != version:
            found[role] = await _have(fetch, f"{names.METADATA}/{version}.{role}.json")

    @staticmethod
    def _version(found: dict[str, bytes], role: str) -> int:
        return _document(role, found[role]).body.version

    async def _assigned(self, fetch: Fetch, listing: Listing) -> Assignment:
        if self._assignment is not None and self._assignment[0] == listing.sha256:
            return self._assignment[1]
        data = await _have(fetch, names.target_file(listing.path, listing.sha256))
        if len(data) != listing.length_bytes or hashlib.sha256(data).hexdigest() != listing.sha256:
            raise ViewError(f"{listing.path} is not the file that the director lists")
        made = assignments.read(data, self.device)
        if made.generation < self.generation:
            raise ViewError(f"generation {made.generation} after {self.generation}")
        self._assignment, self.generation = (listing.sha256, made), made.generation
        return made


async def _have(fetch: Fetch, name: str) -> bytes:
    data = await fetch(name)
    if data is None:
        raise ViewError(f"{name} is not there")
    return data


async def thorough(view: View, fetch: Fetch, now_s: float) -> Assignment | None:
    """Look as the product looks, from nothing. Raises: ViewError when it refuses."""
    loop = asyncio.get_running_loop()

    class Source:
        def read(self, name: str, bytes_max: int) -> bytes | None:
            data = asyncio.run_coroutine_threadsafe(_awaited(fetch(name)), loop).result(60)
            assert data is None or len(data) <= bytes_max
            return data

    with tempfile.TemporaryDirectory(prefix="lk-look-") as folder:
        asked = Look(bootstrap=view.root, stored={}, now_s=now_s, device=view.device)
        said = await asyncio.to_thread(look, asked, Source(), Path(folder))
    if not isinstance(said, Verdict):
        raise ViewError(f"{said.code} {said.message}")
    return None if said.assignment is None else assignments.read(said.assignment, view.device)


async def _awaited(asked: Awaitable[bytes | None]) -> bytes | None:
    return await asked
