"""The director's work: which device should run what.

Rules. Only versions that are listed now can be assigned. A device's generation grows with every change about it. The
assignment names its device, so that it is never taken for another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from tuf.api.metadata import Targets

from lenskeep.bundle.keys import Signer
from lenskeep.errors import NotEntitledError, RepositoryDamagedError, RequestError
from lenskeep.trust import assignment as assignments
from lenskeep.trust.assignment import ASSIGNMENT_BYTES_MAX, Assignment, SlotAssignment, Way
from lenskeep.trust.keeping import contents, documents, releases, settings, state
from lenskeep.trust.keeping.state import State
from lenskeep.trust.keeping.workspace import Workspace
from lenskeep.trust.names import DEVICE_ID, DIRECTOR, METADATA, device_path, target_file


@dataclass(frozen=True, slots=True)
class Wish:
    """A version for a slot, and how much of the way to it is asked for now."""

    name: str
    version: str
    download: Way = "attempt"
    activate: Way = "attempt"


Wanted = Mapping[str, tuple[str, str] | Wish | None]  # by slot; None: nothing from here on


def assign(
    work: Workspace, wanted: Mapping[str, Wanted], signers: Sequence[Signer], now_s: float, *, only: bool = False
) -> list[Assignment]:
    """Sign what devices should run, all in one new document of the director.

    Args:
        wanted: by device; slots that are not named stay as they are.
        only: slots that are not named are left out.
    Raises: UnknownNameError for a version that is not listed, NotEntitledError, RequestError.
    """
    current = state.require(work)
    if current.targets is None or DIRECTOR not in current.delegations:
        raise NotEntitledError("The repository has no director yet; its holders have to sign first.")
    body = Targets() if DIRECTOR not in current.roles else documents.body_of(current.roles[DIRECTOR])
    made = []
    for device, slots in wanted.items():
        one = _next(work, current, device, slots, only=only)
        lay_out(work, body, one)
        made.append(one)
    _sign(work, current, body, signers, now_s)
    return made


def retire(work: Workspace, device: str, signers: Sequence[Signer], now_s: float) -> None:
    """Sign that a device is assigned nothing any more. Raises: RequestError."""
    current = state.require(work)
    body = documents.body_of(current.roles[DIRECTOR]) if DIRECTOR in current.roles else Targets()
    if body.targets.pop(device_path(device), None) is None:
        raise RequestError(f"Nothing is assigned to {device}.")
    _sign(work, current, body, signers, now_s)


def followed(work: Workspace, current: State) -> list[Assignment]:
    """Return the assignments that name a file whose publisher has signed the same content anew, with the new file."""
    found = []
    for one in assigned(work, current).values():
        slots = {slot: _anew(work, current, wanted) for slot, wanted in one.slots.items()}
        if slots != one.slots:
            found.append(Assignment(device=one.device, generation=one.generation + 1, slots=slots))
    return found


def _anew(work: Workspace, current: State, wanted: SlotAssignment) -> SlotAssignment:
    now = releases.listed(current).get(wanted.target)
    sha256 = wanted.sha256 if now is None else now[1].hashes.get("sha256", "")
    if sha256 == wanted.sha256:
        return wanted
    before = contents.claim_of(work.folder, target_file(wanted.target, wanted.sha256))
    after = contents.claim_of(*work.place_of(target_file(wanted.target, sha256)))
    same = before is not None and after is not None and before.content == after.content
    return msgspec.structs.replace(wanted, sha256=sha256) if same else wanted


def lay_out(work: Workspace, body: Targets, one: Assignment) -> None:
    """Put an assignment's file into the repository and list it."""
    data, path = assignments.write(one), device_path(one.device)
    assignments.read(data, one.device)  # what a device could not read is not signed
    digest = hashlib.sha256(data).hexdigest()
    body.targets[path] = documents.target_of(path, len(data), digest)
    work.put(target_file(path, digest), data)


def assigned(work: Workspace, current: State) -> dict[str, Assignment]:
    """Return what is assigned, by device. Raises: RepositoryDamagedError."""
    document = current.roles.get(DIRECTOR)
    paths = [] if document is None else list(document.targets.targets)
    found = (present(work, current, path.removeprefix("devices/").removesuffix(".json")) for path in paths)
    return {one.device: one for one in found if one is not None}


def _next(work: Workspace, current: State, device: str, slots: Wanted, *, only: bool) -> Assignment:
    if not DEVICE_ID.fullmatch(device):
        raise RequestError(f"{device!r} is no device's name; use a-z, 0-9 and dash.")
    before = present(work, current, device)
    chosen = {} if before is None or only else dict(before.slots)
    for slot, version in slots.items():
        chosen.pop(slot, None)
        if version is not None:
            wish = version if isinstance(version, Wish) else Wish(*version)
            path, sha256 = releases.find(current, wish.name, wish.version)
            chosen[slot] = SlotAssignment(target=path, sha256=sha256, download=wish.download, activate=wish.activate)
    return Assignment(device=device, generation=1 if before is None else before.generation + 1, slots=chosen)


def present(work: Workspace, current: State, device: str) -> Assignment | None:
    """Return what is assigned to a device now. Raises: RepositoryDamagedError."""
    document = current.roles.get(DIRECTOR)
    target = None if document is None else document.targets.targets.get(device_path(device))
    if target is None:
        return None
    name = target_file(device_path(device), target.hashes.get("sha256", ""))
    data = work.read(name, ASSIGNMENT_BYTES_MAX)
    if data is None or hashlib.sha256(data).hexdigest() != target.hashes.get("sha256"):
        raise RepositoryDamagedError(f"{name} is missing or was changed.")
    return assignments.read(data, device)


def _sign(work: Workspace, current: State, body: Targets, signers: Sequence[Signer], now_s: float) -> None:
    assert current.targets is not None
    last = current.roles.get(DIRECTOR)
    floor = max(current.published.get(DIRECTOR, 0), 0 if last is None else last.version)
    body.version = state.next_version(work, DIRECTOR, floor)
    body.expires = documents.moment(now_s + settings.load(work).life_s(DIRECTOR))
    holders = documents.holders_of(current.targets.targets, DIRECTOR)[1]
    document = documents.sign(documents.write(DIRECTOR, body), signers, holders)
    if not state.proven_by(document, current.targets.targets):
        raise NotEntitledError("The keys are not enough to sign as the director.")
    work.put(f"{METADATA}/{document.file}", document.raw)
