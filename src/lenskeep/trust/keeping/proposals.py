"""Proposals: documents that wait in `pending/` until enough of their role's keys have signed them.

Rules. One proposal a role. A changed proposal is another one: signatures that were collected before are void. A root is
signed by enough keys of the root before it and by enough of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from lenskeep.bundle import strictjson
from lenskeep.bundle.keys import Signer
from lenskeep.errors import BundleFormatError, RepositoryDamagedError
from lenskeep.trust.keeping import documents
from lenskeep.trust.keeping.documents import Body, Delegator, Document, Holder, Tally
from lenskeep.trust.keeping.state import State
from lenskeep.trust.keeping.workspace import PENDING, Workspace
from lenskeep.trust.names import ROOT, TOP_ROLES

_BYTES_MAX = documents.DOCUMENT_BYTES_MAX + 100_000


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    document: dict[str, object]
    urgent: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A document that is not in force yet."""

    document: Document
    urgent: bool = False  # put in place even if roles below it have to be signed again first
    why: str = ""

    @property
    def role(self) -> str:
        """Whose document it is."""
        return self.document.role


def load(work: Workspace, role: str) -> Proposal | None:
    """Read a role's proposal. Raises: RepositoryDamagedError."""
    raw = work.read(_name(role), _BYTES_MAX)
    if raw is None:
        return None
    try:
        stored = msgspec.convert(strictjson.loads(raw, bytes_max=_BYTES_MAX, floats=False), _Stored, strict=True)
    except (BundleFormatError, msgspec.ValidationError) as error:
        raise RepositoryDamagedError(f"The proposal {_name(role)} cannot be read: {error}") from error
    return Proposal(documents.read(role, msgspec.json.encode(stored.document)), stored.urgent, stored.why)


def load_all(work: Workspace) -> dict[str, Proposal]:
    """Read all proposals by role. Raises: RepositoryDamagedError."""
    found = {role: load(work, role) for role in work.pending()}
    return {role: proposal for role, proposal in found.items() if proposal is not None}


def store(work: Workspace, proposal: Proposal) -> None:
    """Keep a proposal until it can be put in place."""
    document = msgspec.json.decode(proposal.document.raw)
    work.put(
        _name(proposal.role), msgspec.json.encode(_Stored(document=document, urgent=proposal.urgent, why=proposal.why))
    )


def drop(work: Workspace, role: str) -> None:
    """Take a proposal away: it is in force, or given up."""
    work.drop(_name(role))


def propose(
    work: Workspace, role: str, body: Body, signers: Sequence[Signer], *, urgent: bool = False, why: str = ""
) -> Proposal:
    """Store a new proposal for a role, signed by those signers who may."""
    document = documents.write(role, body)
    store(work, Proposal(document, urgent, why))
    proposal = Proposal(documents.sign(document, signers, entitled(work, document)), urgent, why)
    store(work, proposal)
    return proposal


def judges(work: Workspace, state: State, role: str) -> list[Delegator]:
    """Return all that may say whose signatures a role's proposal needs: in force, and proposed."""
    found: list[Delegator] = []
    if role in TOP_ROLES:
        root = load(work, ROOT)
        found += [root.document.root] if root is not None else []
        found += [state.root.root] if state.root is not None else []
        return found
    targets = load(work, "targets")
    found += [targets.document.targets] if targets is not None else []
    found += [state.targets.targets] if state.targets is not None else []
    return found


def entitled(work: Workspace, document: Document) -> list[Holder]:
    """Return the holders whose signature on a proposal can count."""
    from lenskeep.trust.keeping.state import load as load_state

    found: dict[str, Holder] = {}
    for judge in judges(work, load_state(work), document.role):
        for holder in documents.holders_of(judge, document.role)[1]:
            found.setdefault(holder.id, holder)
    return list(found.values())


def tallies(work: Workspace, state: State, document: Document) -> list[Tally]:
    """Count what each judge that must agree has: a root's two, anything else's one."""
    found = judges(work, state, document.role)
    if document.role == ROOT:
        return [documents.tally(document, judge) for judge in (document.root, *found[1:])]
    known = [judge for judge in found if documents.holders_of(judge, document.role)[1]]
    return [documents.tally(document, known[0])] if known else []


def sign(work: Workspace, role: str, signers: Iterable[Signer]) -> Proposal | None:
    """Add signatures to a role's proposal; None when there is none."""
    proposal = load(work, role)
    if proposal is None:
        return None
    document = documents.sign(proposal.document, signers, entitled(work, proposal.document))
    signed = Proposal(document, proposal.urgent, proposal.why)
    store(work, signed)
    return signed


def _name(role: str) -> str:
    return f"{PENDING}/{role}.json"
