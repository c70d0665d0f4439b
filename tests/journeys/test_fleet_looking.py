"""What an operator learns of a fleet at a terminal, from devices that are well, behind, refused, silent or hostile."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lenskeep.messages.fleet import LastRefusal, SlotReport
from lenskeep.messages.rollouts import GroupAsk, TagAsk
from lenskeep.messages.sync import MEDIA_MSGPACK, Call, Trial
from tests.fleetrig import FleetServer, Member

OLD, NEW = "cap-inspect@1.0.0", "cap-inspect@1.1.0"
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202eevil"


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    """cam-1 runs what it should, cam-2 does not yet, cam-3 refused it in a hostile voice, cam-4 was only invited."""
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder)
    try:
        server.start()
        asyncio.run(tell(server))
        server.token("cam-4")
        server.client.tag(TagAsk(devices=["cam-1", "cam-2"], tags={"site": "aachen"}))
        server.client.set_group(GroupAsk(name="pilots", selector="cam-2,cam-3"))
        until = time.monotonic() + 20  # records are merged within seconds
        while sum(line.devices for one in server.client.versions(NEW) for line in one.tried) < 3:
            assert time.monotonic() < until, server.log()
            time.sleep(0.2)
        time.sleep(1.1)  # a look over the fleet is shared for a second
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


async def tell(fleet: FleetServer) -> None:
    now_ms = int(time.time() * 1000)
    hostile = LastRefusal(code="LK-8002", text=HOSTILE, at_ms=now_ms)
    for name, runs, refusal in (("cam-1", NEW, None), ("cam-2", OLD, None), ("cam-3", OLD, hostile)):
        device = await Member(fleet, name, fleet.folder).join()
        slot = SlotReport(slot="main", running=runs, digest="a" * 64, assigned=NEW, state="settled", since_ms=now_ms)
        await device.send(device.report(slots=[slot], refusal=refusal))
        tried = Trial(
            n=1, at_ms=now_ms, bundle=NEW, digest="a" * 64, hardware=f"rk3588{HOSTILE}" if refusal else "rk3588",
            code="LK-8001" if refusal else "", golden_passed=3 if refusal else 8, golden_total=8,
            golden_score=0.42 if refusal else 0.991, p50_ms=4.0, p99_ms=6.25, memory_mb=48,
        )  # fmt: skip
        call = msgspec.msgpack.encode(Call(outbox="one", records=[tried]))
        headers = {"Content-Type": MEDIA_MSGPACK}
        assert (await device.ask("POST", f"/v1/devices/{name}/sync", call, headers=headers))[0] == 200


def run(fleet: FleetServer, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lenskeep.cli.main", "fleet", "--fleet", fleet.socket, *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def facts(fleet: FleetServer, *words: str, code: int = 0) -> Any:
    return json.loads(run(fleet, *words, "--json", code=code))["data"]


def names(found: list[dict[str, Any]]) -> list[str]:
    return [one["device"] for one in found]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ["cam-1", "cam-2", "cam-3", "cam-4"]),
        (("--state", "healthy"), ["cam-1"]),
        (("--behind",), ["cam-2", "cam-3"]),
        (("--silent",), []),
        (("--tag", "site=aachen"), ["cam-1", "cam-2"]),
        (("--tag", "site=aachen", "--behind"), ["cam-2"]),
        (("--group", "pilots"), ["cam-2", "cam-3"]),
        (("--version", NEW), ["cam-1"]),
        (("--version", "cap-inspect"), ["cam-1", "cam-2", "cam-3"]),
        (("--name", "4"), ["cam-4"]),
    ],
)
def test_devices_are_narrowed_by(fleet: FleetServer, words: tuple[str, ...], expected: list[str]) -> None:
    assert names(facts(fleet, "devices", *words)) == expected


def test_a_device_is_shown_with_what_it_should_run_what_it_runs_and_why_not(fleet: FleetServer) -> None:
    slot = facts(fleet, "show", "cam-3")["line"]["slots"][0]
    assert (slot["desired"], slot["running"], slot["digest"], slot["code"]) == (NEW, OLD, "a" * 64, "LK-8002")
    said = run(fleet, "show", "cam-3")
    assert f"should run {NEW}" in said
    assert "LK-8002" in said


def test_a_trial_on_a_device_is_shown_with_what_it_found_there(fleet: FleetServer) -> None:
    (trial,) = facts(fleet, "show", "cam-1")["trials"]
    assert (trial["bundle"], trial["golden_score"], trial["p99_ms"], trial["memory_mb"]) == (NEW, 0.991, 6.25, 48)
    assert "golden 8 of 8, score 0.9910, p50 4.0 ms, p99 6.2 ms, 48 MB" in run(fleet, "show", "cam-1")
    assert "LK-8001 golden 3 of 8, score 0.4200" in run(fleet, "show", "cam-3")


def test_versions_say_how_each_class_of_hardware_reproduced_the_golden_outputs(fleet: FleetServer) -> None:
    (found,) = facts(fleet, "versions", NEW)
    tried = {line["hardware"]: (line["devices"], line["failed"], line["golden_worst"]) for line in found["tried"]}
    assert tried["rk3588"] == (2, 0, 0.991) and sorted(tried.values())[0] == (1, 1, 0.42)
    said = run(fleet, "versions", NEW)
    assert "0.9910 / 0.9910" in said and "1, 1 failed" in said


def test_drift_says_who_and_why_and_scripts_see_it_in_the_exit_code(fleet: FleetServer) -> None:
    found = facts(fleet, "drift", code=6)
    assert names(found) == ["cam-2", "cam-3"]
    assert all(one["desired"] == NEW and one["running"] == OLD and one["reason"] for one in found)


def test_versions_and_overview_count_what_signed_reports_say(fleet: FleetServer) -> None:
    assert {one["bundle"]: (one["devices"], one["wanted"]) for one in facts(fleet, "versions")} == {
        NEW: (1, 3), OLD: (2, 0),
    }  # fmt: skip
    health = facts(fleet, "overview")["health"]
    assert health == {"healthy": 1, "behind": 1, "refused": 1, "silent": 0, "invited": 1, "revoked": 0}


def test_history_tells_what_operators_did_with_a_device(fleet: FleetServer) -> None:
    assert any("invite" in one["text"] for one in facts(fleet, "history", "cam-4"))


def test_a_hostile_device_cannot_move_the_cursor_of_whoever_looks(fleet: FleetServer) -> None:
    for words, code in (
        (("devices",), 0),
        (("show", "cam-3"), 0),
        (("drift",), 6),
        (("overview",), 0),
        (("versions",), 0),
    ):
        for said in (run(fleet, *words, code=code), run(fleet, *words, "--json", code=code)):
            assert not set(said) & {"\x1b", "\x07", "\u202e"}


def test_what_is_asked_of_a_device_waits_until_it_calls(fleet: FleetServer) -> None:
    asked = facts(fleet, "op", "ask", "cam-1", "sync")
    assert [(one["device"], one["kind"], one["state"]) for one in asked] == [("cam-1", "sync", "open")]
    assert facts(fleet, "op", "list", "cam-1") == asked
    run(fleet, "op", "ask", "cam-1", "report", "--wait", "0.1", code=10)


def test_a_name_that_is_none_is_said_as_such(fleet: FleetServer) -> None:
    run(fleet, "show", "cam-99", code=5)
    run(fleet, "devices", "--group", "nobody", code=2)
