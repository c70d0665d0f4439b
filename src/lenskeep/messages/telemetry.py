"""What the fleet knows of how versions behave, as operators, pages and gates read it."""

from __future__ import annotations

from msgspec import Struct

from lenskeep.messages.sync import Vitals


class _View(Struct, frozen=True, kw_only=True):
    pass


class Latency(_View, frozen=True, kw_only=True):
    """How long one stage of a version took, over every device of the group; quantiles within 1 %.

    A field that was not asked for in `by` is empty: the row stands for all of its values together.
    """

    bundle: str
    stage: str
    digest: str = ""
    provider: str = ""
    hardware: str = ""
    begin_s: int = 0  # with `by=hour`: the first second of the hour
    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float


class Behaviour(_View, frozen=True, kw_only=True):
    """What a version did, over every device of the group."""

    bundle: str
    digest: str = ""
    provider: str = ""
    hardware: str = ""
    begin_s: int = 0
    windows: int
    seconds: int
    frames: int
    misses: int
    outcomes: dict[str, int]


class Running(_View, frozen=True, kw_only=True):
    """How many slots run a version, by signed reports."""

    bundle: str
    digest: str
    slots: int
    devices: int


class HappeningView(_View, frozen=True, kw_only=True):
    """Something that happened on a device."""

    id: int
    device: str
    n: int
    kind: str
    at_ms: int
    received_ms: int
    slot: str
    bundle: str
    code: str
    text: str
    count: int


class VitalsView(_View, frozen=True, kw_only=True):
    """The newest vitals of a device."""

    device: str
    received_ms: int
    vitals: Vitals


class WindowView(_View, frozen=True, kw_only=True):
    """The newest window of a slot."""

    device: str
    slot: str
    bundle: str
    digest: str
    provider: str
    received_ms: int
    seconds: int
    frames: int
    misses: int
    outcomes: dict[str, int]
    p50_ms: dict[str, float]  # by stage
    p99_ms: dict[str, float]


class PresenceView(_View, frozen=True, kw_only=True):
    """When a device was last heard."""

    device: str
    heard_ms: int
    address: str
    seen_version: int
    connected: bool = False


class SlotView(_View, frozen=True, kw_only=True):
    """Where a slot says that it stands."""

    device: str
    slot: str
    generation: int
    state: str
    code: str
    reason: str
    bundle: str
    digest: str
    busy: bool
    since_ms: int


class CommandView(_View, frozen=True, kw_only=True):
    """What was asked of a device, and what became of it."""

    id: str
    device: str
    kind: str
    text: str
    made_ms: int
    made_by: str
    state: str
    code: str
    answer: str
    done_ms: int
