"""What the API asks of the rest of the daemon, as one frozen struct of parts.

Rules. A part raises the faults of `errors.py` and answers with the structs of `messages/control.py`; it knows
nothing of HTTP. `by` is who asks, in the form `unix:NAME` or `token:NAME`. A slot that is None is the only
one there is. A method that yields is an async generator: nothing happens before the first item is asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from lenskeep.messages.control import (
    ActivationRequest,
    Approval,
    AuditEntry,
    Bundle,
    BundleDetail,
    Check,
    CheckRequest,
    Deployment,
    Event,
    Key,
    KeyRequest,
    Operation,
    RefuseRequest,
    ScrubView,
    SignRequest,
    SlotView,
    Status,
    Token,
    TokenRequest,
    Verification,
    Window,
)
from lenskeep.messages.identity import (
    CertificateRequestView,
    EnrolRequest,
    IdentityView,
    InstallRequest,
    ReceiptTaken,
    SignedRecords,
    SignedReport,
)
from lenskeep.messages.record import RecordHead, RecordVerdict
from lenskeep.messages.repository import RepositoryView, SyncRequest
from lenskeep.messages.runner import CameraState, Picture, Result


class Operations(Protocol):
    """Long work by its id."""

    def get(self, operation_id: str) -> Operation: ...

    def list(self) -> list[Operation]: ...

    async def wait(self, operation_id: str, seconds: float) -> Operation: ...


class Importer(Protocol):
    """Bundle files in and out."""

    async def receive(self, chunks: AsyncIterator[bytes], size_bytes: int | None, by: str) -> Operation:
        """Verify and store; the trial on this device goes on in the operation."""
        ...

    async def verify(self, chunks: AsyncIterator[bytes], size_bytes: int | None) -> Verification: ...

    def export(self, ref: str) -> AsyncIterator[bytes]: ...

    async def remove(self, ref: str, by: str, reason: str) -> None: ...

    async def pin(self, ref: str, pinned: bool, by: str) -> None: ...


class Qualifier(Protocol):
    """Trials on this device."""

    async def check(self, request: CheckRequest, by: str) -> Operation: ...


class Activator(Protocol):
    """What a slot should run."""

    async def activate(self, request: ActivationRequest, by: str) -> Operation: ...

    async def confirm(self, slot: str | None, by: str, reason: str) -> str:
        """Let the version on trial stay; return the slot's name."""
        ...

    async def rollback(self, slot: str | None, by: str, reason: str) -> Operation: ...

    async def hold(self, slot: str | None, held: bool, by: str) -> str:
        """Hold swaps or let them go on; return the slot's name."""
        ...


class Views(Protocol):
    """What is so, for people and pages. Lists with `after` are newest first and go on below that sequence."""

    async def status(self) -> Status: ...

    async def slots(self) -> list[SlotView]: ...

    async def slot(self, name: str) -> SlotView: ...

    async def bundles(self, include_retired: bool) -> list[Bundle]: ...

    async def bundle(self, ref: str) -> BundleDetail: ...

    async def deployments(self, slot: str | None, limit: int, after: int | None) -> list[Deployment]: ...

    async def audit(self, limit: int, after: int | None) -> list[AuditEntry]: ...

    async def windows(self, slot: str | None, since_s: int, seconds: int) -> list[Window]:
        """Return windows of `seconds` that began at most `since_s` ago, oldest first."""
        ...

    async def cameras(self) -> list[CameraState]: ...

    async def health(self) -> list[Check]: ...

    async def results(self, slot: str | None, camera: str | None, limit: int, since: int | None) -> list[Result]: ...

    def live(self) -> bool: ...

    def ready(self) -> list[str]: ...


class Supervisor(Protocol):
    """The cameras, through the processes that hold them."""

    async def snapshot(self, camera: str, timeout_s: float) -> Picture: ...

    def pictures(self, camera: str, fps: float) -> AsyncIterator[Picture]: ...

    async def probe(self, camera: str, seconds: float) -> dict[str, Any]: ...

    async def list_devices(self) -> list[dict[str, Any]]: ...


class Keys(Protocol):
    """Whose signature counts."""

    async def list(self) -> list[Key]: ...

    async def trust(self, request: KeyRequest, by: str) -> Key: ...

    async def revoke(self, id_or_name: str, reason: str, by: str) -> Key: ...


class Tokens(Protocol):
    """Who may ask from where there are no accounts."""

    async def list(self) -> list[Token]: ...

    async def add(self, request: TokenRequest, by: str) -> Token: ...

    async def remove(self, id_or_name: str, by: str) -> None: ...

    async def find(self, secret: str) -> Token | None: ...


class Courier(Protocol):
    """Files that the asker carries for one sync."""

    closed: bool

    async def wanted(self, seconds: float) -> Any: ...

    async def bring(self, number: int, chunks: AsyncIterator[bytes]) -> None: ...

    async def absent(self, number: int) -> None: ...

    async def failed(self, number: int, message: str) -> None: ...


class Scrubber(Protocol):
    """The slow reading of all stored files."""

    async def start(self, by: str) -> Operation: ...

    async def view(self) -> ScrubView: ...


class Sync(Protocol):
    """Level with the repository."""

    async def begin(self, request: SyncRequest, by: str) -> Operation: ...

    def courier(self, operation_id: str) -> Courier: ...

    async def view(self) -> RepositoryView: ...

    def ask(self) -> None: ...


class Trust(Protocol):
    """Which repository is followed."""

    async def follow(self, root: bytes, by: str) -> Any: ...


class Events(Protocol):
    """What happens, as it happens."""

    def subscribe(self, since: int | None = None) -> AsyncIterator[Event]: ...


class Metrics(Protocol):
    """Numbers for a monitoring system."""

    def prometheus(self) -> bytes: ...


class Policy(Protocol):
    """What waits for people's approval."""

    async def list(self, everything: bool) -> list[Approval]: ...

    async def approve(self, slot: str, request: SignRequest, by: str, role: str) -> Approval: ...

    async def refuse(self, slot: str, request: RefuseRequest, by: str, role: str) -> Approval: ...


class Idempotency(Protocol):
    """Answers already given, for a day."""

    async def find(self, key: str, body_sha256: str) -> tuple[int, bytes] | None:
        """Return the stored status and body.

        Raises: IdempotencyError when the key stood for another request.
        """
        ...

    async def store(self, key: str, body_sha256: str, status: int, body: bytes) -> None: ...


class Record(Protocol):
    """The chain of every change, and what the device signed of it."""

    async def head(self) -> RecordHead: ...

    async def verify(self) -> RecordVerdict: ...

    def export(self, first_ms: int, until_ms: int) -> AsyncIterator[bytes]:
        """Yield lines; entries outside of the half-open span are left out, with their digests in their place."""
        ...


class Identity(Protocol):
    """Who this device is."""

    def view(self) -> IdentityView: ...

    async def request(self) -> CertificateRequestView: ...

    async def install(self, ask: InstallRequest, by: str) -> IdentityView: ...

    async def enrol(self, ask: EnrolRequest, by: str) -> IdentityView: ...


class Reporter(Protocol):
    """What this device says about itself, signed."""

    async def signed(self) -> SignedReport: ...


class Post(Protocol):
    """The outbox by stick."""

    async def pack(self, above: int) -> SignedRecords: ...

    async def receive(self, sealed: str) -> ReceiptTaken: ...


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """The daemon's parts, as the API sees them."""

    operations: Operations
    importer: Importer
    qualifier: Qualifier
    activator: Activator
    policy: Policy
    views: Views
    supervisor: Supervisor
    keys: Keys
    tokens: Tokens
    events: Events
    metrics: Metrics
    idempotency: Idempotency
    record: Record
    sync: Sync
    scrubber: Scrubber
    trust: Trust
    identity: Identity
    reporter: Reporter
    post: Post
