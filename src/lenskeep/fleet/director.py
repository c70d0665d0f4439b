"""Turns decisions into signed assignments: what each device should run, for all of them in one signing.

Rules. The repository's own tool signs, and it knows only released versions: whoever has the director's key can choose
among those and nothing else. An assignment that says already what is wanted is left as it is, so a signing that was
interrupted is simply done again and two replicas do no harm. The number that a device will see is told to the caller
before the device can see it. Everything here runs in a thread, under the repository's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lenskeep.bundle.keys import Signer
from lenskeep.errors import NotEntitledError, RepositoryFolderError
from lenskeep.trust.assignment import Assignment, SlotAssignment, Way
from lenskeep.trust.keeping import director, releases, settling, state
from lenskeep.trust.keeping.director import Wish
from lenskeep.trust.keeping.keyring import open_signer
from lenskeep.trust.keeping.workspace import Workspace, writing
from lenskeep.trust.names import METADATA, model_of, model_path


@dataclass(frozen=True, slots=True)
class Order:
    """What one slot of a device should run; an empty `bundle` = nothing is assigned to it any more."""

    device: str
    slot: str
    bundle: str
    download: Way = "attempt"
    activate: Way = "attempt"
    anew: bool = False  # under a new number, even if the same is assigned already


@dataclass(frozen=True, slots=True)
class Signed:
    """What became of orders."""

    generations: Mapping[str, int]  # by device, as far as something is assigned
    unlisted: frozenset[str]  # versions that no publisher lists; their orders were not signed
    anew: int  # how many devices got a new assignment


Orders = Callable[[], Sequence[Order]]
Numbered = Callable[[Mapping[str, int]], None]


class Director:
    """Signs assignments with the fleet's online keys."""

    def __init__(self, repository: Path, keys: Sequence[str], environment: Mapping[str, str]) -> None:
        self._repository = repository
        self._keys = list(keys)
        self._environment = environment
        self._signers: list[Signer] | None = None

    def check_in_thread(self) -> None:
        """See that this fleet can assign at all. Raises: NotEntitledError, RepositoryFolderError, RequestError."""
        self._open_signers()
        if not (self._repository / METADATA / "1.root.json").exists():
            raise RepositoryFolderError(f"There is no repository in {self._repository} yet.")

    def listed_in_thread(self, bundles: Sequence[str]) -> frozenset[str]:
        """Return which of these versions publishers list now."""
        current = state.load(Workspace(self._repository))
        return frozenset(bundle for bundle in bundles if _path(bundle) in releases.listed(current))

    def assigned_in_thread(self) -> dict[str, Assignment]:
        """Return what is assigned now, by device; nothing without a repository. Raises: RepositoryDamagedError."""
        work = Workspace(self._repository)
        if not (self._repository / METADATA / "1.root.json").exists():
            return {}
        return director.assigned(work, state.load(work))

    def sign_in_thread(self, asked: Orders, now_s: float, numbered: Numbered) -> Signed:
        """Sign what is not assigned yet, and make it visible.

        Args:
            asked: gives the orders as they stand once no other replica can sign.
            numbered: is told the numbers before a device can see them.
        Raises: RepositoryError and what else the tool refuses; then devices see what they saw before.
        """
        signers = self._open_signers()
        with writing(self._repository) as work:
            orders = asked()
            current = state.require(work)
            listed = releases.listed(current)
            unlisted = frozenset(one.bundle for one in orders if one.bundle and _path(one.bundle) not in listed)
            wanted: dict[str, dict[str, Wish | None]] = {}
            for one in orders:
                if one.bundle not in unlisted:
                    wanted.setdefault(one.device, {})[one.slot] = _wish(one)
            present = director.present(work, current, wanted)
            anew = {one.device for one in orders if one.anew and one.bundle}
            changed = {
                device: slots
                for device, slots in wanted.items()
                if device in anew or not _same(present.get(device), slots)
            }
            made = director.assign(work, changed, signers, now_s) if changed else []
            generations = {device: one.generation for device, one in present.items()}
            generations |= {one.device: one.generation for one in made}
            if changed:
                settling.settle(work, signers, now_s)
            numbered(generations)
            work.commit()
        return Signed(generations, unlisted, len(made))

    def _open_signers(self) -> list[Signer]:
        if not self._keys:
            raise NotEntitledError(
                "This fleet has no online key to assign with.",
                hint="Name the key of the roles director, snapshot and timestamp in fleet.toml, [online] keys.",
            )
        if self._signers is None:
            self._signers = [open_signer(word, self._environment, lambda _what: None) for word in self._keys]
        return self._signers


def _same(present: Assignment | None, slots: Mapping[str, Wish | None]) -> bool:
    if present is None:
        return all(wish is None for wish in slots.values())
    return all(_says(present.slots.get(slot), wish) for slot, wish in slots.items())


def _says(assigned: SlotAssignment | None, wish: Wish | None) -> bool:
    if assigned is None or wish is None:
        return assigned is None and wish is None
    path = model_path(wish.name, wish.version)
    return (assigned.target, assigned.download, assigned.activate) == (path, wish.download, wish.activate)


def _wish(order: Order) -> Wish | None:
    if not order.bundle:
        return None
    name, _, version = order.bundle.partition("@")
    return Wish(name, version, order.download, order.activate)


def _path(bundle: str) -> str:
    name, _, version = bundle.partition("@")
    path = model_path(name, version)
    return path if model_of(path) is not None else ""
