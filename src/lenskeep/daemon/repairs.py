"""Where a whole copy of a damaged file is had: its place in its bundle file, at a neighbour or where the fleet is.

The bundle that a blob belongs to is known, and so is every byte before it: one piece of one file is asked for, and the
scrubber hashes what comes. Who gives something else is not asked again soon, so another try goes elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing

from lenskeep.bundle import archive
from lenskeep.daemon.allowance import Allowance
from lenskeep.daemon.downloads import Line
from lenskeep.daemon.gathering import Carrier
from lenskeep.daemon.neighbours import Neighbours
from lenskeep.daemon.sources import HttpSource, NoRangeError
from lenskeep.database import Database
from lenskeep.errors import FleetAnswerError, LenskeepError, PeerError, TrustError
from lenskeep.registry import bundles
from lenskeep.trust.names import model_path, target_file


class Repairs:
    """Fetches single files of stored versions again."""

    def __init__(
        self, database: Database, neighbours: Neighbours, allowance: Allowance,
        open_source: Callable[[], AbstractAsyncContextManager[HttpSource]],
    ) -> None:  # fmt: skip
        self._database = database
        self._neighbours = neighbours
        self._allowance = allowance
        self._open_source = open_source

    async def fetch(self, sha256: str, size_bytes: int) -> AsyncIterator[bytes]:
        """Yield a stored file's bytes from the nearest who gives them. Raises: PeerError, TrustError."""
        last: LenskeepError = FleetAnswerError(f"No bundle file that holds {sha256[:16]}… is known.")
        async with self._open_source() as source:
            for target, offset in await self._places(sha256):
                carriers: list[Carrier] = [*self._neighbours.carriers(target)]
                if source.name:
                    carriers.append(Line(source, target, self._allowance))
                for carrier in carriers:
                    digest, got = hashlib.sha256(), 0
                    try:
                        async with aclosing(carrier.piece(offset, size_bytes)) as chunks:  # type: ignore[type-var]
                            async for chunk in chunks:
                                digest.update(chunk)
                                got += len(chunk)
                                yield chunk
                    except (PeerError, TrustError) as error:
                        last = error
                    except NoRangeError:
                        last = FleetAnswerError(f"{carrier.name} gives no pieces of files.")
                    if got and digest.hexdigest() != sha256:
                        carrier.lied()
                    if got:  # the taker has seen bytes of it: this try is over, whatever they were
                        return
        raise last

    async def _places(self, sha256: str) -> list[tuple[str, int]]:
        """Return in which bundle files, as a repository names them, and where in them a blob lies."""
        found: list[tuple[str, int]] = []
        async with self._database.read() as tx:
            for bundle in await bundles.everything(tx):
                files = await bundles.files(tx, bundle.id) if bundle.file_sha256 else []
                at = 0
                for part in archive.rebuild_parts(bundle.signature, [(one.name, one.size_bytes) for one in files]):
                    if isinstance(part, bytes):
                        at += len(part)
                        continue
                    if files[part].sha256 == sha256:
                        found.append((target_file(model_path(bundle.name, bundle.version), bundle.file_sha256), at))
                        break
                    at += files[part].size_bytes
        return found
