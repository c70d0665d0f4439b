"""The director's work: which device should run what.

A fleet's list is one document, or many bins (`bins`): what is changed is signed, and nothing else.
Rules. Only versions that are listed now can be assigned. A device's generation grows with every change about it. The
assignment names its device, so that it is never taken for another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from tuf.api.metadata import Targets

from lenskeep.bundle.keys import Signer
from lenskeep.errors import NotEntitledError, RepositoryDamagedError, RequestError
from lenskeep.trust import assignment as assignments
from lenskeep.trust.assignment import ASSIGNMENT_BYTES_MAX, Assignment, SlotAssignment, Way
from lenskeep.trust.keeping import bins, contents, documents, releases, settings, state
from lenskeep.trust.keeping.documents import Document
from lenskeep.trust.keeping.settings import Settings
from lenskeep.trust.keeping.state import State
from lenskeep.trust.keeping.workspace import Workspace
from lenskeep.trust.names import DEVICE_ID, DIRECTOR, device_of, device_path, target_file


@dataclass(frozen=True, slots=True)
class Wish:
    """A version for a slot, and how much of the way to it is asked for now."""

    name: str
    version: str
    download: Way = "attempt"
    activate: Way = "attempt"


Floors = Callable[[str, Document | None], int]
Wanted = Mapping[str, tuple[str, str] | Wish | None]  # by slot; None: nothing from here on


def assign(
    work: Workspace, wanted: Mapping[str, Wanted], signers: Sequence[Signer], now_s: float, *, only: bool = False
) -> list[Assignment]:
    """Sign what devices should run, all in one new document of the director, or in the bins that they are in.

    Args:
        wanted: by device; slots that are not named stay as they are.
        only: slots that are not named are left out.
    Raises: UnknownNameError for a version that is not listed, NotEntitledError, RequestError.
    """
    current = state.require(work)
    if current.targets is None or DIRECTOR not in current.delegations:
        raise NotEntitledError("The repository has no director yet; its holders have to sign first.")
    lists, made = Lists(work, current), []
    for device, slots in wanted.items():
        one = _next(lists, current, device, slots, only=only)
        lists.lay_out(one)
        made.append(one)
    _sign(lists, current, settings.load(work), signers, now_s)
    return made


def retire(work: Workspace, device: str, signers: Sequence[Signer], now_s: float) -> None:
    """Sign that a device is assigned nothing any more. Raises: RequestError."""
    current = state.require(work)
    lists = Lists(work, current)
    if not lists.leave_out(device):
        raise RequestError(f"Nothing is assigned to {device}.")
    _sign(lists, current, settings.load(work), signers, now_s)


class Lists:
    """The lists that devices are in, each read once; those that were changed are to be signed."""

    def __init__(self, work: Workspace, current: State) -> None:
        self._work = work
        self._current = current
        self._documents: dict[str, Document | None] = {}
        self._bodies: dict[str, Targets] = {}

    def present(self, device: str) -> Assignment | None:
        """Return what is assigned to a device in what is in force. Raises: RepositoryDamagedError."""
        return _present(self._work, self._document(self._lister(device)), device)

    def body(self, role: str) -> Targets:
        """Return what a role lists, to be changed and signed. Raises: RepositoryDamagedError."""
        if role not in self._bodies:
            self._bodies[role] = bins.body_of(role, self._document(role))
        return self._bodies[role]

    def lay_out(self, one: Assignment) -> None:
        """Put an assignment's file into the repository and list it."""
        data, path = assignments.write(one), device_path(one.device)
        assignments.read(data, one.device)  # what a device could not read is not signed
        digest = hashlib.sha256(data).hexdigest()
        self.body(self._lister(one.device)).targets[path] = documents.target_of(path, len(data), digest)
        self._work.put(target_file(path, digest), data)

    def leave_out(self, device: str) -> bool:
        """List a device no more; say whether it was listed."""
        return self.body(self._lister(device)).targets.pop(device_path(device), None) is not None

    def share_out(self, targets: Targets) -> None:
        """Turn the director's own list into bins."""
        for role, body in bins.share_out(self.body(DIRECTOR), targets):
            self._bodies[role] = body

    def sign(self, targets: Targets, signers: Sequence[Signer], ends_s: float, floors: Floors) -> list[Document]:
        """Sign what was changed by the director's keys as `targets` names them. Raises: NotEntitledError.

        Args:
            floors: the number that a role goes on from, by the role and the document of it that is in force.
        """
        return [
            bins.sign(self._work, role, body, targets, floors(role, self._documents.get(role)), signers, ends_s)
            for role, body in self._bodies.items()
        ]

    def _document(self, role: str) -> Document | None:
        if role not in self._documents:
            self._documents[role] = bins.load(self._work, self._current, role)
        return self._documents[role]

    def _lister(self, device: str) -> str:
        return bins.lister(self._current.roles.get(DIRECTOR), device_path(device))


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


def assigned(work: Workspace, current: State) -> dict[str, Assignment]:
    """Return what is assigned, by device. Raises: RepositoryDamagedError. Cost: reads every device's file."""
    found: dict[str, Assignment] = {}
    for role in bins.listers(current.roles.get(DIRECTOR)):
        document = bins.load(work, current, role)
        for path in [] if document is None else document.targets.targets:
            one = _present(work, document, device_of(path) or path)
            if one is not None:
                found[one.device] = one
    return found


def _next(lists: Lists, current: State, device: str, slots: Wanted, *, only: bool) -> Assignment:
    if not DEVICE_ID.fullmatch(device):
        raise RequestError(f"{device!r} is no device's name; use a-z, 0-9 and dash.")
    before = lists.present(device)
    chosen = {} if before is None or only else dict(before.slots)
    for slot, version in slots.items():
        chosen.pop(slot, None)
        if version is not None:
            wish = version if isinstance(version, Wish) else Wish(*version)
            path, sha256 = releases.find(current, wish.name, wish.version)
            chosen[slot] = SlotAssignment(target=path, sha256=sha256, download=wish.download, activate=wish.activate)
    return Assignment(device=device, generation=1 if before is None else before.generation + 1, slots=chosen)


def present(work: Workspace, current: State, devices: Iterable[str]) -> dict[str, Assignment]:
    """Return what is assigned to some devices now. Raises: RepositoryDamagedError. Cost: reads their lists."""
    lists = Lists(work, current)
    found = ((device, lists.present(device)) for device in devices)
    return {device: one for device, one in found if one is not None}


def _present(work: Workspace, document: Document | None, device: str) -> Assignment | None:
    target = None if document is None else document.targets.targets.get(device_path(device))
    if target is None:
        return None
    name = target_file(device_path(device), target.hashes.get("sha256", ""))
    data = work.read(name, ASSIGNMENT_BYTES_MAX)
    if data is None or hashlib.sha256(data).hexdigest() != target.hashes.get("sha256"):
        raise RepositoryDamagedError(f"{name} is missing or was changed.")
    return assignments.read(data, device)


def _sign(lists: Lists, current: State, terms: Settings, signers: Sequence[Signer], now_s: float) -> None:
    assert current.targets is not None
    director, targets = current.roles.get(DIRECTOR), current.targets.targets
    if director is not None and not bins.own(director.targets, targets):
        raise NotEntitledError("The director's keys have changed; it has to be signed anew before it can assign.")
    if not bins.shared(director) and len(lists.body(DIRECTOR).targets) > terms.devices_in_one_list_max:
        lists.share_out(targets)

    def floor(role: str, last: Document | None) -> int:
        return max(current.published.get(role, 0), 0 if last is None else last.version)

    lists.sign(targets, signers, now_s + terms.life_s(DIRECTOR), floor)
