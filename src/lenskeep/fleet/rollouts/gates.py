"""The gates of a rollout: what must hold for it to go on, each with its value, its limit and a sentence.

Rules. A gate is broken when its value is above its limit, and above what an operator has seen and accepted already. A
model's behaviour is judged per hardware class, against the versions that ran there before, and only with enough frames.
Its golden score too, by the newest trial on each device: the worst against a floor, the mean against the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lenskeep.fleet.rollouts.facts import GOLDEN, Behaviour, Evidence, Member, Rollout, done, failed_for_good
from lenskeep.fleet.rollouts.lifecycle import MemberState
from lenskeep.messages.rollouts import Gates, GateView

_ERRORS_CHANCE = 2.0  # standard errors that chance explains in a share


def judge(rollout: Rollout, members: Sequence[Member], evidence: Evidence) -> list[GateView]:
    """Return every gate that can be judged now."""
    asked = [one for one in members if one.attempts and one.state != MemberState.CANCELED]
    gates = rollout.plan.gates
    found = [
        *_counts(rollout, asked),
        *(each for name in sorted(evidence.now) for each in _of_class(gates, evidence, name)),
        *(each for name in sorted(evidence.tried) for each in _of_trials(gates, evidence, name)),
    ]
    return [_judged(rollout, *one) for one in found]


def success(rollout: Rollout, wave: Sequence[Member]) -> tuple[float, GateView]:
    """Return which share of a wave's devices runs the version for good, and the gate that this makes."""
    asked = [one for one in wave if one.state not in (MemberState.SKIPPED, MemberState.CANCELED)]
    there = sum(done(one, rollout.plan) for one in asked)
    share = there / len(asked) if asked else 1.0
    text = f"{there} of {len(asked)} devices of wave {rollout.opened} have it for good"
    return share, _judged(rollout, "success", "", 1 - share, 1 - rollout.plan.gates.success_share_min, text)


def lacking(rollout: Rollout, members: Sequence[Member], evidence: Evidence) -> str:
    """Say for which hardware class there are too few frames to judge, or whose trial is not told; empty = for none."""
    needed, asked = rollout.plan.gates.samples_min, rollout.plan.gates
    if asked.golden_score_min is not None or asked.golden_drop_max is not None:
        untold = [one.device for one in members if done(one, rollout.plan) and one.device in evidence.untold]
        if untold:
            return f"no trial was told by {untold[0]}{f' and {len(untold) - 1} more' if untold[1:] else ''}"
    for name in sorted({one.hardware for one in members if one.state == MemberState.COMMITTED}):
        seen = evidence.now.get(name, Behaviour()).frames
        if seen < needed:
            return f"{seen} of {needed} frames{f' on {name}' if name else ''}"
    return ""


_Found = tuple[str, str, float, float, str]


def _counts(rollout: Rollout, asked: Sequence[Member]) -> Iterator[_Found]:
    gates, count = rollout.plan.gates, len(asked)
    failed = sum(failed_for_good(one, rollout.plan) for one in asked)
    silent = sum(one.state == MemberState.SILENT for one in asked)
    golden = sum(one.code in GOLDEN for one in asked)
    failed_text, silent_text = f"{failed} of {count} devices failed", f"{silent} of {count} devices are silent"
    if gates.failed_max is not None:
        yield "failed", "", failed, gates.failed_max, failed_text
    if gates.failed_share_max is not None and count:
        yield "failed share", "", failed / count, gates.failed_share_max, failed_text
    if gates.silent_max is not None:
        yield "silent", "", silent, gates.silent_max, silent_text
    if gates.silent_share_max is not None and count:
        yield "silent share", "", silent / count, gates.silent_share_max, silent_text
    if gates.golden_failed_max is not None:
        text = f"{golden} of {count} devices did not reproduce the golden outputs"
        yield "golden", "", golden, gates.golden_failed_max, text


def _of_class(gates: Gates, evidence: Evidence, name: str) -> Iterator[_Found]:
    now, before = evidence.now[name], evidence.before.get(name, Behaviour())
    if now.frames < max(gates.samples_min, 1):
        return
    where = f" on {name}" if name else ""
    if gates.p99_ms_max is not None:
        yield "p99", name, now.p99_ms, gates.p99_ms_max, f"p99 {now.p99_ms:.1f} ms{where}"
    if gates.misses_share_max is not None:
        share = now.misses / now.frames
        yield "misses", name, share, gates.misses_share_max, f"{share:.1%} of the frames over the budget{where}"
    if gates.errors_share_max is not None:
        share = now.share("ERROR")
        yield "errors", name, share, gates.errors_share_max, f"{share:.1%} of the frames in error{where}"
    if before.frames < max(gates.samples_min, 1):
        return
    if gates.p99_growth_max is not None and before.p99_ms > 0:
        growth = now.p99_ms / before.p99_ms
        text = f"p99 {now.p99_ms:.1f} ms{where}, {growth:.2f} times the {before.p99_ms:.1f} ms before"
        yield "p99 growth", name, growth, gates.p99_growth_max, text
    if gates.ng_shift_max is not None:
        ng, was = now.share("NG"), before.share("NG")
        shift = max(abs(ng - was) - _chance(now, ng) - _chance(before, was), 0.0)
        yield "NG shift", name, shift, gates.ng_shift_max, f"{ng:.1%} NG{where}, {was:.1%} before"


def _of_trials(gates: Gates, evidence: Evidence, name: str) -> Iterator[_Found]:
    now, before = evidence.tried[name], evidence.tried_before.get(name)
    where = f" on {name}" if name else ""
    if not now.scored:
        return
    if gates.golden_score_min is not None:
        text = f"golden score {now.score_worst:.4f} at worst{where}, at least {gates.golden_score_min:g} is asked"
        yield "golden score", name, 1 - now.score_worst, 1 - gates.golden_score_min, text
    if gates.golden_drop_max is not None and before is not None and before.scored:
        drop = max(before.score_mean - now.score_mean, 0.0)
        text = f"golden score {now.score_mean:.4f}{where}, {before.score_mean:.4f} with the version before"
        yield "golden drop", name, drop, gates.golden_drop_max, text


def _chance(behaviour: Behaviour, share: float) -> float:
    return _ERRORS_CHANCE * float((share * (1 - share) / behaviour.frames) ** 0.5)


def _judged(rollout: Rollout, gate: str, subject: str, value: float, limit: float, text: str) -> GateView:
    forgiven = rollout.forgiven.get(f"{gate}/{subject}", limit)
    value = round(value, 6)  # as it is shown: what an operator accepts is what is compared
    broken = value > max(limit, forgiven) + 1e-9
    return GateView(gate=gate, subject=subject, value=value, limit=limit, broken=broken, text=text)
