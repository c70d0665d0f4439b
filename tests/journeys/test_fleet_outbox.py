"""A real daemon, a real fleet, a bad network between them, and kill -9 on both sides: each record arrives once."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lenskeep.daemon.outbox import KINDS
from lenskeep.trust.keeping import releases
from tests import runnerchild, tinybundle
from tests.chaos.relay import FAIR, GONE, ROUGH, Relay
from tests.device import Device, bundle_bytes
from tests.fleetrig import FleetServer
from tests.journeys.test_fleet_membership import lenskeep
from tests.repositories import Repository

ID = "cam-1"
MORE = f'[device]\nid = "{ID}"\n[fleet]\npoll_s = 1.0\nwait_s = 3.0'


class Line:
    """A relay that runs beside a test that blocks."""

    def __init__(self, port: int, seed: int) -> None:
        self.relay = Relay("127.0.0.1", port, seed)
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._up.wait()

    def _run(self) -> None:
        self._loop.run_until_complete(self._carry())

    async def _carry(self) -> None:
        self._over = asyncio.Event()
        async with self.relay.running():
            self._up.set()
            await self._over.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def fleet() -> Iterator[FleetServer]:
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder)
    server.start()
    yield server
    server.close()
    shutil.rmtree(folder)


@pytest.fixture
def device() -> Iterator[Device]:
    folder = Path(tempfile.mkdtemp(prefix="lk-"))
    made = Device(folder, more=MORE)
    yield made
    made.close()
    shutil.rmtree(folder)


def one(path: Path, sql: str) -> int:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        return int(database.execute(sql).fetchone()[0] or 0)


def heard(device: Device) -> bool:
    now = device.client.status().fleet
    return now is not None and now.level


def test_each_record_arrives_once_through_a_bad_network_with_both_ends_killed(
    fleet: FleetServer, device: Device
) -> None:
    seed = int(os.environ.get("LENSKEEP_SEED") or time.time())
    print(f"seed {seed}")
    chance = random.Random(seed)
    line = Line(fleet.port, seed)
    try:
        device.start()
        lenskeep("enrol", f"https://127.0.0.1:{line.relay.port}", "--token", fleet.token(ID), device=device)
        device.trust()
        device.until(lambda: heard(device), "the fleet is heard")
        registry, metrics = device.folder / "state/registry.sqlite", device.folder / "state/metrics.sqlite"
        first = one(registry, "SELECT sequence FROM record WHERE action = 'enrol certificate'")
        device.settle("1.0.0")
        stop_s = time.time() // 60 * 60 + 64  # a minute's windows close meanwhile
        kills = 0
        while time.time() < stop_s:
            line.relay.weather = chance.choice([FAIR, ROUGH, ROUGH, GONE])
            what = chance.random()
            if what < 0.25:
                device.kill()
                device.start()
                kills += 1
            elif what < 0.45:
                fleet.kill()
                fleet.start()
                kills += 1
            else:
                device.client.hold("main", chance.random() < 0.5)
            time.sleep(chance.random())
        print(f"{kills} kills, relay {dict(line.relay.counts)}")
        line.relay.weather = FAIR
        time.sleep(12)  # the last minute's windows are closed
        device.until(
            lambda: heard(device) and (view := device.client.status().fleet) and not view.waiting, "all is told"
        )
        device.kill()

        def merged() -> bool:
            return not one(fleet.database, "SELECT COUNT(*) FROM inbox")

        device.until(merged, "the fleet has merged what it took", 60)
        counted = one(metrics, "SELECT SUM(frames) FROM span")
        still_here = one(metrics, "SELECT SUM(frames) FROM outbox_window")
        arrived = one(fleet.database, "SELECT SUM(frames) FROM telemetry WHERE stage = ''")
        assert one(metrics, "SELECT COUNT(*) FROM outbox_record") == 0
        assert arrived > 0
        assert arrived + still_here == counted
        with sqlite3.connect(registry) as database:
            rows = database.execute(
                "SELECT action FROM record WHERE sequence > ? ORDER BY sequence", (first,)
            ).fetchall()
        with sqlite3.connect(fleet.database) as database:
            told = database.execute("SELECT text FROM happening WHERE text LIKE '% by %' ORDER BY id").fetchall()
        happened = [action for (action,) in rows if action in KINDS]
        assert [text.split(" by ")[0] for (text,) in told] == happened
        assert one(fleet.database, "SELECT COUNT(*) - COUNT(DISTINCT n) FROM happening") == 0
        assert not one(metrics, "SELECT dropped FROM outbox")
        assert one(fleet.database, "SELECT SUM(trials) FROM trial_sum") == one(registry, "SELECT COUNT(*) FROM trial")
        (trial,) = fleet.client.look_at(ID).trials
        assert (trial.bundle, trial.code, trial.golden_passed) == ("cap-inspect@1.0.0", "", trial.golden_total)
    finally:
        line.close()


# --- news, wishes and commands ----------------------------------------------------------------------------------------


def with_repository(fleet: FleetServer, *versions: str, **facts: object) -> Repository:
    """A repository in the fleet's folder that lists some versions."""
    made = Repository(fleet.repository, time.time())
    made.keys["acme"] = tinybundle.key()
    made.publisher("acme", "cap-*")
    files = []
    for version in versions:
        files.append(fleet.folder / f"cap-inspect-{version}.lkb")
        files[-1].write_bytes(bundle_bytes(version, **facts))
    made.change(lambda work: releases.publish(work, files, made.signers(), made.now_s))
    return made


def member(fleet: FleetServer, device: Device, repository: Repository) -> None:
    """Enrol a device that follows this repository."""
    (device.folder / "root.json").write_bytes(repository.root())
    device.config.write_text(device.config.read_text() + f'\n[trust]\nroot = "{device.folder}/root.json"\n')
    device.start()
    lenskeep("enrol", fleet.url, "--token", fleet.token(ID), device=device)
    device.until(lambda: heard(device), "the fleet is heard")


def stands(fleet: FleetServer) -> dict[str, str | int]:
    """What the fleet has of the slot."""
    with sqlite3.connect(f"file:{fleet.database}?mode=ro", uri=True) as database:
        database.row_factory = sqlite3.Row
        row = database.execute("SELECT * FROM slot_now WHERE device = ? AND slot = 'main'", (ID,)).fetchone()
    return dict(row) if row is not None else {}


def test_news_arrive_while_the_fleet_holds_its_answer_and_every_step_is_heard_there(
    fleet: FleetServer, device: Device
) -> None:
    device.config.write_text(
        device.config.read_text().replace("poll_s = 1.0\nwait_s = 3.0", "poll_s = 60\nwait_s = 50")
    )
    repository = with_repository(fleet, "1.0.0", "2.0.0")
    member(fleet, device, repository)
    repository.assign(ID, main="cap-inspect@1.0.0")
    device.runs("cap-inspect@1.0.0", "settled")
    device.until(lambda: stands(fleet).get("state") == "followed", "the fleet hears that it is followed")
    time.sleep(2.5)  # the fleet holds its answer
    began_s = time.monotonic()
    repository.assign(ID, main="cap-inspect@2.0.0")
    device.until(lambda: device.client.repository().assignments[0].bundle == "cap-inspect@2.0.0", "the device knows")
    knows_s = time.monotonic() - began_s
    device.runs("cap-inspect@2.0.0", "settled")
    device.until(lambda: stands(fleet).get("state") == "followed" and stands(fleet)["generation"] == 2, "all is told")
    print(f"known after {knows_s:.2f} s, settled and told after {time.monotonic() - began_s:.2f} s")
    assert knows_s < 5.0


def test_a_paused_device_follows_nothing_until_it_is_resumed_and_says_why(fleet: FleetServer, device: Device) -> None:
    repository = with_repository(fleet, "1.0.0")
    member(fleet, device, repository)
    asked = fleet.client.ask_device(ID, "pause", "")
    device.until(lambda: (now := device.client.status().fleet) and now.paused, "it is paused")
    device.until(lambda: {one.id: one.state for one in fleet.client.asked_of(ID)}[asked.id] == "done", "it says so")
    repository.assign(ID, main="cap-inspect@1.0.0")
    device.until(lambda: "paused" in str(stands(fleet).get("reason")), "the fleet hears why it waits")
    device.kill()
    device.start()
    assert stands(fleet)["state"] == "new"
    fleet.client.ask_device(ID, "resume", "")
    device.runs("cap-inspect@1.0.0", "settled")


def test_a_version_that_takes_itself_back_is_told_with_its_reason_and_not_tried_again(
    fleet: FleetServer, device: Device
) -> None:
    repository = with_repository(fleet, "1.0.0")
    bad = fleet.folder / "cap-inspect-2.0.0.lkb"  # it proves itself in its trial and fails on live pictures
    golden = {"cases": [{"image": "golden/a.png", "scores": {"good": 0.9, "bad": 0.1}}], "produced_by": "hand"}
    bad.write_bytes(bundle_bytes("2.0.0", model=runnerchild.failing_model(16), golden=golden))
    member(fleet, device, repository)
    repository.assign(ID, main="cap-inspect@1.0.0")
    device.runs("cap-inspect@1.0.0", "settled")
    repository.change(lambda work: releases.publish(work, [bad], repository.signers(), repository.now_s))
    repository.assign(ID, main="cap-inspect@2.0.0")
    told = device.until(lambda: (now := stands(fleet)).get("state") in ("rolled_back", "refused") and now, "it is told")
    assert told["state"] == "rolled_back", told
    assert told["code"] == "LK-8103"
    device.until(lambda: stands(fleet)["bundle"] == "cap-inspect@1.0.0", "the fleet hears what runs")
    repository.assign(ID, main="cap-inspect@1.0.0")
    device.until(lambda: stands(fleet)["generation"] == 3 and stands(fleet)["state"] == "followed", "that is what runs")
    asked = [one["action"] for one in steps(device) if one["after"] == "models/cap-inspect/2.0.0.lkb"]
    assert asked[-1] == "assignment rolled_back"
    assert asked.count("assign") == asked.count("assignment rolled_back") == 1


def test_a_person_at_the_device_takes_a_version_back_and_the_fleet_hears_who(
    fleet: FleetServer, device: Device
) -> None:
    repository = with_repository(fleet, "1.0.0", "2.0.0")
    member(fleet, device, repository)
    for version in ("1.0.0", "2.0.0"):
        repository.assign(ID, main=f"cap-inspect@{version}")
        device.runs(f"cap-inspect@{version}", "settled")
    device.finished(device.client.rollback("main", "too many false rejects"))
    told = device.until(lambda: (now := stands(fleet)).get("state") == "rolled_back" and now, "the fleet hears it")
    assert "too many false rejects" in str(told["reason"])
    repository.refresh()
    lenskeep("sync", device=device)
    time.sleep(1.0)
    assert device.slot().active == "cap-inspect@1.0.0", "a person's decision stands until another version is assigned"


def steps(device: Device) -> list[dict[str, str]]:
    """What the record says of assignments."""
    with sqlite3.connect(f"file:{device.folder}/state/registry.sqlite?mode=ro", uri=True) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM record WHERE action LIKE 'assign%' ORDER BY sequence").fetchall()
    return [dict(row) for row in rows]


# --- put back from a copy ---------------------------------------------------------------------------------------------


def told_holds(fleet: FleetServer) -> int:
    """How many times the fleet heard that swaps were held or may go on."""
    return one(fleet.database, "SELECT COUNT(*) FROM happening WHERE text LIKE 'hold by%' OR text LIKE 'resume by%'")


def stir(device: Device, fleet: FleetServer, times: int) -> None:
    """Make the device have something to tell, and wait until the fleet has it."""
    before = told_holds(fleet)
    for number in range(times):
        device.client.hold("main", number % 2 == 0)
    device.until(lambda: told_holds(fleet) >= before + times, f"{times} more are told")


def test_a_fleet_that_was_put_back_and_its_device_agree_again(fleet: FleetServer, device: Device) -> None:
    device.start()
    lenskeep("enrol", fleet.url, "--token", fleet.token(ID), device=device)
    device.until(lambda: heard(device), "the fleet is heard")
    stir(device, fleet, 2)
    fleet.kill()
    kept = fleet.folder / "kept"
    shutil.copytree(fleet.folder / "state", kept)
    fleet.start()
    stir(device, fleet, 6)
    fleet.kill()
    shutil.rmtree(fleet.folder / "state")
    shutil.copytree(kept, fleet.folder / "state")
    fleet.start()
    device.until(lambda: heard(device), "the fleet is heard again")
    stir(device, fleet, 2)
    assert told_holds(fleet) == 4, "what the old copy had, and what came since"
    device.until(lambda: not device.client.status().fleet.waiting, "nothing waits")  # type: ignore[union-attr]


def test_an_outbox_that_was_put_back_tells_nothing_twice_and_goes_on(fleet: FleetServer, device: Device) -> None:
    device.start()
    lenskeep("enrol", fleet.url, "--token", fleet.token(ID), device=device)
    device.until(lambda: heard(device), "the fleet is heard")
    stir(device, fleet, 2)
    device.kill()
    state, kept = device.folder / "state", device.folder / "kept"
    kept.mkdir()
    for path in state.glob("metrics.sqlite*"):
        shutil.copy(path, kept)
    device.start()
    stir(device, fleet, 30)
    device.kill()
    for path in state.glob("metrics.sqlite*"):
        path.unlink()
    for path in kept.iterdir():
        shutil.copy(path, state)
    device.start()
    device.until(lambda: heard(device), "the fleet is heard again")
    stir(device, fleet, 4)
    assert told_holds(fleet) == 36, "each once"
    device.until(lambda: not device.client.status().fleet.waiting, "nothing waits")  # type: ignore[union-attr]


def test_a_daemon_that_belongs_to_a_fleet_stays_small(fleet: FleetServer, device: Device) -> None:
    device.start()
    lenskeep("enrol", fleet.url, "--token", fleet.token(ID), device=device)
    device.until(lambda: heard(device), "the fleet is heard")
    stir(device, fleet, 20)
    device.kill()
    device.start()  # enrolment loads the library of certificates, once
    device.until(lambda: heard(device), "the fleet is heard")
    stir(device, fleet, 20)
    rss_mb = device.client.status().daemon_rss_mb
    print(f"{rss_mb} MB")
    assert rss_mb < 65
