"""What telemetry says of a rollout's version, per hardware class, beside what ran there before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from lenskeep.fleet.rollouts.facts import Behaviour, Evidence, Member, Rollout
from lenskeep.fleet.store.telemetry import TelemetryStore

BEFORE_S = 7 * 86400  # how far back the versions before are looked at
STAGE = "total"


async def gather(telemetry: TelemetryStore, rollout: Rollout, members: Sequence[Member]) -> Evidence:
    """Return how the version behaves since the rollout began, and how those that it replaces did."""
    began_s = rollout.made_ms // 1000
    before = {one.before for one in members if one.before and one.attempts}
    return Evidence(
        now=await _of(telemetry, [rollout.plan.bundle], since_s=began_s),
        before=await _of(telemetry, sorted(before), since_s=began_s - BEFORE_S),
    )


async def _of(telemetry: TelemetryStore, bundles: Iterable[str], *, since_s: int) -> dict[str, Behaviour]:
    """Sum versions up by hardware class; of several, the latency of the one with most samples stands for all."""
    found: dict[str, Behaviour] = {}
    samples: dict[str, int] = {}
    for bundle in bundles:
        for one in await telemetry.behaviour(bundle, ("hardware",), since_s=since_s):
            known = found.get(one.hardware, Behaviour())
            outcomes = {word: known.outcomes.get(word, 0) for word in {*known.outcomes, *one.outcomes}}
            found[one.hardware] = replace(
                known, frames=known.frames + one.frames, misses=known.misses + one.misses,
                outcomes={word: count + one.outcomes.get(word, 0) for word, count in outcomes.items()},
            )  # fmt: skip
        for latency in await telemetry.latency(bundle, STAGE, ("hardware",), since_s=since_s):
            if latency.samples > samples.get(latency.hardware, 0):
                samples[latency.hardware] = latency.samples
                known = found.get(latency.hardware, Behaviour())
                found[latency.hardware] = replace(known, p99_ms=latency.p99_ms)
    return found
