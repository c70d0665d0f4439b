"""A device that fits in a pocket: plain rooms behind the real control server, for tests of the door itself."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from lenskeep.bundle import keys
from lenskeep.config import Config, Control, Limits
from lenskeep.daemon.control.rooms import Rooms
from lenskeep.daemon.control.server import control_server
from lenskeep.errors import (
    IdempotencyError,
    LenskeepError,
    NothingToRollBackToError,
    UnknownNameError,
    UnknownSignerError,
)
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
    LatencyView,
    Operation,
    Problem,
    Progress,
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
from lenskeep.messages.runner import CameraState, Picture, Result, TrialCheck, TrialReport
from lenskeep.trust import certificates, chain, recordfile
from lenskeep.trust.identity import fingerprint
from tests.ports import free_port

JPEG = bytes.fromhex("ffd8ffd9")
AT = "2026-11-20T06:02:00Z"


def bundle(name: str = "cap-inspect", version: str = "1.0.0", **changes: Any) -> Bundle:
    """A version as the registry shows it."""
    digest = hashlib.sha256(f"{name}@{version}".encode()).hexdigest()
    base = Bundle(
        id=digest[:12], name=name, version=version, title="Cap inspection", task="detection", digest=digest,
        model_sha256=digest[::-1], size_bytes=11, state="qualified", signer="plant-release", signer_key="ab" * 32,
        imported=AT, imported_by="unix:root", created=AT, license="Apache-2.0",
    )  # fmt: skip
    return replace(base, **changes)


def camera(**changes: Any) -> CameraState:
    """A camera that works."""
    base = CameraState(
        name="cam-1", state="running", fps=29.97, frames=1800, width_px=1280, height_px=720, frame_age_s=0.02,
        reconnects=0, drops={},
    )  # fmt: skip
    return replace(base, **changes)


def slot(**changes: Any) -> SlotView:
    """A slot that inspects."""
    base = SlotView(
        slot="main", state="settled", wanted="cap-inspect@1.0.0", active="cap-inspect@1.0.0", active_digest="9f3c" * 16,
        previous="cap-inspect@0.9.0", previous_warm=True, pinned="", since=AT, reason="", signer="plant-release",
        trial_ends_s=None, held=False, budget_ms=40.0, provider="CPUExecutionProvider",
        latency=[LatencyView(stage="total", count=1800, p50_ms=18.2, p99_ms=27.4)],
        outcomes={"OK": 12404, "NG": 61, "UNCERTAIN": 7}, misses=0, cameras=[camera()], runner="running",
        runner_rss_mb=210.0, faults=[], etag="7",
    )  # fmt: skip
    return replace(base, **changes)


def status(**changes: Any) -> Status:
    """A device on one screen."""
    base = Status(
        device="cam-07", verdict="RUNNING", version="0.1.0", since=AT, clock_trusted=True, slots=[slot()], faults=[],
        disk_free_mb=20480, memory_free_mb=1024, load=0.4, temperature_c=None, daemon_rss_mb=48.0,
    )  # fmt: skip
    return replace(base, **changes)


def result(sequence: int) -> Result:
    """A frame judged well."""
    return Result(
        sequence=sequence, camera="cam-1", frame=sequence, captured_ms=1_700_000_000_000, outcome="OK", label="good",
        score=0.94, margin=0.34, detections=[], bundle="cap-inspect@1.0.0", digest="9f", wait_us=10, preprocess_us=900,
        inference_us=9000, decode_us=30, total_us=9940,
    )  # fmt: skip


def report(**changes: Any) -> TrialReport:
    """A trial that went well."""
    checks = [
        TrialCheck(name="signature", passed=True, text="plant-release"),
        TrialCheck(name="golden", passed=True, text="12 of 12"),
        TrialCheck(name="latency", passed=True, text="p99 29 ms, budget 40 ms"),
    ]
    base = TrialReport(
        passed=True, code="", message="", checks=checks, provider="CPUExecutionProvider", runtime="1.31", p50_ms=21.0,
        p99_ms=29.0, load_ms=310.0, memory_mb=180, golden_passed=12, golden_total=12, golden_score=1.0,
    )  # fmt: skip
    return replace(base, **changes)


def approval(**changes: Any) -> Approval:
    """A version that waits for two people."""
    base = Approval(
        id="1f3a9c20", slot="main", bundle="cap-inspect@1.1.0", digest="ab" * 32, state="waiting", by="unix:mara",
        person="mara", reason="new lot", asked=AT, expires=AT, needed=2, roles=["supervisor", "admin"],
        meanings=["review", "approval"], own=False, signatures=[], operation="op9",
    )  # fmt: skip
    return replace(base, **changes)


class PocketDevice:
    """All the parts at once; tests look at and change its plain attributes."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.status_now = status()
        self.waiting = approval()
        self.slot_now = slot()
        self.stored = {"cap-inspect@1.0.0": bundle(), "cap-inspect@0.9.0": bundle(version="0.9.0")}
        self.known: dict[str, Operation] = {}
        self.changed = asyncio.Event()
        self.secrets: dict[str, Token] = {}
        self.trusted: dict[str, Key] = {}
        self.answers: dict[str, tuple[str, int, bytes]] = {}
        self.sequence = 0
        self.kept_events: list[Event] = []
        self.listeners: list[asyncio.Queue[Event]] = []
        self.failing: list[str] = []
        self.refusal: LenskeepError | None = None  # raised by the next thing that changes something
        self.operation_error: Problem | None = None  # how the next operation ends
        self.operation_delay_s = 0.0
        self.working: set[asyncio.Task[None]] = set()
        self.files: list[bytes] = []

    def rooms(self) -> Rooms:
        """The device as the control server sees it."""
        return Rooms(
            operations=_Operations(self), importer=_Importer(self), qualifier=_Qualifier(self),
            activator=_Activator(self), views=_Views(self), supervisor=_Supervisor(self), keys=_Keys(self),
            tokens=_Tokens(self), events=_Events(self), metrics=_Metrics(), idempotency=_Idempotency(self),
            record=_Record(self), policy=_Policy(self), sync=_Sync(self), trust=_Trust(self),
            identity=_Identity(self), reporter=_Reporter(self), scrubber=_Scrubber(self),
            post=_Post(self),
        )  # fmt: skip

    def token(self, role: str, name: str = "") -> str:
        """Let a secret stand for a role; return the secret."""
        name = name or f"t-{role}"
        secret = f"secret-{name}"
        self.secrets[secret] = Token(id=name, name=name, role=role, created=AT, expires="")  # type: ignore[arg-type]
        return secret

    def publish(self, type_: str, data: Any) -> Event:
        """Make something happen."""
        self.sequence += 1
        event = Event(sequence=self.sequence, type=type_, at=AT, data=data)  # type: ignore[arg-type]
        if type_ != "result":
            self.kept_events.append(event)
        for queue in self.listeners:
            queue.put_nowait(event)
        return event

    def begin(self, kind: str, subject: str, by: str) -> Operation:
        """Begin work that ends by itself as `operation_error` says."""
        if self.refusal is not None:
            raise self.refusal
        operation = Operation(
            id=f"op{len(self.known) + 1}", kind=kind, state="running", subject=subject, started=AT, by=by,  # type: ignore[arg-type]
            progress=Progress(stage="golden", done=3, total=12, unit="pictures"),
        )  # fmt: skip
        self.known[operation.id] = operation
        task = asyncio.get_running_loop().create_task(self._finish(operation))
        self.working.add(task)
        task.add_done_callback(self.working.discard)
        return operation

    async def _finish(self, operation: Operation) -> None:
        await asyncio.sleep(self.operation_delay_s)
        error = self.operation_error
        state: Any = "succeeded" if error is None else "failed"
        if error is not None and error.code.startswith("LK-81"):
            state = "rolled_back"
        self.known[operation.id] = replace(
            operation,
            state=state,
            finished=AT,
            progress=None,
            error=error,
            result={"bundle": operation.subject, "interval_ms": 12.0},
        )
        self.changed.set()
        self.changed = asyncio.Event()


class _Part:
    def __init__(self, device: PocketDevice) -> None:
        self.device = device


class _Operations(_Part):
    def get(self, operation_id: str) -> Operation:
        if operation_id not in self.device.known:
            raise UnknownNameError(f"No operation has the id {operation_id!r}.")
        return self.device.known[operation_id]

    def list(self) -> list[Operation]:
        return list(reversed(self.device.known.values()))

    async def wait(self, operation_id: str, seconds: float) -> Operation:
        try:
            async with asyncio.timeout(seconds):
                while self.get(operation_id).state == "running":
                    await self.device.changed.wait()
        except TimeoutError:
            pass
        return self.get(operation_id)


class _Importer(_Part):
    async def receive(self, chunks: AsyncIterator[bytes], size_bytes: int | None, by: str) -> Operation:
        data = b"".join([chunk async for chunk in chunks])
        self.device.files.append(data)
        self.device.calls.append(("receive", len(data), size_bytes, by))
        if data.startswith(b"stranger"):
            raise UnknownSignerError("Signed by a key that nobody here trusts. Nothing was stored.")
        self.device.stored["cap-inspect@1.1.0"] = bundle(version="1.1.0", trial=report(), imported_by=by)
        return self.device.begin("import", "cap-inspect@1.1.0", by)

    async def verify(self, chunks: AsyncIterator[bytes], size_bytes: int | None) -> Verification:
        data = b"".join([chunk async for chunk in chunks])
        if data.startswith(b"stranger"):
            raise UnknownSignerError("Signed by a key that nobody here trusts. Nothing was stored.")
        return Verification(
            name="cap-inspect", version="1.1.0", title="Cap inspection", digest="cd" * 32, size_bytes=len(data),
            signer="plant-release", signer_key="ab" * 32, here=False, active_version="1.0.0", older=False,
        )  # fmt: skip

    async def export(self, ref: str) -> AsyncIterator[bytes]:
        if ref not in self.device.stored:
            raise UnknownNameError(f"{ref} is not on this device.")
        yield b"hello "
        yield b"world"

    async def remove(self, ref: str, by: str, reason: str) -> None:
        if self.device.stored.pop(ref, None) is None:
            raise UnknownNameError(f"{ref} is not on this device. Nothing was changed.")
        self.device.calls.append(("remove", ref, by, reason))

    async def pin(self, ref: str, pinned: bool, by: str) -> None:
        self.device.stored[ref] = replace(self.device.stored[ref], pinned=pinned)


class _Qualifier(_Part):
    async def check(self, request: CheckRequest, by: str) -> Operation:
        self.device.calls.append(("check", request, by))
        return self.device.begin("check", request.bundle, by)


class _Activator(_Part):
    async def activate(self, request: ActivationRequest, by: str) -> Operation:
        self.device.calls.append(("activate", request, by))
        return self.device.begin("activate", request.bundle, by)

    async def confirm(self, slot: str | None, by: str, reason: str) -> str:
        self.device.calls.append(("confirm", slot, by, reason))
        return self.device.slot_now.slot

    async def rollback(self, slot: str | None, by: str, reason: str) -> Operation:
        if not self.device.slot_now.previous:
            raise NothingToRollBackToError("The slot main has no previous version. Nothing was changed.")
        self.device.calls.append(("rollback", slot, by, reason))
        return self.device.begin("rollback", self.device.slot_now.previous, by)

    async def hold(self, slot: str | None, held: bool, by: str) -> str:
        self.device.calls.append(("hold", slot, held, by))
        etag = str(int(self.device.slot_now.etag) + 1)
        self.device.slot_now = replace(self.device.slot_now, held=held, etag=etag)
        return self.device.slot_now.slot


class _Views(_Part):
    async def status(self) -> Status:
        return self.device.status_now

    async def slots(self) -> list[SlotView]:
        return [self.device.slot_now]

    async def slot(self, name: str) -> SlotView:
        if name != self.device.slot_now.slot:
            raise UnknownNameError(f"No slot is named {name!r}.")
        return self.device.slot_now

    async def bundles(self, include_retired: bool) -> list[Bundle]:
        return [each for each in self.device.stored.values() if include_retired or each.state != "retired"]

    async def bundle(self, ref: str) -> BundleDetail:
        if ref not in self.device.stored:
            raise UnknownNameError(f"{ref} is not on this device.")
        return BundleDetail(bundle=self.device.stored[ref], manifest={}, card="", files=[], trials=[])

    async def deployments(self, slot: str | None, limit: int, after: int | None) -> list[Deployment]:
        every = [
            Deployment(
                sequence=n, slot="main", bundle="cap-inspect@1.0.0", digest="9f", started=AT, ended="", by="unix:root",
                reason="", outcome="running",
            )
            for n in range(5, 0, -1)
        ]  # fmt: skip
        return [each for each in every if after is None or each.sequence < after][:limit]

    async def audit(self, limit: int, after: int | None) -> list[AuditEntry]:
        every = [
            AuditEntry(
                sequence=n, at=AT, clock_trusted=True, by="unix:root", action="activate", subject="main", reason="",
                before="", after="",
            )
            for n in range(5, 0, -1)
        ]  # fmt: skip
        return [each for each in every if after is None or each.sequence < after][:limit]

    async def windows(self, slot: str | None, since_s: int, seconds: int) -> list[Window]:
        return []

    async def cameras(self) -> list[CameraState]:
        return [camera()]

    async def health(self) -> list[Check]:
        return [Check(name="disk", passed=True, text="20 GB free")]

    async def results(self, slot: str | None, camera: str | None, limit: int, since: int | None) -> list[Result]:
        return [result(1), result(2)][-limit:]

    def live(self) -> bool:
        return True

    def ready(self) -> list[str]:
        return self.device.failing


class _Supervisor(_Part):
    async def snapshot(self, camera: str, timeout_s: float) -> Picture:
        if camera != "cam-1":
            raise UnknownNameError(f"No camera is named {camera!r}.")
        return Picture(
            camera=camera, jpeg=JPEG, age_ms=33, captured_ms=1_700_000_000_000, bundle="cap-inspect@1.0.0", outcome="OK"
        )

    async def pictures(self, camera: str, fps: float) -> AsyncIterator[Picture]:
        while True:
            yield await self.snapshot(camera, 1.0)
            await asyncio.sleep(0)

    async def probe(self, camera: str, seconds: float) -> dict[str, Any]:
        return {"camera": camera, "fps": 29.9, "seconds": seconds}

    async def list_devices(self) -> list[dict[str, Any]]:
        return [{"path": "/dev/video0", "name": "UVC Camera"}]


class _Keys(_Part):
    async def list(self) -> list[Key]:
        return list(self.device.trusted.values())

    async def trust(self, request: KeyRequest, by: str) -> Key:
        key = Key(
            id=hashlib.sha256(request.pem.encode()).hexdigest(), name=request.name, patterns=request.patterns,
            not_before="", not_after="", added=AT, added_by=by,
        )  # fmt: skip
        self.device.trusted[request.name] = key
        return key

    async def revoke(self, id_or_name: str, reason: str, by: str) -> Key:
        if id_or_name not in self.device.trusted:
            raise UnknownNameError(f"No key is named {id_or_name!r}.")
        key = replace(self.device.trusted[id_or_name], revoked=AT, revoked_reason=reason)
        self.device.trusted[id_or_name] = key
        return key


class _Tokens(_Part):
    async def list(self) -> list[Token]:
        return list(self.device.secrets.values())

    async def add(self, request: TokenRequest, by: str) -> Token:
        secret = self.device.token(request.role, request.name)
        return replace(self.device.secrets[secret], secret=secret)

    async def remove(self, id_or_name: str, by: str) -> None:
        if self.device.secrets.pop(f"secret-{id_or_name}", None) is None:
            raise UnknownNameError(f"No token is named {id_or_name!r}.")

    async def find(self, secret: str) -> Token | None:
        return self.device.secrets.get(secret)


class _Policy(_Part):
    async def list(self, everything: bool) -> list[Approval]:
        return [self.device.waiting]

    async def approve(self, slot: str, request: SignRequest, by: str, role: str) -> Approval:
        self.device.calls.append(("approve", slot, request, by, role))
        return self.device.waiting

    async def refuse(self, slot: str, request: RefuseRequest, by: str, role: str) -> Approval:
        self.device.calls.append(("refuse", slot, request, by, role))
        return self.device.waiting


class _Events(_Part):
    async def subscribe(self, since: int | None = None) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        for event in self.device.kept_events if since is not None else []:
            if event.sequence > (since or 0):
                queue.put_nowait(event)
        self.device.listeners.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.device.listeners.remove(queue)


class _Record(_Part):
    """A record of three entries, signed."""

    key = keys.generate_key()

    def lines(self) -> list[bytes]:
        entries = [chain.put(chain.BEFORE_ALL, _facts(chain.BEGIN, "cam-07"))]
        for action in ("trust key", "activate"):
            entries.append(chain.put(entries[-1].point, _facts(action, "slot main")))
        head = chain.Head(
            device="cam-07", sequence=entries[-1].sequence, hash=entries[-1].hash, at=AT, counter=1
        )  # fmt: skip
        envelope = chain.sign_head(head, self.key)
        shown = [recordfile.entry_line(entry, True) for entry in entries]
        return [recordfile.header_line("cam-07", self.key.public), *shown, recordfile.head_line(envelope)]

    async def head(self) -> RecordHead:
        reading = recordfile.Reading(self.lines())
        assert reading.head is not None
        return RecordHead(
            device="cam-07", sequence=2, hash=reading.head.hash, at=AT, counter=1, key_id=self.key.public.id,
            public_key=self.key.public.pem, envelope=reading.envelope,
        )  # fmt: skip

    async def verify(self) -> RecordVerdict:
        return recordfile.verify(self.lines())

    async def export(self, first_ms: int, until_ms: int) -> AsyncIterator[bytes]:
        for line in self.lines():
            yield line


def _facts(action: str, subject: str) -> chain.Facts:
    return chain.Facts(
        at_ms=1_795_154_520_000, monotonic_ms=60_000, boot="", clock_trusted=True, actor="unix:root", action=action,
        subject=subject, reason="", before="", after="",
    )  # fmt: skip


class _Courier:
    """Somebody who carries files that nobody wants."""

    closed = True

    async def wanted(self, seconds: float) -> None:
        return None

    async def bring(self, number: int, chunks: AsyncIterator[bytes]) -> None:
        async for _ in chunks:
            pass

    async def absent(self, number: int) -> None:
        return None

    async def failed(self, number: int, message: str) -> None:
        return None


class _Sync(_Part):
    """A device that follows no repository."""

    async def begin(self, request: SyncRequest, by: str) -> Operation:
        return self.device.begin("sync", request.source or "fleet", by)

    def courier(self, operation_id: str) -> Any:
        return _Courier()

    async def view(self) -> RepositoryView:
        return RepositoryView(
            follows=False, device="cam-07", source="", checked="", roles=[], assignments=[], withdrawn=[], faults=[]
        )

    def ask(self) -> None:
        self.device.calls.append(("sync",))


class _Scrubber(_Part):
    async def start(self, by: str) -> Operation:
        return self.device.begin("scrub", "stored files", by)

    async def view(self) -> ScrubView:
        return ScrubView(
            state="resting", reason="", files_done=0, files_total=6, bytes_done=0, whole_passes=1, finished=AT,
            next_s=86400, damaged=[],
        )  # fmt: skip


class _Trust(_Part):
    async def follow(self, root: bytes, by: str) -> None:
        self.device.calls.append(("follow", by))


class _Identity(_Part):
    """A device that belongs to no fleet, with the key that signs its record."""

    def view(self) -> IdentityView:
        key = _Record.key.public
        return IdentityView(
            device="cam-07", key_id=key.id, fingerprint=fingerprint(key.id), enrolled=False, public_key=key.pem
        )

    async def request(self) -> CertificateRequestView:
        csr = certificates.write_request(_Record.key, "cam-07")
        return CertificateRequestView(device="cam-07", fingerprint=self.view().fingerprint, csr=csr)

    async def install(self, ask: InstallRequest, by: str) -> IdentityView:
        self.device.calls.append(("install", by))
        return self.view()

    async def enrol(self, ask: EnrolRequest, by: str) -> IdentityView:
        self.device.calls.append(("enrol", ask.url, by))
        return self.view()


class _Reporter(_Part):
    async def signed(self) -> SignedReport:
        return SignedReport(device="cam-07", counter=1, envelope="{}")


class _Post(_Part):
    """Nothing to tell a fleet."""

    async def pack(self, above: int) -> SignedRecords:
        return SignedRecords(device="cam-07")

    async def receive(self, sealed: str) -> ReceiptTaken:
        return ReceiptTaken(outbox="ab" * 16, taken=0, forgotten=0)


class _Metrics:
    def prometheus(self) -> bytes:
        return b"lenskeep_build_info 1\n"


class _Idempotency(_Part):
    async def find(self, key: str, body_sha256: str) -> tuple[int, bytes] | None:
        kept = self.device.answers.get(key)
        if kept is not None and kept[0] != body_sha256:
            raise IdempotencyError("This key stood for another request. Nothing was changed.")
        return None if kept is None else kept[1:]

    async def store(self, key: str, body_sha256: str, status: int, body: bytes) -> None:
        self.device.answers[key] = (body_sha256, status, body)


def configuration(**control: Any) -> Config:
    """A configuration with one small limit, so that it can be reached."""
    return Config(control=Control(**{"port": free_port(), **control}), limits=Limits(bundle_mb_max=1))


@asynccontextmanager
async def served(device: PocketDevice, config: Config, folder: Path) -> AsyncIterator[Path]:
    """Serve the device on real sockets; yield the Unix socket's path."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(control_server(config, device.rooms(), folder))
        yield folder / "lenskeep.sock"


def problem_of(error: LenskeepError, status: int) -> Problem:
    """A fault as an operation carries it."""
    return msgspec.convert(
        {
            "type": f"urn:lenskeep:problem:{error.code}", "title": error.title(), "status": status,
            "detail": str(error), "code": error.code, "hint": error.hint,
        },
        Problem,
    )  # fmt: skip
