"""Who may sign what: the first root, publishers, new keys for old ones, keys and publishers taken out.

Rules. Each function proposes new documents and signs them with the keys at hand; `settling` puts in place what is
complete. A role keeps at least as many keys as its threshold. An online key is never one of root or targets. Publishers
sign `models/PATTERN/*` and nothing else, and no two publishers share a model's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuf.api.metadata import DelegatedRole, Delegations, Role, Root, Targets

from lenskeep.bundle.keys import PublicKey, Signer, admit
from lenskeep.errors import DelegationError, RepositoryFolderError, RequestError, UnknownNameError
from lenskeep.trust.keeping import documents, proposals, scopes, settings, state
from lenskeep.trust.keeping.documents import Body, Delegator, Document, Holder
from lenskeep.trust.keeping.scopes import ONLINE
from lenskeep.trust.keeping.settings import Settings
from lenskeep.trust.keeping.state import State
from lenskeep.trust.keeping.workspace import SETTINGS, Workspace
from lenskeep.trust.names import (
    DIRECTOR,
    DIRECTOR_PATHS,
    ONLINE_ROLES,
    ROOT,
    SNAPSHOT,
    TIMESTAMP,
    TOP_ROLES,
    TOP_TARGETS,
)

PUBLISHERS_MAX = 30  # the standard's client follows 32 delegated roles


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A public key and the name of whoever holds it."""

    name: str
    public: PublicKey


def begin(
    work: Workspace, *, root: Sequence[NamedKey], threshold: int, targets: Sequence[NamedKey], targets_threshold: int,
    online: Sequence[NamedKey], director: Sequence[NamedKey] = (), signers: Sequence[Signer], now_s: float,
    terms: Settings | None = None,
) -> None:  # fmt: skip
    """Propose the first root and the first targets of a new repository.

    Raises: RepositoryFolderError when there is one already, DelegationError.
    """
    if state.load(work).root is not None:
        raise RepositoryFolderError(f"{work.folder} is a repository already. Nothing was changed.")
    terms = terms or Settings()
    first = Root(expires=documents.moment(now_s + terms.life_s(ROOT)), consistent_snapshot=True)
    for role, keys, needed in ((ROOT, root, threshold), (TOP_TARGETS, targets, targets_threshold)):
        _entrust(first, role, keys, needed)
    for role in (SNAPSHOT, TIMESTAMP):
        _entrust(first, role, online, 1)
    top = Targets(expires=documents.moment(now_s + terms.life_s(TOP_TARGETS)), delegations=Delegations({}, {}))
    _delegate(top, DelegatedRole(DIRECTOR, [], 1, True, paths=list(DIRECTOR_PATHS)), director or online)
    _check_apart(first, top)
    work.put(SETTINGS, settings.text(terms))
    proposals.propose(work, ROOT, first, signers, why="the first root")
    proposals.propose(work, TOP_TARGETS, top, signers, why="the first targets")


def add_publisher(
    work: Workspace, role: str, keys: Sequence[NamedKey], threshold: int, patterns: Sequence[str],
    signers: Sequence[Signer], now_s: float,
) -> None:  # fmt: skip
    """Propose a publisher: a role that may sign the models whose names match its patterns. Raises: DelegationError."""
    targets = _latest(work, TOP_TARGETS, now_s).targets()
    known = state.delegations_of(targets)
    scopes.check_role_name(role, known)
    if not patterns:
        raise DelegationError(f"{role} needs the names of the models that it may sign: --for 'cap-*'.")
    for pattern in patterns:
        scopes.check_pattern(pattern, known)
    paths = [f"models/{pattern}/*" for pattern in patterns]
    _delegate(targets, DelegatedRole(role, [], threshold, True, paths=paths), keys)
    _check_apart(_latest(work, ROOT, now_s).root(), targets)
    proposals.propose(work, TOP_TARGETS, targets, signers, why=f"adds the publisher {role}")


def rotate(
    work: Workspace, role: str, add: Sequence[NamedKey], remove: Sequence[str], signers: Sequence[Signer],
    now_s: float, *, threshold: int | None = None,
) -> None:  # fmt: skip
    """Propose other keys for a role. What the role signed is proposed anew where its signatures would not do any more.

    Args:
        role: a role, or `online` for director, snapshot and timestamp together.
        remove: ids (or their beginnings) or names of keys.
    """
    roles = set(ONLINE_ROLES) if role == ONLINE else {role}
    known = {*TOP_ROLES, *state.delegations_of(_latest(work, TOP_TARGETS, now_s).targets())}
    if not roles <= known:
        raise UnknownNameError(f"There is no role {role}; there are {', '.join(sorted(known))}.")
    _exchange(work, roles, add, remove, threshold, signers, now_s, urgent=False, why=f"new keys for {role}")


def revoke_key(
    work: Workspace, key: str, add: Sequence[NamedKey], signers: Sequence[Signer], now_s: float, *, reason: str = ""
) -> list[str]:
    """Propose, as urgent, to take a key out of every role; `add` takes its place. Returns the roles it was in."""
    current = state.require(work)
    proposed = _everybody(_latest(work, ROOT, now_s).root(), _latest(work, TOP_TARGETS, now_s).targets())
    in_force = (
        []
        if current.root is None or current.targets is None
        else _everybody(current.root.root, current.targets.targets)
    )
    roles = {role for role, holder in (*proposed, *in_force) if _is(holder, key)}
    if not roles:
        raise UnknownNameError(f"No role has a key {key!r}.")
    why = f"takes out the key {key}" + (f": {reason}" if reason else "")
    _exchange(work, roles, add, [key], None, signers, now_s, urgent=True, why=why)
    return sorted(roles)


def revoke_publisher(work: Workspace, role: str, signers: Sequence[Signer], now_s: float, *, reason: str = "") -> None:
    """Propose, as urgent, to take a publisher out: nothing of it can be installed then. Raises: UnknownNameError."""
    targets = _latest(work, TOP_TARGETS, now_s).targets()
    if role == DIRECTOR or role not in state.delegations_of(targets):
        raise UnknownNameError(f"There is no publisher {role}.")
    assert targets.delegations is not None and targets.delegations.roles is not None
    for tuf_id in list(targets.delegations.roles[role].keyids):
        targets.revoke_key(tuf_id, role)
    del targets.delegations.roles[role]
    why = f"takes out the publisher {role}" + (f": {reason}" if reason else "")
    proposals.propose(work, TOP_TARGETS, targets, signers, urgent=True, why=why)


def renew(work: Workspace, role: str, signers: Sequence[Signer], now_s: float) -> None:
    """Propose what a role says once more, for another term. Raises: RequestError for a role that is signed online."""
    if role in ONLINE_ROLES:
        raise RequestError(f"{role} is signed online: lenskeep trust refresh.")
    proposals.propose(work, role, latest(work, role, now_s), signers, why="renewed for another term")


def _exchange(
    work: Workspace, roles: set[str], add: Sequence[NamedKey], remove: Sequence[str], threshold: int | None,
    signers: Sequence[Signer], now_s: float, *, urgent: bool, why: str,
) -> None:  # fmt: skip
    root, targets = _latest(work, ROOT, now_s).root(), _latest(work, TOP_TARGETS, now_s).targets()
    unknown = set(remove)
    for role in sorted(roles):
        unknown &= _exchange_in(root if role in TOP_ROLES else targets, role, add, remove, threshold, again=urgent)
    if unknown and not urgent:
        raise UnknownNameError(f"No key {', '.join(sorted(unknown))} in {', '.join(sorted(roles))}.")
    _check_apart(root, targets)
    if roles & set(TOP_ROLES):
        proposals.propose(work, ROOT, root, signers, urgent=urgent, why=why)
    if roles - set(TOP_ROLES):
        proposals.propose(work, TOP_TARGETS, targets, signers, urgent=urgent, why=why)
    elif TOP_TARGETS in roles:
        _propose_anew(work, TOP_TARGETS, root, signers, now_s, why)
    for role in roles - set(TOP_ROLES) - {DIRECTOR}:
        _propose_anew(work, role, targets, signers, now_s, why)


def _propose_anew(
    work: Workspace, role: str, judge: Delegator, signers: Sequence[Signer], now_s: float, why: str
) -> None:
    """Propose the same content again when the signatures that it has would not do any more."""
    current = state.load(work).document(role)
    waiting = proposals.load(work, role)
    if waiting is None and (current is None or state.proven_by(current, judge)):
        return
    proposals.propose(work, role, _latest(work, role, now_s).body, signers, why=why)


def _exchange_in(
    delegator: Delegator,
    role: str,
    add: Sequence[NamedKey],
    remove: Sequence[str],
    threshold: int | None,
    *,
    again: bool,
) -> set[str]:
    """Change a role's keys and return what was to be removed and is not there.

    Args:
        again: keys that a waiting proposal has added already are no fault.
    """
    unknown = set()
    for word in remove:
        found = [holder for holder in documents.holders_of(delegator, role)[1] if _is(holder, word)]
        for holder in found:
            delegator.revoke_key(holder.tuf_id, role)
        unknown |= set() if found else {word}
    delegated = delegator.get_delegated_role(role)
    present = {holder.id for holder in documents.holders_of(delegator, role)[1]} if again else set()
    _add_keys(delegator, role, [key for key in add if key.public.id not in present])
    delegated.threshold = delegated.threshold if threshold is None else threshold
    _check_threshold(role, delegator)
    return unknown


def _is(holder: Holder, word: str) -> bool:
    return word in (holder.name, holder.id) or _begins(holder, word)


def _begins(holder: Holder, word: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8,64}", word) is not None and holder.id.startswith(word)


@dataclass(frozen=True, slots=True)
class _Latest:
    """A copy of a role's newest document, proposed or in force, with a version and an expiry of its own."""

    body: Body

    def root(self) -> Root:
        assert isinstance(self.body, Root)
        return self.body

    def targets(self) -> Targets:
        assert isinstance(self.body, Targets)
        return self.body


def _latest(work: Workspace, role: str, now_s: float) -> _Latest:
    return _Latest(latest(work, role, now_s))


def latest(work: Workspace, role: str, now_s: float) -> Body:
    """Return a copy of a role's newest document, proposed or in force, as the next one to be signed.

    Raises: RepositoryFolderError when there is none.
    """
    current = state.require(work)
    proposal = proposals.load(work, role)
    last = current.document(role) if proposal is None else proposal.document
    if last is None:
        raise RepositoryFolderError(f"{work.folder} has no {role} yet.")
    body: Body = documents.body_of(last)
    body.version = last.version if proposal is not None else _version_after(work, current, last)
    body.expires = documents.moment(now_s + settings.load(work).life_s(role))
    return body


def _version_after(work: Workspace, current: State, last: Document) -> int:
    if last.role == ROOT:
        return last.version + 1
    return state.next_version(work, last.role, max(last.version, current.published.get(last.role, 0)))


def _everybody(root: Root, targets: Targets) -> list[tuple[str, Holder]]:
    top = [(role, holder) for role in TOP_ROLES for holder in documents.holders_of(root, role)[1]]
    below = state.delegations_of(targets)
    return top + [(role, holder) for role in below for holder in documents.holders_of(targets, role)[1]]


def _entrust(root: Root, role: str, keys: Sequence[NamedKey], threshold: int) -> None:
    root.roles[role] = Role([], threshold)
    _add_keys(root, role, keys)
    _check_threshold(role, root)


def _delegate(targets: Targets, delegation: DelegatedRole, keys: Sequence[NamedKey]) -> None:
    if targets.delegations is None:
        targets.delegations = Delegations({}, {})
    assert targets.delegations.roles is not None
    if len(targets.delegations.roles) > PUBLISHERS_MAX:
        raise DelegationError(f"There are {PUBLISHERS_MAX} publishers; devices follow no more.")
    targets.delegations.roles[delegation.name] = delegation
    _add_keys(targets, delegation.name, keys)
    _check_threshold(delegation.name, targets)


def _add_keys(delegator: Delegator, role: str, keys: Iterable[NamedKey]) -> None:
    present = {holder.id for holder in documents.holders_of(delegator, role)[1]}
    for key in keys:
        if not documents.HOLDER_NAME.fullmatch(key.name):
            raise DelegationError(f"{key.name!r} cannot be a holder's name; use a-z, 0-9, dot, dash and underscore.")
        if key.public.id in present:
            raise DelegationError(f"{role} has the key of {key.name} already; a key counts once.")
        present.add(key.public.id)
        delegator.add_key(documents.tuf_key(key.public, key.name), role)


def _check_threshold(role: str, delegator: Delegator) -> None:
    threshold, holders = documents.holders_of(delegator, role)
    if not 1 <= threshold <= len(holders):
        raise DelegationError(f"{role} would need {threshold} signatures and have {len(holders)} keys.")


def _check_apart(root: Root, targets: Targets) -> None:
    """A key that lies on a server must not be able to change who may sign."""
    everybody = _everybody(root, targets)
    online = {holder.id for role, holder in everybody if role in ONLINE_ROLES}
    for role, holder in everybody:
        if role in (ROOT, TOP_TARGETS) and holder.id in online:
            raise DelegationError(f"The key {holder} cannot be online and of {role} at the same time.")


def named(name: str, pem: str | bytes) -> NamedKey:
    """Read a public key under a holder's name. Raises: RequestError."""
    try:
        return NamedKey(name, admit(pem))
    except RequestError as error:
        raise RequestError(f"{name}: {error}", hint=error.hint) from error
