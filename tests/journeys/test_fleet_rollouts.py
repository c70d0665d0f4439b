"""Rollouts at the real fleet server, with devices over real sockets; each test is named after what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lenskeep.bundle.keys import generate_key
from lenskeep.cli.fleetclient import FleetClient
from lenskeep.cli.wire import Address
from lenskeep.errors import ConflictError, NotPermittedError, RequestError, UnknownNameError
from lenskeep.messages.fleet import OperatorTokenAsk
from lenskeep.messages.fleetviews import VersionLine
from lenskeep.messages.rollouts import Deadlines, Gates, Plan, RolloutAsk, RolloutDetail, TagAsk, Wave
from lenskeep.trust.keeping import director
from lenskeep.trust.keeping.workspace import writing
from tests.fleetrig import FleetServer
from tests.repositories import Repository
from tests.rolloutdevices import ScriptedDevice
from tests.rolloutworld import NEW, OLD

WAIT_S = 40.0
FAST = Gates(samples_min=100)


class Fleet:
    """A fleet server with its repository and a few devices."""

    def __init__(self, folder: Path) -> None:
        key = folder / "online.key"
        self.server = FleetServer(folder, more=f'[online]\nkeys = ["{key}"]\n')
        self.repository = Repository(self.server.repository)
        key.write_bytes(self.repository.keys["online"].pem())
        self.repository.publisher("acme", "cap-*")
        for version in ("1.0.0", "1.1.0"):
            self.repository.release("cap-inspect", version)
        self.devices: dict[str, ScriptedDevice] = {}
        self._running: list[asyncio.Task[None]] = []

    async def join(self, count: int, hardware: Callable[[int], str] = lambda n: "") -> None:
        for n in range(count):
            name = f"cam-{n}"
            self.devices[name] = await ScriptedDevice(self.server, name, self.server.folder, hardware(n)).join()
        self._running = [asyncio.create_task(one.run()) for one in self.devices.values()]

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for device in self.devices.values():
            await device.close()
        self.server.close()

    # the client is plain and blocks; the devices of the test live in the loop
    async def start(self, *waves: str, **words: object) -> RolloutDetail:
        asked = {"soak_s": 0.3, "gates": FAST, "waves": [Wave(take=take) for take in waves or ("1", "100%")], **words}
        plan = Plan(bundle=NEW, slot="main", **asked)  # type: ignore[arg-type]
        return await asyncio.to_thread(self.server.client.start_rollout, RolloutAsk(plan=plan))

    async def show(self, number: int) -> RolloutDetail:
        return await asyncio.to_thread(self.server.client.rollout, number)

    async def versions(self, bundle: str) -> list[VersionLine]:
        return await asyncio.to_thread(self.server.client.versions, bundle)

    async def until(self, number: int, *states: str) -> RolloutDetail:
        shown = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                while True:
                    shown = await self.show(number)
                    if shown.rollout.state in states:
                        return shown
                    await asyncio.sleep(0.1)
        raise AssertionError(f"not {states}: {shown}\n{self.server.log()}")

    async def until_device(self, number: int, device: str, *states: str) -> RolloutDetail:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                while True:
                    shown = await self.show(number)
                    if state_of(shown, device) in states:
                        return shown
                    await asyncio.sleep(0.05)
        raise AssertionError(f"{device} not {states}: {await self.show(number)}\n{self.server.log()}")

    async def abort(self, number: int, *, revert: bool) -> RolloutDetail:
        return await asyncio.to_thread(self.server.client.abort_rollout, number, "by hand", revert=revert)


def state_of(shown: RolloutDetail, device: str) -> str:
    return next(one.state for one in shown.members if one.device == device)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    fleet.server.start()
    yield fleet
    await fleet.close()


async def test_a_version_goes_out_in_waves_and_every_device_runs_it(fleet: Fleet) -> None:
    await fleet.join(4)
    shown = await fleet.start("1", "100%")
    shown = await fleet.until(shown.rollout.id, "finished", "paused")
    assert shown.rollout.state == "finished" and shown.rollout.states == {"committed": 4}
    assert {one.device.running for one in fleet.devices.values()} == {NEW}
    assert {one.before for one in shown.members} == {OLD}
    history = await asyncio.to_thread(fleet.server.client.deployments, device="cam-0")
    assert history[0].state == "committed" and history[-1].state == "scheduled"


async def test_a_dry_run_says_who_is_in_which_wave_and_starts_nothing(fleet: Fleet) -> None:
    await fleet.join(3)
    client = fleet.server.client
    await asyncio.to_thread(client.tag, TagAsk(devices=["cam-1", "cam-2"], tags={"site": "a"}))
    plan = Plan(bundle=NEW, slot="main", target="site=a", waves=[Wave(take="1"), Wave(take="100%")])
    shown = await asyncio.to_thread(client.start_rollout, RolloutAsk(plan=plan, dry_run=True))
    assert sorted((one.device, one.wave) for one in shown.members)[0][0] == "cam-1"
    assert [wave.devices for wave in shown.waves] == [1, 1]
    assert await asyncio.to_thread(client.rollouts) == []


async def test_a_device_that_never_returns_does_not_hold_the_rollout(fleet: Fleet) -> None:
    await fleet.join(3)
    fleet.devices["cam-1"].silent = True
    limits = Gates(success_share_min=0.6, silent_share_max=0.5)
    shown = await fleet.start("100%", gates=limits, deadlines=Deadlines(assigned_s=2))
    shown = await fleet.until(shown.rollout.id, "finished", "paused")
    assert shown.rollout.state == "finished" and state_of(shown, "cam-1") == "silent"
    assert "nothing heard" in next(one.reason for one in shown.members if one.device == "cam-1")
    fleet.devices["cam-1"].silent = False  # it comes back after all, and is believed
    await fleet.until_device(shown.rollout.id, "cam-1", "committed")


async def test_a_version_that_is_slow_only_on_one_hardware_class_is_taken_back(fleet: Fleet) -> None:
    await fleet.join(4, lambda n: "rk3588" if n % 2 else "x86")
    for device in fleet.devices.values():
        device.measure(OLD, 500)
    shown = await fleet.start("2", "100%", soak_s=20, on_broken="abort-revert", gates=FAST)
    number = shown.rollout.id
    asked = [one.device for one in shown.members if one.wave == 1]
    assert {fleet.devices[name].hardware for name in asked} == {"rk3588", "x86"}
    for name in asked:
        await fleet.until_device(number, name, "committed")
        fleet.devices[name].p99_us = 60_000 if fleet.devices[name].hardware == "rk3588" else 20_000
        fleet.devices[name].measure(NEW, 500)
    shown = await fleet.until(number, "aborted")
    assert "on rk3588" in shown.rollout.reason and "on x86" not in shown.rollout.reason
    assert {one.device.running for one in fleet.devices.values()} == {OLD}
    assert sum(bool(one.device.activated) for one in fleet.devices.values()) == 2


async def test_a_version_whose_golden_score_is_worse_on_one_hardware_class_only_stops_at_its_canaries(
    fleet: Fleet,
) -> None:
    """Each device lets it pass, within its own tolerance; side by side the fleet sees that one class got worse."""
    await fleet.join(6, lambda n: "rk3588" if n % 2 else "x86")
    for device in fleet.devices.values():
        device.golden = {OLD: 0.995, NEW: 0.93 if device.hardware == "rk3588" else 0.996}
        device.tell_of_trial(OLD)
    async with asyncio.timeout(WAIT_S):  # that is known long before
        while [line.devices for one in await fleet.versions(OLD) for line in one.tried] != [3, 3]:
            await asyncio.sleep(0.1)
    limits = Gates(samples_min=0, evidence_s_max=30, golden_drop_max=0.03)
    shown = await fleet.start("2", "100%", gates=limits, on_broken="abort-revert")
    number = shown.rollout.id
    shown = await fleet.until(number, "aborted", "finished", "paused")
    assert shown.rollout.state == "aborted" and shown.rollout.wave == 1
    assert "golden score 0.9300 on rk3588, 0.9950 with the version before" in shown.rollout.reason
    assert "x86" not in shown.rollout.reason
    assert {one.device.running for one in fleet.devices.values()} == {OLD}
    asked = [one.device for one in shown.members if one.wave == 1]
    assert {fleet.devices[name].hardware for name in asked} == {"rk3588", "x86"}
    assert not any(fleet.devices[name].device.activated for name in set(fleet.devices) - set(asked))
    (line,) = await fleet.versions(NEW)
    assert {one.hardware: (one.devices, one.failed, one.golden_worst) for one in line.tried} == {
        "rk3588": (1, 0, 0.93), "x86": (1, 0, 0.996),
    }  # fmt: skip
    page = await asyncio.to_thread(fleet.server.client.look_at, asked[0])
    assert {(one.bundle, one.golden_passed) for one in page.trials} == {(NEW, 8), (OLD, 8)}


async def test_a_device_that_reverts_itself_stops_the_rollout(fleet: Fleet) -> None:
    await fleet.join(3)
    for device in fleet.devices.values():
        device.fails_at = "probation"
    shown = await fleet.start("1", "100%")
    shown = await fleet.until(shown.rollout.id, "paused", "finished")
    assert shown.rollout.state == "paused" and shown.rollout.wave == 1
    assert shown.rollout.states == {"rolled_back": 1, "scheduled": 2}
    assert {one.device.running for one in fleet.devices.values()} == {OLD}


async def test_a_version_that_failed_on_a_device_is_not_pushed_there_again_by_itself(fleet: Fleet) -> None:
    await fleet.join(1)
    fleet.devices["cam-0"].fails_at = "probation"
    shown = await fleet.start("100%")
    await fleet.until(shown.rollout.id, "paused")
    await fleet.abort(shown.rollout.id, revert=False)
    fleet.devices["cam-0"].fails_at = ""
    shown = await fleet.start("100%")
    assert state_of(shown, "cam-0") == "skipped" and "failed there before" in shown.members[0].reason
    shown = await fleet.start("100%", again=True)
    await fleet.until(shown.rollout.id, "finished")
    assert fleet.devices["cam-0"].device.running == NEW


STATES = ("assigned", "downloading", "staged", "activating", "probation", "committed")


@pytest.mark.parametrize("state", STATES)
async def test_abort_in_each_state_brings_back_what_each_device_ran(fleet: Fleet, state: str) -> None:
    await fleet.join(2)
    device = fleet.devices["cam-0"]
    fleet.devices["cam-1"].goes, fleet.devices["cam-1"].silent = False, True
    device.goes = False
    shown = await fleet.start("100%", gates=Gates(failed_share_max=None))
    number = shown.rollout.id
    shown = await fleet.until_device(number, "cam-0", "assigned")
    while state_of(shown, "cam-0") != state:
        before = state_of(shown, "cam-0")
        async with asyncio.timeout(WAIT_S):
            while device.device.assigned[2] == 0:
                await asyncio.sleep(0.02)
        device.device.step()
        if device.device.state != "new":
            later = [one for one in STATES if one != before]
            shown = await fleet.until_device(number, "cam-0", *later)
    await fleet.abort(number, revert=True)
    device.goes = True
    await fleet.until(number, "aborted")
    fleet.devices["cam-1"].goes, fleet.devices["cam-1"].silent = True, False
    async with asyncio.timeout(WAIT_S):
        while any((one.device.assigned[0], one.device.running) != (OLD, OLD) for one in fleet.devices.values()):
            await asyncio.sleep(0.05)
    await fleet.until_device(number, "cam-0", "canceled", "reverted")  # it may have been quicker than the abort
    assert fleet.devices["cam-1"].device.activated == []
    assert state_of(await fleet.show(number), "cam-1") == "canceled"


async def test_server_killed_in_each_state_decides_nothing_twice(fleet: Fleet) -> None:
    await fleet.join(4)
    shown = await fleet.start("1", "2", "100%")
    number, kills, seen = shown.rollout.id, 0, ""
    async with asyncio.timeout(90):
        while shown.rollout.state == "running":
            now = str(shown.rollout.states) + str(shown.rollout.wave)
            if now != seen and kills < 7:
                seen, kills = now, kills + 1
                fleet.server.kill()
                await asyncio.to_thread(fleet.server.start)
            await asyncio.sleep(0.05)
            shown = await fleet.show(number)
    assert shown.rollout.state == "finished", shown
    assert kills >= 4, "the server was hardly killed"
    for one in shown.members:
        assert (one.state, one.attempts) == ("committed", 1)
        assert fleet.devices[one.device].device.activated == [NEW]
        steps = await asyncio.to_thread(fleet.server.client.deployments, device=one.device)
        assert [step.state for step in steps].count("assigned") == 1
        assert fleet.devices[one.device].device.assigned[2] == 1, "it was signed more than once"


async def test_a_rollout_that_lacks_an_approval_asks_nobody(fleet: Fleet) -> None:
    await fleet.join(1)
    client = fleet.server.client
    tokens = {}
    for name in ("ben", "clara"):
        tokens[name] = await asyncio.to_thread(client.add_operator, OperatorTokenAsk(name=name, role="operator"))
    port = Address(host="127.0.0.1", port=fleet.server.operator_port)
    shown = await fleet.start("100%", approvals=2)
    number = shown.rollout.id
    with pytest.raises(NotPermittedError):
        await asyncio.to_thread(client.approve_rollout, number)  # whoever asked does not approve
    ben, clara = (FleetClient(port, tokens[name].secret) for name in ("ben", "clara"))
    await asyncio.to_thread(ben.approve_rollout, number)
    with pytest.raises(RequestError):
        await asyncio.to_thread(ben.approve_rollout, number)  # nobody counts twice
    await asyncio.sleep(0.6)
    shown = await fleet.show(number)
    assert shown.rollout.state == "proposed" and fleet.devices["cam-0"].device.assigned[0] == ""
    await asyncio.to_thread(clara.approve_rollout, number)
    await fleet.until(number, "finished")


async def test_outside_its_window_devices_stage_and_wait(fleet: Fleet) -> None:
    await fleet.join(1)
    hour = (time.gmtime().tm_hour + 12) % 24
    shown = await fleet.start("100%", windows=[f"{hour:02}:00-{(hour + 1) % 24:02}:00"])
    shown = await fleet.until_device(shown.rollout.id, "cam-0", "staged")
    await asyncio.sleep(1.0)
    assert fleet.devices["cam-0"].device.running == OLD
    assert state_of(await fleet.show(shown.rollout.id), "cam-0") == "staged"


async def test_a_paused_rollout_keeps_devices_from_beginning_and_goes_on_when_resumed(fleet: Fleet) -> None:
    await fleet.join(2)
    for device in fleet.devices.values():
        device.goes = False
    shown = await fleet.start("100%")
    number = shown.rollout.id
    await fleet.until_device(number, "cam-0", "assigned")
    await asyncio.to_thread(fleet.server.client.pause_rollout, number, "somebody wants to look")
    for device in fleet.devices.values():
        async with asyncio.timeout(WAIT_S):
            while device.device.assigned[1] != "skip":
                await asyncio.sleep(0.05)
        device.goes = True
    await fleet.until_device(number, "cam-0", "staged")
    await asyncio.sleep(0.6)
    assert {one.device.running for one in fleet.devices.values()} == {OLD}
    await asyncio.to_thread(fleet.server.client.resume_rollout, number, "looked")
    await fleet.until(number, "finished")


async def test_a_version_that_nobody_released_is_not_started_and_a_withdrawn_one_ends(fleet: Fleet) -> None:
    await fleet.join(2)
    plan = Plan(bundle="cap-inspect@9.9.9", slot="main")
    with pytest.raises(RequestError, match="not released"):
        await asyncio.to_thread(fleet.server.client.start_rollout, RolloutAsk(plan=plan))
    shown = await fleet.start("1", "100%", soak_s=3)
    await fleet.until_device(shown.rollout.id, next(m.device for m in shown.members if m.wave == 1), "committed")
    await asyncio.to_thread(fleet.repository.withdraw, "cap-inspect", "1.1.0")
    shown = await fleet.until(shown.rollout.id, "aborted")
    assert "not released any more" in shown.rollout.reason


async def test_a_slot_is_in_one_rollout_at_a_time(fleet: Fleet) -> None:
    await fleet.join(2)
    await fleet.start("1", "100%", soak_s=60)
    with pytest.raises(ConflictError, match="is in rollout 1"):
        await fleet.start("100%")


async def test_a_thief_of_the_directors_key_chooses_among_released_versions_only(fleet: Fleet) -> None:
    with writing(fleet.server.repository) as work, pytest.raises(UnknownNameError):
        director.assign(
            work, {"cam-0": {"main": ("cap-inspect", "6.6.6")}}, [fleet.repository.keys["online"], generate_key()],
            fleet.repository.now_s,
        )  # fmt: skip


async def test_an_operator_rolls_out_from_the_command_line(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.join(3)
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'bundle = "{NEW}"\nslot = "main"\ntarget = "group=pilots"\nsoak_s = 0.2\nreason = "new lot"\n'
        '[[waves]]\ntake = "1"\n[[waves]]\ntake = "100%"\n[gates]\nfailed_max = 1\n'
    )

    async def said(*words: str, ends: int = 0) -> str:
        command = [sys.executable, "-m", "lenskeep.cli.main", "fleet", "--fleet", str(fleet.server.socket), *words]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        text = (await process.communicate())[0].decode()
        assert process.returncode == ends, text
        return text

    await said("tag", "cam-0", "cam-2", "site=a", "line=3")
    assert "cam-2" in await said("groups", "pilots", "site=a")
    gates = ("--gate", "golden_score_min=0.98", "--gate", "failed_share_max=off")
    text = await said("rollout", "start", "--plan", str(plan), "--dry-run", *gates)
    assert "Nothing was started" in text and "golden_score_min 0.98" in text and "failed_max 1" in text
    assert "failed_share_max" not in text
    for wrong in ("golden=1", "golden_score_min", "golden_score_min=2", "golden_score_min=nan"):
        assert "LK-" in await said("rollout", "start", "--plan", str(plan), "--gate", wrong, ends=2)
    text = await said("rollout", "start", "--plan", str(plan))
    assert "Rollout 1 of cap-inspect@1.1.0 to 2 devices (group=pilots)" in text
    assert "finished" in await said("rollout", "watch", "1", "--timeout", "40")
    assert '"state":"finished"' in (await said("rollout", "list", "--json")).replace(": ", ":")
    assert "runs cap-inspect@1.1.0" in await said("rollout", "show", "1", "--devices")
    assert fleet.devices["cam-1"].device.running == OLD
    await said("rollout", "abort", "1", "--revert", "--reason", "misses scratches")
    assert "aborted" in await said("rollout", "watch", "1", "--timeout", "40", ends=9)
    assert {one.device.running for one in fleet.devices.values()} == {OLD}
    await said("rollout", "pause", "1", ends=6)
