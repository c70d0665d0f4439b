"""One look at a repository: what is trusted now, by python-tuf's workflow and by what it leaves open.

Rules. python-tuf decides; nothing is believed that it refuses. Around it: every byte is read strictly before it sees
it, time is the time that the daemon gives (`max(wall, floor)`) and the signed time of the timestamp itself, versions
fall only after a rotation of the keys that a fast-forward would have needed, and what was verified before a fault is
handed back. This module is the seam to python-tuf: its faults end here as ours.
Not here: where files come from (source), what is kept where (the daemon).
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tuf.api import exceptions
from tuf.api.metadata import TargetFile
from tuf.api.serialization import DeserializationError
from tuf.ngclient import Updater, UpdaterConfig

from lenskeep.errors import (
    LenskeepError,
    MetadataExpiredError,
    MetadataFormatError,
    MetadataMismatchError,
    MetadataMissingError,
    MetadataRollbackError,
    MetadataSignatureError,
    MetadataTooLargeError,
    RepositoryRulesError,
    SourceError,
    StorageError,
    StorageFullError,
    TrustError,
)
from lenskeep.messages.trust import Listing, Look, Refusal, Unproven, Verdict
from lenskeep.trust import names
from lenskeep.trust.assignment import ASSIGNMENT_BYTES_MAX
from lenskeep.trust.gate import Gate, Reader, file_of
from lenskeep.trust.proven import DELEGATIONS_MAX, Proven, require_signed
from lenskeep.trust.source import Source
from lenskeep.trust.strict import METADATA_BYTES_MAX, Document, RootBody, Rules, TimestampBody

LIMITS = UpdaterConfig(
    max_root_rotations=256, max_delegations=DELEGATIONS_MAX, root_max_length=512_000, timestamp_max_length=16_384,
    snapshot_max_length=2_000_000, targets_max_length=METADATA_BYTES_MAX,
)  # fmt: skip


class _RoleFault(Exception):
    """A fault and the role that it is about, on its way out of a look."""

    def __init__(self, fault: LenskeepError, role: str) -> None:
        super().__init__(str(fault))
        self.fault = fault
        self.role = role


def look(request: Look, source: Source, folder: Path, rules: Rules = Rules.HOUSE) -> Verdict | Refusal:
    """Say what is trusted now.

    Args:
        source: where the repository's files come from; not asked when the request is `offline`.
        folder: an empty folder to work in; its content is of no use afterwards.
    Cost: for 500 devices about 30 ms the first time, 10 ms when nothing is new, apart from the source.
    """
    return _Look(request, source, folder, rules).run()


class _Look:
    def __init__(self, request: Look, source: Source, folder: Path, rules: Rules) -> None:
        self._request = request
        self._source = source
        self._folder = folder
        self._rules = rules
        self._reader = Reader(rules)
        self._gate = Gate(source, self._reader)
        self._before: dict[str, Document] = {}  # what was stored and can be read
        self._after: dict[str, Document] = {}  # what python-tuf trusts when it has worked
        self._answers: dict[str, TargetFile | None] = {}  # what it says about the paths
        self._unproven: dict[str, Unproven] = {}
        self._roots: dict[str, bytes] = {}  # the roots after the provisioned one, each signed by the one before
        self._proven: Proven | None = None

    def run(self) -> Verdict | Refusal:
        try:
            self._before = self._restore()
        except TrustError as fault:
            return Refusal(code=fault.code, message=str(fault), role=names.ROOT)
        self._after = dict(self._before)
        try:
            if not self._request.offline:
                self._update()
            return self._verdict()
        except _RoleFault as found:
            return self._refusal(found.fault, found.role)
        except LenskeepError as fault:
            return self._refusal(fault, self._asked())

    # --- before -----------------------------------------------------------------------------------------------------

    def _restore(self) -> dict[str, Document]:
        """Read what is stored; what cannot be read is as good as not stored.

        A newer root than the provisioned one counts only through the chain of roots between them: whoever could write
        into the registry cannot put a root of their own there.
        """
        stored = dict(self._reader.stored(self._request.stored))
        newest = self._reader.read(names.ROOT, self._request.bootstrap)
        require_signed(newest, newest)
        while (raw := self._request.stored.get(_root_file(newest.body.version + 1))) is not None:
            following = self._next_root(newest, raw)
            if following is None:
                break
            self._roots[_root_file(following.body.version)] = raw
            newest = following
        stored[names.ROOT] = newest
        return stored

    def _next_root(self, newest: Document, raw: bytes) -> Document | None:
        try:
            following = self._reader.read(names.ROOT, raw, ours=True)
        except TrustError:
            return None
        follows = following.body.version == newest.body.version + 1
        return following if follows and _signed_by(newest, following) and _signed_by(following, following) else None

    # --- python-tuf -------------------------------------------------------------------------------------------------

    def _update(self) -> None:
        """Let python-tuf find out what is current, and hold its answers against the clock and the past."""
        metadata = self._folder / names.METADATA
        with self._translated():
            metadata.mkdir(parents=True, exist_ok=True)
            for role, document in self._before.items():
                if role != names.ROOT:
                    (metadata / file_of(role)).write_bytes(document.raw)
            first = self._before[names.ROOT]
            try:
                updater = Updater(
                    str(metadata), f"{names.METADATA}/", fetcher=self._gate, config=LIMITS, bootstrap=first.raw
                )
                updater.refresh()
                for path in self._paths():
                    self._gate.document = None
                    with self._sparing(path), self._translated():
                        self._answers[path] = updater.get_targetinfo(path)
            finally:
                self._after = self._trusted_files(metadata)

    def _trusted_files(self, metadata: Path) -> dict[str, Document]:
        """Read what python-tuf trusts by now. What it does not touch is still as it was stored."""
        files = {path.name: path.read_bytes() for path in metadata.glob("*.json")}
        before = self._before[names.ROOT].body.version
        for path in (metadata / "root_history").glob("*.root.json"):
            if int(path.name.partition(".")[0]) > before:
                self._roots[_root_file(int(path.name.partition(".")[0]))] = path.read_bytes()
        return {names.ROOT: self._before[names.ROOT], **dict(self._reader.stored(files))}

    def _rotated(self, root: Document) -> bool:
        """Say whether a key was taken from `timestamp` or `snapshot`: then what they had said no longer binds.

        Source: TUF 5.3.11, recovery from a fast-forward attack.
        """
        before = self._before[names.ROOT]
        return any(not _signers(before, role) <= _signers(root, role) for role in (names.TIMESTAMP, names.SNAPSHOT))

    def _paths(self) -> list[str]:
        device = self._request.device
        return [*([names.device_path(device)] if device else []), *self._request.paths]

    @contextmanager
    def _sparing(self, path: str) -> Iterator[None]:
        """In a look that may end partly, let a publisher's role that is refused cost its own paths only."""
        try:
            yield
        except (_RoleFault, TrustError) as found:
            fault, role = (found.fault, found.role) if isinstance(found, _RoleFault) else (found, self._asked())
            if not isinstance(fault, TrustError) or isinstance(fault, SourceError) or not self._spared(path):
                raise
            self._unproven[path] = Unproven(path=path, role=role, code=fault.code, message=str(fault))

    def _spared(self, path: str) -> bool:
        return self._request.partly and path in self._request.paths

    def _asked(self) -> str:
        """Return the role that was asked for last."""
        return self._proven.asked if self._proven else self._gate.role

    # --- judging ----------------------------------------------------------------------------------------------------

    def _verdict(self) -> Verdict:
        proven = self._proven = Proven(self._after, again=self._request.offline, rules=self._rules)
        proven.top()
        found: dict[str, Listing | None] = {}
        for path in self._paths():
            with self._sparing(path):
                if path not in self._unproven:
                    found[path] = self._lists(proven, path)
        if not self._request.offline:
            self._require_current(proven, found)
            self._require_agreement(found)
        timestamp = proven[names.TIMESTAMP].body
        assert isinstance(timestamp, TimestampBody)
        assignment = self._assignment(found)
        return Verdict(
            roles=proven.views(), issued_s=timestamp.issued_s, stored=self._stored(proven, assignment),
            delegations=proven.delegations(),
            listings=[one for path in self._request.paths if (one := found.get(path)) is not None],
            unlisted=[path for path in self._request.paths if path in found and found[path] is None],
            unproven=list(self._unproven.values()), assignment=assignment,
        )  # fmt: skip

    def _lists(self, proven: Proven, path: str) -> Listing | None:
        try:
            return proven.lists(path)
        except RepositoryRulesError:
            for role in {proven.asked, self._bin()} & set(self._after) - set(names.TOP_ROLES):
                self._as_before(role)  # python-tuf has no such rule and has kept it
            raise

    def _require_current(self, proven: Proven, found: dict[str, Listing | None]) -> None:
        """Refuse what has expired by the time we were given, and what is older than what was stored."""
        now_s = max(self._request.now_s, _issued_s(proven))
        rotated = self._rotated(proven[names.ROOT])
        for role in proven.roles:
            fault = self._stale(proven, role, now_s, rotated=rotated)
            if fault is None:
                continue
            behind = [path for path in found if role in proven.ways[path]]
            if not all(self._spared(path) for path in behind) or role in names.TOP_ROLES:
                self._forget_from(role, proven)
                raise _RoleFault(fault, role)
            for path in behind:
                del found[path]
                self._unproven[path] = Unproven(path=path, role=role, code=fault.code, message=str(fault))
            self._as_before(role)
            proven.forget(role)

    def _stale(self, proven: Proven, role: str, now_s: float, *, rotated: bool) -> TrustError | None:
        document, before = proven[role], self._before.get(role)
        if document.expires_s <= now_s:
            return _expired(document)
        if before is None or rotated or document.body.version >= before.body.version:
            return None
        if not proven.speaks_for(before):  # a key of its own was exchanged, or what was stored is damaged
            return None
        return MetadataRollbackError(
            f"The repository shows {role} in version {document.body.version}; this device has already seen "
            f"{before.body.version}."
        )

    def _require_agreement(self, found: Mapping[str, Listing | None]) -> None:
        """Our walk through the delegations and python-tuf's must end at the same target."""
        for path, listing in found.items():
            answer = self._answers[path]
            ours = None if listing is None else (listing.length_bytes, listing.sha256)
            if ours != (None if answer is None else (answer.length, answer.hashes.get("sha256", ""))):
                raise TrustError(f"Two readings of the repository differ about {path}.")

    def _forget_from(self, role: str, proven: Proven) -> None:
        """Leave a role that is refused, and all that follows from it, as they were stored; a root stays."""
        for later in proven.roles[max(1, proven.roles.index(role)) :]:
            self._as_before(later)

    def _as_before(self, role: str) -> None:
        self._after.pop(role)
        if role in self._before:
            self._after[role] = self._before[role]

    def _assignment(self, found: Mapping[str, Listing | None]) -> bytes | None:
        """Return the bytes of this device's assignment: as stored when they are still the ones, else fetched."""
        path = names.device_path(self._request.device)
        listing = found.get(path) if self._request.device else None
        if listing is None:
            return None
        stored = self._request.stored.get(path)
        if stored is not None and _is_target(stored, listing):
            return stored
        if self._request.offline:
            return None
        if listing.length_bytes > ASSIGNMENT_BYTES_MAX:
            raise _RoleFault(
                MetadataTooLargeError(f"{path} is listed with {listing.length_bytes} bytes."), listing.role
            )
        data = self._source.read(names.target_file(path, listing.sha256), listing.length_bytes)
        if data is None:
            raise _RoleFault(MetadataMissingError(f"{path} is listed, but its file is not there."), listing.role)
        if not _is_target(data, listing):
            raise _RoleFault(MetadataMismatchError(f"{path} is not the file that {listing.role} lists."), listing.role)
        return data

    def _stored(self, proven: Proven, assignment: bytes | None) -> dict[str, bytes]:
        """Return what to keep: what is proved, and what is still spoken for but was not looked at this time."""
        keep_for = set(proven.roles)
        if not self._rotated(proven[names.ROOT]):
            keep_for |= {names.DIRECTOR, self._bin(), *(role.role for role in proven.delegations())}
        keep = {file_of(role): one.raw for role, one in self._after.items() if role in keep_for}
        keep |= self._roots
        return keep if assignment is None else keep | {names.device_path(self._request.device): assignment}

    def _bin(self) -> str:
        """Return the director's bin that would list this device."""
        return names.bin_of(names.device_path(self._request.device))

    def _refusal(self, fault: LenskeepError, role: str) -> Refusal:
        """Say what was refused, and hand back what was verified before it: all that is to be kept, or nothing new."""
        proven = Proven(self._after, again=True, rules=self._rules)
        with suppress(LenskeepError):  # the views end where the proofs end
            proven.top()
        root = self._after[names.ROOT]
        rotated = root is not self._before[names.ROOT] and self._rotated(root)
        keep = {
            file_of(role): document.raw
            for role, document in self._after.items()
            if not rotated or role == names.ROOT or document is not self._before.get(role)
        }
        new = any(self._request.stored.get(file) != raw for file, raw in keep.items())
        others = {file: raw for file, raw in self._request.stored.items() if "/" in file} | self._roots
        return Refusal(
            code=fault.code, message=f"{fault} What was trusted before stays so.", role=role,
            stored=keep | others if new and not self._request.offline else {}, roles=proven.views(),
        )  # fmt: skip

    # --- the seam ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise self._ours(error) from error
        except OSError as error:
            kind = StorageFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
            raise _RoleFault(kind(f"The metadata cannot be checked: {error.strerror}."), self._gate.role) from error
        except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
            # python-tuf lets these through on some malformed documents; the strict reading should leave it none
            fault = TrustError(f"{self._gate.role} cannot be judged: {type(error).__name__}.")
            raise _RoleFault(fault, self._gate.role) from error

    def _ours(self, error: Exception) -> _RoleFault:
        """Turn a fault of python-tuf into ours: the last file that was asked for is the one it is about."""
        role = self._gate.role
        document = self._gate.document
        fault: TrustError
        if isinstance(error, DeserializationError):
            fault = MetadataFormatError(f"{role} cannot be read as metadata.")
        elif isinstance(error, exceptions.UnsignedMetadataError):
            fault = MetadataSignatureError(f"{role} lacks valid signatures of enough of its keys.")
        elif isinstance(error, exceptions.ExpiredMetadataError):
            root = self._after[names.ROOT]
            if role == names.TIMESTAMP and root.expires_s <= self._request.now_s:
                role, document = names.ROOT, root
            fault = _expired(document) if document else MetadataExpiredError(f"{role} has expired.")
        elif isinstance(error, exceptions.BadVersionNumberError) and self._fell(role, document):
            fault = MetadataRollbackError(f"The repository shows an older {role} than this device has already seen.")
        elif isinstance(error, exceptions.DownloadError):
            fault = MetadataMissingError(f"{role} cannot be had: {error}.")
        else:
            role = role if document is not None else names.SNAPSHOT  # no file was asked for: the snapshot names none
            fault = MetadataMismatchError(f"{role} does not fit the repository's other files: {error}.")
        return _RoleFault(fault, role)

    def _fell(self, role: str, document: Document | None) -> bool:
        """Say whether a version is older than it was, rather than another one than a file of now names."""
        if role == names.TIMESTAMP:
            return True
        timestamp = self._after.get(names.TIMESTAMP)
        if role != names.SNAPSHOT or document is None or timestamp is None:
            return False
        assert isinstance(timestamp.body, TimestampBody)
        return timestamp.body.meta["snapshot.json"].version == document.body.version


def _root_file(version: int) -> str:
    """Return the name under which a root of the chain is stored."""
    return f"roots/{version}.root.json"


def _signers(root: Document, role: str) -> set[str]:
    assert isinstance(root.body, RootBody)
    return {root.keys[keyid].id for keyid in root.body.roles[role].keyids if keyid in root.keys}


def _signed_by(speaker: Document, document: Document) -> bool:
    try:
        require_signed(speaker, document)
    except TrustError:
        return False
    return True


def _issued_s(proven: Proven) -> float:
    """Return the signed time of the timestamp: it has passed, so what had ended by then has expired."""
    body = proven[names.TIMESTAMP].body
    assert isinstance(body, TimestampBody)
    return body.issued_s


def _expired(document: Document) -> MetadataExpiredError:
    return MetadataExpiredError(f"{document.role} was good until {document.body.expires}.")


def _is_target(data: bytes, listing: Listing) -> bool:
    return len(data) == listing.length_bytes and hashlib.sha256(data).hexdigest() == listing.sha256
