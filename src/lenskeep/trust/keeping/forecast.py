"""The state of a repository for people: roles and keys, what waits for whom, what runs out when, what is listed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from lenskeep.clock import rfc3339
from lenskeep.errors import RepositoryDamagedError
from lenskeep.trust.keeping import (
    bins,
    ceremony,
    contents,
    describing,
    director,
    documents,
    proposals,
    releases,
    scopes,
    state,
)
from lenskeep.trust.keeping.documents import Delegator, Document, Holder
from lenskeep.trust.keeping.state import State
from lenskeep.trust.keeping.workspace import Workspace
from lenskeep.trust.names import DIRECTOR, ONLINE_ROLES, ROOT, SNAPSHOT, TIMESTAMP, TOP_ROLES, TOP_TARGETS, target_file

DAY_S = 86400.0
# How long before its end a signature should be renewed: holders have to meet, a server only has to run.
LEAD_DAYS = {ROOT: 90, TOP_TARGETS: 45, "publisher": 45, DIRECTOR: 3, SNAPSHOT: 3, TIMESTAMP: 1}


class KeyView(Struct, frozen=True, kw_only=True):
    """A key of a role."""

    name: str
    id: str


class RoleStatus(Struct, frozen=True, kw_only=True):
    """A role in force."""

    role: str
    kind: str  # root, targets, publisher, director, snapshot, timestamp
    version: int  # 0: nothing signed yet
    published: int  # what devices are told
    threshold: int
    keys: list[KeyView]
    paths: list[str]
    expires: str
    expires_s: float


class Waiting(Struct, frozen=True, kw_only=True):
    """A proposal that lacks something."""

    role: str
    version: int
    why: str
    urgent: bool
    spoken: str
    signed: list[str]
    missing: list[str]
    text: str
    changes: list[str]
    request: str  # the file to send to the holders


class Due(Struct, frozen=True, kw_only=True):
    """Who must do what until when."""

    role: str
    act_by: str
    expires: str
    overdue: bool
    text: str


class Listed(Struct, frozen=True, kw_only=True):
    """A version that is released."""

    version: str
    role: str
    sha256: str
    length_bytes: int


class Gone(Struct, frozen=True, kw_only=True):
    """A version that was withdrawn."""

    version: str
    reason: str
    at: str


class Status(Struct, frozen=True, kw_only=True):
    """A repository at a moment."""

    roles: list[RoleStatus]
    waiting: list[Waiting]
    forecast: list[Due]
    released: list[Listed]
    withdrawn: list[Gone]
    devices: int
    bins: int  # how many files the director's list is shared out to; 0: it is one
    problems: list[str]


def status(work: Workspace, now_s: float) -> Status:
    """Look at everything; changes nothing. Raises: RepositoryFolderError, RepositoryDamagedError."""
    current = state.require(work)
    lists = _lists(work, current)
    roles = _roles(current, lists)
    shared = bins.shared(current.roles.get(DIRECTOR))
    return Status(
        roles=roles,
        waiting=waiting(work),
        forecast=sorted((_due(role, now_s) for role in roles if role.version), key=lambda due: due.act_by),
        released=[
            Listed(
                version=describing.version_of(path), role=role, sha256=target.hashes.get("sha256", ""),
                length_bytes=target.length,
            )
            for path, (role, target) in sorted(releases.listed(current).items())
        ],
        withdrawn=[_gone(path, facts) for path, facts in sorted(releases.withdrawn(current).items())],
        devices=sum(len(one.targets.targets) for one in lists),
        bins=len(bins.BINS) if shared else 0,
        problems=problems(work),
    )  # fmt: skip


def _lists(work: Workspace, current: State) -> list[Document]:
    """Return the lists of devices; one that is spoiled is among the problems."""
    found = []
    for role in bins.listers(current.roles.get(DIRECTOR)):
        with contextlib.suppress(RepositoryDamagedError):
            document = bins.load(work, current, role)
            found += [] if document is None else [document]
    return found


def _roles(current: State, lists: Sequence[Document]) -> list[RoleStatus]:
    found = []
    if current.root is not None:
        found += [_role(current, role, current.root.root, []) for role in TOP_ROLES]
    if current.targets is not None:
        below = current.delegations.values()
        found += [_role(current, one.name, current.targets.targets, one.paths or []) for one in below]
    ends = [one.expires_s for one in lists]
    return [_with_bins(role, min([role.expires_s, *ends])) if role.role == DIRECTOR else role for role in found]


def _with_bins(role: RoleStatus, expires_s: float) -> RoleStatus:
    """The director is good until the first of its lists ends."""
    return replace(role, expires_s=expires_s, expires=rfc3339(expires_s)) if role.version else role


def _role(current: State, role: str, judge: Delegator, paths: list[str]) -> RoleStatus:
    document = current.document(role)
    threshold, holders = documents.holders_of(judge, role)
    version = 0 if document is None else document.version
    expires_s = 0.0 if document is None else document.expires_s
    return RoleStatus(
        role=role, kind=role if role in (*TOP_ROLES, DIRECTOR) else "publisher", version=version,
        published=current.published.get(role, version if role in (ROOT, SNAPSHOT, TIMESTAMP) else 0),
        threshold=threshold, keys=[_key(holder) for holder in holders], paths=paths,
        expires="" if document is None else rfc3339(expires_s), expires_s=expires_s,
    )  # fmt: skip


def _key(holder: Holder) -> KeyView:
    return KeyView(name=holder.name, id=holder.id)


def waiting(work: Workspace) -> list[Waiting]:
    """Return what lacks something, role by role."""
    found = []
    for role, proposal in proposals.load_all(work).items():
        request = ceremony.request_of(work, role)
        assert request is not None, role
        tallies = request.tallies
        signed = {str(holder): None for tally in tallies for holder in tally.signed}
        missing = {str(holder): None for tally in tallies if not tally.met for holder in tally.missing}
        text = describing.progress(tallies, role)
        if tallies and all(tally.met for tally in tallies):
            text += " It has its signatures and waits for the others, or for the online key."
        found.append(
            Waiting(
                role=role, version=proposal.document.version, why=proposal.why, urgent=proposal.urgent,
                spoken=ceremony.spoken(proposal.document.digest), signed=list(signed), missing=list(missing), text=text,
                changes=describing.describe(proposal.document, request.present),
                request=ceremony.request_file(role, proposal.document.version),
            )
        )  # fmt: skip
    return found


def _due(role: RoleStatus, now_s: float) -> Due:
    act_by_s = role.expires_s - LEAD_DAYS[role.kind] * DAY_S
    names = ", ".join(key.name or key.id[:12] for key in role.keys)
    if role.role in ONLINE_ROLES:
        text = f"the server renews {role.role} by itself while it runs (lenskeep trust refresh)"
    else:
        text = f"{role.threshold} of {names} must sign {role.role} again: lenskeep trust renew {role.role}"
    if role.expires_s <= now_s:
        text = "HAS RUN OUT; devices accept nothing new. " + text[:1].upper() + text[1:]
    return Due(
        role=role.role, act_by=rfc3339(act_by_s), expires=role.expires, overdue=act_by_s <= now_s, text=text
    )  # fmt: skip


def _gone(path: str, facts: dict[str, object]) -> Gone:
    at = facts.get("at")
    return Gone(
        version=describing.version_of(path), reason=str(facts.get("reason", "")),
        at=rfc3339(at) if isinstance(at, int) and 0 <= at < 1 << 33 else "",
    )  # fmt: skip


def problems(work: Workspace) -> list[str]:
    """Say what is wrong with what is in force. Cost: looks at every file that is listed."""
    current = state.load(work)
    found = []
    if current.root is not None and current.timestamp is None:
        found.append(
            "There is no timestamp in force: devices see nothing. Run: lenskeep trust refresh --key ONLINE-KEY."
        )
    elif current.root is not None and current.snapshot is None:
        found.append("There is no snapshot in force. Run: lenskeep trust refresh --key ONLINE-KEY.")
    for document in (current.targets, *current.roles.values()):
        if document is not None:
            found += _problems_of(work, current, document)
    return [*found, *_problems_of_bins(work, current)]


def _problems_of_bins(work: Workspace, current: State) -> Iterator[str]:
    if not bins.shared(current.roles.get(DIRECTOR)):
        return
    for role in bins.BINS:
        try:
            document = bins.load(work, current, role)
        except RepositoryDamagedError as error:
            yield str(error).removesuffix(" Nothing was signed.")
            continue
        assert document is not None
        if not bins.in_scope(role, document.targets):
            yield f"{document.file} lists what is not among its devices; devices refuse it."
        yield from _problems_of(work, current, document)


def _problems_of(work: Workspace, current: State, document: documents.Document) -> list[str]:
    found = []
    delegation = current.delegations.get(document.role)
    top = current.targets
    if document.role == DIRECTOR and top is not None and not bins.own(document.targets, top.targets):
        found.append(f"{document.file} hands its list on to other keys than its own; devices refuse it.")
    if delegation is not None and not scopes.in_scope(document.targets, delegation):
        found.append(f"{document.file} lists what {document.role} may not list; devices pass it over.")
    if current.snapshot is not None and current.published.get(document.role, 0) < document.version:
        found.append(f"{document.file} is signed and not published yet. Run: lenskeep trust refresh --key ONLINE-KEY.")
    for path, target in document.targets.targets.items():
        if work.size_of(target_file(path, target.hashes.get("sha256", "?"))) != target.length:
            found.append(f"{describing.version_of(path)} is listed and its file is missing or has another length.")
        if document.role != DIRECTOR and delegation is not None and current.targets is not None:
            claim = contents.claim_of(work.folder, target_file(path, target.hashes.get("sha256", "?")))
            holders = documents.holders_of(current.targets.targets, document.role)[1]
            if claim is not None and claim.key_id not in {holder.id for holder in holders}:
                found.append(
                    f"{describing.version_of(path)} is signed inside by a key that {document.role} has no more; "
                    "devices refuse it. Sign it again (lenskeep bundle resign) and publish it."
                )
    return found


def assignments(work: Workspace) -> dict[str, dict[str, str]]:
    """Return what each device is assigned: slot -> NAME@VERSION."""
    return {
        device: {slot: describing.version_of(wanted.target) for slot, wanted in one.slots.items()}
        for device, one in sorted(director.assigned(work, state.load(work)).items())
    }
