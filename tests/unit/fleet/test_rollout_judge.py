"""A rollout's judgements, one by one, named after what goes wrong."""

from __future__ import annotations

import pytest

from lenskeep.errors import ConflictError, RequestError
from lenskeep.fleet.rollouts import judge, windows
from lenskeep.fleet.rollouts.facts import Behaviour, Evidence
from lenskeep.fleet.rollouts.lifecycle import (
    EXPECTING,
    MEMBER_TRANSITIONS,
    ROLLOUT_TRANSITIONS,
    MemberEvent,
    MemberState,
    RolloutEvent,
    RolloutState,
    next_member_state,
    next_rollout_state,
)
from lenskeep.fleet.rollouts.selecting import Candidate, cut, select
from lenskeep.messages.rollouts import Deadlines, Gates, Plan, Wave
from lenskeep.messages.telemetry import TrialSum
from tests.rolloutworld import NEW, OLD, World

M, R = MemberState, RolloutState


def plan(*waves: str, **words: object) -> Plan:
    asked = {"soak_s": 0, "waves": [Wave(take=take) for take in waves or ("1", "100%")], **words}
    return Plan(bundle=NEW, slot="main", **asked)  # type: ignore[arg-type]


def states(world: World) -> dict[str, str]:
    return {one.device: str(one.state) for one in world.members}


@pytest.mark.parametrize("state", MemberState)
@pytest.mark.parametrize("event", MemberEvent)
def test_a_device_answers_what_its_row_says_and_refuses_the_rest(state: MemberState, event: MemberEvent) -> None:
    row = MEMBER_TRANSITIONS[state]
    if event in row:
        assert next_member_state(state, event) is row[event]
    else:
        with pytest.raises(ConflictError):
            next_member_state(state, event)


@pytest.mark.parametrize("state", RolloutState)
@pytest.mark.parametrize("event", RolloutEvent)
def test_a_rollout_answers_what_its_row_says_and_refuses_the_rest(state: RolloutState, event: RolloutEvent) -> None:
    row = ROLLOUT_TRANSITIONS[state]
    if event in row:
        assert next_rollout_state(state, event) is row[event]
    else:
        with pytest.raises(ConflictError):
            next_rollout_state(state, event)


def test_all_devices_run_the_version_wave_after_wave() -> None:
    world = World(plan("1", "50%", "100%"), 6)
    seen = []
    for _ in range(60):
        world.round()
        world.steady_ms += 1000
        seen.append(sum(one.attempts > 0 for one in world.members))
        assert world.rollout.opened in (0, 1, 2, 3)
    assert world.rollout.state == R.FINISHED and set(states(world).values()) == {"committed"}
    assert sorted(set(seen)) == [1, 3, 6]


def test_a_device_that_never_returns_becomes_silent_and_the_rollout_goes_on() -> None:
    limits = Gates(success_share_min=0.5, silent_share_max=0.6)
    world = World(plan("100%", gates=limits, deadlines=Deadlines(assigned_s=30)), 2)
    for _ in range(60):
        world.look()
        world.sign()
        world.step("cam-0")
        world.steady_ms += 1000
    assert states(world) == {"cam-0": "committed", "cam-1": "silent"}
    assert world.rollout.state == R.FINISHED and "nothing heard" in world.member("cam-1").reason


def test_a_silent_device_that_returns_is_believed() -> None:
    limits = Gates(success_share_min=0.5, silent_share_max=0.6)
    world = World(plan("100%", gates=limits, deadlines=Deadlines(assigned_s=30)), 2)
    for _ in range(60):
        world.look()
        world.sign()
        world.step("cam-0")
        world.steady_ms += 1000
    for _ in range(6):
        world.step("cam-1")
    assert states(world)["cam-1"] == "committed"


def test_after_an_abort_a_device_that_was_silent_finds_what_it_ran_before() -> None:
    world = World(plan("100%", gates=Gates(silent_share_max=None), deadlines=Deadlines(assigned_s=30)), 2)
    for _ in range(40):
        world.look()
        world.sign()
        world.steady_ms += 1000
    assert states(world) == {"cam-0": "silent", "cam-1": "silent"}
    world.abort(revert=False)
    for _ in range(8):
        world.round()
    assert [device.activated for device in world.devices.values()] == [[], []]
    assert all(device.assigned[0] == OLD for device in world.devices.values())


def test_a_version_that_is_slow_on_one_hardware_class_stops_before_the_next_wave() -> None:
    world = World(plan("2", "100%", on_broken="abort-revert"), 6)  # classes take turns: both are in the first wave
    before = {name: Behaviour(frames=5000, p99_ms=20.0, outcomes={"OK": 5000}) for name in ("class-0", "class-1")}
    fast = Behaviour(frames=900, p99_ms=21.0, outcomes={"OK": 900})
    slow = Behaviour(frames=900, p99_ms=45.0, outcomes={"OK": 900})
    world.look()
    world.sign()
    assert {one.hardware for one in world.members if one.attempts} == {"class-0", "class-1"}
    world.evidence = Evidence(now={"class-0": fast, "class-1": slow}, before=before)
    world.until(R.REVERTING, R.ABORTED)
    assert "class-1" in world.rollout.reason and "2.25 times" in world.rollout.reason
    assert "class-0" not in world.rollout.reason
    world.until(R.ABORTED)
    assert {device.running for device in world.devices.values()} == {OLD}
    assert sum(bool(device.activated) for device in world.devices.values()) <= 2


def test_a_shift_of_ng_that_chance_explains_breaks_nothing() -> None:
    before = {"class-0": Behaviour(frames=400, outcomes={"OK": 380, "NG": 20})}
    for ng, stops in ((40, False), (200, True)):
        world = World(plan("100%"), 1)
        world.look()
        world.evidence = Evidence(now={"class-0": Behaviour(frames=400, outcomes={"NG": ng})}, before=before)
        world.look()
        assert (world.rollout.state == R.PAUSED) is stops, ng


def tried(worst: float, mean: float = 0.0, *, devices: int = 2, scored: int = 2) -> TrialSum:
    return TrialSum(
        bundle=NEW, trials=devices, failed=0, scored=scored, score_sum_ppm=round((mean or worst) * scored * 1e6),
        score_worst_ppm=round(worst * 1e6), timed=0, p99_sum_us=0, p99_worst_us=0, memory_worst_mb=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "now", "before", "says"),
    [
        (Gates(golden_drop_max=0.02), tried(0.95), tried(0.99), "0.9500 on class-1, 0.9900 with the version before"),
        (Gates(golden_drop_max=0.02), tried(0.95, 0.985), tried(0.99), ""),  # one is worse, the class hardly
        (Gates(golden_drop_max=0.02), tried(0.99), tried(0.9), ""),  # better than before
        (Gates(golden_drop_max=0.02), tried(0.5), None, ""),  # nothing to compare with
        (Gates(golden_drop_max=0.02), tried(0.5), tried(1.0, scored=0), ""),
        (Gates(golden_drop_max=0.02), tried(0.97), tried(0.99), ""),  # just as far as it may
        (Gates(golden_drop_max=None), tried(0.5), tried(0.99), ""),
        (Gates(), tried(0.9), tried(0.99), "golden score 0.9000"),  # what is not asked for is looked at too
        (Gates(golden_score_min=0.97), tried(0.96, 0.99), None, "0.9600 at worst on class-1, at least 0.97 is asked"),
        (Gates(golden_score_min=0.97), tried(0.97), None, ""),
        (Gates(golden_score_min=1.0), tried(0.0, scored=0), None, ""),  # it did not come to the golden pictures
    ],
)
def test_a_golden_score_is_judged_by_its_class_and_the_worst_device(
    limits: Gates, now: TrialSum, before: TrialSum | None, says: str
) -> None:
    world = World(plan("2", "100%", gates=limits), 6)
    world.round()
    well = tried(1.0)
    world.evidence = Evidence(
        tried={"class-0": well, "class-1": now},
        tried_before={"class-0": well} | ({"class-1": before} if before else {}),
    )
    world.until(R.PAUSED, R.FINISHED)
    assert world.rollout.state == (R.PAUSED if says else R.FINISHED)
    if says:
        assert says in world.rollout.reason and "class-0" not in world.rollout.reason
        assert world.rollout.opened == 1
        world.resume()  # an operator who has seen it
        world.until(R.FINISHED)


def test_a_trial_that_is_not_told_yet_keeps_a_wave_waiting_and_then_stops_it() -> None:
    world = World(plan("1", "100%", gates=Gates(evidence_s_max=60, samples_min=0)), 3)
    (first,) = [name for name in world.devices if world.member(name).wave == 0]
    world.evidence = Evidence(untold=frozenset(world.devices))
    for _ in range(30):
        world.round()
        world.steady_ms += 1000
    assert world.rollout.opened == 1 and world.member(first).state == M.COMMITTED
    world.evidence = Evidence(tried={"class-0": tried(1.0)}, untold=frozenset(set(world.devices) - {first}))
    world.round()
    assert world.rollout.opened == 2
    world.until(R.PAUSED)
    assert "no trial was told by" in world.rollout.reason and "and 1 more" in world.rollout.reason


def test_devices_that_tell_of_no_trials_at_all_are_not_waited_for() -> None:
    world = World(plan("1", "100%", gates=Gates(evidence_s_max=60, samples_min=0, golden_score_min=0.9)), 3)
    world.until(R.FINISHED)


def test_too_few_frames_keep_a_wave_waiting_and_then_stop_it() -> None:
    world = World(plan("1", "100%", gates=Gates(evidence_s_max=60, samples_min=100)), 2)
    for _ in range(30):
        world.round()
        world.steady_ms += 1000
    assert world.rollout.opened == 1 and world.rollout.state == R.RUNNING
    world.until(R.PAUSED)
    assert "0 of 100 frames" in world.rollout.reason
    world.resume()  # an operator who has seen it
    world.until(R.FINISHED)


def test_a_device_that_reverts_itself_stops_the_next_wave() -> None:
    world = World(plan("1", "100%", soak_s=60), 4)
    for _ in range(12):
        world.round()
        world.steady_ms += 1000
    (first,) = [one.device for one in world.members if one.attempts]
    assert world.member(first).state == M.COMMITTED
    world.devices[first].fail()
    world.hear(first)
    world.until(R.PAUSED)
    assert world.member(first).state == M.ROLLED_BACK and world.rollout.opened == 1
    assert "1 of 1 devices failed" in world.rollout.reason


def test_two_gates_that_break_over_the_same_fact_say_it_once() -> None:
    world = World(plan("100%", gates=Gates(failed_max=0, silent_max=0), deadlines=Deadlines(assigned_s=5)), 4)
    world.round()
    world.look()  # from here on the deadlines run
    world.devices["cam-0"].fail()
    world.hear("cam-0")
    world.steady_ms += 10_000
    world.look()
    assert len([gate for gate in world.rollout.gates if gate.broken]) >= 4
    _, _, facts = world.rollout.reason.partition("stopped itself: ")
    said = facts.split("; ")
    assert sorted(set(said)) == sorted(said) and {"1 of 4 devices failed", "3 of 4 devices are silent"} <= set(said)


def test_what_an_operator_has_seen_and_accepted_does_not_stop_it_again() -> None:
    world = World(plan("100%", gates=Gates(golden_failed_max=None, success_share_min=0.5)), 3)
    world.round()
    world.devices["cam-0"].fail()
    world.hear("cam-0")
    world.look()
    assert world.rollout.state == R.PAUSED and "1 of 3 devices failed" in world.rollout.reason
    world.resume()
    world.until(R.FINISHED)


def test_too_few_successes_stop_the_rollout_although_no_other_gate_is_set() -> None:
    limits = Gates(success_share_min=0.9, failed_share_max=None, golden_failed_max=None)
    world = World(plan("2", "100%", gates=limits), 6)
    world.round()
    for name in [one.device for one in world.members if one.attempts]:
        world.devices[name].fail()
        world.hear(name)
        break
    world.until(R.PAUSED)
    assert world.rollout.opened == 1 and "1 of 2 devices of wave 1" in world.rollout.reason


def test_a_failure_that_may_pass_is_tried_again_with_growing_pauses_and_then_counts() -> None:
    world = World(plan("100%", retries=2, retry_s=10), 1)
    asked_at = []
    for second in range(120):
        attempts = world.members[0].attempts
        world.look()
        world.sign()
        if world.members[0].attempts > attempts:
            asked_at.append(second)
        world.devices["cam-0"].step()
        world.devices["cam-0"].fail("LK-5001")
        world.hear("cam-0")
        world.steady_ms += 1000
    assert len(asked_at) == 3 and asked_at[1] - asked_at[0] >= 10 and asked_at[2] - asked_at[1] >= 20
    assert world.rollout.state == R.PAUSED and world.members[0].state == M.FAILED


def test_a_golden_mismatch_on_one_device_stops_at_once() -> None:
    world = World(plan("100%", gates=Gates(failed_share_max=None, success_share_min=0.1)), 10)
    world.round()
    world.devices["cam-3"].fail("LK-8001")
    world.hear("cam-3")
    world.look()
    assert world.rollout.state == R.PAUSED and "golden" in world.rollout.reason


def test_outside_its_window_a_rollout_stages_and_does_not_activate() -> None:
    world = World(plan("100%", deadlines=Deadlines(staged_s=5)), 1)
    world.window_open = False
    for _ in range(30):
        world.round()
        world.steady_ms += 1000
    assert states(world) == {"cam-0": "staged"} and world.devices["cam-0"].running == OLD
    world.window_open = True
    world.until(R.FINISHED)


def test_a_window_that_closes_keeps_devices_that_have_not_begun() -> None:
    world = World(plan("100%"), 1)
    while world.devices["cam-0"].state != "downloading":
        world.round()
    world.window_open = False
    for _ in range(10):
        world.round()
    assert world.devices["cam-0"].activated == [] and world.member("cam-0").activate == "skip"


def test_a_plan_that_activates_nothing_ends_when_everything_is_staged() -> None:
    world = World(plan("1", "100%", activate="skip"), 3)
    world.until(R.FINISHED)
    assert set(states(world).values()) == {"staged"} and not any(one.activated for one in world.devices.values())


@pytest.mark.parametrize("state", ["assigned", "downloading", "staged", "activating", "probation", "committed"])
@pytest.mark.parametrize("revert", [False, True])
def test_abort_in_each_state(state: str, revert: bool) -> None:
    world = World(plan("100%", gates=Gates(failed_share_max=None)), 2)
    for _ in range(20):
        if states(world)["cam-0"] == state:
            break
        world.look()
        world.sign()
        if states(world)["cam-0"] != state:
            world.step("cam-0")
    assert states(world)["cam-0"] == state
    world.abort(revert=revert)
    for _ in range(12):
        world.round()
    assert world.rollout.state == R.ABORTED
    begun = state in ("activating", "probation", "committed")
    assert world.devices["cam-0"].running == (NEW if begun and not revert else OLD)
    assert world.devices["cam-1"].activated == [] and states(world)["cam-1"] == "canceled"
    if revert and begun:
        assert states(world)["cam-0"] == "reverted"


def test_a_device_that_was_quicker_than_the_abort_is_brought_back() -> None:
    world = World(plan("100%"), 1)
    world.round()
    device = world.devices["cam-0"]
    while device.running != NEW:
        device.step()  # the fleet hears nothing of it yet
    world.abort(revert=True)
    world.hear("cam-0")
    assert states(world) == {"cam-0": "reverting"}
    for _ in range(8):
        world.round()
    assert device.running == OLD and states(world) == {"cam-0": "reverted"}


def test_a_device_that_falls_silent_while_it_exchanges_after_an_abort_finds_what_it_ran_before() -> None:
    world = World(plan("100%", deadlines=Deadlines(activating_s=30)), 1)
    while states(world) != {"cam-0": "activating"}:
        world.round()
    world.abort(revert=False)
    for _ in range(3):
        world.look()
        world.sign()
        world.steady_ms += 40_000
    assert states(world) == {"cam-0": "silent"} and world.devices["cam-0"].assigned[0] == OLD


def test_a_rollout_without_its_approvals_asks_nobody() -> None:
    world = World(plan("100%", approvals=2), 1)
    for _ in range(5):
        world.round()
    assert world.rollout.state == R.PROPOSED and states(world) == {"cam-0": "scheduled"}
    world.pause()
    world.resume()
    assert world.rollout.state == R.PROPOSED
    world.rollout = judge.approve(world.rollout, "token:ben", world.moment)
    assert world.rollout.state == R.PROPOSED
    world.rollout = judge.approve(world.rollout, "token:clara", world.moment)
    world.until(R.FINISHED)


def test_a_device_that_got_the_version_by_stick_is_believed_and_not_asked() -> None:
    world = World(plan("1", "100%"), 3)
    world.devices["cam-2"].running = NEW
    world.hear("cam-2")
    assert states(world)["cam-2"] == "skipped"
    world.until(R.FINISHED)
    assert world.devices["cam-2"].activated == []


def test_every_state_in_which_something_is_due_has_a_deadline() -> None:
    named = {name.removesuffix("_s") for name in Deadlines.__struct_fields__}
    assert {str(state) for state in EXPECTING} == named


def test_selectors_mean_whom_they_say() -> None:
    fleet = [
        Candidate("cam-1", {"site": "a", "line": "1"}, "rk3588"), Candidate("cam-2", {"site": "a", "line": "2"}, "x86"),
        Candidate("dev-3", {"site": "b"}, "x86"),
    ]  # fmt: skip
    groups = {"pilots": "cam-1,dev-3", "loop": "group=loop"}
    for selector, meant in {
        "all": "cam-1 cam-2 dev-3", "site=a": "cam-1 cam-2", "site=a line!=2": "cam-1", "line=1,2": "cam-1 cam-2",
        "hardware=x86 & site=a": "cam-2", "cam-*": "cam-1 cam-2", "group=pilots": "cam-1 dev-3",
        "group=pilots site=b": "dev-3", "name=dev-3": "dev-3", "colour=red": "",
    }.items():  # fmt: skip
        assert " ".join(one.device for one in select(selector, fleet, groups)) == meant, selector
    for wrong in ("group=nobody", "group=loop", "site=;", "="):
        with pytest.raises(RequestError):
            select(wrong, fleet, groups)


def test_waves_mix_hardware_classes_and_take_in_whoever_is_left() -> None:
    fleet = [Candidate(f"cam-{n}", {}, "rare" if n == 7 else "common") for n in range(20)]
    waves = cut([Wave(take="2"), Wave(take="50%")], fleet, {}, "seed")
    first = [one for one in fleet if waves[one.device] == 0]
    assert {one.hardware for one in first} == {"rare", "common"} and len(first) == 2
    assert sum(wave == 1 for wave in waves.values()) == 8 and sum(wave == 2 for wave in waves.values()) == 10


@pytest.mark.parametrize(
    ("window", "at_s", "open_"),
    [
        ("22:00-05:00", 23 * 3600, True), ("22:00-05:00", 4 * 3600, True), ("22:00-05:00", 12 * 3600, False),
        ("Thu 22:00-05:00", 23 * 3600, True),  # 1970-01-01 was a Thursday
        ("Thu 22:00-05:00", 28 * 3600, True), ("Fri 22:00-05:00", 28 * 3600, False),
        ("Mon-Wed 00:00-24:00", 3600, False), ("Sat-Thu 00:00-24:00", 3600, True),
    ],
)  # fmt: skip
def test_a_window_that_passes_midnight_belongs_to_its_day(window: str, at_s: float, open_: bool) -> None:
    assert windows.is_open([window], at_s) is open_
