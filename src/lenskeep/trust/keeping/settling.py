"""Putting signed proposals in their place, and renewing what is signed online.

Rules. Roots, targets and roles are put in place together or not at all: nothing that is in force loses its signatures,
unless a revocation is urgent. What online keys sign (director, snapshot, timestamp) lists only what was verified here
first. A snapshot goes on listing whatever the one before listed, as the standard demands.
Source: TUF 1.0.34, 5.3.11 (snapshot and timestamp may begin anew after their keys have changed), 5.5.5, 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tuf.api.metadata import DelegatedRole, MetaFile, Snapshot, Targets, Timestamp

from lenskeep.bundle.keys import Signer
from lenskeep.trust.assignment import Assignment
from lenskeep.trust.keeping import director, documents, proposals, scopes, settings, state
from lenskeep.trust.keeping.documents import Document
from lenskeep.trust.keeping.proposals import Proposal
from lenskeep.trust.keeping.settings import Settings
from lenskeep.trust.keeping.state import VERSION_LEAP_MAX, State, proven_by
from lenskeep.trust.keeping.workspace import Workspace
from lenskeep.trust.names import DIRECTOR, ISSUED_FIELD, METADATA, ROOT, SNAPSHOT, TIMESTAMP, TOP_TARGETS, target_file


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of the proposals."""

    placed: tuple[str, ...] = ()  # roles whose proposal is in force now
    waiting: tuple[str, ...] = ()  # sentences: what keeps the others
    renewed: tuple[str, ...] = ()  # online roles that were signed anew
    warnings: tuple[str, ...] = ()
    refresh_needed: bool = False  # something is in place that devices see after the next refresh


@dataclass(slots=True)
class _Choice:
    """One way to put things in place, and what speaks against it."""

    root: Document
    targets: Document
    roles: dict[str, Document] = field(default_factory=dict)
    against: list[str] = field(default_factory=list)


def settle(work: Workspace, signers: Sequence[Signer], now_s: float, *, force: bool = False) -> Settled:
    """Put in place what is fully signed and renew the online roles, as far as the signers can.

    Args:
        force: renew snapshot and timestamp even if they are good for long.
    """
    before = state.load(work)
    waiting = proposals.load_all(work)
    _forget_stale(work, before, waiting)
    choice, against = _choose(before, waiting, signers)
    if choice is None:
        return Settled(waiting=tuple(against))
    placed = _place(work, waiting, choice)
    renewal = _Renewal(work, before, choice, settings.load(work), now_s)
    able = renewal.able(signers)
    renewed = renewal.renew(signers, force=force) if able else ()
    return Settled(placed, tuple(against), renewed, tuple(renewal.warnings), not able and renewal.behind())


def _forget_stale(work: Workspace, before: State, waiting: dict[str, Proposal]) -> None:
    """Drop proposals that are in force already: the last run was interrupted before it could."""
    for role in list(waiting):
        current = before.document(role)
        if current is not None and current.digest == waiting[role].document.digest:
            proposals.drop(work, role)
            del waiting[role]


def _choose(before: State, waiting: dict[str, Proposal], signers: Sequence[Signer]) -> tuple[_Choice | None, list[str]]:
    """Take the way that puts most in place; say what speaks against the ways that would put more."""
    objections: list[str] = []
    for root in _options(before.root, waiting.get(ROOT)):
        for targets in _options(before.targets, waiting.get(TOP_TARGETS)):
            choice = _weigh(before, waiting, root, targets, signers)
            if not choice.against:
                return choice, list(dict.fromkeys(objections))
            objections += choice.against
    return None, list(dict.fromkeys(objections))


def _options(current: Document | None, proposal: Proposal | None) -> list[Document]:
    proposed = [] if proposal is None else [proposal.document]
    return proposed if current is None else [*proposed, current]


def _weigh(
    before: State, waiting: dict[str, Proposal], root: Document, targets: Document, signers: Sequence[Signer]
) -> _Choice:
    choice = _Choice(root, targets)
    judges = [root] if before.root is None else [before.root, root]
    if not all(proven_by(root, judge.root) for judge in judges):
        choice.against.append("The proposed root lacks signatures.")
    for top in (root, targets):
        if top is not before.document(top.role):
            choice.against += scopes.objections(top.role, top.metadata.signed)
    if not proven_by(targets, root.root):
        choice.against.append("The role targets lacks signatures.")
    if _online_keys(before.root, SNAPSHOT) != _online_keys(root, SNAPSHOT) and before.timestamp is not None:
        lacking = [role for role in (SNAPSHOT, TIMESTAMP) if not _enough(root, role, signers)]
        choice.against += [
            f"The new root waits for the new online key ({role}): lenskeep trust refresh." for role in lacking
        ]
    urgent = any(waiting[role].urgent for role in (ROOT, TOP_TARGETS) if role in waiting)
    for name, delegation in state.delegations_of(targets.targets).items():
        document, lacks = _role_document(before, waiting, targets, delegation)
        if document is not None:
            choice.roles[name] = document
        elif lacks and not urgent and not (name == DIRECTOR and _enough_delegated(targets, name, signers)):
            choice.against.append(f"The role {name} has to be signed by its new keys first.")
    return choice


def _role_document(
    before: State, waiting: dict[str, Proposal], targets: Document, delegation: DelegatedRole
) -> tuple[Document | None, bool]:
    """Return a role's document that is good under `targets`, and whether it had one and would lose it."""
    name = delegation.name
    current = before.roles.get(name)
    options = _options(current, waiting.get(name))
    good = [one for one in options if proven_by(one, targets.targets) and scopes.in_scope(one.targets, delegation)]
    return (good[0], False) if good else (None, current is not None)


def _online_keys(root: Document | None, role: str) -> set[str]:
    return set() if root is None else {holder.id for holder in documents.holders_of(root.root, role)[1]}


def _enough(root: Document, role: str, signers: Sequence[Signer]) -> bool:
    threshold, holders = documents.holders_of(root.root, role)
    return len({holder.id for holder in holders} & {signer.public.id for signer in signers}) >= threshold


def _enough_delegated(targets: Document, role: str, signers: Sequence[Signer]) -> bool:
    threshold, holders = documents.holders_of(targets.targets, role)
    return len({holder.id for holder in holders} & {signer.public.id for signer in signers}) >= threshold


def _place(work: Workspace, waiting: dict[str, Proposal], choice: _Choice) -> tuple[str, ...]:
    placed = []
    for document in (choice.root, choice.targets, *choice.roles.values()):
        proposal = waiting.get(document.role)
        if proposal is not None and proposal.document is document:
            work.put(f"{METADATA}/{document.file}", document.raw)
            proposals.drop(work, document.role)
            placed.append(document.role)
    for role in set(waiting) - {ROOT, TOP_TARGETS, DIRECTOR} - set(state.delegations_of(choice.targets.targets)):
        if TOP_TARGETS not in waiting or choice.targets is waiting[TOP_TARGETS].document:
            proposals.drop(work, role)  # its role was taken out
    return tuple(placed)


class _Renewal:
    """The online roles on top of what is in place."""

    def __init__(self, work: Workspace, before: State, choice: _Choice, terms: Settings, now_s: float) -> None:
        self._work, self._before, self._choice, self._terms, self._now_s = work, before, choice, terms, now_s
        self.warnings: list[str] = []
        self._listing: dict[str, MetaFile] | None = None

    def able(self, signers: Sequence[Signer]) -> bool:
        """Say whether the signers are enough for snapshot, timestamp and, where it is due, the director."""
        director = not self._director_due() or _enough_delegated(self._choice.targets, DIRECTOR, signers)
        return director and all(_enough(self._choice.root, role, signers) for role in (SNAPSHOT, TIMESTAMP))

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
        return document.expires_s - self._now_s < self._terms.life_s(document.role) * 2 / 3

    def _director_due(self) -> bool:
        if DIRECTOR not in state.delegations_of(self._choice.targets.targets):
            return False
        current = self._choice.roles.get(DIRECTOR)
        return current is None or self._due(current)

    def _moved(self, signers: Sequence[Signer], *, force: bool) -> list[Assignment]:
        """Assignments of versions that their publisher has signed anew, when we may follow."""
        if DIRECTOR not in self._choice.roles or not _enough_delegated(self._choice.targets, DIRECTOR, signers):
            return []
        published = self._before.published
        if not force and all(published.get(role) == one.version for role, one in self._choice.roles.items()):
            return []
        return director.followed(self._work, State(self._choice.root, self._choice.targets, self._choice.roles))

    def _sign_director(self, signers: Sequence[Signer], moved: Sequence[Assignment]) -> None:
        last = self._choice.roles.get(DIRECTOR) or self._before.roles.get(DIRECTOR)
        body: Targets = Targets() if last is None else documents.body_of(last)
        for one in moved:
            director.lay_out(self._work, body, one)
        body.version = state.next_version(self._work, DIRECTOR, self._floor(DIRECTOR, last))
        body.expires = documents.moment(self._now_s + self._terms.life_s(DIRECTOR))
        holders = documents.holders_of(self._choice.targets.targets, DIRECTOR)[1]
        document = documents.sign(documents.write(DIRECTOR, body), signers, holders)
        self._work.put(f"{METADATA}/{document.file}", document.raw)
        self._choice.roles[DIRECTOR] = document
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
        for document in (self._choice.targets, *self._choice.roles.values()):
            before = meta.get(f"{document.role}.json")
            if before is not None and before.version > document.version:
                continue
            missing = self._missing(document)
            if missing is None or (before is not None and before.version == document.version):
                meta[f"{document.role}.json"] = documents.meta_of(document)
            if missing is not None:
                self._warn(f"{document.file} lists {missing}, which is not in the repository.")
        return meta

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _missing(self, document: Document) -> str | None:
        """Return the first target whose file is not there in its length."""
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
