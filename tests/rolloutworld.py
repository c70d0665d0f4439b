"""A small world for rollouts: the judge, a director that only counts, and devices that follow, fail, or say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from lenskeep.fleet.rollouts import judge, puttingback
from lenskeep.fleet.rollouts.facts import Evidence, Member, Moment, Rollout, hear
from lenskeep.fleet.rollouts.lifecycle import RolloutState
from lenskeep.fleet.rollouts.puttingback import Assigned
from lenskeep.fleet.rollouts.selecting import Candidate
from lenskeep.fleet.rollouts.starting import Ground, compose
from lenskeep.messages.rollouts import Plan
from lenskeep.messages.sync import SlotNow

OLD, NEW = "cap-inspect@1.0.0", "cap-inspect@1.1.0"
WALL_MS = 1_800_000_000_000


@dataclass
class Device:
    """A device that does what it is assigned, as far as it is let."""

    name: str
    running: str = OLD
    assigned: tuple[str, str, int] = ("", "attempt", 0)  # version, activate, generation
    taken: int = 0  # the generation that `state` is about
    target: str = ""
    state: str = ""
    code: str = ""
    activated: list[str] = field(default_factory=list)

    def tell(self) -> SlotNow:
        """Say where the slot stands."""
        return SlotNow(
            slot="main", generation=self.taken, state=self.state, code=self.code, bundle=self.running, digest="d"
        )

    def step(self) -> None:
        """Go one step on the way to what is assigned; a new target begins anew."""
        target, activate, generation = self.assigned
        again = self.state == "refused" or (self.state == "rolled_back" and activate == "forced")
        if generation > self.taken and (target != self.target or again):
            self.target, self.taken, self.state, self.code = target, generation, "new", ""
            return
        if not self.target:
            return
        after = {"new": "downloading", "downloading": "staged", "asked": "probation", "probation": "followed"}
        if self.state == "staged" and activate != "skip":
            self.state = "followed" if self.running == self.target else "asked"
        elif self.state in after:
            self.state = after[self.state]
            if self.state == "probation":
                self.running = self.target
                self.activated.append(self.target)

    def fail(self, code: str = "LK-8001") -> None:
        """Refuse what is assigned, or take it back when it runs already."""
        if self.state in ("new", "downloading", "staged", "asked"):
            self.state, self.code = "refused", code
        elif self.state in ("probation", "followed") and self.running == NEW:
            self.state, self.running, self.code = "rolled_back", OLD, "LK-8104"


class World:
    """A fleet in a test."""

    def __init__(self, plan: Plan, devices: int, failed_there: Mapping[str, str] | None = None) -> None:
        self.devices = {f"cam-{n}": Device(f"cam-{n}") for n in range(devices)}
        ground = Ground(
            devices=[Candidate(name, {}, f"class-{n % 2}") for n, name in enumerate(self.devices)],
            running={name: {"main": OLD} for name in self.devices}, groups={}, failed_there=failed_there or {},
            listed=frozenset({NEW, OLD}),
        )  # fmt: skip
        rollout, members = compose(plan, ground, 1, "unix:mara", WALL_MS)
        self.rollout: Rollout = rollout
        self.members: list[Member] = members
        self.evidence = Evidence()
        self.steady_ms = 1
        self.window_open = True
        self.generations: dict[str, int] = dict.fromkeys(self.devices, 0)

    @property
    def moment(self) -> Moment:
        return Moment(WALL_MS + self.steady_ms, self.steady_ms, self.window_open)

    def member(self, name: str) -> Member:
        return next(one for one in self.members if one.device == name)

    def look(self) -> None:
        self.rollout, self.members = judge.look(self.rollout, self.members, self.evidence, self.moment)

    def sign(self) -> None:
        """Do what the director does."""
        after = []
        for one in self.members:
            if not one.signed:
                number = self.generations[one.device] = self.generations[one.device] + 1
                self.devices[one.device].assigned = (one.want, one.activate, number)
                one = replace(one, signed=True, renumber=False, generation=number if one.renumber else one.generation)
            after.append(one)
        self.members = after

    def agree(self) -> None:
        """Begin as a fleet that starts: with what is assigned, whatever it remembers."""
        there = {
            name: Assigned(*(one.assigned[n] for n in (0, 2, 1)))
            for name, one in self.devices.items()
            if one.assigned[0]
        }  # type: ignore[arg-type]
        remembered = {one.device: one.want for one in self.members if one.attempts}
        self.rollout, self.members = puttingback.agree(self.rollout, self.members, there, remembered, self.moment)

    def hear(self, name: str, told: SlotNow | None = None) -> None:
        """Let the fleet hear a device."""
        told = told or self.devices[name].tell()
        now_ms = self.moment.wall_ms
        self.members = [hear(one, told, NEW, now_ms) if one.device == name else one for one in self.members]

    def step(self, name: str) -> None:
        self.devices[name].step()
        self.hear(name)

    def round(self, *, step: bool = True) -> None:
        """Let everybody do one thing."""
        self.look()
        self.sign()
        for name in self.devices if step else ():
            self.step(name)

    def pause(self) -> None:
        self.rollout, self.members = judge.pause(self.rollout, self.members, "by hand", self.moment)

    def resume(self) -> None:
        self.rollout, self.members = judge.resume(self.rollout, self.members, "by hand", self.moment)

    def abort(self, *, revert: bool) -> None:
        self.rollout, self.members = judge.abort(self.rollout, self.members, "by hand", self.moment, revert=revert)

    def until(self, *states: RolloutState, rounds: int = 200, by_s: float = 1.0) -> None:
        """Go on until the rollout is in one of these states."""
        for _ in range(rounds):
            if self.rollout.state in states:
                return
            self.round()
            self.steady_ms += int(by_s * 1000)
        raise AssertionError(f"{self.rollout.state} ({self.rollout.reason}) and not {states}")
