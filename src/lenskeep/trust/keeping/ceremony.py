"""Signing by people who never meet: a request goes out as a file, each holder's answer comes back as a file.

Rules. A request carries the whole proposal and whatever says whose signatures count; what a holder is shown is worked
out from that on the holder's own machine. An answer is one signature over one proposal: any order, duplicates harmless,
everything else refused. The spoken digest is what the holders compare by telephone: it is the same for all of them.
Source of nothing: a request is believed no further than the holder's eyes and the telephone reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from securesystemslib.signer import Signature

from lenskeep.bundle import strictjson
from lenskeep.bundle.keys import Signer
from lenskeep.errors import AnswerRefusedError, BundleFormatError, KeepingError, NotEntitledError
from lenskeep.trust.keeping import documents, proposals, scopes, state
from lenskeep.trust.keeping.documents import Delegator, Document, Holder, Tally
from lenskeep.trust.keeping.proposals import Proposal
from lenskeep.trust.keeping.workspace import Workspace
from lenskeep.trust.names import ROLE_NAME, ROOT, TOP_ROLES, TOP_TARGETS

REQUESTS = "requests"
_REQUEST_BYTES_MAX = 4 * documents.DOCUMENT_BYTES_MAX
_ANSWER_BYTES_MAX = 16_000
_SPOKEN_DIGITS = 32  # 128 bits: nobody finds another document with the same


class _Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: Literal["lenskeep.trust-request/1"] = "lenskeep.trust-request/1"
    role: Annotated[str, Meta(max_length=63)]
    summary: list[str] = []  # for whoever opens the file; no program believes it
    spoken: str = ""
    why: str = ""
    document: dict[str, object]
    present: dict[str, object] | None = None
    judges: Annotated[list[dict[str, object]], Meta(max_length=2)] = []


class Answer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One holder's signature over one proposal."""

    format: Literal["lenskeep.trust-answer/1"] = "lenskeep.trust-answer/1"
    role: Annotated[str, Meta(max_length=63)]
    version: int
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    signature: Annotated[str, Meta(pattern=r"^(?:[0-9a-f]{2}){8,72}\Z")]


_Kind = TypeVar("_Kind", _Request, Answer)


@dataclass(frozen=True, slots=True)
class Request:
    """A proposal as a holder sees it."""

    document: Document
    present: Document | None
    judges: tuple[Delegator, ...]
    why: str
    judge: Document | None = None  # the root that says who signs targets

    @property
    def tallies(self) -> list[Tally]:
        """Who has signed and who may, by each judge that must agree."""
        return [documents.tally(self.document, judge) for judge in self.judges]

    @property
    def entitled(self) -> list[Holder]:
        """Holders whose signature counts."""
        found: dict[str, Holder] = {}
        for judge in self.judges:
            for holder in documents.holders_of(judge, self.document.role)[1]:
                found.setdefault(holder.id, holder)
        return list(found.values())


def spoken(digest: str) -> str:
    """Return a digest as it is read aloud: `3f2a 91bc …`, eight groups."""
    return " ".join(digest[at : at + 4] for at in range(0, _SPOKEN_DIGITS, 4))


def request_file(role: str, version: int) -> str:
    """Return where a proposal's request lies in the repository."""
    return f"{REQUESTS}/{role}-{version}.request"


def write_requests(work: Workspace, summaries: dict[str, list[str]] | None = None) -> list[str]:
    """Lay a request out for every proposal that lacks signatures; old requests go. Returns the files' names."""
    current = state.load(work)
    wanted = {}
    for role, proposal in proposals.load_all(work).items():
        name = request_file(role, proposal.document.version)
        wanted[name] = _request(work, current, proposal, (summaries or {}).get(role, []))
    folder = work.folder / REQUESTS
    for path in folder.glob("*.request") if folder.is_dir() else ():
        if f"{REQUESTS}/{path.name}" not in wanted:
            work.drop(f"{REQUESTS}/{path.name}")
    for name, data in wanted.items():
        if work.read(name, _REQUEST_BYTES_MAX) != data:
            work.put(name, data)
    return sorted(wanted)


def request_of(work: Workspace, role: str) -> Request | None:
    """Return a role's waiting proposal as its holders see it, or None."""
    proposal = proposals.load(work, role)
    if proposal is None:
        return None
    return read_request(_request(work, state.load(work), proposal, []))


def _request(work: Workspace, current: state.State, proposal: Proposal, summary: list[str]) -> bytes:
    present = current.document(proposal.role)
    judges: list[Document | None] = []
    if proposal.role in TOP_ROLES:
        root = proposals.load(work, ROOT)
        judges = [] if proposal.role == ROOT else [root.document if root is not None else current.root]
    else:
        targets = proposals.load(work, TOP_TARGETS)
        judges = [targets.document if targets is not None else current.targets]
    request = _Request(
        role=proposal.role,
        summary=summary,
        spoken=spoken(proposal.document.digest),
        why=proposal.why,
        document=_plain(proposal.document),
        present=None if present is None else _plain(present),
        judges=[_plain(judge) for judge in judges if judge is not None],
    )
    return msgspec.json.format(msgspec.json.encode(request), indent=1)


def read_request(data: bytes) -> Request:
    """Read a request. Raises: KeepingError, MetadataFormatError."""
    raw = _strict(data, _Request, _REQUEST_BYTES_MAX, "request")
    if raw.role not in TOP_ROLES and not ROLE_NAME.fullmatch(raw.role):
        raise KeepingError(f"{raw.role!r} is no role's name.")
    document = _document(raw.role, raw.document)
    present = None if raw.present is None else _document(raw.role, raw.present)
    if raw.role == ROOT:
        return Request(document, present, (document.root, *(() if present is None else (present.root,))), raw.why)
    if raw.role in TOP_ROLES:
        roots = [_document(ROOT, judge) for judge in raw.judges]
        return Request(document, present, tuple(root.root for root in roots), raw.why, roots[0] if roots else None)
    judges = tuple(_document(TOP_TARGETS, judge).targets for judge in raw.judges)
    return Request(document, present, judges, raw.why)


def check_known(request: Request, known: bytes) -> None:
    """Compare a request with the root that a holder trusts already: the request must build upon that very root.

    Raises: KeepingError when it does not, MetadataFormatError.
    """
    root = documents.read(ROOT, known)
    if request.document.role == ROOT:
        true = request.present is not None and request.present.digest == root.digest
    else:
        judge = request.judge
        true = judge is not None and (judge.digest == root.digest or state.proven_by(judge, root.root))
    if not true:
        raise KeepingError("The request does not build upon the root that you know. Nothing was signed.")


def answer(request: Request, signer: Signer) -> Answer:
    """Sign a request. Raises: NotEntitledError when the key's signature would not count, KeepingError."""
    if signer.public.id not in {holder.id for holder in request.entitled}:
        names = ", ".join(str(holder) for holder in request.entitled) or "nobody"
        raise NotEntitledError(f"This key may not sign {request.document.role}; {names} may. Nothing was signed.")
    document = request.document
    wrong = scopes.objections(document.role, document.metadata.signed)
    if wrong:
        raise KeepingError(f"Nobody should sign this. {' '.join(wrong)} Nothing was signed.")
    return Answer(
        role=document.role, version=document.version, digest=document.digest, key=signer.public.id,
        signature=signer.sign(document.signed_bytes).hex(),
    )  # fmt: skip


def write_answer(given: Answer) -> bytes:
    """Return an answer's file."""
    return msgspec.json.format(msgspec.json.encode(given), indent=1)


def read_answer(data: bytes) -> Answer:
    """Read an answer. Raises: AnswerRefusedError."""
    try:
        return _strict(data, Answer, _ANSWER_BYTES_MAX, "answer")
    except KeepingError as error:
        raise AnswerRefusedError(str(error)) from error


def take(work: Workspace, given: Answer) -> Holder:
    """Add an answer's signature to the proposal that it belongs to; once more is harmless.

    Raises: AnswerRefusedError when it belongs to no proposal here, was changed, or its key does not count.
    """
    proposal = proposals.load(work, given.role) if given.role in work.pending() else None
    if proposal is None:
        return _late(work, given)
    document = proposal.document
    if (given.version, given.digest) != (document.version, document.digest):
        raise AnswerRefusedError(
            f"The answer signs another {given.role} ({given.version}, {spoken(given.digest)[:9]}…) than the one that "
            f"waits here ({document.version}, {spoken(document.digest)[:9]}…)."
        )
    holder = next((one for one in proposals.entitled(work, document) if one.id == given.key), None)
    if holder is None:
        raise AnswerRefusedError(f"The answer comes from a key ({given.key[:12]}…) that may not sign {given.role}.")
    if not documents.signs(holder, given.signature, document.signed_bytes):
        raise AnswerRefusedError(f"The signature of {holder} does not fit the {given.role} that waits here.")
    signatures = document.metadata.signatures | {holder.tuf_id: Signature(holder.tuf_id, given.signature)}
    signed = documents.write(given.role, documents.body_of(document), signatures)
    proposals.store(work, Proposal(signed, proposal.urgent, proposal.why))
    return holder


def _late(work: Workspace, given: Answer) -> Holder:
    """An answer to what is in force by now is harmless, when it is a true one."""
    current = state.load(work)
    document = current.document(given.role)
    if document is not None and document.digest == given.digest:
        for holder in proposals.entitled(work, document):
            if holder.id == given.key and documents.signs(holder, given.signature, document.signed_bytes):
                return holder
    raise AnswerRefusedError(f"Nothing waits for a signature of {given.role} here.")


def _plain(document: Document) -> dict[str, object]:
    return msgspec.json.decode(document.raw, type=dict[str, object])


def _document(role: str, plain: dict[str, object]) -> Document:
    return documents.read(role, msgspec.json.encode(plain))


def _strict(data: bytes, kind: type[_Kind], bytes_max: int, what: str) -> _Kind:
    try:
        return msgspec.convert(strictjson.loads(data, bytes_max=bytes_max, floats=False), kind, strict=True)
    except (BundleFormatError, msgspec.ValidationError) as error:
        raise KeepingError(f"This is no {what} of a repository: {error}") from error


def sign_all(work: Workspace, signers: Sequence[Signer]) -> list[str]:
    """Sign every waiting proposal for which one of the keys counts; return the roles."""
    done = []
    for role, proposal in proposals.load_all(work).items():
        ids = {holder.id for holder in proposals.entitled(work, proposal.document)}
        if any(signer.public.id in ids for signer in signers):
            proposals.sign(work, role, signers)
            done.append(role)
    return done
