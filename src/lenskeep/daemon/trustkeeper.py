"""Whose word counts on this device: its administrator's keys, or the repository that it follows.

Rules. With a root, keys come only from the repository's roles, and only what they list now is imported and activated.
What was verified is kept durably and only grows: in the registry, and its version numbers once more in a file beside it
(`trust/seen.json`), so that a registry that was lost or put back from an old copy does not make an old repository look
current. Expiry blocks new activations and nothing else. Judging is the trust process's; asking a source is the sync's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from lenskeep.bundle.archive import VerifiedBundle
from lenskeep.bundle.authority import Authority, TrustStore
from lenskeep.bundle.keys import admit
from lenskeep.clock import Clock, rfc3339
from lenskeep.daemon import trustprocess
from lenskeep.daemon.problems import fault_check
from lenskeep.daemon.sources import RepositorySource
from lenskeep.database import Database
from lenskeep.errors import (
    KeyExpiresSoonError,
    KeyRevokedError,
    LenskeepError,
    ListingMismatchError,
    MetadataExpiredError,
    MetadataRollbackError,
    NoRepositoryError,
    NotListedError,
    TrustError,
    TrustStateLostError,
    UnknownSignerError,
    fault_book,
)
from lenskeep.messages.control import Check
from lenskeep.messages.trust import Listing, Look, Refusal, RoleView, Verdict
from lenskeep.registry import access, audit, bundles, repository
from lenskeep.registry.blobs import write_durably
from lenskeep.registry.bundles import StoredBundle
from lenskeep.registry.repository import Known
from lenskeep.trust.delegated import DelegatedTrust
from lenskeep.trust.names import BIN_NAME, DIRECTOR, METADATA, ROOT, TIMESTAMP, TOP_TARGETS, model_path

log = logging.getLogger(__name__)

SOON_S = 90 * 86400.0
_SOON_S = {"timestamp": 86400.0, "snapshot": 7 * 86400.0, DIRECTOR: 7 * 86400.0}  # renewed by a server, often
AHEAD_S_MAX = 86400.0  # two right clocks differ by less
TIMESTAMP_BYTES_MAX, ROOT_BYTES_MAX = 16_384, 512_000


class Seen(Struct, frozen=True):
    """The versions that this device has verified, kept outside the registry as well."""

    root: int = 0
    timestamp: int = 0


class TrustKeeper:
    """Answers who may sign and what is listed."""

    def __init__(self, database: Database, clock: Clock, folder: Path, device: str, root: bytes | None) -> None:
        self.device = device
        self.notes: list[LenskeepError] = []  # what people must know until the next good look
        self._database = database
        self._clock = clock
        self._folder = folder
        self._root = root
        self._unproven: dict[str, LenskeepError] = {}  # paths whose publisher's metadata was refused
        self._one_look = asyncio.Lock()

    @property
    def follows(self) -> bool:
        """Say whether this device follows a repository."""
        return self._root is not None

    async def begin(self) -> None:
        """Compare what the registry knows with what was ever seen; the signed time that was seen has passed."""
        known = await self.known()
        if known is not None:
            self._clock.raise_floor(known.issued_s)
        seen = self._seen()
        if self.follows and (known.version(TIMESTAMP) if known else 0) < seen.timestamp:
            self.notes.append(
                TrustStateLostError(
                    f"The registry knows an older repository (timestamp {known.version(TIMESTAMP) if known else 0}) "
                    f"than this device has seen ({seen.timestamp}). What runs goes on."
                )
            )

    async def follow(self, root: bytes, by: str) -> list[RoleView]:
        """Follow a repository from now on, beginning at its root. Raises: TrustError; nothing is changed then."""
        async with self._one_look:
            request = Look(bootstrap=root, stored={}, now_s=self._clock.now_s(), offline=True)
            judged = await trustprocess.look(request, None)
            if isinstance(judged, Refusal) and not judged.roles:
                raise fault_of(judged)
            before = await self.known()
            async with self._database.write() as tx:
                await repository.forget(tx)
                await audit.add(
                    tx, self._clock, by=by, action="follow repository", subject="repository",
                    before=f"root {before.version(ROOT)}" if before else "", after=_roles_text(judged.roles),
                )  # fmt: skip
            await asyncio.to_thread(write_durably, self._folder / "root.json", root)
            await asyncio.to_thread((self._folder / "seen.json").unlink, missing_ok=True)
            self._root, self.notes = root, []
            return judged.roles

    async def checks(self) -> list[Check]:
        """Return the lines of `doctor` about keys, or about the repository and its expiry."""
        return await self._repository_checks() if self.follows else await self._key_checks()

    async def _repository_checks(self) -> list[Check]:
        lines = [fault_check("repository", note, "warn") for note in self.notes]
        known = await self.known()
        if known is None:
            note = TrustStateLostError("The repository has not been seen yet.", hint="Sync it: lenskeep sync.")
            return [*lines, fault_check("repository", note, "warn")]
        first = min(known.roles, key=lambda role: role.expires_s)
        left_s = first.expires_s - self._clock.now_s()
        text = f"{first.name} of the repository is good until {rfc3339(first.expires_s)}"
        if left_s <= 0:
            return [
                *lines,
                fault_check("repository", MetadataExpiredError(f"{text}: nothing new is activated."), "warn"),
            ]
        kind = DIRECTOR if BIN_NAME.fullmatch(first.name) else first.name
        if left_s < _SOON_S.get(kind, SOON_S):
            return [*lines, fault_check("repository", MetadataExpiredError(f"{text}, which is soon."), "info")]
        return [*lines, Check(name="repository", passed=True, text=text)]

    async def _key_checks(self) -> list[Check]:
        now = self._clock.now_s()
        async with self._database.read() as tx:
            keys = [key for key in await access.trusted_keys(tx) if key.revoked_s is None]
        if not keys:
            note = UnknownSignerError(
                "No signing key is trusted yet, so every bundle is refused.",
                hint="Add the publisher's key: lenskeep keys trust FILE --for 'NAME*'",
            )
            return [fault_check("keys", note, "warn")]
        ends = [key for key in keys if key.not_after_s is not None and key.not_after_s < now + SOON_S]
        if not ends:
            return [Check(name="keys", passed=True, text=f"{len(keys)} trusted, none ends within 90 days")]
        return [
            fault_check(
                "keys",
                KeyExpiresSoonError(f"Key {key.name} ends on {rfc3339(key.not_after_s or 0)}."),
                "warn",
            )
            for key in ends
        ]

    # --- who may sign ---------------------------------------------------------------------------------------------

    async def known(self) -> Known | None:
        """Return the repository as it was last verified."""
        async with self._database.read() as tx:
            return await repository.known(tx)

    async def authority(self) -> Authority:
        """Return who answers for signatures. Raises: TrustStateLostError before the first look at the repository."""
        async with self._database.read() as tx:
            if not self.follows:
                return TrustStore(await access.trusted_keys(tx))
            known = await repository.known(tx)
        if known is None:
            raise TrustStateLostError("This device has not seen its repository yet.", hint="Sync it: lenskeep sync.")
        return DelegatedTrust(known.delegations)

    # --- what is listed -------------------------------------------------------------------------------------------

    async def require_file(self, verified: VerifiedBundle, source: RepositorySource | None) -> None:
        """Let a verified bundle file in only as the repository lists it now. Raises: TrustError."""
        if not self.follows:
            return
        path = model_path(verified.manifest.name, verified.manifest.version)
        listing = await self.listing(path)
        if listing is None or not listing.sha256 or listing.expires_s <= self._clock.now_s():
            await self.refresh(source, [path])
            listing = await self.listing(path)
        self._require_fresh(path, listing)
        assert listing is not None
        if (verified.file_sha256, verified.size_bytes) != (listing.sha256, listing.length_bytes):
            raise ListingMismatchError(f"The bundle is not the file that {listing.role} lists as {path}.")
        _require_key(verified.key_id, listing, path)

    async def require_listed(self, bundle: StoredBundle, *, going_back: bool = False) -> None:
        """Let a stored version be activated only while it is listed; going back asks for no fresh metadata.

        Raises: TrustError; KeyRevokedError when its signer is no longer of the role that lists it.
        """
        if not self.follows:
            return
        path = model_path(bundle.name, bundle.version)
        listing = await self.listing(path)
        if going_back and listing is None:
            return  # never asked for: it came before the repository, and the line needs a way back
        if not going_back:
            self._require_fresh(path, listing)
        elif listing is not None and not listing.sha256:
            raise NotListedError(f"{bundle.ref} was withdrawn; it is not gone back to.")
        assert listing is not None
        if bundle.file_sha256 != listing.sha256:
            raise ListingMismatchError(f"{bundle.ref} is not the file that {listing.role} lists now.")
        _require_key(bundle.key_id, listing, path)

    async def listing(self, path: str) -> Listing | None:
        """Return how a path is listed; None = never asked for, no sha256 = not listed."""
        async with self._database.read() as tx:
            return await repository.listing(tx, path)

    async def withdrawn(self) -> set[str]:
        """Return the stored versions that the repository does not list, as `name@version`."""
        if not self.follows:
            return set()
        async with self._database.read() as tx:
            listed = await repository.listings(tx)
            stored = await bundles.everything(tx)
        paths = {bundle.ref: listed.get(model_path(bundle.name, bundle.version)) for bundle in stored}
        return {ref for ref, listing in paths.items() if listing is not None and not listing.sha256}

    def _require_fresh(self, path: str, listing: Listing | None) -> None:
        if path in self._unproven:
            raise self._unproven[path]
        if listing is None or not listing.sha256:
            raise NotListedError(f"The repository does not list {path}. Nothing was changed.")
        if listing.expires_s <= self._clock.now_s():
            raise MetadataExpiredError(
                f"What the repository says about {path} was good until {rfc3339(listing.expires_s)}. "
                "What runs goes on; nothing new is activated."
            )

    # --- looking --------------------------------------------------------------------------------------------------

    async def refresh(self, source: RepositorySource | None, paths: Iterable[str] = ()) -> bytes:
        """Look at the repository, or only at what is stored of it; return this device's verified assignment, if any.

        Raises: NoRepositoryError, TrustError, PeerError; what was verified before the fault is kept.
        Cost: nothing new: one small request. Otherwise a process of about 0.3 s.
        """
        if self._root is None:
            raise NoRepositoryError("This device follows no repository; it trusts its administrator's keys.")
        async with self._one_look:
            async with self._database.read() as tx:
                stored, known = await repository.metadata(tx), await repository.known(tx)
                here = [model_path(one.name, one.version) for one in await bundles.everything(tx)]
                asked = await repository.listings(tx)
            wanted = sorted({*here, *paths})
            if source is not None and known and set(wanted) <= set(asked):
                assignment = await self._nothing_new(source, stored, known)
                if assignment is not None:
                    return assignment
            request = Look(
                bootstrap=self._root, stored=stored, now_s=self._clock.now_s(), device=self.device, paths=wanted,
                offline=source is None, partly=True,
            )  # fmt: skip
            judged = await trustprocess.look(request, source)
            if isinstance(judged, Refusal):
                await self._keep_partly(judged)
                raise fault_of(judged)
            await self._keep(judged, known, source.name if source else "what is stored")
            return judged.assignment or b""

    async def _nothing_new(self, source: RepositorySource, stored: dict[str, bytes], known: Known) -> bytes | None:
        """Return the stored assignment when the source shows the very timestamp that was verified, and no new root."""
        expired = not known.roles or min(role.expires_s for role in known.roles) <= self._clock.now_s()
        if expired or not known.checked_ms:
            return None
        newest = await source.read(f"{METADATA}/timestamp.json", TIMESTAMP_BYTES_MAX)
        if newest is None or newest != stored.get("timestamp.json"):
            return None
        if await source.read(f"{METADATA}/{known.version(ROOT) + 1}.root.json", ROOT_BYTES_MAX) is not None:
            return None
        async with self._database.write() as tx:
            await repository.touch(tx, at_ms=self._clock.now_ms())
        return known.assignment

    async def _keep(self, verdict: Verdict, known: Known | None, where: str) -> None:
        root, timestamp = _version(verdict.roles, ROOT), _version(verdict.roles, TIMESTAMP)
        seen = self._seen()
        if root <= seen.root and timestamp < seen.timestamp:
            raise MetadataRollbackError(
                f"The repository shows timestamp {timestamp}; this device has seen {seen.timestamp}."
            )
        verdict = msgspec.structs.replace(verdict, issued_s=self._believable(verdict))
        async with self._database.write() as tx:
            await repository.keep_verdict(tx, verdict, at_ms=self._clock.now_ms())
            if known is None or _roles_text(known.roles) != _roles_text(verdict.roles):
                await audit.add(
                    tx, self._clock, by="repository", action="trust", subject="repository", reason=f"from {where}",
                    before=_roles_text(known.roles) if known else "", after=_roles_text(verdict.roles),
                )  # fmt: skip
        if (root, timestamp) != (seen.root, seen.timestamp):
            await asyncio.to_thread(self._write_seen, Seen(root, timestamp))
        self._clock.raise_floor(verdict.issued_s)
        self._unproven = {one.path: _fault(one.code, one.message) for one in verdict.unproven}
        self.notes = list(self._unproven.values())

    def _believable(self, verdict: Verdict) -> float:
        """Bound a signed time: whoever stole the online key must not be able to move this device into the far future.

        The roles that are signed offline end it, and so does a clock that is not behind what is known to have passed.
        """
        offline = [role.expires_s for role in verdict.roles if role.name in (ROOT, TOP_TARGETS)]
        bounds = [verdict.issued_s, *offline]
        if self._clock.wall_s() >= self._clock.floor_s:
            bounds.append(self._clock.wall_s() + AHEAD_S_MAX)
        return min(bounds)

    async def _keep_partly(self, refusal: Refusal) -> None:
        """Keep what was verified before the fault: a new root counts even when the rest is refused."""
        log.warning("%s %s", refusal.code, refusal.message)
        if not refusal.stored:
            return
        async with self._database.write() as tx:
            known = await repository.known(tx)
            await repository.keep_metadata(tx, refusal.stored, refusal.roles)
            if known is not None and refusal.roles:
                kept = {role.name: role for role in known.roles} | {role.name: role for role in refusal.roles}
                await repository.keep_roles(tx, list(kept.values()))
                before, after = _roles_text(known.roles), _roles_text(list(kept.values()))
                if before != after:
                    await audit.add(
                        tx, self._clock, by="repository", action="trust", subject="repository", before=before,
                        after=after, reason=f"{refusal.code} {refusal.message}",
                    )  # fmt: skip
                await repository.touch(tx, at_ms=0)  # the look was not finished: the next one is a whole one

    def _seen(self) -> Seen:
        try:
            return msgspec.json.decode((self._folder / "seen.json").read_bytes(), type=Seen)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return Seen()

    def _write_seen(self, seen: Seen) -> None:
        write_durably(self._folder / "seen.json", msgspec.json.encode(seen))


def find_root(configured: str, config_folder: Path, folder: Path) -> bytes | None:
    """Return the provisioned root: the configured file, else root.json beside the configuration, else the one given
    through the API. Raises: TrustError when a configured one cannot be read."""
    if configured:
        try:
            return Path(configured).read_bytes()
        except OSError as error:
            raise TrustError(f"trust.root: {configured} cannot be read: {error.strerror}.") from error
    for path in (config_folder / "root.json", folder / "root.json"):
        if path.is_file():
            return path.read_bytes()
    return None


def fault_of(refusal: Refusal) -> LenskeepError:
    """Turn a refusal into the fault that it is."""
    return _fault(refusal.code, refusal.message)


def _fault(code: str, message: str) -> LenskeepError:
    return fault_book().get(code, TrustError)(message)


def _require_key(key_id: str, listing: Listing, path: str) -> None:
    if key_id not in {admit(pem).id for pem in listing.keys}:
        raise KeyRevokedError(
            f"{path} is listed by {listing.role}, but its bundle is signed by a key that is not (or no longer) its own."
        )


def _version(roles: list[RoleView], name: str) -> int:
    return next((role.version for role in roles if role.name == name), 0)


def _roles_text(roles: list[RoleView]) -> str:
    return ", ".join(f"{role.name} {role.version}" for role in roles)
