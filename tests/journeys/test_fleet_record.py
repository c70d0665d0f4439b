"""A device's record travels to its fleet, in pieces, whole, and is given out to whoever may read it."""

from __future__ import annotations

import asyncio
import io
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lenskeep.bundle.keys import PrivateKey
from lenskeep.cli.fleetclient import FleetClient
from lenskeep.cli.wire import Address
from lenskeep.clock import Clock
from lenskeep.database import open_database
from lenskeep.errors import (
    ForeignIdentityError,
    LimitExceededError,
    NotPermittedError,
    RecordContradictedError,
    RecordFormatError,
    RecordHeadError,
    RecordLostError,
    RequestError,
    UnknownNameError,
    UnlistedDeviceError,
)
from lenskeep.messages.control import Problem
from lenskeep.messages.fleet import RecordState
from lenskeep.registry import audit
from lenskeep.trust import chain, recordfile
from lenskeep.trust.chain import BEFORE_ALL, BEGIN, Entry, Facts, Point
from tests.device import Device
from tests.fleetrig import FleetServer, Member, code_of, running_fleet
from tests.journeys.test_fleet_membership import lenskeep
from tests.journeys.test_fleet_stick import away, carried, joined

MORE = '[device]\nid = "{}"\n[fleet]\npoll_s = 1.0\nwait_s = 3.0'
LIMIT = "\nrecord_mb_per_device = 16\n"


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    with running_fleet(more=LIMIT) as server:
        yield server


# --- the whole way ----------------------------------------------------------------------------------------------------


def asked(fleet: FleetServer, device: Device, name: str, state: str = "done", wait_s: float = 60.0) -> Any:
    """Ask for the record and return the command when it has ended."""
    made = fleet.client.ask_device(name, "record", "")

    def ended() -> Any:
        found = next(each for each in fleet.client.asked_of(name) if each.id == made.id)
        return found if found.state != "open" else None

    found = device.until(ended, "the record was asked for", wait_s)
    assert found.state == state, found
    return found


def write_much(device: Device, entries: int) -> None:
    """Give a device that is stopped a long record."""

    async def write() -> None:
        path, clock = device.folder / "state/registry.sqlite", Clock()
        async with open_database(path, "lenskeep.registry.schema") as database, database.write() as tx:
            for number in range(entries):
                await audit.add(
                    tx, clock, by="test", action="note", subject=f"{number}", reason="x" * 200, before="", after=""
                )

    asyncio.run(write())


def export(device: Device, path: Path) -> bytes:
    with path.open("wb") as file:
        device.client.export_record(file)
    return path.read_bytes()


def test_a_record_is_asked_for_and_given_to_an_auditor_who_verifies_it_anywhere(
    fleet: FleetServer, make_device: Any, tmp_path: Path
) -> None:
    device = make_device(more=MORE.format("cam-1"))
    joined(fleet, device, "cam-1")
    lenskeep("fleet", "record", "cam-1", "--verify", fleet=fleet, code=5)
    asked(fleet, device, "cam-1")
    out, key, head = tmp_path / "cam-1.jsonl", tmp_path / "cam-1.pub", tmp_path / "head.json"
    words = ("fleet", "record", "cam-1", "-o", out, "--key", key, "--witness", head, "--verify")
    first = lenskeep(*words, fleet=fleet)["verdict"]
    assert first["whole"]
    mine = export(device, tmp_path / "mine.jsonl").splitlines()
    theirs = out.read_bytes().splitlines()
    assert theirs[:-1] == mine[: len(theirs) - 1], "line by line what the device exports"
    assert lenskeep("audit", "verify", out, "--key", key, "--witness", head)["witnesses"] == 1

    for number in range(6):
        device.client.hold("main", number % 2 == 0)
    asked(fleet, device, "cam-1")
    second = lenskeep(*words, fleet=fleet)["verdict"]
    assert second["last"] >= first["last"] + 6
    state = lenskeep("fleet", "record", "cam-1", fleet=fleet)
    assert [each["copy"] for each in state["copies"]] == [1]
    with pytest.raises(UnknownNameError):
        fleet.client.record("nobody")

    secret = lenskeep("fleet", "operator", "add", "paula", "--role", "auditor", fleet=fleet)["secret"]
    looker = lenskeep("fleet", "operator", "add", "looker", "--role", "viewer", fleet=fleet)["secret"]
    port = Address(host="127.0.0.1", port=fleet.operator_port)
    assert FleetClient(port, secret).record("cam-1").copies
    for ask in (
        lambda: FleetClient(port, looker).record("cam-1"),
        lambda: FleetClient(port, looker).export_record("cam-1", io.BytesIO()),
        lambda: FleetClient(port, secret).take_record_piece("cam-1", 1, 0, b""),
    ):
        with pytest.raises(NotPermittedError):
            ask()


def test_a_long_record_comes_whole_through_kills_of_both_sides_and_only_once(
    fleet: FleetServer, make_device: Any, tmp_path: Path
) -> None:
    device = make_device(more=MORE.format("cam-long"))
    joined(fleet, device, "cam-long")
    device.kill()
    write_much(device, 16_000)
    device.start()
    device.until(lambda: (now := device.client.status().fleet) and now.level, "the fleet is heard")
    made = fleet.client.ask_device("cam-long", "record", "")

    def here() -> int:
        copies = fleet.client.record("cam-long").copies
        return copies[0].sequence if copies else -1

    device.until(lambda: here() > 1000, "some of it is there")
    device.kill()
    assert here() < 16_000, "it was killed in the middle"
    before = here()
    device.start()
    device.until(lambda: here() > before, "it goes on where it was")
    fleet.kill()
    fleet.start()
    device.until(
        lambda: next(each for each in fleet.client.asked_of("cam-long") if each.id == made.id).state == "done",
        "done",
        60,
    )
    copies = fleet.client.record("cam-long").copies
    assert [each.copy for each in copies] == [1]
    assert copies[0].head_sequence == copies[0].sequence > 16_000
    out = tmp_path / "long.jsonl"
    verdict = lenskeep("fleet", "record", "cam-long", "-o", out, "--verify", fleet=fleet)["verdict"]
    assert (verdict["whole"], verdict["entries"]) == (True, copies[0].sequence + 1)
    assert len(out.read_bytes()) < 2 * copies[0].bytes
    assert not [each for each in fleet.client.alarms() if each.device == "cam-long"]


def test_a_record_on_a_stick_is_taken_and_the_network_goes_on_behind_it(
    fleet: FleetServer, make_device: Any, tmp_path: Path
) -> None:
    device = make_device(more=MORE.format("cam-usb"))
    joined(fleet, device, "cam-usb")
    stick, old = device.folder / "stick", device.folder / "old"
    with away(fleet):
        carried(device, stick)
        shutil.copytree(stick, old)
    taken = lenskeep("fleet", "take", stick, fleet=fleet)
    first = fleet.client.record("cam-usb").copies[0]
    assert taken["entries"] == first.sequence + 1
    assert lenskeep("fleet", "take", stick, fleet=fleet)["entries"] == 0
    device.client.hold("main", True)
    asked(fleet, device, "cam-usb")
    second = fleet.client.record("cam-usb").copies
    assert len(second) == 1
    assert second[0].sequence > first.sequence
    assert lenskeep("fleet", "take", old, fleet=fleet)["entries"] == 0, "an old stick tells nothing new"
    device.client.hold("main", False)
    carried(device, stick)
    assert lenskeep("fleet", "take", stick, fleet=fleet)["entries"] > 0
    asked(fleet, device, "cam-usb")
    assert lenskeep("fleet", "record", "cam-usb", "--verify", fleet=fleet)["verdict"]["whole"]
    cut = (stick / "record/cam-usb.jsonl").read_bytes().splitlines(keepends=True)
    (stick / "record/cam-usb.jsonl").write_bytes(b"".join(cut[:-2]))
    assert lenskeep("fleet", "take", stick, fleet=fleet, code=4)["refused"][-1]["code"] == RecordFormatError.code


@pytest.mark.attack(92)
def test_a_registry_that_was_lost_begins_another_copy_beside_the_first(
    fleet: FleetServer, make_device: Any, tmp_path: Path
) -> None:
    device = make_device(more=MORE.format("cam-lost"))
    joined(fleet, device, "cam-lost")
    asked(fleet, device, "cam-lost")
    first = fleet.client.record("cam-lost").copies[0]
    device.kill()
    for path in (device.folder / "state").glob("registry.sqlite*"):
        path.unlink()
    device.start()
    device.until(lambda: (now := device.client.status().fleet) and now.level, "the fleet is heard", 60)
    asked(fleet, device, "cam-lost")
    copies = fleet.client.record("cam-lost").copies
    assert [each.copy for each in copies] == [2, 1]
    assert copies[1].head_hash == first.head_hash, "what was here stays"
    assert RecordLostError.code in [each.code for each in fleet.client.alarms() if each.device == "cam-lost"]
    assert lenskeep("fleet", "record", "cam-lost", "--copy", 1, "--verify", fleet=fleet)["verdict"]["whole"]
    again = lenskeep("fleet", "record", "cam-lost", "--verify", fleet=fleet, code=4)["verdict"]
    assert again["finding"] is None
    assert again["gaps"], "honest about what is lost"


# --- who meddles ------------------------------------------------------------------------------------------------------


def entries(device: str, number: int, *, after: Point = BEFORE_ALL, text: str = "") -> list[Entry]:
    """A record of some entries."""
    made: list[Entry] = []
    for _ in range(number):
        begins = after == BEFORE_ALL
        facts = Facts(
            at_ms=1_800_000_000_000, monotonic_ms=1, boot="", clock_trusted=True, actor="test",
            action=BEGIN if begins else "note", subject=device if begins else "slot main", reason=text, before="",
            after="",
        )  # fmt: skip
        made.append(chain.put(after, facts))
        after = made[-1].point
    return made


def lines(found: list[Entry], device: str = "", key: PrivateKey | None = None) -> bytes:
    """Entries as they are sent, with a head when a key is given."""
    data = b"".join(recordfile.entry_line(each, True) for each in found)
    return data + (head(found[-1].point, device, key) if key is not None else b"")


def head(point: Point, device: str, key: PrivateKey) -> bytes:
    said = chain.Head(device=device, sequence=point.sequence, hash=point.hash, at="2027-01-01T00:00:00Z", counter=1)
    return recordfile.head_line(chain.sign_head(said, key))


async def send(member: Member, data: Any, copy: int = 1, after: int = -1, device: str = "") -> RecordState | Problem:
    path = f"/v1/devices/{device or member.device}/record?copy={copy}&after={after}"
    status, body = await member.ask("POST", path, data)
    return msgspec.json.decode(body, type=RecordState if status == 200 else Problem)


def alarms(fleet: FleetServer, device: str) -> list[str]:
    return [each.code for each in fleet.client.alarms() if each.device == device]


async def test_pieces_may_be_doubled_replayed_and_sent_in_any_order(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "rec-order", tmp_path).join()
    all_ = entries("rec-order", 30)
    first, second, third = lines(all_[:10]), lines(all_[10:20]), lines(all_[20:], "rec-order", member.key)
    assert (await send(member, second, after=9)).entries == 0  # type: ignore[union-attr]
    assert (await send(member, first)).entries == 10  # type: ignore[union-attr]
    assert (await send(member, first)).entries == 0  # type: ignore[union-attr]
    both = await asyncio.gather(send(member, second, after=9), send(member, second, after=9))
    assert sorted(each.entries for each in both) == [0, 10]  # type: ignore[union-attr]
    with pytest.raises(UnknownNameError):
        fleet.client.record_witness("rec-order")
    done = await send(member, third, after=19)
    assert isinstance(done, RecordState)
    assert done.copies[0].head_sequence == 29
    assert (await send(member, head(all_[9].point, "rec-order", member.key))).known  # type: ignore[union-attr]
    assert [each.copy for each in fleet.client.record("rec-order").copies] == [1]
    assert alarms(fleet, "rec-order") == []


async def test_what_contradicts_raises_an_alarm_and_what_was_signed_stays(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "rec-lies", tmp_path).join()
    true = entries("rec-lies", 20)
    await send(member, lines(true, "rec-lies", member.key))
    forged = true[:10] + entries("rec-lies", 15, after=true[9].point, text="never happened")
    refused = await send(member, lines(forged[20:], "rec-lies", member.key), after=19)
    assert code_of(refused) == RecordContradictedError.code
    assert alarms(fleet, "rec-lies") == [RecordContradictedError.code]
    refused = await send(member, lines(forged, "rec-lies", member.key), copy=2)
    assert code_of(refused) == RecordContradictedError.code
    refused = await send(member, head(forged[15].point, "rec-lies", member.key))
    assert code_of(refused) == RecordContradictedError.code
    copies = fleet.client.record("rec-lies").copies
    assert [(each.copy, each.head_hash) for each in copies] == [(1, true[-1].hash)]
    on = entries("rec-lies", 5, after=true[-1].point)
    assert (await send(member, lines(on, "rec-lies", member.key), after=19)).entries == 5  # type: ignore[union-attr]


async def test_what_a_report_has_witnessed_binds_the_record_that_comes_later(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "rec-seen", tmp_path).join()
    true = entries("rec-seen", 12)
    await member.send(member.report(record_head=member.head(10, true[10].hash)))
    forged = true[:8] + entries("rec-seen", 10, after=true[7].point, text="other")
    assert (await send(member, lines(forged[:9]))).entries == 9  # type: ignore[union-attr]
    refused = await send(member, lines(forged[9:], "rec-seen", member.key), after=8)
    assert code_of(refused) == RecordContradictedError.code
    assert fleet.client.record("rec-seen").copies == [], "what was never signed went with it"
    assert (await send(member, lines(true, "rec-seen", member.key))).entries == 12  # type: ignore[union-attr]


async def test_anothers_record_a_strangers_head_and_what_is_no_record_are_refused(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "rec-mine", tmp_path).join()
    other = await Member(fleet, "rec-other", tmp_path).join()
    gone = await Member(fleet, "rec-gone", tmp_path).join()
    theirs = entries("rec-other", 5)
    assert code_of(await send(member, lines(theirs, "rec-mine", member.key))) == RecordContradictedError.code
    assert code_of(await send(member, lines(theirs, "rec-other", member.key))) == RecordHeadError.code
    assert code_of(await send(member, lines(theirs, "rec-other", other.key))) == UnlistedDeviceError.code
    assert code_of(await send(member, lines(theirs), device="rec-other")) == ForeignIdentityError.code
    mine = entries("rec-mine", 5)
    good = lines(mine, "rec-mine", member.key)
    for bad in (b"", b"\n", b"{}\n", good[:-1], good.replace(b"slot main", b"slot left"), good + good[:40], b"\xff" * 99,
                good.replace(b'"kind"', b' "kind"', 1), recordfile.header_line("rec-mine", member.key.public) + good,
                lines(mine[:1] + mine[2:])):  # fmt: skip
        assert code_of(await send(member, bad)) in (RecordFormatError.code, RecordContradictedError.code), bad
    assert code_of(await send(member, io.BytesIO(b"x" * 3_000_000))) == LimitExceededError.code
    status, _ = await member.ask("POST", "/v1/devices/rec-mine/record?copy=x&after=-5", good)
    assert status == 400
    fleet.client.revoke("rec-gone", "stolen")
    assert code_of(await send(gone, lines(entries("rec-gone", 2)))) == UnlistedDeviceError.code
    with pytest.raises(UnlistedDeviceError):  # nor on a stick
        fleet.client.take_record_piece("rec-gone", 1, -1, lines(entries("rec-gone", 2), "rec-gone", gone.key))
    for device in ("rec-mine", "rec-other", "rec-gone"):
        assert fleet.client.record(device).copies == []
    assert (await send(member, good)).entries == 5  # type: ignore[union-attr]
    with pytest.raises(RequestError):
        fleet.client._wire.ask("POST", "/v1/devices/rec-mine/record", query={"copy": "1e9", "after": 0}, body=good)


@pytest.mark.attack(80)
async def test_a_gigabyte_of_lies_is_stopped_and_makes_room_for_the_truth(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "rec-large", tmp_path).join()
    at, number, sent = BEFORE_ALL, 0, 0
    while sent < 40_000_000:
        part = entries("rec-large", 120, after=at, text="x" * 3900)
        answer = await send(member, lines(part), after=at.sequence)
        if code_of(answer):
            break
        sent, number, at = sent + 120 * 3900, number + 1, part[-1].point
    assert code_of(answer) == LimitExceededError.code
    assert sent < 17_000_000
    assert alarms(fleet, "rec-large") == [LimitExceededError.code]
    true = entries("rec-large", 200, text="y" * 3900)
    assert (await send(member, lines(true, "rec-large", member.key), copy=2)).entries == 200  # type: ignore[union-attr]
    assert [each.copy for each in fleet.client.record("rec-large").copies] == [2], "what nobody signed gave way"


async def test_a_full_disk_at_the_fleet_takes_nothing_and_the_rest_comes_later(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "rec-full", tmp_path).join()
    true = entries("rec-full", 40)
    await send(member, lines(true[:10]))
    assert fleet.process is not None
    before = resource.prlimit(fleet.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(fleet.process.pid, resource.RLIMIT_FSIZE, (4096, before[1]))
    refused = await send(member, lines(true[10:], "rec-full", member.key), after=9)
    resource.prlimit(fleet.process.pid, resource.RLIMIT_FSIZE, before)
    assert isinstance(refused, Problem)
    assert refused.status in (503, 507)
    assert fleet.client.record("rec-full").copies[0].sequence == 9
    assert (await send(member, lines(true[10:], "rec-full", member.key), after=9)).entries == 30  # type: ignore[union-attr]
    assert alarms(fleet, "rec-full") == []
