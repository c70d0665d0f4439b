"""What a slot demands before a version is activated there: approvals by several people, and a list of versions.

Rules. An approval is one person's signature with a meaning, for one digest. A person counts once, however many tokens
and accounts stand for that person; whoever asked does not count, unless the slot allows it. A request is carried out
only when it is GRANTED, and it becomes so only through `sign`. What the slot demanded when it was asked is kept with
the request: another demand, other bytes, a bundle that may not run any more or the end of its time make it void.
States change through the table alone. Pure: no clock, no database, no words for people beyond the faults.

The way back stays open: the previous version was admitted when it was activated and needs no new approval; a locked
slot goes back to versions of its list only.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum

from lenskeep.errors import (
    ApprovalExpiredError,
    ApprovalMismatchError,
    ApprovalOverError,
    ApprovalVoidError,
    LenskeepError,
    NotYourApprovalError,
    RequestError,
)
from lenskeep.permissions import TABLE


class ApprovalState(StrEnum):
    """Where a request for approval stands."""

    WAITING = "waiting"
    GRANTED = "granted"
    DONE = "done"
    REFUSED = "refused"
    EXPIRED = "expired"
    VOID = "void"


class ApprovalEvent(StrEnum):
    """What can happen to a request."""

    SIGNED = "signed"
    SIGNED_BY_ENOUGH = "signed_by_enough"
    CARRIED_OUT = "carried_out"
    REFUSED = "refused"
    EXPIRED = "expired"
    VOIDED = "voided"


S, E = ApprovalState, ApprovalEvent

TRANSITIONS: dict[ApprovalState, dict[ApprovalEvent, ApprovalState]] = {
    S.WAITING: {
        E.SIGNED: S.WAITING,
        E.SIGNED_BY_ENOUGH: S.GRANTED,
        E.REFUSED: S.REFUSED,
        E.EXPIRED: S.EXPIRED,
        E.VOIDED: S.VOID,
    },
    S.GRANTED: {E.CARRIED_OUT: S.DONE, E.REFUSED: S.REFUSED, E.EXPIRED: S.EXPIRED, E.VOIDED: S.VOID},
    S.DONE: {},
    S.REFUSED: {},
    S.EXPIRED: {},
    S.VOID: {},
}
OPEN = (S.WAITING, S.GRANTED)

assert set(TRANSITIONS) == set(ApprovalState), "a state of an approval has no row"
assert [state for state, row in TRANSITIONS.items() if row] == list(OPEN), "what is over stays so"
assert [state for state, row in TRANSITIONS.items() if E.CARRIED_OUT in row] == [S.GRANTED]


@dataclass(frozen=True)
class Demand:
    """What one slot demands, as its configuration says."""

    approvals: int = 0
    roles: tuple[str, ...] = ()
    meanings: tuple[str, ...] = ("review", "approval")
    own: bool = False  # whoever asks may be one of those who approve
    hours: float = 72.0
    locked: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the demand in one exact form, to be kept with a request and compared."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def roles_that_sign(self) -> tuple[str, ...]:
        """Return whose approval counts."""
        return self.roles or TABLE["approve"].roles


@dataclass(frozen=True)
class Signature:
    """One person's yes."""

    person: str
    role: str
    meaning: str
    digest: str


@dataclass(frozen=True)
class Asked:
    """One request for approval, as far as deciding goes."""

    asker: str
    digest: str
    demand: str  # `Demand.text` of the slot when it was asked
    expires_ms: int
    state: ApprovalState = S.WAITING
    signatures: tuple[Signature, ...] = ()


def next_state(state: ApprovalState, event: ApprovalEvent) -> ApprovalState:
    """Return what becomes of a request. Raises: ApprovalOverError when it is over."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise ApprovalOverError(f"The request is {state}. Nothing was changed.") from None


def overtaken(asked: Asked, demand: Demand, digest: str, now_ms: int) -> tuple[ApprovalEvent, LenskeepError] | None:
    """Say what has ended an open request, if anything has.

    Args:
        digest: of the bundle as it is stored now; empty when it may not run any more.
    """
    if asked.state not in OPEN:
        return None
    if asked.demand != demand.text():
        return E.VOIDED, ApprovalVoidError("The slot's policy was changed while the request waited.")
    if asked.digest != digest:
        return E.VOIDED, ApprovalVoidError("The bundle was changed, removed or rejected while the request waited.")
    if now_ms >= asked.expires_ms:
        given = f"{len(asked.signatures)} of {demand.approvals} approvals were given in time."
        return E.EXPIRED, ApprovalExpiredError(given)
    return None


def sign(asked: Asked, demand: Demand, signature: Signature, now_ms: int) -> Asked:
    """Add one person's approval.

    Raises: ApprovalOverError, ApprovalMismatchError, NotYourApprovalError, RequestError; nothing is changed then.
    """
    if asked.state != S.WAITING or overtaken(asked, demand, asked.digest, now_ms) is not None:
        raise ApprovalOverError("The request does not wait for approvals any more. Nothing was changed.")
    if signature.digest != asked.digest:
        raise ApprovalMismatchError(
            f"The approval is for {signature.digest[:12]}…, the request for {asked.digest[:12]}…. Nothing was changed."
        )
    if signature.meaning not in demand.meanings:
        raise RequestError(f"/meaning: this slot takes {' or '.join(demand.meanings)}. Nothing was changed.")
    if signature.role not in demand.roles_that_sign():
        wanted = " or ".join(demand.roles_that_sign())
        raise NotYourApprovalError(f"This slot wants the approval of the role {wanted}. Nothing was changed.")
    if signature.person == asked.asker and not demand.own:
        raise NotYourApprovalError(f"{signature.person} asked for it, so somebody else approves. Nothing was changed.")
    if signature.person in {one.person for one in asked.signatures}:
        raise NotYourApprovalError(f"{signature.person} has approved it already. Nothing was changed.")
    signatures = (*asked.signatures, signature)
    event = E.SIGNED_BY_ENOUGH if len(signatures) >= demand.approvals else E.SIGNED
    return dataclasses.replace(asked, state=next_state(asked.state, event), signatures=signatures)


def end(asked: Asked, event: ApprovalEvent) -> Asked:
    """Let a request end: refused, expired, void or carried out. Raises: ApprovalOverError."""
    return dataclasses.replace(asked, state=next_state(asked.state, event))


def listed(locked: tuple[str, ...] | list[str], name: str, version: str, digest: str) -> bool:
    """Say whether a slot with this list may run a version; an empty list locks nothing."""
    return not locked or f"{name}@{version}" in locked or f"{name}@sha256:{digest}" in locked
