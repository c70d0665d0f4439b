"""Gathers what people are shown of the whole fleet; looked at once for everybody who asks within a moment.

Rules. A look reads each table once and judges in a thread; whoever asks meanwhile waits for the same look, and a look
at a large fleet serves for longer, so that watching never takes more than a small part of a core. Nothing is changed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from lenskeep.clock import Clock, rfc3339
from lenskeep.errors import RequestError
from lenskeep.fleet import standing
from lenskeep.fleet.rollouts.selecting import Candidate, select
from lenskeep.fleet.standing import Known, Wanted
from lenskeep.fleet.store.rollouts import Desired, RolloutStore
from lenskeep.fleet.store.store import Store
from lenskeep.fleet.store.survey import SurveyStore
from lenskeep.fleet.store.telemetry import TelemetryStore
from lenskeep.fleet.store.trials import TrialStore, merged
from lenskeep.messages.fleetviews import (
    HEALTHS,
    BehaviourLine,
    DeviceLine,
    DevicePage,
    DevicesPage,
    DriftLine,
    HistoryLine,
    OverviewView,
    TrialLine,
    TriedLine,
    VersionLine,
    VitalsView,
)
from lenskeep.messages.telemetry import Behaviour, Latency, TrialSum, TrialView

FRESH_S = 1.0
LOOKS_SHARE_MAX = 0.05  # of the time
ALARMS_SHOWN = 5
HISTORY_SHOWN = 200
ENDING_S = 30 * 86400


@dataclass(frozen=True)
class Asked:
    """Which devices are asked for; empty words ask for all."""

    health: frozenset[str] = frozenset()
    target: str = ""  # a selector: tags, names, groups, hardware
    runs: str = ""  # NAME@VERSION, or a NAME for any version of it
    text: str = ""  # part of the name


class Survey:
    """Looks over the whole fleet."""

    def __init__(
        self, survey: SurveyStore, rollouts: RolloutStore, telemetry: TelemetryStore, trials: TrialStore, store: Store,
        clock: Clock, *, silent_after_s: float,
    ) -> None:  # fmt: skip
        self._survey = survey
        self._rollouts = rollouts
        self._telemetry = telemetry
        self._trials = trials
        self._store = store
        self._clock = clock
        self._silent_after_s = silent_after_s
        self._lines: list[DeviceLine] = []
        self._stale_at_s = float("-inf")
        self._looking = asyncio.Lock()

    async def lines(self) -> list[DeviceLine]:
        """Return a line for every device, at most moments old. Cost: about 35 us for each device, most in a thread."""
        async with self._looking:
            begun_s = self._clock.monotonic_s()
            if begun_s >= self._stale_at_s:
                known, desired = await self._survey.devices(), await self._rollouts.desired()
                self._lines = await asyncio.to_thread(self._judge_in_thread, known, desired)
                took_s = self._clock.monotonic_s() - begun_s
                self._stale_at_s = begun_s + max(FRESH_S, took_s / LOOKS_SHARE_MAX)
            return self._lines

    def _judge_in_thread(self, known: list[Known], desired: list[Desired]) -> list[DeviceLine]:
        wanted: dict[str, dict[str, Wanted]] = {}
        for one in desired:
            text = f"Rollout {one.rollout}: {one.state}." + (f" {one.reason}" if one.reason else "")
            wanted.setdefault(one.device, {})[one.slot] = Wanted(one.bundle, one.generation, text)
        now_ms = self._clock.now_ms()
        return [
            standing.judge(
                replace(one, wanted=wanted.get(one.device, {})), now_ms=now_ms, silent_after_s=self._silent_after_s
            )
            for one in known
        ]

    async def overview(self) -> OverviewView:
        """Return the fleet at a glance."""
        lines, alarms = await self.lines(), await self._store.alarms()
        counted = Counter(line.health for line in lines)
        soon = rfc3339(self._clock.now_s() + ENDING_S)
        here = [line for line in lines if line.health not in {"invited", "revoked"}]
        return OverviewView(
            at=rfc3339(self._clock.now_s()), devices=len(lines), health={name: counted[name] for name in HEALTHS},
            alarms=len(alarms), newest_alarms=alarms[:ALARMS_SHOWN],
            rollouts=dict(Counter(str(rollout.state) for rollout, _ in await self._rollouts.all())),
            versions=len({slot.running for line in here for slot in line.slots if slot.running}),
            silent_after_s=self._silent_after_s,
            certificates_ending=sum(bool(line.certificate_ends) and line.certificate_ends < soon for line in here),
        )  # fmt: skip

    async def devices(self, asked: Asked, *, limit: int, after: str) -> DevicesPage:
        """Return a part of the devices that are asked for, by name. Raises: RequestError for a wrong selector."""
        found = [line for line in await self.lines() if _fits(line, asked)]
        if asked.target:
            groups = await self._rollouts.groups()
            chosen = {one.device for one in select(asked.target, [_candidate(line) for line in found], groups)}
            found = [line for line in found if line.device in chosen]
        rest = [line for line in found if line.device > after]
        return DevicesPage(
            devices=rest[:limit], total=len(found), next=rest[limit - 1].device if len(rest) > limit else ""
        )

    async def device(self, name: str) -> DevicePage:
        """Return everything about one device. Raises: UnknownNameError."""
        detail = await self._store.device(name)
        line = self._judge_in_thread(await self._survey.devices(name), await self._rollouts.desired(name))[0]
        told = await self._telemetry.vitals(name)
        vitals = None
        if told:
            said = told[0].vitals
            vitals = VitalsView(
                at=rfc3339(told[0].received_ms / 1000), disk_free_mb=said.disk_free_mb,
                memory_free_mb=said.memory_free_mb, load=said.load, temperature_c=said.temperature_c,
            )  # fmt: skip
        return DevicePage(
            line=line, detail=detail, vitals=vitals, history=await self.history(device=name),
            trials=[_trial(one) for one in await self._trials.of_device(name)],
        )  # fmt: skip

    async def drift(self) -> list[DriftLine]:
        """Return who does not run what it should, and why."""
        return standing.drift(await self.lines())

    async def history(self, *, device: str = "", bundle: str = "") -> list[HistoryLine]:
        """Return what happened on a device or with a version, newest first. Raises: RequestError for neither."""
        if not device and not bundle:
            raise RequestError("A history is of a device or of a version: give one of them.")
        told = await self._telemetry.happenings(device=device, bundle=bundle, limit=HISTORY_SHOWN)
        steps = await self._rollouts.history(device=device, bundle=bundle, limit=HISTORY_SHOWN)
        lines = [
            HistoryLine(
                at=rfc3339((one.at_ms or one.received_ms) / 1000), device=one.device, kind=one.kind, slot=one.slot,
                bundle=one.bundle, code=one.code, text=one.text,
            )
            for one in told
        ]  # fmt: skip
        lines += [
            HistoryLine(
                at=one.at, device=one.device, kind=f"rollout: {one.state}", slot=one.slot, bundle=one.bundle,
                code=one.code, text=one.reason, rollout=one.rollout,
            )
            for one in steps
        ]  # fmt: skip
        if device:
            lines += await self._survey.deeds(device, HISTORY_SHOWN)
        return sorted(lines, key=lambda line: line.at, reverse=True)[:HISTORY_SHOWN]

    async def versions(self, *, bundle: str = "", since_s: int = 0) -> list[VersionLine]:
        """Return which version runs where, and how it behaves on each class of hardware."""
        latency = await self._telemetry.latency(bundle, "total", ("hardware",), since_s=since_s)
        counts = await self._telemetry.behaviour(bundle, ("hardware",), since_s=since_s)
        found = _versions(await self.lines(), _behaviour(latency, counts))
        found = [line for line in found if not bundle or line.bundle == bundle]
        tried = _tried(await self._trials.now(bundle), await self._trials.ever(bundle))
        if bundle in tried and not found:  # on devices, and nowhere wanted yet
            found = [VersionLine(bundle=bundle, devices=0, wanted=0)]
        return [msgspec.structs.replace(line, tried=tried.get(line.bundle, [])) for line in found]


def _fits(line: DeviceLine, asked: Asked) -> bool:
    if asked.health and line.health not in asked.health:
        return False
    if asked.text and asked.text not in line.device:
        return False
    return not asked.runs or any(asked.runs in (slot.running, slot.running.partition("@")[0]) for slot in line.slots)


def _candidate(line: DeviceLine) -> Candidate:
    return Candidate(line.device, line.tags, line.tags.get("hardware", line.hardware))


def _versions(lines: Iterable[DeviceLine], behaviour: dict[str, list[BehaviourLine]]) -> list[VersionLine]:
    devices: dict[str, list[DeviceLine]] = {name: [] for name in behaviour}
    digests: dict[str, set[str]] = {}
    wanted: Counter[str] = Counter()
    for line in lines:
        if line.health in {"invited", "revoked"}:
            continue
        wanted.update(slot.desired for slot in line.slots if slot.desired)
        for slot in line.slots:
            if slot.running:
                digests.setdefault(slot.running, set()).add(slot.digest)
        for running in {slot.running for slot in line.slots if slot.running}:
            devices.setdefault(running, []).append(line)
    return [
        VersionLine(
            bundle=name, devices=len(devices.get(name, [])), wanted=wanted[name],
            digests=sorted(digests.get(name, set())),
            hardware=dict(Counter(line.hardware for line in devices.get(name, []))), behaviour=behaviour.get(name, []),
        )
        for name in sorted({*devices, *wanted})
    ]  # fmt: skip


def _trial(one: TrialView) -> TrialLine:
    return TrialLine(
        at=rfc3339((one.at_ms or one.received_ms) / 1000), bundle=one.bundle, hardware=one.hardware,
        provider=one.provider, code=one.code, golden_passed=one.golden_passed, golden_total=one.golden_total,
        golden_score=one.golden_score, p50_ms=one.p50_ms, p99_ms=one.p99_ms, memory_mb=one.memory_mb,
    )  # fmt: skip


def _tried(now: Iterable[TrialSum], ever: Iterable[TrialSum]) -> dict[str, list[TriedLine]]:
    """Return how versions did by hardware class; a class on which nobody has it any more is not shown."""
    told: dict[str, list[TrialSum]] = {}
    for each in ever:
        told.setdefault(each.bundle, []).append(each)
    sums = {bundle: merged(each) for bundle, each in told.items()}
    shown: dict[str, list[TriedLine]] = {}
    for one in now:
        all_ = sums.get(one.bundle, {}).get(one.hardware, one)
        shown.setdefault(one.bundle, []).append(
            TriedLine(
                hardware=one.hardware, devices=one.trials, failed=one.failed, scored=one.scored,
                golden_mean=round(one.score_mean, 4) if one.scored else 0.0,
                golden_worst=one.score_worst if one.scored else 0.0, p99_ms_mean=round(one.p99_mean_ms, 3),
                p99_ms_worst=one.p99_worst_us / 1000, memory_mb_worst=one.memory_worst_mb, trials=all_.trials,
                trials_failed=all_.failed,
            )
        )  # fmt: skip
    return shown


def _behaviour(latency: list[Latency], counts: list[Behaviour]) -> dict[str, list[BehaviourLine]]:
    quantiles = {(one.bundle, one.hardware): one for one in latency}
    shown: dict[str, list[BehaviourLine]] = {}
    for one in counts:
        quantile = quantiles.get((one.bundle, one.hardware))
        judged = max(1, sum(one.outcomes.values()))
        shown.setdefault(one.bundle, []).append(
            BehaviourLine(
                hardware=one.hardware, frames=one.frames, p50_ms=quantile.p50_ms if quantile else 0.0,
                p99_ms=quantile.p99_ms if quantile else 0.0, misses_share=one.misses / max(1, one.frames),
                ng_share=one.outcomes.get("NG", 0) / judged, errors_share=one.outcomes.get("ERROR", 0) / judged,
            )
        )  # fmt: skip
    return shown
