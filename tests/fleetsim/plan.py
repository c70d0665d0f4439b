"""What a run of simulated devices is told, and what it tells afterwards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
from msgspec import Struct, field

from lenskeep.sketch import Sketch
from tests.fleetsim.habits import CALM, Chances


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run. Times are those of the devices; `speed` says how many of their seconds pass in one of ours."""

    host: str
    port: int
    identities: str  # folder with authority.crt and NAME.pem of each device
    names: list[str]
    seed: int
    seconds: float  # of ours; 0 = until it is stopped
    speed: float = 1.0
    journals: str = ""  # folder; empty = in memory
    outbox_records: int = 5000
    root: str = ""  # file of the repository's root; empty = nothing is verified and nothing followed
    wait_s: float = 0.0  # hold calls for this long
    window_s: float = 60.0
    vitals_share: float = 0.2  # with how many windows vitals come along
    step_s: float = 5.0  # a step of an assignment takes about so long
    spread_s: float = 1.0  # of ours: the first calls are spread over so long
    backlog: int = 0  # records that each device has from the beginning
    chances: Chances = CALM
    drain: bool = False  # produce nothing; end as soon as the fleet has everything
    slow_version: str = ""  # NAME@VERSION that is slow on `slow_hardware`
    slow_hardware: str = ""
    worse_version: str = ""  # NAME@VERSION whose golden score is lower on `worse_hardware`, within the tolerance
    worse_hardware: str = ""
    running: str = "cap-inspect@1.0.0"  # what devices run before anything is assigned

    def part(self, index: int, parts: int) -> Plan:
        """Return one process's share."""
        return msgspec.structs.replace(self, names=self.names[index::parts])


class Event(Struct, frozen=True, array_like=True):
    """Something that a bench wants to know the time of; the clock is the machine's monotonic one."""

    at_s: float
    device: str
    what: str  # news | assigned | state
    value: str


class Told(Struct, kw_only=True):
    """What came of a run."""

    counts: dict[str, int] = field(default_factory=Counter)
    call_us: bytes = b""  # a sketch of how long calls took that were not held
    events: list[Event] = []
    open_devices: list[str] = []  # of a drain: who still had something

    @classmethod
    def merged(cls, parts: list[Told]) -> Told:
        """Put what several processes told together."""
        counts: Counter[str] = Counter()
        latencies, events, waiting = Sketch(), [], []
        for one in parts:
            counts.update(one.counts)
            latencies.merge(Sketch.from_bytes(one.call_us))
            events += one.events
            waiting += one.open_devices
        return cls(
            counts=dict(sorted(counts.items())), call_us=latencies.to_bytes(),
            events=sorted(events, key=lambda event: event.at_s), open_devices=waiting,
        )  # fmt: skip

    def latency_ms(self, fraction: float) -> float:
        """Return a quantile of the calls that were not held."""
        return Sketch.from_bytes(self.call_us).quantile_us(fraction) / 1000


def read_told(path: Path) -> Told:
    """Read what a process has told."""
    return msgspec.json.decode(path.read_bytes(), type=Told)
