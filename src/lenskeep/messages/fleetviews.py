"""What people are shown of a fleet as a whole: who is well, who runs what, who does not run what it should.

Rules. `desired`, `running`, `pinned` and `reason` are separate facts: what the fleet asked for, the version whose
loaded bytes a signed report names, whether somebody at the device decided otherwise, and why. Times are RFC 3339, or
empty.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from lenskeep.messages.fleet import AlarmView, DeviceDetail, FleetRole

Health = Literal["healthy", "behind", "refused", "silent", "invited", "revoked"]
HEALTHS: tuple[Health, ...] = ("healthy", "behind", "refused", "silent", "invited", "revoked")


class _View(Struct, frozen=True, kw_only=True):
    pass


class MyselfView(_View, frozen=True, kw_only=True):
    """Who asks, and what they may do."""

    by: str
    role: FleetRole


class SlotLine(_View, frozen=True, kw_only=True):
    """One slot of a device: what it should run, what it runs, and why they differ."""

    slot: str
    desired: str = ""  # NAME@VERSION that the fleet assigned; empty = nothing
    running: str = ""  # NAME@VERSION of the loaded session, by the last signed report
    digest: str = ""  # of its bytes
    pinned: bool = False  # held, or somebody at the device decided that nothing changes now
    state: str = ""
    reason: str = ""
    code: str = ""
    since: str = ""


class DeviceLine(_View, frozen=True, kw_only=True):
    """A device on one line of a list."""

    device: str
    health: Health
    reason: str = ""
    since: str = ""
    heard: str = ""
    heard_s: float | None = None  # how long ago
    slots: list[SlotLine] = []
    tags: dict[str, str] = {}
    hardware: str = ""
    version: str = ""  # of Lenskeep
    clock_trusted: bool = True
    certificate_ends: str = ""
    metadata_ends: str = ""
    alarms: int = 0


class DevicesPage(_View, frozen=True, kw_only=True):
    """A part of the devices that were asked for; `next` continues the list."""

    devices: list[DeviceLine]
    total: int
    next: str = ""


class OverviewView(_View, frozen=True, kw_only=True):
    """The fleet at a glance."""

    at: str
    devices: int
    health: dict[str, int]
    alarms: int
    newest_alarms: list[AlarmView]
    rollouts: dict[str, int] = {}
    versions: int = 0
    silent_after_s: float = 0.0
    certificates_ending: int = 0  # within a month
    first_metadata_end: str = ""
    first_metadata_role: str = ""


class DriftLine(_View, frozen=True, kw_only=True):
    """A slot that does not run what it should."""

    device: str
    slot: str
    desired: str
    running: str
    digest: str = ""
    pinned: bool = False
    state: str = ""
    reason: str = ""
    code: str = ""
    since: str = ""
    health: str = ""


class BehaviourLine(_View, frozen=True, kw_only=True):
    """How a version behaves on one class of hardware."""

    hardware: str
    frames: int
    p50_ms: float
    p99_ms: float
    misses_share: float = 0.0
    ng_share: float = 0.0
    errors_share: float = 0.0


class TriedLine(_View, frozen=True, kw_only=True):
    """How a version did when the devices of one class of hardware tried it, in the newest trial of each."""

    hardware: str
    devices: int
    failed: int = 0
    scored: int = 0  # devices on which it came to the golden pictures
    golden_mean: float = 0.0
    golden_worst: float = 0.0
    p99_ms_mean: float = 0.0
    p99_ms_worst: float = 0.0
    memory_mb_worst: int = 0
    trials: int = 0  # that were ever told, repeated ones among them
    trials_failed: int = 0


class VersionLine(_View, frozen=True, kw_only=True):
    """A version and where it runs."""

    bundle: str
    devices: int  # that run it in some slot, by signed reports
    wanted: int  # slots that should run it
    digests: list[str] = []
    hardware: dict[str, int] = {}  # class -> devices
    behaviour: list[BehaviourLine] = []
    tried: list[TriedLine] = []


class HistoryLine(_View, frozen=True, kw_only=True):
    """Something that happened, as the device told it or the fleet did it."""

    at: str
    device: str
    kind: str
    slot: str = ""
    bundle: str = ""
    code: str = ""
    text: str = ""
    rollout: int = 0


class VitalsView(_View, frozen=True, kw_only=True):
    """A device's own state, as it told it last."""

    at: str = ""
    disk_free_mb: int = 0
    memory_free_mb: int = 0
    load: float = 0.0
    temperature_c: float | None = None


class TrialLine(_View, frozen=True, kw_only=True):
    """The newest trial of a version on a device."""

    at: str
    bundle: str
    hardware: str = ""
    provider: str = ""
    code: str = ""  # why it was refused; empty = it passed
    golden_passed: int = 0
    golden_total: int = 0
    golden_score: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    memory_mb: int = 0


class DevicePage(_View, frozen=True, kw_only=True):
    """Everything about one device."""

    line: DeviceLine
    detail: DeviceDetail
    vitals: VitalsView | None = None
    trials: list[TrialLine] = []
    history: list[HistoryLine] = []
