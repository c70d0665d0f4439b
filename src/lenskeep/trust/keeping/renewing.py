"""Renewing what is signed online on top of what is in place: the director's lists, snapshot, timestamp.

Rules. What online keys sign lists only what was verified here first. A snapshot goes on listing whatever the one before
listed, as the standard demands. Of the director's bins those are signed that changed, run out or lack signatures; one
that is as devices know it is not even read.
Source: TUF 1.0.34, 5.3.11 (snapshot and timestamp may begin anew after their keys have changed), 5.5.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tuf.api.metadata import MetaFile, Snapshot, Timestamp

from lenskeep.bundle.keys import Signer
from lenskeep.errors import MetadataFormatError
from lenskeep.trust.assignment import Assignment
from lenskeep.trust.keeping import bins, director, documents, releases, state
from lenskeep.trust.keeping.director import Lists
from lenskeep.trust.keeping.documents import Delegator, Document
from lenskeep.trust.keeping.settings import Settings
from lenskeep.trust.keeping.state import VERSION_LEAP_MAX, State, proven_by
from lenskeep.trust.keeping.workspace import Workspace
from lenskeep.trust.names import DIRECTOR, ISSUED_FIELD, METADATA, SNAPSHOT, TIMESTAMP, target_file


@dataclass(slots=True)
class Choice:
    """One way to put things in place, and what speaks against it."""

    root: Document
    targets: Document
    roles: dict[str, Document] = field(default_factory=dict)
    against: list[str] = field(default_factory=list)


def enough(delegator: Delegator, role: str, signers: Sequence[Signer]) -> bool:
    """Say whether the signers are enough to sign a role."""
    threshold, holders = documents.holders_of(delegator, role)
    return len({holder.id for holder in holders} & {signer.public.id for signer in signers}) >= threshold


class Renewal:
    """The online roles on top of what is in place."""

    def __init__(self, work: Workspace, before: State, choice: Choice, terms: Settings, now_s: float) -> None:
        self._work, self._before, self._choice, self._terms, self._now_s = work, before, choice, terms, now_s
        self.warnings: list[str] = []
        self._listing: dict[str, MetaFile] | None = None
        self._due_bins: list[str] | None = None
        self._signed_bins: dict[str, Document] = {}

    def able(self, signers: Sequence[Signer]) -> bool:
        """Say whether the signers are enough for snapshot, timestamp and, where it is due, the director."""
        director = not self._director_due() or enough(self._choice.targets.targets, DIRECTOR, signers)
        return director and all(enough(self._choice.root.root, role, signers) for role in (SNAPSHOT, TIMESTAMP))

    def behind(self) -> bool:
        """Say whether something is in place that the snapshot in force does not list."""
        return self._base() is None or self._meta() != self._base_meta()

    def renew(self, signers: Sequence[Signer], *, force: bool) -> tuple[str, ...]:
        """Sign what is due and return the roles that were signed."""
        done = []
        moved = self._moved(signers, force=force)
        if moved or self._director_due():
            self._sign_director(signers, moved)
            done.append(DIRECTOR)
        base = self._base()
        if force or base is None or self._meta() != self._base_meta() or self._due(base):
            snapshot = self._sign_snapshot(signers)
            done.append(SNAPSHOT)
        else:
            snapshot = base
        timestamp = self._before.timestamp
        if force or snapshot is not base or timestamp is None or self._due(timestamp):
            self._sign_timestamp(snapshot, signers)
            done.append(TIMESTAMP)
        return tuple(done)

    def _due(self, document: Document) -> bool:
        """A signature is renewed when less than two thirds of its life are left."""
        return self._ends_soon(document.role, document.expires_s)

    def _ends_soon(self, role: str, ends_s: float) -> bool:
        return ends_s - self._now_s < self._terms.life_s(role) * 2 / 3

    def _director_due(self) -> bool:
        if DIRECTOR not in state.delegations_of(self._choice.targets.targets):
            return False
        current = self._choice.roles.get(DIRECTOR)
        return current is None or self._due(current) or bool(self._bins_due())

    def _moved(self, signers: Sequence[Signer], *, force: bool) -> list[Assignment]:
        """Assignments of versions that their publisher has signed anew, when we may follow. Cost: see `_to_follow`."""
        if DIRECTOR not in self._choice.roles or not enough(self._choice.targets.targets, DIRECTOR, signers):
            return []
        if not force and not self._to_follow():
            return []
        before = self._before
        current = State(self._choice.root, self._choice.targets, self._choice.roles, before.snapshot, before.timestamp)
        return director.followed(self._work, current)

    def _to_follow(self) -> bool:
        """Say whether any assignment may have to follow; finding out which reads every device's.

        Whoever can publish can follow at once where the online keys are the director's too; so only a publisher's
        document that devices do not know yet, and that lists a version with another file than before, matters there.
        """
        roles = self._choice.roles
        behind = [role for role, one in roles.items() if self._before.published.get(role) != one.version]
        holders = {holder.id for holder in documents.holders_of(self._choice.targets.targets, DIRECTOR)[1]}
        if holders != {holder.id for holder in documents.holders_of(self._choice.root.root, SNAPSHOT)[1]}:
            return bool(behind) or any(not bins.as_published(self._work, self._before, one) for one in self._lists())
        return any(self._lists_anew(role) for role in behind if role != DIRECTOR)

    def _lists_anew(self, role: str) -> bool:
        """Say whether a publisher lists another file than before under a version that was released already."""
        now = self._choice.roles[role].targets.targets
        raw = self._work.read(f"{METADATA}/{self._before.published.get(role, 0)}.{role}.json")
        try:
            known = None if raw is None else documents.read(role, raw)
        except MetadataFormatError:
            known = None
        if known is None:
            return bool(now)
        gone = releases.withdrawn(State(None, roles={role: known}))
        listed = known.targets.targets
        return any(path in gone or (path in listed and listed[path].hashes != now[path].hashes) for path in now)

    def _lists(self) -> Sequence[str]:
        """The bins that list devices, when the director has handed its list on to them."""
        last = self._choice.roles.get(DIRECTOR) or self._before.roles.get(DIRECTOR)
        return bins.BINS if bins.shared(last) else ()

    def _bins_due(self) -> list[str]:
        """Return the bins that have to be signed anew: they run out, or their keys are not the director's any more."""
        if self._due_bins is None:
            self._due_bins = [role for role in self._lists() if self._bin_due(role)]
        return self._due_bins

    def _bin_due(self, role: str) -> bool:
        if self._ends_soon(DIRECTOR, bins.ends_s(self._work, self._before, role)):
            return True
        if DIRECTOR in self._choice.roles:  # with the keys that bins were judged by when they were read or published
            return False
        document = bins.load(self._work, self._before, role)
        return document is None or not proven_by(document, bins.judge(self._choice.targets.targets))

    def _sign_director(self, signers: Sequence[Signer], moved: Sequence[Assignment]) -> None:
        """Sign the director's own document and those of its bins that are due or have to list something else."""
        targets, own = self._choice.targets.targets, self._choice.roles.get(DIRECTOR)
        lists = Lists(self._work, self._before)
        for one in moved:
            lists.lay_out(one)
        for role in self._bins_due():
            lists.body(role)
        if own is None or self._due(own):
            body = lists.body(DIRECTOR)
            body.delegations = bins.delegations(targets) if self._lists() else None
        ends_s = self._now_s + self._terms.life_s(DIRECTOR)
        for document in lists.sign(targets, signers, ends_s, self._floor):
            if document.role == DIRECTOR:
                self._choice.roles[DIRECTOR] = document
            else:
                self._signed_bins[document.role] = document
        self._listing = None

    def _floor(self, role: str, last: Document | None) -> int:
        """Versions go on from the last one that counts; numbers that a stolen key used up do not count."""
        listed = self._before.published.get(role, 0) if self._base() is not None else 0
        own = last.version if last is not None else 0
        return max(version for version in (0, listed, own if own <= VERSION_LEAP_MAX else 0))

    def _base(self) -> Document | None:
        """The snapshot that devices may hold and that has to be continued."""
        snapshot = self._before.snapshot
        return snapshot if snapshot is not None and proven_by(snapshot, self._choice.root.root) else None

    def _base_meta(self) -> dict[str, MetaFile]:
        base = self._base()
        return {} if base is None else base.snapshot.meta

    def _meta(self) -> dict[str, MetaFile]:
        if self._listing is None:
            self._listing = self._list()
        return self._listing

    def _list(self) -> dict[str, MetaFile]:
        """Say what the snapshot has to list; what cannot be resolved stays as it was."""
        meta = dict(self._base_meta())
        for document in (self._choice.targets, *self._new_bins(), *self._choice.roles.values()):
            before = meta.get(f"{document.role}.json")
            if before is not None and before.version > document.version:
                continue
            missing = self._missing(document, meta)
            if missing is None or (before is not None and before.version == document.version):
                meta[f"{document.role}.json"] = documents.meta_of(document)
            if missing is not None:
                self._warn(f"{document.file} lists {missing}, which is not in the repository.")
        return meta

    def _new_bins(self) -> Iterator[Document]:
        """Return the bins that are not as the snapshot before lists them."""
        told = self._base_meta()
        for role in bins.listers(self._choice.roles.get(DIRECTOR)):
            if role == DIRECTOR:
                continue
            document = self._signed_bins.get(role)
            if document is None and (
                f"{role}.json" not in told or not bins.as_published(self._work, self._before, role)
            ):
                document = bins.load(self._work, self._before, role)
            if document is not None:
                yield document

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _missing(self, document: Document, meta: dict[str, MetaFile]) -> str | None:
        """Return the first target whose file is not there in its length, or the first bin that is not to be listed."""
        if document.role == DIRECTOR and bins.shared(document):
            return next((role for role in bins.BINS if f"{role}.json" not in meta), None)
        for path, target in document.targets.targets.items():
            if self._work.size_of(target_file(path, target.hashes.get("sha256", "?"))) != target.length:
                return path
        return None

    def _signers_too(self, document: Document, signers: Sequence[Signer]) -> Document:
        """Sign by the root that comes and the one that goes, so that devices on either side of it are content."""
        roots = [self._choice.root.root, *([self._before.root.root] if self._before.root else [])]
        return documents.sign(
            document, signers, [holder for root in roots for holder in documents.holders_of(root, document.role)[1]]
        )

    def _sign_snapshot(self, signers: Sequence[Signer]) -> Document:
        last = self._before.snapshot
        floor = last.version if last is not None and last.version <= VERSION_LEAP_MAX else 0
        base = self._base()
        body = Snapshot(
            version=state.next_version(self._work, SNAPSHOT, base.version if base is not None else floor),
            expires=documents.moment(self._now_s + self._terms.life_s(SNAPSHOT)),
            meta=self._meta(),
        )
        document = self._signers_too(documents.write(SNAPSHOT, body), signers)
        self._work.put(f"{METADATA}/{document.file}", document.raw)
        return document

    def _sign_timestamp(self, snapshot: Document, signers: Sequence[Signer]) -> None:
        last = self._before.timestamp
        goes_on = last is not None and (last.version <= VERSION_LEAP_MAX or proven_by(last, self._choice.root.root))
        body = Timestamp(
            version=last.version + 1 if last is not None and goes_on else 1,
            expires=documents.moment(self._now_s + self._terms.life_s(TIMESTAMP)),
            snapshot_meta=documents.meta_of(snapshot),
            unrecognized_fields={ISSUED_FIELD: int(self._now_s)},
        )
        document = self._signers_too(documents.write(TIMESTAMP, body), signers)
        self._work.put(f"{METADATA}/{document.file}", document.raw)
        old = self._before.root
        self._work.timestamp_first = old is not None and all(
            proven_by(one, old.root) for one in (document, snapshot, self._choice.targets)
        )
