"""`/metrics` of the fleet: its numbers in Prometheus' text form, names after its naming guide.

Rules. Labels are few: health, state, role, version and hardware class, never a device; who that is stands on the pages.
Counters begin at zero with each start of the server. Percentiles are of the last `BEHAVIOUR_S`, merged over devices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lenskeep.clock import Clock
from lenskeep.fleet.expiries import repository_ends
from lenskeep.fleet.store.rollouts import RolloutStore
from lenskeep.fleet.survey import Survey
from lenskeep.messages.fleetviews import DeviceLine, OverviewView, VersionLine

BEHAVIOUR_S = 3600
LIVE = frozenset({"proposed", "running", "paused", "reverting"})
Counts = Callable[[], Mapping[str, float]]

# What the server counts of itself: name -> (help, whether it only grows).
SERVER = {
    "syncs": ("Calls of devices that were answered.", True),
    "commits": ("Transactions that took records.", True),
    "records": ("Records of devices that were taken.", True),
    "refusals": ("Calls that were put off because too many came at once.", True),
    "wakes": ("Waiting calls that were answered because of news.", True),
    "waiting": ("Calls that wait for news now.", False),
    "connected": ("Devices whose connection stands now.", False),
}


class Exposition:
    """Gathers afresh at every scrape."""

    def __init__(
        self, survey: Survey, rollouts: RolloutStore, repository: Path, clock: Clock,
        counts: Counts = dict,
    ) -> None:  # fmt: skip
        self._survey = survey
        self._rollouts = rollouts
        self._repository = repository
        self._clock = clock
        self._counts = counts
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)

    async def prometheus(self) -> bytes:
        """Return the page. Cost: a look over the fleet, shared with whoever looks at the same time."""
        overview, lines = await self._survey.overview(), await self._survey.lines()
        versions = await self._survey.versions(since_s=int(self._clock.now_s() - BEHAVIOUR_S))
        members = await self._rollouts.all()
        ends = await asyncio.to_thread(repository_ends, self._repository)
        families = [
            *_overview(overview), *_expiries(lines, ends), *_versions(versions), *_server(self._counts()),
            _rollouts([(str(one.id), str(one.state), states) for one, states in members]),
        ]  # fmt: skip
        return await asyncio.to_thread(self._render_in_thread, families)

    def _render_in_thread(self, families: list[Metric]) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Gathered(families))
        return bytes(generate_latest(registry)) + bytes(generate_latest(self._process))


class _Gathered:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _gauge(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"lenskeep_fleet_{name}", words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _overview(view: OverviewView) -> Iterator[Metric]:
    info = GaugeMetricFamily("lenskeep_fleet_build_info", "Version of Lenskeep.", labels=["version"])
    info.add_metric([version("lenskeep")], 1)
    yield info
    yield _gauge("devices", "Devices by how they stand.", "health", view.health)
    yield GaugeMetricFamily("lenskeep_fleet_alarms", "Alarms that nobody has closed.", value=view.alarms)
    states = dict.fromkeys((*sorted(LIVE), "finished", "aborted"), 0)
    yield _gauge("rollouts", "Rollouts by state.", "state", {**states, **view.rollouts})


def _expiries(lines: list[DeviceLine], ends: Mapping[str, float]) -> Iterator[Metric]:
    certificates = [
        datetime.fromisoformat(line.certificate_ends).timestamp()
        for line in lines
        if line.certificate_ends and line.health not in {"invited", "revoked"}
    ]
    if certificates:
        yield GaugeMetricFamily(
            "lenskeep_fleet_certificate_expiry_timestamp_seconds",
            "When the first of the devices' certificates ends.",
            value=min(certificates),
        )
    yield _gauge("metadata_expiry_timestamp_seconds", "When a role of the repository runs out.", "role", ends)


def _versions(found: list[VersionLine]) -> Iterator[Metric]:
    yield _gauge("version_devices", "Devices that run a version.", "bundle", {one.bundle: one.devices for one in found})
    yield _gauge("version_wanted", "Slots that should run it.", "bundle", {one.bundle: one.wanted for one in found})
    latency = GaugeMetricFamily(
        "lenskeep_fleet_latency_seconds",
        "Time per picture in the last hour.",
        labels=["bundle", "hardware", "percentile"],
    )
    shares = GaugeMetricFamily(
        "lenskeep_fleet_outcome_ratio", "Parts of the last hour's pictures.", labels=["bundle", "hardware", "outcome"]
    )
    frames = GaugeMetricFamily(
        "lenskeep_fleet_frames", "Pictures judged in the last hour.", labels=["bundle", "hardware"]
    )
    for one in found:
        for line in one.behaviour:
            latency.add_metric([one.bundle, line.hardware, "50"], line.p50_ms / 1000)
            latency.add_metric([one.bundle, line.hardware, "99"], line.p99_ms / 1000)
            frames.add_metric([one.bundle, line.hardware], line.frames)
            for outcome, share in (("miss", line.misses_share), ("ng", line.ng_share), ("error", line.errors_share)):
                shares.add_metric([one.bundle, line.hardware, outcome], share)
    yield from (latency, shares, frames, *_trials(found))


def _trials(found: list[VersionLine]) -> Iterator[Metric]:
    trials = GaugeMetricFamily(
        "lenskeep_fleet_tried_devices",
        "Devices by how their newest trial of a version ended.",
        labels=["bundle", "hardware", "result"],
    )
    golden = GaugeMetricFamily(
        "lenskeep_fleet_golden_score",
        "How well devices reproduced the golden outputs in their newest trial; 1 = equal.",
        labels=["bundle", "hardware", "of"],
    )
    for one in found:
        for line in one.tried:
            trials.add_metric([one.bundle, line.hardware, "passed"], line.devices - line.failed)
            trials.add_metric([one.bundle, line.hardware, "failed"], line.failed)
            if line.scored:
                golden.add_metric([one.bundle, line.hardware, "mean"], line.golden_mean)
                golden.add_metric([one.bundle, line.hardware, "worst"], line.golden_worst)
    yield from (trials, golden)


def _rollouts(found: list[tuple[str, str, dict[str, int]]]) -> Metric:
    family = GaugeMetricFamily(
        "lenskeep_fleet_rollout_devices", "Devices of rollouts that are not over.", labels=["rollout", "state"]
    )
    for number, state, states in found:
        if state in LIVE:
            for name, count in states.items():
                family.add_metric([number, name], count)
    return family


def _server(counts: Mapping[str, float]) -> Iterator[Metric]:
    for name, (words, grows) in SERVER.items():
        kind = CounterMetricFamily if grows else GaugeMetricFamily
        yield kind(f"lenskeep_fleet_{name}", words, value=counts.get(name, 0))
