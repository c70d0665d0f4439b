"""How a rollout is said on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lenskeep.cli.output import Screen
from lenskeep.cli.words import clean, moment, plural, short
from lenskeep.messages.rollouts import Gates, RolloutDetail, RolloutRow

KINDS = {
    "finished": "good", "running": "info", "proposed": "warn", "paused": "warn", "reverting": "warn", "aborted": "bad",
}  # fmt: skip


def say_list(screen: Screen, found: Sequence[RolloutRow]) -> None:
    """Say one line for each rollout."""
    rows = []
    for one in found:
        wave, since, reason = f"{one.wave}/{one.waves}", moment(one.started), short(one.reason, 60)
        rows.append((str(one.id), one.bundle, one.slot, one.state, wave, _states(one.states), since, reason))
    screen.table(rows, ("ID", "VERSION", "SLOT", "STATE", "WAVE", "DEVICES", "STARTED", "REASON"))


def say_rollout(screen: Screen, shown: RolloutDetail, *, members: bool) -> None:
    """Say where a rollout stands."""
    one = shown.rollout
    number = f"Rollout {one.id}" if one.id else "A rollout"
    whom = f"{plural(one.devices, 'device')} ({clean(one.target)})"
    screen.line(screen.style(f"{number} of {clean(one.bundle)} to {whom}, slot {clean(one.slot)}", "strong"))
    mark = screen.mark(KINDS.get(one.state, "info"))
    screen.line(f"  {mark} {one.state} since {moment(one.since)}: {clean(one.reason)}")
    screen.line(f"  asked for by {clean(one.by)}; when a gate breaks: {shown.plan.on_broken}")
    if one.approvals_needed:
        names = ", ".join(clean(each) for each in one.approvals) or "nobody yet"
        screen.line(f"  approvals: {len(one.approvals)} of {one.approvals_needed} ({names})")
    screen.line()
    rows = [(str(wave.number), wave.take, wave.state, str(wave.devices), _states(wave.states)) for wave in shown.waves]
    screen.table(rows, ("WAVE", "TAKES", "STATE", "DEVICES", "STAND"))
    if not one.id:
        screen.line(f"  gates: {', '.join(_limits(shown.plan.gates)) or 'none'}")
    for gate in shown.gates:
        screen.line(
            f"  {screen.mark('bad' if gate.broken else 'good')} {gate.gate}: {clean(gate.text)}; limit {gate.limit:g}"
        )
    if members:
        screen.line()
        lines = [
            (each.device, str(each.wave), each.state, moment(each.since), each.before, each.hardware, each.reason)
            for each in shown.members
        ]
        screen.table(lines, ("DEVICE", "WAVE", "STATE", "SINCE", "BEFORE", "HARDWARE", "REASON"))


def _limits(gates: Gates) -> list[str]:
    """Say what must hold, in the words of the plan; what is off is left out."""
    found = {name: getattr(gates, name) for name in gates.__struct_fields__}
    return [f"{name} {value:g}" for name, value in found.items() if value is not None]


def _states(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items())
