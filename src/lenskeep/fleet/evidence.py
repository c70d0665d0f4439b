"""What telemetry and trials say of a rollout's version, per hardware class, beside what ran there before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from lenskeep.fleet.rollouts.facts import Behaviour, Evidence, Member, Rollout
from lenskeep.fleet.store.telemetry import TelemetryStore
from lenskeep.fleet.store.trials import TrialStore, merged

BEFORE_S = 7 * 86400  # how far back the versions before are looked at
STAGE = "total"


async def gather(
    telemetry: TelemetryStore, trials: TrialStore, rollout: Rollout, members: Sequence[Member]
) -> Evidence:
    """Return how the version behaves since the rollout began, and how those that it replaces did.

    A trial stands for its device until there is another one, whenever it was.
    """
    began_s, bundle = rollout.made_ms // 1000, rollout.plan.bundle
    before = {one.before for one in members if one.before and one.attempts}
    tried_before = [each for one in sorted(before) for each in await trials.now(one)]
    return Evidence(
        now=await _of(telemetry, [bundle], since_s=began_s),
        before=await _of(telemetry, sorted(before), since_s=began_s - BEFORE_S),
        tried=merged(await trials.of_rollout(bundle, rollout.id)), tried_before=merged(tried_before),
        untold=await trials.untold(bundle, rollout.id) if rollout.plan.gates.evidence_s_max else frozenset(),
    )  # fmt: skip


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
