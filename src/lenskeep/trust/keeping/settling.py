"""Putting signed proposals in their place, and renewing what is signed online.

Rules. Roots, targets and roles are put in place together or not at all: nothing that is in force loses its signatures,
unless a revocation is urgent. What is signed online on top of them is renewed with them (`renewing`).
Source: TUF 1.0.34, 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuf.api.metadata import DelegatedRole

from lenskeep.bundle.keys import Signer
from lenskeep.trust.keeping import bins, documents, proposals, scopes, settings, state
from lenskeep.trust.keeping.documents import Document
from lenskeep.trust.keeping.proposals import Proposal
from lenskeep.trust.keeping.renewing import Choice, Renewal, enough
from lenskeep.trust.keeping.state import State, proven_by
from lenskeep.trust.keeping.workspace import Workspace
from lenskeep.trust.names import DIRECTOR, METADATA, ROOT, SNAPSHOT, TIMESTAMP, TOP_TARGETS


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of the proposals."""

    placed: tuple[str, ...] = ()  # roles whose proposal is in force now
    waiting: tuple[str, ...] = ()  # sentences: what keeps the others
    renewed: tuple[str, ...] = ()  # online roles that were signed anew
    warnings: tuple[str, ...] = ()
    refresh_needed: bool = False  # something is in place that devices see after the next refresh


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
    renewal = Renewal(work, before, choice, settings.load(work), now_s)
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


def _choose(before: State, waiting: dict[str, Proposal], signers: Sequence[Signer]) -> tuple[Choice | None, list[str]]:
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
) -> Choice:
    choice = Choice(root, targets)
    judges = [root] if before.root is None else [before.root, root]
    if not all(proven_by(root, judge.root) for judge in judges):
        choice.against.append("The proposed root lacks signatures.")
    for top in (root, targets):
        if top is not before.document(top.role):
            choice.against += scopes.objections(top.role, top.metadata.signed)
    if not proven_by(targets, root.root):
        choice.against.append("The role targets lacks signatures.")
    if _online_keys(before.root, SNAPSHOT) != _online_keys(root, SNAPSHOT) and before.timestamp is not None:
        lacking = [role for role in (SNAPSHOT, TIMESTAMP) if not enough(root.root, role, signers)]
        choice.against += [
            f"The new root waits for the new online key ({role}): lenskeep trust refresh." for role in lacking
        ]
    urgent = any(waiting[role].urgent for role in (ROOT, TOP_TARGETS) if role in waiting)
    for name, delegation in state.delegations_of(targets.targets).items():
        document, lacks = _role_document(before, waiting, targets, delegation)
        if document is not None:
            choice.roles[name] = document
        elif lacks and not urgent and not (name == DIRECTOR and enough(targets.targets, name, signers)):
            choice.against.append(f"The role {name} has to be signed by its new keys first.")
    return choice


def _role_document(
    before: State, waiting: dict[str, Proposal], targets: Document, delegation: DelegatedRole
) -> tuple[Document | None, bool]:
    """Return a role's document that is good under `targets`, and whether it had one and would lose it."""
    name = delegation.name
    current = before.roles.get(name)
    options = _options(current, waiting.get(name))
    good = [
        one
        for one in options
        if proven_by(one, targets.targets)
        and scopes.in_scope(one.targets, delegation)
        and (name != DIRECTOR or bins.own(one.targets, targets.targets))
    ]
    return (good[0], False) if good else (None, current is not None)


def _online_keys(root: Document | None, role: str) -> set[str]:
    return set() if root is None else {holder.id for holder in documents.holders_of(root.root, role)[1]}


def _place(work: Workspace, waiting: dict[str, Proposal], choice: Choice) -> tuple[str, ...]:
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
