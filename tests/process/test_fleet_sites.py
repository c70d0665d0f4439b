"""Who serves on a site, as operators tag it and as devices hear it in the answers to their calls."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lenskeep.messages.rollouts import TagAsk
from lenskeep.messages.sync import Answer, Call
from tests.fleetrig import FleetServer, Member


@pytest.fixture
def fleet() -> Iterator[FleetServer]:
    with tempfile.TemporaryDirectory(prefix="lf-") as name:
        server = FleetServer(Path(name))
        server.start()
        yield server
        server.close()


async def heard(member: Member) -> list[str]:
    status, data = await member.ask(
        "POST",
        f"/v1/devices/{member.device}/sync",
        msgspec.json.encode(Call()),
        headers={"Content-Type": "application/json"},
    )
    assert status == 200, data
    return msgspec.json.decode(data, type=Answer).neighbours


async def test_device_hears_of_the_others_of_its_site_and_of_no_other(fleet: FleetServer, tmp_path: Path) -> None:
    members = [await Member(fleet, f"cam-{n}", tmp_path).join() for n in range(4)]
    assert await heard(members[0]) == []
    for n, site in ((0, "hall-3"), (1, "hall-3"), (2, "hall-3"), (3, "hall-4")):
        fleet.client.tag(TagAsk(devices=[f"cam-{n}"], tags={"site": site, "serves": f"10.0.0.{n}:8418"}))
    fleet.client.tag(TagAsk(devices=["cam-2"], tags={"serves": "not/an:address"}))
    deadline = time.monotonic() + 15
    while await heard(members[0]) != ["http://10.0.0.1:8418"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    assert set(await heard(members[2])) == {"http://10.0.0.0:8418", "http://10.0.0.1:8418"}
    assert await heard(members[3]) == []
