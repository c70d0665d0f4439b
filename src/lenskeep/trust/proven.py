"""What is proved about a repository: documents that belong together, and what they say about a path.

Rules. A document is asked for by its role and the role that speaks for it. It is either taken as python-tuf has just
proved it, or proved here again from what was stored: signatures of enough keys, and version, length and digest as the
snapshot says. Nothing here is fetched, and nothing expires here: that is judged by whoever looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from msgspec import UNSET
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import DelegatedRole as Patterns
from tuf.api.metadata import Metadata, MetaFile, Root, Targets

from lenskeep.errors import (
    MetadataMismatchError,
    MetadataMissingError,
    MetadataSignatureError,
    RepositoryRulesError,
    TrustError,
)
from lenskeep.messages.trust import Delegation, Listing, RoleView
from lenskeep.trust import names
from lenskeep.trust.strict import (
    DelegatedRole,
    Document,
    FileFacts,
    Role,
    RootBody,
    Rules,
    SnapshotBody,
    TargetFacts,
    TargetsBody,
    TimestampBody,
)

DELEGATIONS_MAX = 32


class Proven:
    """The documents that are proved, growing as they are asked for.

    Args:
        documents: what is stored, by role; `root` must be among them.
        again: prove signatures and the snapshot's word here; False: python-tuf has just done so.
    """

    def __init__(self, documents: Mapping[str, Document], *, again: bool, rules: Rules = Rules.HOUSE) -> None:
        self._documents = documents
        self._again = again
        self._rules = rules
        self.asked = names.ROOT  # the role that was asked for last
        self.ways: dict[str, set[str]] = {}  # path -> the roles on the way to it
        self._speakers: dict[str, tuple[str, Role, Document]] = {}  # role -> who speaks for it, as what, and itself

    def __contains__(self, role: str) -> bool:
        return role in self._speakers

    def __getitem__(self, role: str) -> Document:
        return self._speakers[role][2]

    @property
    def roles(self) -> list[str]:
        """The proved roles, in the order in which they were proved."""
        return list(self._speakers)

    def top(self) -> None:
        """Prove root, timestamp, snapshot and targets, in this order. Raises: TrustError; what came before stays."""
        for role in (names.ROOT, names.TIMESTAMP, names.SNAPSHOT, names.TOP_TARGETS):
            self._take(role, names.ROOT)

    def lists(self, path: str) -> Listing | None:
        """Return how a path is listed, or None when nobody lists it, by the standard's walk through the delegations.

        Raises: TrustError when a role on the way is not proved.
        """
        waiting, visited = [(names.TOP_TARGETS, names.ROOT)], self.ways.setdefault(path, set())
        while waiting:
            role, speaker = waiting.pop()
            if role in visited:
                continue
            if len(visited) > DELEGATIONS_MAX:
                raise RepositoryRulesError(f"More than {DELEGATIONS_MAX} roles speak about {path}.")
            visited.add(role)
            body = cast(TargetsBody, self._take(role, speaker).body)
            if path in body.targets:
                return self._listing(path, role, body.targets[path])
            bins = body.bins()
            if bins is not None:
                self._require_own(role, bins)
                waiting = [(bins.role_for(path).name, role)]
                continue
            inner: list[tuple[str, str]] = []
            for delegated in body.delegated():
                if _covers(delegated, path):
                    inner.append((delegated.name, role))
                    if delegated.terminating:
                        waiting = []
                        break
            waiting.extend(reversed(inner))
        return None

    def speaks_for(self, before: Document) -> bool:
        """Say whether a document of earlier has valid signatures of a proved role as it is now."""
        speaker = self[self._speakers[before.role][0]]
        try:
            require_signed(speaker, before)
        except TrustError:
            return False
        return True

    def forget(self, role: str) -> None:
        """Leave a role out that turned out to be no good."""
        del self._speakers[role]

    def views(self) -> list[RoleView]:
        """Return the proved roles as they are trusted now."""
        return [self._view(role) for role in self._speakers]

    def delegations(self) -> list[Delegation]:
        """Return the publisher roles that targets speaks for, in order."""
        targets = self[names.TOP_TARGETS]
        return [
            Delegation(
                role=role.name, paths=_paths(role), keys=_pems(role, targets), threshold=role.threshold,
                terminating=role.terminating,
            )
            for role in cast(TargetsBody, targets.body).delegated()
            if role.name != names.DIRECTOR
        ]  # fmt: skip

    # --- proofs -----------------------------------------------------------------------------------------------------

    def _take(self, role: str, speaker: str) -> Document:
        self.asked = role
        known = self._speakers.get(role)
        if known is not None and known[0] == speaker:
            return known[2]
        document = self._documents.get(role)
        if document is None:
            raise MetadataMissingError(f"{role} is not known here; it has to be synced first.")
        trusted = document if role == names.ROOT else self[speaker]
        if self._again:
            require_signed(trusted, document)
            self._require_named(document)
        self._speakers[role] = (speaker, _role_of(trusted, role), document)
        return document

    def _require_named(self, document: Document) -> None:
        """Hold a document against what the document before it says about it."""
        if document.role in (names.ROOT, names.TIMESTAMP):
            return
        by = names.TIMESTAMP if document.role == names.SNAPSHOT else names.SNAPSHOT
        facts = cast(TimestampBody | SnapshotBody, self[by].body).meta.get(document.file)
        if facts is None:
            raise MetadataMismatchError(f"{by} does not name {document.role}.")
        if facts.version != document.body.version:
            raise MetadataMismatchError(
                f"{by} names version {facts.version} of {document.role}; version {document.body.version} is known here."
            )
        try:
            _meta_file(facts).verify_length_and_hashes(document.raw)
        except LengthOrHashMismatchError as error:
            raise MetadataMismatchError(f"{document.role} is not the file that {by} names.") from error

    def _require_own(self, role: str, bins: Role) -> None:
        """Require that bins are signed by just the keys of the director: it cannot hand its list on to anybody else."""
        if role != names.DIRECTOR or self._rules is not Rules.HOUSE:
            return
        speaker, signers, document = self._speakers[role]
        if _key_ids(bins, document) != _key_ids(signers, self[speaker]) or bins.threshold != signers.threshold:
            raise RepositoryRulesError("The director hands its list on to other keys than its own.")

    # --- words ------------------------------------------------------------------------------------------------------

    def _listing(self, path: str, role: str, facts: TargetFacts) -> Listing:
        speaker, signers, _ = self._speakers[role]
        chain = {names.ROOT, names.TIMESTAMP, names.SNAPSHOT, names.TOP_TARGETS, speaker, role}
        return Listing(
            path=path, role=role, length_bytes=facts.length, sha256=facts.hashes.get("sha256", ""),
            keys=_pems(signers, self[speaker]),
            expires_s=min(self[one].expires_s for one in chain),
        )  # fmt: skip

    def _view(self, name: str) -> RoleView:
        speaker, role, document = self._speakers[name]
        keys = self[speaker].keys
        return RoleView(
            name=name, version=document.body.version, expires_s=document.expires_s, threshold=role.threshold,
            keys=[keys[one].id for one in role.keyids if one in keys],
            paths=_paths(role) if isinstance(role, DelegatedRole) else [],
        )  # fmt: skip


def require_signed(speaker: Document, document: Document) -> None:
    """Require valid signatures of enough keys of a role. Raises: MetadataSignatureError, TrustError.

    Cost: 0.2 ms for each signature and 10 ms for 500 targets.
    """
    try:
        by = cast("Root | Targets", Metadata.from_bytes(speaker.raw).signed)
        signed: Metadata[Targets] = Metadata.from_bytes(document.raw)
        by.verify_delegate(document.role, signed.signed_bytes, signed.signatures)
    except UnsignedMetadataError as error:
        raise MetadataSignatureError(f"{document.role} lacks valid signatures of enough of its keys.") from error
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"{document.role} cannot be proved: {error}") from error


def _role_of(speaker: Document, role: str) -> Role:
    if isinstance(speaker.body, RootBody):
        return speaker.body.roles[role]
    body = cast(TargetsBody, speaker.body)
    bins = body.bins()
    return next(each for each in body.delegated() if each.name == role) if bins is None else bins.role(role)


def _key_ids(role: Role, speaker: Document) -> set[str]:
    return {speaker.keys[keyid].id for keyid in role.keyids if keyid in speaker.keys}


def _pems(role: Role, speaker: Document) -> list[str]:
    return [speaker.keys[keyid].pem for keyid in role.keyids if keyid in speaker.keys]


def _paths(role: DelegatedRole) -> list[str]:
    return [] if role.paths is UNSET else role.paths


def _covers(role: DelegatedRole, path: str) -> bool:
    prefixes = None if role.path_hash_prefixes is UNSET else role.path_hash_prefixes
    paths = None if role.paths is UNSET else role.paths
    return Patterns(role.name, [], 1, role.terminating, paths, prefixes).is_delegated_path(path)


def _meta_file(facts: FileFacts) -> MetaFile:
    length = None if facts.length is UNSET else facts.length
    hashes = None if facts.hashes is UNSET else facts.hashes
    return MetaFile(facts.version, length, hashes)
