"""What no sequence of events may break: a rollout's promises, against arbitrary devices, operators and pauses."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lenskeep.errors import ConflictError
from lenskeep.fleet.rollouts import gates, judge
from lenskeep.fleet.rollouts.lifecycle import OVER, WAITING, MemberState, RolloutState
from lenskeep.messages.rollouts import Deadlines, Gates, Plan, Wave
from lenskeep.messages.sync import SlotNow
from lenskeep.messages.telemetry import TrialSum
from tests.rolloutworld import NEW, OLD, World

DEADLINES = Deadlines(assigned_s=50, downloading_s=50, staged_s=50, activating_s=50, probation_s=50, reverting_s=50)
plans = st.builds(
    Plan,
    bundle=st.just(NEW), slot=st.just("main"),
    waves=st.lists(st.sampled_from(["1", "2", "25%", "50%", "100%", "cam-0,cam-3"]).map(lambda t: Wave(take=t)), min_size=1, max_size=4),
    soak_s=st.sampled_from([0.0, 10.0]),
    gates=st.builds(
        Gates, success_share_min=st.sampled_from([0.5, 0.9, 1.0]), failed_share_max=st.sampled_from([0.1, 0.5, None]),
        failed_max=st.sampled_from([0, 2, None]), silent_share_max=st.sampled_from([0.2, None]),
        golden_score_min=st.sampled_from([0.5, 0.9, None]), golden_drop_max=st.sampled_from([0.0, 0.1, None]),
        evidence_s_max=st.sampled_from([0.0, 0.0, 30.0]), samples_min=st.just(0),
    ),
    on_broken=st.sampled_from(["pause", "abort-keep", "abort-revert"]),
    retries=st.integers(0, 2), retry_s=st.just(5.0), deadlines=st.just(DEADLINES),
    activate=st.sampled_from(["attempt", "forced", "skip"]),
)  # fmt: skip
KINDS = (
    "round", "round", "round", "look", "sign", "step", "step", "fail", "fail", "retriable", "wait", "silence", "pause",
    "resume", "abort", "revert", "window", "repeat", "tried",
)  # fmt: skip
events = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 7)), max_size=80)


def apply(world: World, kind: str, number: int) -> None:
    name = f"cam-{number % len(world.devices)}"
    try:
        if kind == "step":
            world.step(name)
        elif kind in ("fail", "retriable"):
            world.devices[name].fail("LK-8001" if kind == "fail" else "LK-5001")
            world.hear(name)
        elif kind == "wait":
            world.steady_ms += number * 5000
        elif kind == "silence":  # for so long that every deadline passes
            for _ in range(2):
                world.round(step=False)
                world.steady_ms += 60_000
        elif kind == "round":
            world.round()
        elif kind == "window":
            world.window_open = not world.window_open
        elif kind == "tried":
            tell_of_trials(world, number)
        elif kind == "repeat":
            world.hear(name)
        elif kind in ("abort", "revert"):
            world.abort(revert=kind == "revert")
        else:
            getattr(world, kind)()
    except ConflictError:
        pass  # refused in this state: nothing changed


def tried(score_ppm: int) -> TrialSum:
    return TrialSum(
        bundle=NEW, trials=1, failed=0, scored=1, score_sum_ppm=score_ppm, score_worst_ppm=score_ppm, timed=0,
        p99_sum_us=0, p99_worst_us=0, memory_worst_mb=0,
    )  # fmt: skip


def tell_of_trials(world: World, number: int) -> None:
    """One class of hardware has tried it, well or badly; of some devices no trial is known."""
    name, score = f"class-{number % 2}", (1_000_000, 950_000, 700_000, 400_000)[number % 4]
    world.evidence = replace(
        world.evidence, tried={**world.evidence.tried, name: tried(score)},
        tried_before={"class-0": tried(1_000_000), "class-1": tried(960_000)},
        untold=frozenset({"cam-0"} if number % 3 == 0 else ()),
    )  # fmt: skip


def worse(world: World) -> bool:
    """Say whether the version is worse on some class than its plan allows."""
    limits, evidence = world.rollout.plan.gates, world.evidence
    floor, drop = limits.golden_score_min, limits.golden_drop_max
    return any(
        (floor is not None and one.score_worst < floor - 1e-6)
        or (drop is not None and evidence.tried_before[name].score_mean - one.score_mean > drop + 1e-6)
        for name, one in evidence.tried.items()
    )


def check(world: World) -> None:
    """What holds at any moment; what a device said is acted on at the next look."""
    kept = (world.rollout, list(world.members))
    rollout, members = judge.look(world.rollout, world.members, world.evidence, world.moment)
    for one in members if rollout.state == RolloutState.PAUSED else ():
        assert one.state not in WAITING or one.activate == "skip", "a paused rollout lets a device begin"
    for one in members if rollout.state == RolloutState.ABORTED else ():
        in_vain = one.want == NEW and one.state in (WAITING | {MemberState.SILENT})
        assert not in_vain, "the end left a device assigned"
    world.agree()
    assert (world.rollout, world.members) == kept, "a memory that was not put back does not agree with what it signed"
    for one in world.members:
        assert one.reason and one.since_ms
        assert not one.attempts or one.wave < world.rollout.opened, "a device was asked before its wave"
        assert one.attempts <= world.rollout.plan.retries + 1
        if world.rollout.state in OVER:
            assert one.state != MemberState.SCHEDULED


@settings(max_examples=400, deadline=None, print_blob=True)
@given(plan=plans, count=st.integers(1, 8), script=events)
def test_no_sequence_of_events_breaks_what_a_rollout_promises(
    plan: Plan, count: int, script: list[tuple[str, int]]
) -> None:
    world = World(plan, count)
    resumed = False
    for kind, number in [each for one in script for each in ([("look", 0), one] if one[0] == "round" else [one])]:
        resumed |= kind == "resume"
        opened, before = world.rollout.opened, list(world.members)
        apply(world, kind, number)
        check(world)
        if world.rollout.opened > opened and kind == "look":
            assert world.rollout.state != RolloutState.PAUSED
            assert not [one for one in world.rollout.gates if one.broken and one.gate not in ("success", "evidence")]
            assert resumed or not worse(world), "a wave began although the version is worse"
            if opened:
                shown = [one for one in before if one.wave == opened - 1]
                share, _ = gates.success(world.rollout, shown)
                assert share >= plan.gates.success_share_min - 1e-9 or resumed, "a wave began before the one before it"
        again, members = judge.look(world.rollout, world.members, world.evidence, world.moment)
        if kind == "look":
            assert (again.state, again.opened) == (world.rollout.state, world.rollout.opened), (
                "judged twice, it differs"
            )
            assert [(one.state, one.want, one.activate, one.attempts) for one in members] == [
                (one.state, one.want, one.activate, one.attempts) for one in world.members
            ]


@settings(max_examples=200, deadline=None, print_blob=True)
@given(plan=plans, count=st.integers(1, 8), script=events)
@example(
    plan=Plan(bundle=NEW, slot="main", target="all", waves=[Wave(take="1")], retries=0, deadlines=DEADLINES),
    count=1,
    script=[*[("round", 0)] * 3, ("abort", 0), ("step", 0), ("step", 0), ("round", 0), ("fail", 0)],
)
def test_whatever_happened_a_revert_brings_back_what_each_device_ran(
    plan: Plan, count: int, script: list[tuple[str, int]]
) -> None:
    world = World(plan, count)
    for kind, number in script:
        apply(world, kind, number)
    world.window_open = True
    try:
        world.abort(revert=True)
    except ConflictError:
        assert world.rollout.state == RolloutState.REVERTING
    for _ in range(20):
        world.round()
        world.steady_ms += 1000
    assert world.rollout.state == RolloutState.ABORTED
    for name, device in world.devices.items():
        member = world.member(name)
        if device.running != OLD:  # it ran the new one already, and will not have the old one again
            assert (device.target, device.state) == (OLD, "refused"), (member, device)
            assert member.state in (MemberState.FAILED, MemberState.REJECTED), (member, device)
            assert member.code == device.code, (member, device)
        if member.attempts:
            assert device.assigned[0] in (OLD, ""), "it is still assigned to what was called off"


@settings(max_examples=200, deadline=None, print_blob=True)
@given(plan=plans, count=st.integers(1, 8), script=events)
def test_a_rollout_never_waits_for_ever_for_devices_that_say_nothing(
    plan: Plan, count: int, script: list[tuple[str, int]]
) -> None:
    world = World(plan, count)
    for kind, number in script:
        apply(world, kind, number)
    world.window_open = True
    for _ in range(200):
        world.round(step=False)
        world.steady_ms += 20_000
    assert world.rollout.state in (RolloutState.PAUSED, *OVER), world.rollout
    if world.rollout.state in OVER:
        assert not [one for one in world.members if one.state in (MemberState.REVERTING, MemberState.PROBATION)]


@settings(max_examples=300, deadline=None, print_blob=True)
@given(plan=plans, told=st.lists(st.tuples(st.integers(0, 3), st.builds(
    SlotNow, slot=st.just("main"), generation=st.integers(0, 5),
    state=st.sampled_from(["", "new", "downloading", "staged", "asked", "probation", "followed", "refused", "rolled_back", "?"]),
    code=st.sampled_from(["", "LK-8001", "LK-5001", "LK-9999", "x"]), bundle=st.sampled_from(["", OLD, NEW, "other@1.0.0"]),
)), max_size=60))  # fmt: skip
def test_whatever_a_device_says_it_has_a_state_a_reason_and_a_since(
    plan: Plan, told: list[tuple[int, SlotNow]]
) -> None:
    world = World(plan, 4)
    for number, said in told:
        world.look()
        world.sign()
        world.hear(f"cam-{number}", said)
        check(world)


@given(plan=plans, script=events)
@settings(max_examples=100, deadline=None, print_blob=True)
def test_a_version_that_failed_on_a_device_is_not_pushed_there_again(plan: Plan, script: list[tuple[str, int]]) -> None:
    world = World(plan, 4, failed_there={"cam-1": "in rollout 7: took itself back"})
    for kind, number in script:
        apply(world, kind, number)
    assert world.member("cam-1").state == MemberState.SKIPPED
    assert world.devices["cam-1"].activated == []
