"""A fleet that is put back to an old backup: it agrees with its devices again, and none of them is sent back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from lenskeep.messages.fleet import ReportAnswer
from lenskeep.messages.sync import Answer, Call, Happening
from tests.fleetrig import FleetServer, Member, code_of


def command(fleet: FleetServer, *words: str) -> None:
    line = [sys.executable, "-m", "lenskeep.cli.main", "fleet", *words, "--config", str(fleet.config)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


async def sync(member: Member, first: int, last: int) -> Answer:
    records = [Happening(n=n, kind="swap", at_ms=1) for n in range(first, last + 1)]
    call = Call(records=list(records), outbox="o", after=first - 1)
    status, body = await member.ask("POST", f"/v1/devices/{member.device}/sync", msgspec.json.encode(call))
    assert status == 200, body
    return msgspec.json.decode(body, type=Answer)


async def test_a_fleet_put_back_from_an_old_backup_goes_on_where_its_devices_are(tmp_path: Path) -> None:
    fleet = FleetServer(tmp_path)
    fleet.start()
    try:
        member = await Member(fleet, "cam-1", tmp_path).join()
        assert (await sync(member, 0, 4)).taken == 4
        assert isinstance(await member.send(member.report()), ReportAnswer)
        command(fleet, "backup", str(tmp_path / "old.lkf"))  # while it serves
        late = await Member(fleet, "cam-2", tmp_path).join()
        assert (await sync(member, 5, 20)).taken == 20
        for _ in range(3):
            await member.send(member.report())
        fleet.kill()
        for file in fleet.database.parent.glob("fleet.sqlite*"):
            file.unlink()
        command(fleet, "restore", str(tmp_path / "old.lkf"))
        fleet.start()

        assert (await sync(member, 21, 22)).taken == 22  # 5 to 20 are gone from its outbox: acknowledged before
        assert (await sync(member, 21, 22)).taken == 22
        answer = await member.send(member.report())
        assert isinstance(answer, ReportAnswer) and answer.taken and answer.counter == member.counter
        assert fleet.client.device("cam-1").device.counter == member.counter
        assert code_of(await late.send(late.report())).startswith("LK-")  # let in after the backup: enrols again
        assert (await late.join()).device == "cam-2"
        assert (await sync(late, 0, 0)).taken == 0
    finally:
        fleet.close()
