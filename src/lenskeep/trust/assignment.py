"""What a device should run, as the director signs it: the content of `devices/ID.json`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from lenskeep.bundle import strictjson
from lenskeep.errors import AssignmentError, BundleFormatError
from lenskeep.trust.names import model_of

ASSIGNMENT_BYTES_MAX = 64 << 10

SlotName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,30}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


Way = Literal["skip", "attempt", "forced"]


class SlotAssignment(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The version that one slot should run: the target's path and the digest of the whole bundle file.

    `download` and `activate` are asked for apart: `skip` = not now (the file may come by stick; what is staged waits),
    `attempt` = when it suits the device (its windows, its budget, an idle line), `forced` = at once.
    """

    target: Annotated[str, Meta(max_length=200)]
    sha256: Sha256
    download: Way = "attempt"
    activate: Way = "attempt"


class Assignment(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one device should run. `generation` grows with every decision about this device."""

    device: str
    generation: Annotated[int, Meta(ge=1)]
    slots: Annotated[dict[SlotName, SlotAssignment], Meta(max_length=64)] = {}


def write(assignment: Assignment) -> bytes:
    """Return the bytes to be signed; equal assignments give equal bytes."""
    ordered = dict(sorted(assignment.slots.items()))
    return msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(assignment, slots=ordered)), indent=1)


def read(data: bytes, device: str) -> Assignment:
    """Read a verified assignment. Raises: AssignmentError when it is malformed or names another device."""
    try:
        raw = strictjson.loads(data, bytes_max=ASSIGNMENT_BYTES_MAX, floats=False)
        assignment = msgspec.convert(raw, Assignment, strict=True)
    except (BundleFormatError, msgspec.ValidationError) as error:
        raise AssignmentError(f"The assignment of this device cannot be read: {error}") from error
    if assignment.device != device:
        raise AssignmentError(f"The assignment is for {assignment.device!r}; this device is {device!r}.")
    for slot, wanted in assignment.slots.items():
        if model_of(wanted.target) is None:
            raise AssignmentError(f"The assignment of slot {slot} names {wanted.target!r}, which is no version.")
    return assignment
