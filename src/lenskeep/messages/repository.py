"""What the control API says and is asked about the repository that a device follows."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from lenskeep.messages.control import Check


class SyncRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Look at the repository now. `carried`: whoever asks brings the files (a stick, a laptop) as they are wanted."""

    carried: bool = False
    source: Annotated[str, Meta(max_length=200)] = ""  # what is carried, for people and the record


class WantedFile(Struct, frozen=True, kw_only=True):
    """A file of the repository that a carried sync needs next; `number` 0 = none at the moment.

    `done`: nothing more is wanted, the operation has ended or is about to.
    """

    number: int
    name: str
    offset: int
    bytes_max: int  # 0 = as long as it is
    done: bool
    length: int = 0  # so many bytes from the offset on; 0 = to its end


class CarryFault(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The wanted file cannot be read where it is carried."""

    message: Annotated[str, Meta(max_length=500)]


class AssignmentView(Struct, frozen=True, kw_only=True):
    """What the fleet assigned to a slot, and what became of it."""

    slot: str
    generation: int
    bundle: str
    sha256: str
    state: Literal["new", "staged", "asked", "followed", "refused", "rolled_back"]
    code: str = ""
    reason: str = ""


class TrustRole(Struct, frozen=True, kw_only=True):
    """A role of the repository as this device trusts it."""

    name: str
    version: int
    expires: str
    keys: int
    threshold: int
    paths: list[str]


class RepositoryView(Struct, frozen=True, kw_only=True):
    """The repository that this device follows."""

    follows: bool
    device: str
    source: str  # where it is read from by itself; empty = brought by hand
    checked: str
    roles: list[TrustRole]
    assignments: list[AssignmentView]
    withdrawn: list[str]  # stored versions that are not listed any more
    faults: list[Check]


class RootRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Follow the repository of this root from now on; replaces the one that was followed."""

    root: Annotated[str, Meta(max_length=600_000)]
