"""What operators ask of rollouts and what they are shown; a plan is the same in a file, on the wire and in the store.

Rules. Times of a plan are seconds. Shares are parts of one. A gate that is None is not looked at.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from lenskeep.messages.fleet import DeviceName, Line, Text

Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=366 * 86400)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Way = Literal["skip", "attempt", "forced"]
Broken = Literal["pause", "abort-keep", "abort-revert"]
Selector = Annotated[str, Meta(min_length=1, max_length=1000)]
Slot = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,30}\Z")]
Bundle = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}@[0-9][0-9a-z.\-]{0,59}\Z")]
GroupName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z")]
TagKey = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_.-]{0,40}\Z")]
TagValue = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,79}\Z")]
WindowText = Annotated[
    str, Meta(pattern=r"^([A-Za-z]{3}(-[A-Za-z]{3})? )?[0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9]\Z")
]


class _Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class _Answer(Struct, frozen=True, kw_only=True):
    pass


class Wave(_Request, frozen=True, kw_only=True):
    """A step of a rollout: `5` five more devices, `10%` until a tenth of all is in, `canary=yes` or names: those."""

    take: Selector
    soak_s: Seconds | None = None  # how long it is watched before the next one; None = as the plan says


class Gates(_Request, frozen=True, kw_only=True):
    """What must hold before the next wave. What a device's own model does is judged per hardware class."""

    success_share_min: Share = 0.9  # of a wave's devices, before the next wave
    failed_max: Count | None = None  # took itself back, failed or refused, in all
    failed_share_max: Share | None = 0.1
    silent_max: Count | None = None
    silent_share_max: Share | None = 0.5
    golden_failed_max: Count | None = 0  # devices on which the version did not reproduce its golden outputs
    golden_score_min: Share | None = None  # of the worst device, in its newest trial; 1 = equal to the golden outputs
    golden_drop_max: Share | None = 0.05  # fall of the mean against the previous version's on the same hardware
    p99_ms_max: Annotated[float, Meta(gt=0)] | None = None
    p99_growth_max: Annotated[float, Meta(gt=0)] | None = 1.5  # times the previous version's on the same hardware
    misses_share_max: Share | None = 0.05  # frames over the budget
    errors_share_max: Share | None = 0.02
    ng_shift_max: Share | None = 0.2  # of the share of NG against the previous version on the same hardware
    samples_min: Count = 200  # frames per hardware class; with fewer nothing is said of its behaviour
    evidence_s_max: Seconds = 0  # > 0: a wave waits for the samples and the trials, and that long at most


class Deadlines(_Request, frozen=True, kw_only=True):
    """How long a device may stay in a state before it counts as silent."""

    assigned_s: Seconds = 86400
    downloading_s: Seconds = 86400
    staged_s: Seconds = 86400
    activating_s: Seconds = 3600
    probation_s: Seconds = 86400
    reverting_s: Seconds = 86400


class Plan(_Request, frozen=True, kw_only=True):
    """A whole rollout as it was asked for."""

    bundle: Bundle
    slot: Slot
    target: Selector = "all"
    waves: Annotated[list[Wave], Meta(min_length=1, max_length=50)] = field(
        default_factory=lambda: [Wave(take="10%"), Wave(take="100%")]
    )
    soak_s: Seconds = 600
    gates: Gates = Gates()
    on_broken: Broken = "pause"
    approvals: Annotated[int, Meta(ge=0, le=10)] = 0
    approvers: list[Line] = []  # who may approve; empty = every operator but the one who asked
    windows: Annotated[list[WindowText], Meta(max_length=20)] = []  # UTC; activation is asked for inside them alone
    download: Way = "attempt"
    activate: Way = "attempt"  # attempt: when the line is idle and the device's own windows are open
    retries: Annotated[int, Meta(ge=0, le=10)] = 2
    retry_s: Seconds = 60  # doubles with each try
    again: bool = False  # also where this version failed before; there it is asked for by force
    deadlines: Deadlines = Deadlines()
    reason: Text = ""


# --- asking --------------------------------------------------------------------------------------------------------


class RolloutAsk(_Request, frozen=True, kw_only=True):
    """Start a rollout, or only show what it would do."""

    plan: Plan
    dry_run: bool = False


class RolloutDeed(_Request, frozen=True, kw_only=True):
    """Pause, resume, approve or abort."""

    reason: Annotated[str, Meta(max_length=500)] = ""
    revert: bool = False  # of an abort: bring back what each device ran before


class GroupAsk(_Request, frozen=True, kw_only=True):
    """Give a selector a name."""

    name: GroupName
    selector: Selector


class TagAsk(_Request, frozen=True, kw_only=True):
    """Tag devices; a value of None takes the tag away."""

    devices: Annotated[list[DeviceName], Meta(min_length=1, max_length=10_000)]
    tags: dict[TagKey, TagValue | None]


# --- being shown ----------------------------------------------------------------------------------------------------


class MemberView(_Answer, frozen=True, kw_only=True):
    """Where one device of a rollout stands."""

    device: str
    wave: int  # from 1
    state: str
    reason: str
    since: str
    code: str = ""
    attempts: int = 0
    generation: int = 0
    hardware: str = ""
    before: str = ""


class GateView(_Answer, frozen=True, kw_only=True):
    """A gate as it was judged last."""

    gate: str
    subject: str  # a hardware class, or empty
    value: float
    limit: float
    broken: bool
    text: str


class WaveView(_Answer, frozen=True, kw_only=True):
    """A wave and its devices by state."""

    number: int
    take: str
    state: Literal["waiting", "running", "soaking", "through"]
    devices: int
    states: dict[str, int]


class RolloutRow(_Answer, frozen=True, kw_only=True):
    """A rollout on one line."""

    id: int
    bundle: str
    slot: str
    target: str
    state: str
    reason: str
    since: str
    by: str
    started: str
    wave: int
    waves: int
    devices: int
    states: dict[str, int]
    approvals: list[str] = []
    approvals_needed: int = 0


class RolloutDetail(_Answer, frozen=True, kw_only=True):
    """A rollout with everything about it. Of a dry run the id is 0."""

    rollout: RolloutRow
    plan: Plan
    waves: list[WaveView]
    gates: list[GateView]
    members: list[MemberView]


class GroupView(_Answer, frozen=True, kw_only=True):
    """A group and who is in it now."""

    name: str
    selector: str
    devices: list[str]


class DeploymentView(_Answer, frozen=True, kw_only=True):
    """A step of a device in a rollout."""

    at: str
    device: str
    rollout: int
    slot: str
    bundle: str
    state: str
    reason: str
    code: str = ""
