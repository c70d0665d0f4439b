"""Takes bundles in, gives them out, and removes them: the only way for bytes into the registry.

Order of an import: space is reserved; the bytes are verified while they are written to staging; the model is scanned;
the files move to their digests; one transaction makes them known. Whatever goes wrong before that transaction leaves
nothing visible, and what lies around is removed at once or at the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from lenskeep.bundle import archive, disk, modelcheck
from lenskeep.bundle import manifest as manifests
from lenskeep.bundle.archive import BundleReader, VerifiedBundle
from lenskeep.clock import Clock
from lenskeep.config import Config
from lenskeep.daemon.events import Events
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.plans import Plans
from lenskeep.daemon.qualifier import Qualifier
from lenskeep.daemon.scrubber import Scrubber
from lenskeep.daemon.sources import RepositorySource
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.database import Database, Transaction
from lenskeep.errors import (
    BlobDamagedError,
    BundleFormatError,
    DeviceError,
    InUseError,
    LenskeepError,
    LimitExceededError,
)
from lenskeep.lifecycle import BundleEvent, BundleState
from lenskeep.messages.control import Operation, Verification
from lenskeep.registry import audit, bundles, slots
from lenskeep.registry.blobs import MEBIBYTE, Blobs, Staging
from lenskeep.registry.bundles import StoredBundle, StoredFile

log = logging.getLogger(__name__)

FEED_BYTES = 1 << 18
UNKNOWN_SIZE_BYTES = 64 << 20


class _Upload:
    """What is known of a file while it comes in; what was refused is named with it."""

    def __init__(self) -> None:
        self.reader: BundleReader | None = None
        self.ref = ""


class Importer:
    """The registry's door for bundles."""

    def __init__(
        self, config: Config, database: Database, blobs: Blobs, plans: Plans, qualifier: Qualifier,
        operations: Operations, events: Events, clock: Clock, trust: TrustKeeper, scrubber: Scrubber,
    ) -> None:  # fmt: skip
        self._scrubber = scrubber
        self._trust = trust
        self._config = config
        self._database = database
        self._blobs = blobs
        self._plans = plans
        self._qualifier = qualifier
        self._operations = operations
        self._events = events
        self._clock = clock
        self._storing = asyncio.Lock()

    async def receive(
        self, chunks: AsyncIterator[bytes], size_bytes: int | None, by: str, source: RepositorySource | None = None
    ) -> Operation:
        """Verify and store a bundle; the trial goes on in the operation that is returned.

        Args:
            source: where the repository can be asked whether it lists the version; None = only what is known here.
        Raises: BundleError, TrustError for what is wrong with the file, StorageFullError; nothing is stored then.
        """
        upload = _Upload()
        try:
            staging, verified = await self._stage(chunks, size_bytes, source, upload)
            try:
                bundle = await self._store(staging, verified, by)
            finally:
                await asyncio.to_thread(staging.close)
        except LenskeepError as error:
            await self._note_refusal(error, upload, by)
            raise
        await self.retain()
        operation = await self._operations.begin("import", bundle.ref, by)
        if bundle.state == BundleState.QUALIFIED:
            async with self._database.read() as tx:
                trial = await bundles.newest_trial(tx, bundle.id)
            await self._operations.succeed(operation.id, trial.report if trial else None)
        else:
            self._operations.spawn(operation.id, lambda: self._qualifier.trial(bundle.id, by, operation.id))
        return self._operations.get(operation.id)

    async def verify(self, chunks: AsyncIterator[bytes], size_bytes: int | None) -> Verification:
        """Say what a bundle file is, by this device's keys, and keep nothing of it."""
        staging, verified = await self._stage(chunks, size_bytes, None, _Upload())
        await asyncio.to_thread(staging.close)
        name, version = verified.manifest.name, verified.manifest.version
        async with self._database.read() as tx:
            here = await bundles.by_digest(tx, verified.digest)
            active = [await bundles.get(tx, slot.active) for slot in await slots.everything(tx) if slot.active]
        running = next((bundle.version for bundle in active if bundle.name == name), "")
        return Verification(
            name=name, version=version, title=verified.manifest.title, digest=verified.digest,
            size_bytes=verified.size_bytes, signer=verified.signer, signer_key=verified.key_id,
            here=here is not None and here.state != BundleState.RETIRED, active_version=running,
            older=bool(running) and manifests.version_key(version) < manifests.version_key(running),
        )  # fmt: skip

    async def _stage(
        self, chunks: AsyncIterator[bytes], size_bytes: int | None, source: RepositorySource | None, upload: _Upload
    ) -> tuple[Staging, VerifiedBundle]:
        bytes_max = self._config.limits.bundle_mb_max * MEBIBYTE
        if size_bytes is not None and size_bytes > bytes_max:
            raise LimitExceededError(
                f"The file has {size_bytes / MEBIBYTE:.0f} MiB; this device takes {bytes_max // MEBIBYTE} MiB."
            )
        self._blobs.require_space(size_bytes or UNKNOWN_SIZE_BYTES)
        authority = await self._trust.authority()
        staging = self._blobs.stage()
        try:
            limits = archive.Limits(total_bytes_max=bytes_max)
            reader = upload.reader = BundleReader(authority, self._clock.now_s(), limits, staging.open_member)
            await _feed(reader, chunks, size_bytes)
            verified = await asyncio.to_thread(reader.finish)
            upload.ref = verified.manifest.ref
            await self._trust.require_file(verified, source)
            await asyncio.to_thread(_check_model, verified, staging)
        except BaseException:  # also a cancelled upload: nothing half written stays
            await asyncio.to_thread(staging.close)
            raise
        return staging, verified

    async def _store(self, staging: Staging, verified: VerifiedBundle, by: str) -> StoredBundle:
        staged = [(staging.path_of(file.name), file.sha256) for file in verified.files]
        async with self._storing:  # two imports of one bundle: the second finds the first one's work
            await asyncio.to_thread(self._blobs.commit_in_thread, staged)
            async with self._database.write() as tx:
                before = await bundles.by_digest(tx, verified.digest)
                bundle = await bundles.insert(tx, str(uuid.uuid4()), verified, at_ms=self._clock.now_ms(), by=by)
                await audit.add(
                    tx, self._clock, by=by, action="import", subject=bundle.ref, before=before.state if before else "",
                    after=bundle.state, reason=f"signed by {verified.signer}, digest {verified.digest}",
                )  # fmt: skip
        await self._scrubber.renewed({file.sha256 for file in verified.files})
        self._events.publish("bundle", {"bundle": bundle.ref, "state": bundle.state, "code": ""})
        return bundle

    async def _note_refusal(self, error: LenskeepError, upload: _Upload, by: str) -> None:
        """Write down that a file was not taken, and which; a disk too full for that keeps its own fault in front."""
        seen, digest = upload.reader.seen() if upload.reader is not None else (0, "")
        before = f"{seen} bytes seen, sha256 {digest}" if seen else ""
        try:
            async with self._database.write() as tx:
                await audit.add(
                    tx, self._clock, by=by, action="refuse import", subject=upload.ref or "bundle file",
                    reason=f"{error.code} {error}", before=before, after="refused",
                )  # fmt: skip
        except DeviceError as second:
            log.warning("the refusal could not be recorded: %s", second)

    # --- out and away ---------------------------------------------------------------------------------------------

    async def export(self, ref: str) -> AsyncIterator[bytes]:
        """Yield the bundle file again, byte by byte what came in."""
        bundle = await self._qualifier.find(ref)
        async with self._database.read() as tx:
            stored = await bundles.files(tx, bundle.id)
        for part in archive.rebuild_parts(bundle.signature, [(file.name, file.size_bytes) for file in stored]):
            if isinstance(part, bytes):
                yield part
            else:
                async for chunk in self._read_whole(stored[part]):
                    yield chunk

    async def _read_whole(self, file: StoredFile) -> AsyncIterator[bytes]:
        """Yield a stored file; a damaged one never to its end. Raises: BlobDamagedError."""
        digest, held = hashlib.sha256(), b""
        try:
            with await asyncio.to_thread(self._blobs.path(file.sha256).open, "rb") as source:
                while chunk := await asyncio.to_thread(source.read, FEED_BYTES):
                    digest.update(chunk)
                    if held:
                        yield held
                    held = chunk
        except OSError as error:
            raise BlobDamagedError(f"{file.name} cannot be read from the disk: {error.strerror}.") from error
        if digest.hexdigest() != file.sha256:
            await self._scrubber.look_at([file.sha256], "export")
            raise BlobDamagedError(f"{file.name} no longer matches its digest. It was not handed out.")
        yield held

    async def remove(self, ref: str, by: str, reason: str = "") -> None:
        """Retire a version and free its bytes. Raises: InUseError when a slot needs it or it is pinned."""
        bundle = await self._qualifier.find(ref)
        async with self._database.write() as tx:
            await self._retire(tx, bundle, by, reason)
        await self._sweep()

    async def _retire(self, tx: Transaction, bundle: StoredBundle, by: str, reason: str) -> None:
        current = await bundles.get(tx, bundle.id)
        parts = (await slots.in_use(tx)).get(bundle.id, [])
        if parts or current.pinned:
            uses = [part.replace(":", " in slot ") for part in parts] + ["pinned"] * current.pinned
            raise InUseError(f"{bundle.ref} is {' and '.join(uses)}. Nothing was changed.")
        state = await bundles.record_state(tx, current, BundleEvent.REMOVED)
        await audit.add(
            tx,
            self._clock,
            by=by,
            action="remove",
            subject=bundle.ref,
            reason=reason,
            before=current.state,
            after=state,
        )

    async def pin(self, ref: str, pinned: bool, by: str) -> None:
        """Keep a version from being removed, or let it go again."""
        bundle = await self._qualifier.find(ref)
        async with self._database.write() as tx:
            await bundles.pin(tx, bundle.id, pinned)
            await audit.add(
                tx, self._clock, by=by, action="pin" if pinned else "unpin", subject=bundle.ref,
                before=str(bundle.pinned).lower(), after=str(pinned).lower(),
            )  # fmt: skip

    async def retain(self) -> None:
        """Retire what is older than the kept versions of each name; never active, previous, wanted or pinned ones."""
        async with self._database.write() as tx:
            used = await slots.in_use(tx)
            seen: dict[str, int] = {}
            retired = 0
            for bundle in await bundles.everything(tx):
                if bundle.id in used or bundle.pinned or bundle.state == BundleState.IMPORTED:
                    continue
                seen[bundle.name] = seen.get(bundle.name, 0) + 1
                if seen[bundle.name] > self._config.storage.keep_versions:
                    await self._retire(tx, bundle, "retention", f"more than {self._config.storage.keep_versions} kept")
                    retired += 1
        if retired:
            await self._sweep()

    async def _sweep(self) -> None:
        async with self._storing:  # nobody may be between moving files to their digests and making them known
            async with self._database.read() as tx:
                wanted = await bundles.wanted_blobs(tx)
            wanted |= await asyncio.to_thread(self._plans.pointed_files)  # a registry that was lost knows nothing
            freed = await asyncio.to_thread(self._blobs.sweep_in_thread, wanted)
        if freed:
            log.info("removed %.1f MiB of retired bundles", freed / MEBIBYTE)

    async def begin(self) -> None:
        """Put the folders in order after a start: nothing half written, nothing unknown."""
        await asyncio.to_thread(self._blobs.prepare_in_thread)
        await self._sweep()


async def _feed(reader: BundleReader, chunks: AsyncIterator[bytes], size_bytes: int | None) -> None:
    """Hand the bytes to the reader in large pieces, each in a thread."""
    pending = bytearray()
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        pending += chunk
        if len(pending) >= FEED_BYTES:
            piece, pending = pending, bytearray()
            await asyncio.to_thread(reader.feed, piece)
    if size_bytes is not None and received != size_bytes:
        raise BundleFormatError(f"The file broke off after {received} of {size_bytes} bytes. Nothing was changed.")
    await asyncio.to_thread(reader.feed, pending)


def _check_model(verified: VerifiedBundle, staging: Staging) -> None:
    path: Path = staging.path_of(verified.manifest.model)
    if not path.stat().st_size:
        raise BundleFormatError("The model file is empty.")
    with disk.mapped(path) as view:
        modelcheck.check_model(verified.manifest, view)
