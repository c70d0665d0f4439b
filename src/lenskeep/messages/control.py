"""What the control API says and is asked: requests, answers, problems, events. The OpenAPI document is made from these.

Rules. Times are RFC 3339 in UTC in text, durations carry their unit in the name, digests are lower-case hex. Answers
may grow new fields inside `/v1`; requests refuse unknown ones. Sequences, not clocks, order things.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lenskeep.messages.identity import FleetView
from lenskeep.messages.runner import CameraState, Outcome, Result, TrialReport
from lenskeep.permissions import Permission, Role

Reason = Annotated[str, Meta(max_length=500)]
RefText = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}(@[0-9a-z.\-]{1,60})?$(?!\n)")]
NamePattern = Annotated[str, Meta(pattern=r"^[a-z0-9*-]{1,63}$(?!\n)")]
SlotName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$(?!\n)")]


class _Answer(Struct, frozen=True):
    pass


class _Request(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Problem(_Answer, frozen=True, kw_only=True):
    """RFC 9457 problem details, with our fault code, the fix, and what remained unchanged."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    request_id: str = ""
    errors: list[dict[str, str]] = []


class Check(_Answer, frozen=True, kw_only=True):
    """One line of a dry run or of `doctor`."""

    name: str
    passed: bool
    text: str
    code: str = ""
    hint: str = ""
    severity: Literal["ok", "info", "warn", "fault", "stop"] = "ok"


class Progress(_Answer, frozen=True, kw_only=True):
    """How far an operation is. `total` 0 = unknown."""

    stage: str
    done: int
    total: int
    unit: str


class Operation(_Answer, frozen=True, kw_only=True):
    """Long work that goes on by itself; look again, or wait with `?wait=30`."""

    id: str
    kind: Literal["import", "check", "activate", "rollback", "verify", "sync", "scrub"]
    state: Literal["awaiting_approval", "running", "succeeded", "failed", "rolled_back"]
    subject: str
    started: str
    finished: str = ""
    by: str = ""
    progress: Progress | None = None
    result: Any = None
    error: Problem | None = None
    waits: str = ""  # what it waits for, when it does: awaiting_approval


class Bundle(_Answer, frozen=True, kw_only=True):
    """A version stored on this device."""

    id: str
    name: str
    version: str
    title: str
    task: str
    digest: str
    model_sha256: str
    size_bytes: int
    state: Literal["imported", "qualified", "rejected", "retired"]
    signer: str
    signer_key: str
    imported: str
    imported_by: str
    created: str
    license: str
    roles: list[str] = []  # "active:SLOT", "previous:SLOT", "wanted:SLOT", "pinned"
    pinned: bool = False
    metrics: dict[str, float] = {}
    labels: list[str] = []
    trial: TrialReport | None = None
    trial_at: str = ""


class BundleDetail(_Answer, frozen=True, kw_only=True):
    """A version with its whole manifest, card and files."""

    bundle: Bundle
    manifest: Any
    card: str
    files: list[dict[str, Any]]
    trials: list[dict[str, Any]]


class LatencyView(_Answer, frozen=True, kw_only=True):
    """A stage's durations over a time span."""

    stage: str
    count: int
    p50_ms: float
    p99_ms: float


Meaning = Literal["review", "approval", "responsibility"]


class SignatureView(_Answer, frozen=True, kw_only=True):
    """One person's approval: who, when, and what it means."""

    person: str
    by: str
    role: str
    meaning: Meaning
    reason: str
    at: str


class Approval(_Answer, frozen=True, kw_only=True):
    """A version that somebody wants in a slot, and the approvals that it got; `digest` is what they are for."""

    id: str
    slot: str
    bundle: str
    digest: str
    state: Literal["waiting", "granted", "done", "refused", "expired", "void"]
    by: str
    person: str
    reason: str
    asked: str
    expires: str
    needed: int
    roles: list[str]  # whose approval counts here
    meanings: list[Meaning]  # which a signature may have here
    own: bool  # whoever asked may approve too
    signatures: list[SignatureView]
    operation: str
    ended: str = ""
    ended_reason: str = ""


class SlotView(_Answer, frozen=True, kw_only=True):
    """What a slot should run, what it really runs, and how it does."""

    slot: str
    state: Literal["empty", "swapping", "probation", "settled", "rolled_back"]
    wanted: str
    active: str
    active_digest: str  # digest of the model bytes that the loaded session was made from
    previous: str
    previous_warm: bool
    pinned: str
    since: str
    reason: str
    signer: str
    trial_ends_s: float | None
    held: bool
    budget_ms: float
    provider: str
    latency: list[LatencyView]
    outcomes: dict[str, int]
    misses: int
    cameras: list[CameraState]
    runner: Literal["starting", "running", "adopted", "restarting", "stopped"]
    runner_rss_mb: float
    faults: list[Check]
    etag: str
    confirm_needed: bool = False  # on trial: it goes back by itself unless somebody confirms it
    waiting: Approval | None = None  # a version that waits for the approval of people
    locked: list[str] = []  # the slot runs only these; empty = not locked


class Status(_Answer, frozen=True, kw_only=True):
    """One screen about this device."""

    device: str
    verdict: Literal["RUNNING", "DEGRADED", "STOPPED", "EMPTY"]
    version: str
    since: str
    clock_trusted: bool
    slots: list[SlotView]
    faults: list[Check]
    disk_free_mb: int
    memory_free_mb: int
    load: float
    temperature_c: float | None
    daemon_rss_mb: float
    fleet: FleetView | None = None  # None = it belongs to none


class DamageView(_Answer, frozen=True, kw_only=True):
    """A stored file that was not whole, and was set aside."""

    file: str
    kind: Literal["blob", "prepared"]
    bundles: list[str]
    what: str
    found: str
    by: str


class ScrubView(_Answer, frozen=True, kw_only=True):
    """How far the slow reading of all stored files is, and what it found."""

    state: Literal["resting", "reading", "paused"]
    reason: str  # why it is paused
    files_done: int
    files_total: int
    bytes_done: int
    whole_passes: int
    finished: str
    next_s: int  # until the next pass begins, in seconds of service
    damaged: list[DamageView]


class CheckRequest(_Request, frozen=True, kw_only=True):
    """Try a version on this device; nothing changes. `frames` 0 = as configured."""

    bundle: RefText
    slot: SlotName | None = None
    frames: Annotated[int, Meta(ge=0, le=100000)] = 0


class ActivationRequest(_Request, frozen=True, kw_only=True):
    """Make a slot want this version. `trial_s`: go back by itself unless confirmed in time."""

    bundle: RefText
    slot: SlotName | None = None
    trial_s: Annotated[float, Meta(gt=0, le=7 * 86400)] | None = None
    reason: Reason = ""
    accept_risks: list[Literal["outcome-shift"]] = []


class SlotRequest(_Request, frozen=True, kw_only=True):
    """Name a slot; may be left out when there is only one."""

    slot: SlotName | None = None
    reason: Reason = ""


class SignRequest(_Request, frozen=True, kw_only=True):
    """Approve what waits in a slot: this request, these very bytes, with a meaning and a reason."""

    id: Annotated[str, Meta(max_length=64)]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
    meaning: Meaning
    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class RefuseRequest(_Request, frozen=True, kw_only=True):
    """Refuse what waits in a slot, with the reason."""

    id: Annotated[str, Meta(max_length=64)]
    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class HoldRequest(_Request, frozen=True, kw_only=True):
    """Hold swaps while the line must not change (a part is under the camera), or let them go on."""

    slot: SlotName | None = None
    held: bool


class PinRequest(_Request, frozen=True, kw_only=True):
    """Keep a version from being removed by retention."""

    pinned: bool


class Key(_Answer, frozen=True, kw_only=True):
    """A key that an administrator has trusted to sign some model names."""

    id: str
    name: str
    patterns: list[str]
    not_before: str
    not_after: str
    added: str
    added_by: str
    revoked: str = ""
    revoked_reason: str = ""


class Verification(_Answer, frozen=True, kw_only=True):
    """What a bundle file is, judged by this device's keys without storing it."""

    name: str
    version: str
    title: str
    digest: str
    size_bytes: int
    signer: str
    signer_key: str
    here: bool  # this very bundle is stored already
    active_version: str  # version of the same name that is active, or empty
    older: bool  # older than the active one
    warnings: list[str] = []


class KeyRequest(_Request, frozen=True, kw_only=True):
    """Trust a public key (PEM, ECDSA P-256) for model names that match the patterns."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$(?!\n)")]
    pem: Annotated[str, Meta(max_length=4000)]
    patterns: Annotated[list[NamePattern], Meta(min_length=1, max_length=50)]
    not_before: str = ""
    not_after: str = ""


class RevokeRequest(_Request, frozen=True, kw_only=True):
    """Withdraw trust in a key, with the reason."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class TokenRequest(_Request, frozen=True, kw_only=True):
    """Make a bearer token for a role. It counts for `days`, or for `hours` where these are given.

    `slots`: it changes only these. `person`: for whom its approvals count; its own name otherwise.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$(?!\n)")]
    role: Role
    days: Annotated[int, Meta(ge=1, le=3650)] = 365
    hours: Annotated[int, Meta(ge=0, le=24 * 3650)] = 0
    slots: Annotated[list[SlotName], Meta(max_length=50)] = []
    person: Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,62})?$(?!\n)")] = ""


class Token(_Answer, frozen=True, kw_only=True):
    """A bearer token; `secret` is shown once, when it is made."""

    id: str
    name: str
    role: Role
    created: str
    expires: str
    secret: str = ""
    person: str = ""
    slots: list[str] = []
    added_by: str = ""
    last_used: str = ""  # to the minute; empty = never
    left_s: float | None = None  # how long it still counts


class AuditEntry(_Answer, frozen=True, kw_only=True):
    """One state change: who, what, when, why, before, after. `hash` chains it to all that came before."""

    sequence: int
    at: str
    clock_trusted: bool
    by: str
    action: str
    subject: str
    reason: str
    before: str
    after: str
    monotonic_ms: int = 0
    boot: str = ""  # which start of the machine `monotonic_ms` counts from
    hash: str = ""


class Deployment(_Answer, frozen=True, kw_only=True):
    """What ran in a slot, from when to when, why and by whom."""

    sequence: int
    slot: str
    bundle: str
    digest: str
    started: str
    ended: str
    by: str
    reason: str
    outcome: str  # running | settled | replaced | rolled_back


class Window(_Answer, frozen=True, kw_only=True):
    """Counts and quantiles of one version in one slot over a time span."""

    slot: str
    bundle: str
    start: str
    seconds: int
    frames: int
    outcomes: dict[str, int]
    misses: int
    latency: list[LatencyView]


class Event(_Answer, frozen=True, kw_only=True):
    """Something happened; `data` depends on the type."""

    sequence: int
    type: Literal["result", "slot", "operation", "fault", "camera", "bundle", "audit"]
    at: str
    data: Any


class Found(_Answer, frozen=True, kw_only=True):
    """One thing found in a picture; `box` is x1, y1, x2, y2 in pixels of the frame."""

    label: str
    score: float
    box: tuple[float, float, float, float]


class ResultView(_Answer, frozen=True, kw_only=True):
    """The judgement of one frame. Times in microseconds; `digest` names the bytes that judged it."""

    sequence: int
    camera: str
    frame: int
    captured_ms: int
    outcome: Outcome
    label: str
    score: float
    margin: float
    detections: list[Found]
    bundle: str
    digest: str
    wait_us: int
    preprocess_us: int
    inference_us: int
    decode_us: int
    total_us: int
    error: str = ""


class ResultPage(_Answer, frozen=True, kw_only=True):
    """The newest results, oldest first."""

    results: list[ResultView]


def result_view(result: Result) -> ResultView:
    """Say a result with names; on the runner's socket it is an array, to be small."""
    found = [Found(label=one.label, score=one.score, box=(one.x1, one.y1, one.x2, one.y2)) for one in result.detections]
    fields = {name: getattr(result, name) for name in result.__struct_fields__}
    return ResultView(**(fields | {"detections": found}))


class WhoAmI(_Answer, frozen=True, kw_only=True):
    """Who is asking, as the device sees it: what this role may do, and which roles may do what it may not."""

    name: str
    role: Role
    anonymous: bool
    person: str = ""  # whom an approval counts for; several tokens may stand for one
    slots: list[str] = []  # changes only these slots; empty = all
    may: list[Permission] = []
    needs: dict[str, list[Role]] = {}  # permission -> the roles that have it, the least first
