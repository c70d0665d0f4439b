"""Is a stored version still what was signed, byte by byte? Asked before a trial, before every activation, before going
back to a version that is not in memory any more, and beside every start.

Rules. A version that is warm in memory runs from bytes that were hashed when they were loaded, and so going back to it
waits for no disk; its files are read afterwards. What a runner loads it hashes once more itself: what changes between
this check and the load is found there. Damage is handed to the scrubber, which sets the file aside.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

from lenskeep.bundle import archive, signing
from lenskeep.bundle import manifest as manifests
from lenskeep.bundle.authority import Authority, TrustStore
from lenskeep.bundle.signing import SignedFile
from lenskeep.clock import Clock
from lenskeep.daemon.events import Events
from lenskeep.daemon.policy import Policy
from lenskeep.daemon.scrubber import Scrubber
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.database import Database
from lenskeep.errors import BlobDamagedError, LenskeepError, NothingToRollBackToError, TrustError, UnknownSignerError
from lenskeep.registry import audit, bundles, scrub, slots
from lenskeep.registry.blobs import Blobs
from lenskeep.registry.bundles import StoredBundle, StoredFile

log = logging.getLogger(__name__)

READ_BYTES = 1 << 20


def verify_stored(
    bundle: StoredBundle, files: list[StoredFile], blobs: Blobs, authority: Authority, now_s: float
) -> str:
    """Check signature, signer and every stored byte of a version; say who signed it.

    Raises: BlobDamagedError, SignatureError and its kin, TrustError. Cost: reads the whole bundle, about 1 s a GiB.
    """
    envelope = signing.open_signature(bundle.signature)
    key = authority.key_for(envelope.key_id)
    statement = signing.verify(envelope, key.public_key())
    authority.authorise(key, manifests.parse(bundle.manifest).name, now_s)
    _require_files({(file.name, file.sha256) for file in statement.files}, bundle, files)
    require_whole(files, blobs)
    return f"{key.name}, {len(files)} files as signed"


def verify_listed(bundle: StoredBundle, files: list[StoredFile], authority: Authority) -> None:
    """Check that the stored list of files is the signed one, as far as the key is still known.

    Whether its signer may still sign is not asked: expiry must not take away what runs, nor the way back.
    Raises: BlobDamagedError, SignatureError.
    """
    envelope = signing.open_signature(bundle.signature)
    try:
        key = authority.key_for(envelope.key_id)
    except UnknownSignerError:
        listed = {(file.name, file.sha256) for file in files}
    else:
        listed = {(file.name, file.sha256) for file in signing.verify(envelope, key.public_key()).files}
    _require_files(listed, bundle, files)


def _require_files(listed: set[tuple[str, str]], bundle: StoredBundle, files: list[StoredFile]) -> None:
    """Refuse a registry whose list of files is not the signed one. Raises: BlobDamagedError."""
    digest = archive.content_digest([SignedFile(file.name, file.sha256) for file in files])
    if listed != {(file.name, file.sha256) for file in files} or digest != bundle.digest:
        raise BlobDamagedError("The list of stored files differs from what was signed.")


def require_whole(files: list[StoredFile], blobs: Blobs) -> None:
    """Refuse files that are not what was stored. Raises: BlobDamagedError."""
    for file in files:
        if sha256_of(blobs.path(file.sha256)) != file.sha256:
            raise BlobDamagedError(f"{file.name} no longer matches its digest.")


def sha256_of(path: Path) -> str:
    """Hash a stored file. Raises: BlobDamagedError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source:
            while chunk := source.read(READ_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise BlobDamagedError(f"A stored file cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


class Recheck:
    """Looks at stored versions before they are used, and beside a start."""

    def __init__(
        self, database: Database, blobs: Blobs, trust: TrustKeeper, scrubber: Scrubber, policy: Policy, events: Events,
        clock: Clock,
    ) -> None:  # fmt: skip
        self._policy = policy
        self._database = database
        self._blobs = blobs
        self._trust = trust
        self._scrubber = scrubber
        self._events = events
        self._clock = clock

    async def require_signed(self, bundle_id: str) -> None:
        """Refuse to activate what is not whole, or whose signer may not sign it now. Raises: as `verify_stored`."""
        bundle, files = await self._stored(bundle_id)
        authority = await self._trust.authority()
        try:
            await asyncio.to_thread(verify_stored, bundle, files, self._blobs, authority, self._clock.now_s())
        except BlobDamagedError as error:
            raise await self._damaged(bundle, files, error) from error

    async def require_whole(self, bundle_id: str) -> None:
        """Refuse to go back to, or start with, what is not whole. Raises: BlobDamagedError, SignatureError."""
        bundle, files = await self._stored(bundle_id)
        verify_listed(bundle, files, await self._known_keys())
        try:
            await asyncio.to_thread(require_whole, files, self._blobs)
        except BlobDamagedError as error:
            raise await self._damaged(bundle, files, error) from error

    async def way_back(self, slot: str, first: str, never: str) -> str:
        """Return the nearest version to go back to that is whole: the previous one, else an older one that settled.

        Args:
            never: the version that is being left.
        Raises: the fault of the previous one when no other is whole.
        """
        fault: LenskeepError = NothingToRollBackToError(f"Slot {slot} has no previous version that is whole.")
        tried = {never}
        candidate = first or await self._listed_good(slot, tried)
        while candidate:
            try:
                await self.require_whole(candidate)
            except LenskeepError as error:
                fault = error if candidate == first else fault
            else:
                return candidate
            tried.add(candidate)
            candidate = await self._listed_good(slot, tried)
        raise fault

    async def start_instead(self, slot: str, active: str, previous: str) -> str:
        """Return what to start where the active version is known to be damaged; empty when nothing better is known.

        Nothing is read here: a start waits for no disk, and the process hashes what it loads.
        """
        broken = await self.damaged_models()
        if active not in broken:
            return ""
        tried = {active, *broken}
        if previous and previous not in broken and await self._may_run(slot, previous):
            return previous
        return await self._listed_good(slot, tried)

    async def _listed_good(self, slot: str, tried: set[str]) -> str:
        """Return the newest version that settled here, is not withdrawn and was not tried; empty when there is none."""
        while True:
            async with self._database.read() as tx:
                candidate = await slots.earlier_good(tx, slot, tried)
            if not candidate or await self._may_run(slot, candidate):
                return candidate
            tried.add(candidate)

    async def _may_run(self, slot: str, bundle_id: str) -> bool:
        """Say whether a version is neither withdrawn nor missing from a locked slot's list."""
        async with self._database.read() as tx:
            bundle = await bundles.get(tx, bundle_id)
        try:
            await self._trust.require_listed(bundle, going_back=True)
            self._policy.require_listed(slot, bundle, "gone back to")
        except LenskeepError:
            return False
        return True

    async def at_start(self) -> None:
        """Read what the slots run and could go back to, beside their start. Loud when something is not whole."""
        async with self._database.read() as tx:
            used = {bundle_id for slot in await slots.everything(tx) for bundle_id in (slot.active, slot.previous)}
        for bundle_id in sorted(used - {""}):
            await self.look_after(bundle_id)

    async def look_after(self, bundle_id: str) -> None:
        """Check a version that runs from memory already; what is wrong is said and written, and nothing is stopped."""
        bundle, files = await self._stored(bundle_id)
        try:
            await self._scrubber.read_aside([file.sha256 for file in files], "recheck")
            verify_listed(bundle, files, await self._known_keys())
        except LenskeepError as error:
            log.error("%s %s: %s", error.code, bundle.ref, error)
            self._events.publish("fault", {"code": error.code, "message": f"{bundle.ref}: {error}", "hint": error.hint})
            async with self._database.write() as tx:
                await audit.add(
                    tx, self._clock, by="device", action="recheck", subject=bundle.ref, after=f"{error.code} {error}"
                )

    async def _known_keys(self) -> Authority:
        try:
            return await self._trust.authority()
        except TrustError:  # the repository was not seen yet; the bytes can be judged all the same
            return TrustStore([])

    async def damaged_models(self) -> set[str]:
        """Return the versions that must not be started."""
        async with self._database.read() as tx:
            return await scrub.damaged_models(tx)

    async def _stored(self, bundle_id: str) -> tuple[StoredBundle, list[StoredFile]]:
        async with self._database.read() as tx:
            return await bundles.get(tx, bundle_id), await bundles.files(tx, bundle_id)

    async def _damaged(self, bundle: StoredBundle, files: list[StoredFile], error: LenskeepError) -> BlobDamagedError:
        await self._scrubber.look_at([file.sha256 for file in files], "recheck")
        return BlobDamagedError(f"{bundle.ref}: {error} It is not run.")
