"""What is in force in a repository, found from its signatures alone.

Rules. The chain of roots is followed from the first one; of every other role the newest file counts that enough of the
role's keys have signed. A version that leaps far ahead of what was published is not taken: a stolen key would use up
the numbers that way.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tuf.api.metadata import DelegatedRole, Targets

from lenskeep.errors import MetadataFormatError, RepositoryDamagedError, RepositoryFolderError
from lenskeep.trust.keeping import documents
from lenskeep.trust.keeping.documents import Delegator, Document
from lenskeep.trust.keeping.workspace import Workspace
from lenskeep.trust.names import METADATA, ROOT, SNAPSHOT, TIMESTAMP, TOP_TARGETS

VERSION_LEAP_MAX = 1_000_000
_TRIES_MAX = 64  # files of one role that are looked at, so that a folder full of strangers' files costs little


@dataclass(frozen=True, slots=True)
class State:
    """The documents in force; a role that has none yet is None or not there."""

    root: Document | None
    targets: Document | None = None
    roles: dict[str, Document] = field(default_factory=dict)  # delegated, the director among them
    snapshot: Document | None = None
    timestamp: Document | None = None

    @property
    def delegations(self) -> dict[str, DelegatedRole]:
        """The delegated roles in their order."""
        return delegations_of(None if self.targets is None else self.targets.targets)

    @property
    def published(self) -> dict[str, int]:
        """Versions by role as the snapshot in force lists them."""
        if self.snapshot is None:
            return {}
        return {name.removesuffix(".json"): meta.version for name, meta in self.snapshot.snapshot.meta.items()}

    def document(self, role: str) -> Document | None:
        """Return a role's document in force."""
        top = {ROOT: self.root, TOP_TARGETS: self.targets, SNAPSHOT: self.snapshot, TIMESTAMP: self.timestamp}
        return top[role] if role in top else self.roles.get(role)


def delegations_of(targets: Targets | None) -> dict[str, DelegatedRole]:
    """Return the roles that a `targets` delegates to, in their order."""
    if targets is None or targets.delegations is None:
        return {}
    return dict(targets.delegations.roles or {})


def load(work: Workspace) -> State:
    """Read what is in force. Raises: RepositoryDamagedError."""
    root = _root(work)
    if root is None:
        return State(None)
    timestamp = _proven(work, TIMESTAMP, f"{METADATA}/{TIMESTAMP}.json", root.root)
    snapshot = _snapshot(work, root, timestamp)
    published = State(root, snapshot=snapshot).published
    targets = newest(work, TOP_TARGETS, root.root, published.get(TOP_TARGETS, 0))
    roles: dict[str, Document] = {}
    for name in delegations_of(None if targets is None else targets.targets):
        assert targets is not None
        found = newest(work, name, targets.targets, published.get(name, 0))
        if found is not None:
            roles[name] = found
    return State(root, targets, roles, snapshot, timestamp)


def require(work: Workspace) -> State:
    """Read what is in force in a repository that must have begun. Raises: RepositoryFolderError."""
    state = load(work)
    if state.root is None and not work.pending():
        raise RepositoryFolderError(f"{work.folder} is no repository: it has no root.")
    return state


def newest(work: Workspace, role: str, delegator: Delegator, published: int) -> Document | None:
    """Return a role's newest document that its keys have signed, or None."""
    tried = 0
    for version in work.versions(role):
        if version > published + VERSION_LEAP_MAX:
            continue
        if tried == _TRIES_MAX:
            break
        tried += 1
        found = _proven(work, role, f"{METADATA}/{version}.{role}.json", delegator)
        if found is not None and found.version == version:
            return found
    return None


def next_version(work: Workspace, role: str, floor: int) -> int:
    """Return the first number above `floor` under which no file of the role lies."""
    taken, version = set(work.versions(role)), floor + 1
    while version in taken:
        version += 1
    return version


def proven_by(document: Document, delegator: Delegator) -> bool:
    """Say whether enough different keys of its role have signed a document."""
    try:
        return documents.tally(document, delegator).met
    except ValueError:  # the delegator does not know the role
        return False


def _root(work: Workspace) -> Document | None:
    current: Document | None = None
    for version in reversed(work.versions(ROOT)):
        expected = 1 if current is None else current.version + 1
        if version != expected:
            break
        raw = work.read(f"{METADATA}/{version}.{ROOT}.json")
        assert raw is not None, version
        after = documents.read(ROOT, raw)
        judges = [after] if current is None else [current, after]
        if after.version != version or not all(proven_by(after, judge.root) for judge in judges):
            raise RepositoryDamagedError(f"{version}.root.json is not signed as a root has to be.")
        current = after
    return current


def _proven(work: Workspace, role: str, name: str, delegator: Delegator) -> Document | None:
    raw = work.read(name)
    if raw is None:
        return None
    try:
        document = documents.read(role, raw)
    except MetadataFormatError:
        return None
    return document if proven_by(document, delegator) else None


def _snapshot(work: Workspace, root: Document, timestamp: Document | None) -> Document | None:
    """Return the snapshot that the timestamp in force names, byte for byte."""
    if timestamp is None:
        return None
    meta = timestamp.timestamp.snapshot_meta
    found = _proven(work, SNAPSHOT, f"{METADATA}/{meta.version}.{SNAPSHOT}.json", root.root)
    if found is None or found.version != meta.version:
        return None
    wanted = (meta.hashes or {}).get("sha256")
    return found if wanted in (None, hashlib.sha256(found.raw).hexdigest()) else None
