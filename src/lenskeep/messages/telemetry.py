"""What the fleet knows of how versions behave, as operators, pages and gates read it."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

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


class TrialView(_View, frozen=True, kw_only=True):
    """The newest trial of a version on a device."""

    device: str
    bundle: str
    at_ms: int
    received_ms: int
    digest: str
    provider: str
    hardware: str
    code: str  # why it was refused; empty = it passed
    golden_passed: int
    golden_total: int
    golden_score: float
    p50_ms: float
    p99_ms: float
    memory_mb: int


class TrialSum(_View, frozen=True, kw_only=True):
    """Trials of a version added up. Sums of other trials may be added; what the sum does not tell apart is empty."""

    bundle: str
    digest: str = ""
    hardware: str = ""
    provider: str = ""
    trials: int
    failed: int
    scored: int  # those that came to the golden pictures
    score_sum_ppm: int
    score_worst_ppm: int
    timed: int
    p99_sum_us: int
    p99_worst_us: int
    memory_worst_mb: int

    @property
    def score_mean(self) -> float:
        """Return the mean golden score; 1.0 where there is none."""
        return self.score_sum_ppm / self.scored / 1e6 if self.scored else 1.0

    @property
    def score_worst(self) -> float:
        """Return the lowest golden score; 1.0 where there is none."""
        return self.score_worst_ppm / 1e6

    @property
    def p99_mean_ms(self) -> float:
        """Return the mean p99 of the timed trials."""
        return self.p99_sum_us / self.timed / 1000 if self.timed else 0.0

    def plus(self, other: TrialSum) -> TrialSum:
        """Return both sums as one."""
        kept = ("bundle", "digest", "hardware", "provider")
        apart = {name: "" for name in kept if getattr(self, name) != getattr(other, name)}
        added = ("trials", "failed", "scored", "score_sum_ppm", "timed", "p99_sum_us")
        return replace(
            self, **apart, **{name: getattr(self, name) + getattr(other, name) for name in added},
            score_worst_ppm=min(self.score_worst_ppm, other.score_worst_ppm),
            p99_worst_us=max(self.p99_worst_us, other.p99_worst_us),
            memory_worst_mb=max(self.memory_worst_mb, other.memory_worst_mb),
        )  # fmt: skip


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
