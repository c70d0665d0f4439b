"""The one typed client of the control API: a method is a route and returns its struct.

Not here: how requests travel (wire), words for people (output, words).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import msgspec

from lenskeep.cli.wire import CHUNK_BYTES, TIMEOUT_S, Address, Wire
from lenskeep.errors import PeerError, TimedOutError
from lenskeep.messages import control, repository
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
    ResultPage,
    ScrubView,
    SignRequest,
    SlotView,
    Status,
    Token,
    TokenRequest,
    Verification,
    WhoAmI,
    Window,
)
from lenskeep.messages.identity import (
    CertificateRequestView,
    EnrolRequest,
    IdentityView,
    InstallRequest,
    OutboxRequest,
    ReceiptRequest,
    ReceiptTaken,
    SignedRecords,
    SignedReport,
)
from lenskeep.messages.record import RecordHead, RecordVerdict
from lenskeep.messages.repository import RepositoryView, WantedFile
from lenskeep.messages.runner import CameraState

ENROLMENT_S = 90.0  # the device asks the fleet twice
LOOK_S = 0.25  # how often progress is looked at while an operation runs


class Client:
    """A device, asked over its socket or its port."""

    def __init__(self, address: Address, token: str | None = None) -> None:
        self.address = address
        self._wire = Wire(address, token)

    # --- the device -----------------------------------------------------------------------------------------------

    def status(self) -> Status:
        return self._wire.get("/v1/status", Status)

    def health(self) -> list[Check]:
        return self._wire.get("/v1/health", list[Check])

    def configuration(self) -> dict[str, Any]:
        return self._wire.get("/v1/config", dict[str, Any])

    def whoami(self) -> WhoAmI:
        return self._wire.get("/v1/whoami", WhoAmI)

    def capabilities(self) -> dict[str, Any]:
        return self._wire.get("/v1", dict[str, Any])

    def metrics(self) -> str:
        return self._wire.ask("GET", "/metrics").decode()

    # --- bundles --------------------------------------------------------------------------------------------------

    def bundles(self, *, everything: bool = False) -> list[Bundle]:
        return self._wire.get("/v1/bundles", list[Bundle], all="true" if everything else None)

    def bundle(self, ref: str) -> BundleDetail:
        return self._wire.get(f"/v1/bundles/{_part(ref)}", BundleDetail)

    def remove(self, ref: str, reason: str = "") -> None:
        self._wire.ask("DELETE", f"/v1/bundles/{_part(ref)}", query={"reason": reason or None})

    def pin(self, ref: str, pinned: bool) -> Bundle:
        return self._wire.send("PUT", f"/v1/bundles/{_part(ref)}/pin", control.PinRequest(pinned=pinned), Bundle)

    def upload(self, path: Path, progress: Callable[[int, int], None]) -> Operation:
        """Send a bundle file; return when it is verified and stored. `progress(sent, total)` in bytes."""
        return self._wire.decode(self._wire.upload("/v1/imports", path, progress), Operation)

    def verify(self, path: Path, progress: Callable[[int, int], None]) -> Verification:
        """Have a bundle file judged by the device's keys; nothing is kept."""
        return self._wire.decode(self._wire.upload("/v1/verifications", path, progress), Verification)

    def export(self, ref: str, target: BinaryIO, progress: Callable[[int, int], None]) -> None:
        """Write the bundle file to `target`. Raises: PeerError when it ends too early."""
        answer = self._wire.open("GET", f"/v1/bundles/{_part(ref)}/file")
        total, done = int(answer.headers.get("Content-Length", "0")), 0
        for chunk in self._wire.pieces(answer, lambda: answer.read(CHUNK_BYTES)):
            target.write(chunk)
            done += len(chunk)
            progress(done, total)
        if done != total:
            raise PeerError(f"The file ended after {done} of {total} bytes.")

    # --- slots ----------------------------------------------------------------------------------------------------

    def slots(self) -> list[SlotView]:
        return self._wire.get("/v1/slots", list[SlotView])

    def slot(self, name: str) -> SlotView:
        return self._wire.get(f"/v1/slots/{_part(name)}", SlotView)

    def check(self, request: CheckRequest) -> Operation:
        return self._wire.send("POST", "/v1/checks", request, Operation)

    def activate(self, request: ActivationRequest) -> Operation:
        return self._wire.send("POST", "/v1/activations", request, Operation)

    def confirm(self, slot: str | None, reason: str = "") -> SlotView:
        return self._wire.send("POST", "/v1/confirmations", control.SlotRequest(slot=slot, reason=reason), SlotView)

    def rollback(self, slot: str | None, reason: str = "") -> Operation:
        return self._wire.send("POST", "/v1/rollbacks", control.SlotRequest(slot=slot, reason=reason), Operation)

    def hold(self, slot: str, held: bool) -> SlotView:
        return self._wire.send("PUT", f"/v1/slots/{_part(slot)}/hold", control.HoldRequest(held=held), SlotView)

    # --- stored files ---------------------------------------------------------------------------------------------

    def scrub(self) -> ScrubView:
        return self._wire.get("/v1/scrub", ScrubView)

    def start_scrub(self) -> Operation:
        return self._wire.decode(self._wire.ask("POST", "/v1/scrubs"), Operation)

    # --- the repository -------------------------------------------------------------------------------------------

    def repository(self) -> RepositoryView:
        return self._wire.get("/v1/repository", RepositoryView)

    def follow_repository(self, root: str) -> RepositoryView:
        return self._wire.send("PUT", "/v1/repository/root", repository.RootRequest(root=root), RepositoryView)

    def sync(self, *, carried: bool = False, source: str = "") -> Operation:
        return self._wire.send("POST", "/v1/syncs", repository.SyncRequest(carried=carried, source=source), Operation)

    def wanted(self, operation_id: str) -> WantedFile:
        """Say which file a carried sync needs next; waits a while for one."""
        return self._wire.get(f"/v1/syncs/{_part(operation_id)}/wanted", WantedFile, wait="5")

    def bring(self, operation_id: str, want: WantedFile, file: BinaryIO, progress: Callable[[int, int], None]) -> None:
        """Send the wanted file from the wanted offset on. Raises: SourceError when it cannot be read to its end."""
        path = f"/v1/syncs/{_part(operation_id)}/files/{want.number}"
        self._wire.send_file("PUT", path, file, want.offset, progress, want.length)

    def absent(self, operation_id: str, want: WantedFile) -> None:
        self._wire.ask("DELETE", f"/v1/syncs/{_part(operation_id)}/files/{want.number}")

    def carry_fault(self, operation_id: str, want: WantedFile, message: str) -> None:
        path = f"/v1/syncs/{_part(operation_id)}/files/{want.number}/fault"
        self._wire.ask("POST", path, body=msgspec.json.encode(repository.CarryFault(message=message[:500])))

    # --- who this device is ---------------------------------------------------------------------------------------

    def identity(self) -> IdentityView:
        return self._wire.get("/v1/identity", IdentityView)

    def certificate_request(self) -> CertificateRequestView:
        return self._wire.get("/v1/identity/request", CertificateRequestView)

    def install_certificate(self, request: InstallRequest) -> IdentityView:
        return self._wire.send("PUT", "/v1/identity/certificate", request, IdentityView)

    def enrol(self, request: EnrolRequest) -> IdentityView:
        data = self._wire.ask("POST", "/v1/enrolment", body=msgspec.json.encode(request), timeout_s=ENROLMENT_S)
        return self._wire.decode(data, IdentityView)

    def signed_report(self) -> SignedReport:
        return self._wire.decode(self._wire.ask("POST", "/v1/reports"), SignedReport)

    def pack_outbox(self, above: int) -> SignedRecords:
        """Have the oldest records above a number signed, for a stick."""
        return self._wire.send("POST", "/v1/outbox", OutboxRequest(above=above), SignedRecords)

    def take_receipt(self, envelope: str) -> ReceiptTaken:
        return self._wire.send("POST", "/v1/outbox/receipts", ReceiptRequest(envelope=envelope), ReceiptTaken)

    # --- approvals ------------------------------------------------------------------------------------------------

    def approvals(self, *, everything: bool = False) -> list[Approval]:
        return self._wire.get("/v1/approvals", list[Approval], all="true" if everything else None)

    def approve(self, slot: str, request: SignRequest) -> Approval:
        return self._wire.send("POST", f"/v1/slots/{_part(slot)}/approvals", request, Approval)

    def refuse(self, slot: str, request: RefuseRequest) -> Approval:
        return self._wire.send("POST", f"/v1/slots/{_part(slot)}/refusals", request, Approval)

    # --- operations and events ------------------------------------------------------------------------------------

    def operation(self, operation_id: str) -> Operation:
        return self._wire.get(f"/v1/operations/{_part(operation_id)}", Operation)

    def operations(self) -> list[Operation]:
        return self._wire.get("/v1/operations", list[Operation])

    def wait(self, operation: Operation, seconds: float, seen: Callable[[Operation], None]) -> Operation:
        """Return the operation when it has ended; `seen` is called with every look at it.

        Raises: TimedOutError when it takes longer; the operation goes on.
        """
        ends = time.monotonic() + seconds
        while operation.state == "running":
            if time.monotonic() >= ends:
                raise TimedOutError(
                    f"{operation.kind} {operation.subject} takes longer than {seconds:.0f} s and goes on by itself.",
                    hint=f"Follow it with: lenskeep op show {operation.id}",
                )
            seen(operation)
            operation = self._wire.get(f"/v1/operations/{_part(operation.id)}", Operation, wait=str(LOOK_S))
        return operation

    def events(
        self, since: int | None = None, *, types: list[str] | None = None, follow: bool = True
    ) -> Iterator[Event]:
        """Yield events as they come; without `follow` only those that are kept."""
        query = {
            "since": since,
            "types": ",".join(types) if types else None,
            "follow": None if follow else "false",
        }
        answer = self._wire.open("GET", "/v1/events", query=query, timeout_s=60.0)
        for line in self._wire.pieces(answer, answer.readline):
            if line.startswith(b"data: "):
                yield self._wire.decode(line[6:], Event)

    # --- cameras --------------------------------------------------------------------------------------------------

    def cameras(self) -> list[CameraState]:
        return self._wire.get("/v1/cameras", list[CameraState])

    def camera_devices(self) -> list[dict[str, Any]]:
        return self._wire.get("/v1/camera-devices", list[dict[str, Any]])

    def test_camera(self, camera: str, seconds: float) -> dict[str, Any]:
        path = f"/v1/cameras/{_part(camera)}/test"
        data = self._wire.ask("POST", path, query={"seconds": seconds}, timeout_s=seconds + TIMEOUT_S)
        return self._wire.decode(data, dict[str, Any])

    def snapshot(self, camera: str) -> tuple[bytes, Mapping[str, str]]:
        """Return a JPEG picture and the headers that say its age and what judged it."""
        with self._wire.open("GET", f"/v1/cameras/{_part(camera)}/snapshot.jpg") as answer:
            return answer.read(), dict(answer.headers)

    # --- history --------------------------------------------------------------------------------------------------

    def results(self, *, limit: int, camera: str | None = None, since: int | None = None) -> ResultPage:
        return self._wire.get("/v1/results", ResultPage, limit=limit, camera=camera, since=since)

    def windows(self, *, since_s: int, seconds: int) -> list[Window]:
        return self._wire.get("/v1/windows", list[Window], since_s=since_s, seconds=seconds)

    def deployments(self, *, limit: int, slot: str | None = None) -> list[Deployment]:
        return self._wire.get("/v1/deployments", list[Deployment], limit=limit, slot=slot)

    def audit(self, *, limit: int) -> list[AuditEntry]:
        return self._wire.get("/v1/audit", list[AuditEntry], limit=limit)

    def record_head(self) -> RecordHead:
        return self._wire.get("/v1/audit/head", RecordHead)

    def verify_record(self) -> RecordVerdict:
        """Have the device read its whole record; a large one takes a while."""
        return self._wire.decode(self._wire.ask("POST", "/v1/audit/verification", timeout_s=600.0), RecordVerdict)

    def export_record(self, target: BinaryIO, first: str = "", until: str = "") -> None:
        """Write the record's lines to `target`; days such as 2027-01-31 leave the others out."""
        query = {"from": first or None, "until": until or None}
        answer = self._wire.open("GET", "/v1/audit/export", query=query, timeout_s=120.0)
        for chunk in self._wire.pieces(answer, lambda: answer.read(CHUNK_BYTES)):
            target.write(chunk)

    # --- keys and tokens ------------------------------------------------------------------------------------------

    def keys(self) -> list[Key]:
        return self._wire.get("/v1/keys", list[Key])

    def trust_key(self, request: KeyRequest) -> Key:
        return self._wire.send("POST", "/v1/keys", request, Key)

    def revoke_key(self, id_or_name: str, reason: str) -> Key:
        path = f"/v1/keys/{_part(id_or_name)}/revocation"
        return self._wire.send("POST", path, control.RevokeRequest(reason=reason), Key)

    def tokens(self) -> list[Token]:
        return self._wire.get("/v1/tokens", list[Token])

    def add_token(self, request: TokenRequest) -> Token:
        return self._wire.send("POST", "/v1/tokens", request, Token)

    def remove_token(self, id_or_name: str) -> None:
        self._wire.ask("DELETE", f"/v1/tokens/{_part(id_or_name)}")


def _part(name: str) -> str:
    return quote(name, safe="@")
