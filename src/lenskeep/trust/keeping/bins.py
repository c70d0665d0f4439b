"""Where a device's assignment is listed: in the director's own document, or in one of its bins.

Rules. A small fleet has one list, the director's document. Above a bound the list is shared out to bins in one signing,
and stays so, because a snapshot goes on listing what it has listed. Bins are signed by the director's keys and nobody
else's. A bin is read when somebody asks for it, so that what concerns few devices reads few of them.
Source: TUF TAP 15 (succinct hash bin delegations).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from tuf.api.metadata import Delegations, MetaFile, SuccinctRoles, Targets

from lenskeep.bundle.keys import Signer
from lenskeep.errors import MetadataFormatError, NotEntitledError, RepositoryDamagedError
from lenskeep.trust import names
from lenskeep.trust.keeping import documents, state
from lenskeep.trust.keeping.documents import Document
from lenskeep.trust.keeping.state import State
from lenskeep.trust.keeping.workspace import Workspace
from lenskeep.trust.names import BIN_BITS, DIRECTOR, METADATA

BINS = tuple(names.bin_name(number) for number in range(1 << BIN_BITS))


def shared(director: Document | None) -> bool:
    """Say whether a director's document leaves the list to bins."""
    given = None if director is None else director.targets.delegations
    made = None if given is None else given.succinct_roles
    return made is not None and (made.bit_length, made.name_prefix) == (BIN_BITS, DIRECTOR)


def delegations(targets: Targets) -> Delegations:
    """Return how a director hands its list on: to all bins, with the keys that `targets` gives it."""
    given = targets.get_delegated_role(DIRECTOR)
    assert targets.delegations is not None
    keys = {keyid: targets.delegations.keys[keyid] for keyid in given.keyids}
    return Delegations(keys, None, SuccinctRoles(list(given.keyids), given.threshold, BIN_BITS, DIRECTOR))


def judge(targets: Targets) -> Targets:
    """Return what says whose signature on a bin counts: a director as `targets` wants it."""
    return Targets(delegations=delegations(targets))


def own(director: Targets, targets: Targets) -> bool:
    """Say whether a director hands its list on to nobody but itself, or not at all."""
    if director.delegations is None:
        return True
    given, wanted = director.delegations, delegations(targets)
    bins, expected = given.succinct_roles, wanted.succinct_roles
    if director.targets or bins is None or expected is None or given.keys != wanted.keys:
        return False
    shape = (bins.bit_length, bins.name_prefix, bins.threshold, sorted(bins.keyids))
    return shape == (expected.bit_length, expected.name_prefix, expected.threshold, sorted(expected.keyids))


def in_scope(role: str, body: Targets) -> bool:
    """Say whether a bin lists its own devices and nothing else."""
    return body.delegations is None and all(_belongs(role, path) for path in body.targets)


def lister(director: Document | None, path: str) -> str:
    """Return the role that lists a device's path."""
    return names.bin_of(path) if shared(director) else DIRECTOR


def listers(director: Document | None) -> Sequence[str]:
    """Return all roles that list devices."""
    return BINS if shared(director) else () if director is None else (DIRECTOR,)


def load(work: Workspace, current: State, role: str) -> Document | None:
    """Return the director's document, or one of its bins. Raises: RepositoryDamagedError for a spoiled bin."""
    director = current.roles.get(DIRECTOR)
    if role == DIRECTOR or director is None:
        return director
    told = published(current, role)
    floor = 0 if told is None else told.version
    if current.targets is not None and own(director.targets, current.targets.targets):
        found = state.newest(work, role, director.targets, floor)
    else:  # its keys have changed meanwhile: what devices know counts, and nothing newer
        found = _numbered(work, role, floor, director)
    if found is None or found.version < floor or (found.version == floor and not _is(found.raw, told)):
        raise RepositoryDamagedError(f"{floor or 1}.{role}.json is missing or was changed. Nothing was signed.")
    return found


def body_of(role: str, document: Document | None) -> Targets:
    """Return a copy of what a role lists, to be changed; of a bin without what does not belong there."""
    if role == DIRECTOR:
        return Targets() if document is None else documents.body_of(document)
    listed = {} if document is None else document.targets.targets
    return Targets(targets={path: target for path, target in listed.items() if _belongs(role, path)})


def published(current: State, role: str) -> MetaFile | None:
    """Return what the snapshot in force says about a role."""
    return None if current.snapshot is None else current.snapshot.snapshot.meta.get(f"{role}.json")


def as_published(work: Workspace, current: State, role: str) -> bool:
    """Say whether there is nothing newer of a role than what devices are told. Cost: no file is read."""
    told, there = published(current, role), work.versions(role)
    return told is not None and bool(there) and there[0] == told.version


def ends_s(work: Workspace, current: State, role: str) -> float:
    """Return when a bin ends. Cost: 0.1 ms, its signatures are not looked at when it is as published."""
    told = published(current, role)
    if told is not None and as_published(work, current, role):
        raw = work.read(f"{METADATA}/{told.version}.{role}.json")
        if raw is not None and _is(raw, told):
            return documents.ends_s(raw)
    document = load(work, current, role)
    return 0.0 if document is None else document.expires_s


def sign(
    work: Workspace, role: str, body: Targets, targets: Targets, floor: int, signers: Iterable[Signer], ends_s: float
) -> Document:
    """Sign a list by the director's keys as `targets` names them, under the next number above `floor`.

    Raises: NotEntitledError.
    """
    body.version = state.next_version(work, role, floor)
    body.expires = documents.moment(ends_s)
    by = targets if role == DIRECTOR else judge(targets)
    document = documents.make(role, body, signers, documents.holders_of(by, role)[1])
    if not state.proven_by(document, by):
        raise NotEntitledError("The keys are not enough to sign as the director.")
    work.put(f"{METADATA}/{document.file}", document.raw)
    return document


def share_out(body: Targets, targets: Targets) -> Iterator[tuple[str, Targets]]:
    """Turn one list into bins and yield them; what was the list hands on to them then."""
    shares = {role: Targets() for role in BINS}
    for path, target in body.targets.items():
        shares[names.bin_of(path)].targets[path] = target
    body.targets = {}
    body.delegations = delegations(targets)
    yield from shares.items()


def _belongs(role: str, path: str) -> bool:
    return names.device_of(path) is not None and names.bin_of(path) == role


def _numbered(work: Workspace, role: str, version: int, director: Document) -> Document | None:
    raw = work.read(f"{METADATA}/{version}.{role}.json")
    if raw is None:
        return None
    try:
        found = documents.read(role, raw)
    except MetadataFormatError:
        return None
    return found if found.version == version and state.proven_by(found, director.targets) else None


def _is(raw: bytes, told: MetaFile | None) -> bool:
    wanted = None if told is None else (told.hashes or {}).get("sha256")
    return wanted is None or hashlib.sha256(raw).hexdigest() == wanted
