"""Metrics and events by stick: a real device, a real fleet, a folder between them, and whoever meddles with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lenskeep.bundle.keys import generate_key
from lenskeep.cli.output import Screen
from lenskeep.cli.takeback import TakenBack, write_back
from lenskeep.database import open_database
from lenskeep.errors import (
    CarriedRecordsError,
    MetadataTooLargeError,
    NotEnrolledError,
    ReceiptRefusedError,
    RecordsMissingError,
    SourceError,
    StorageError,
    StorageFullError,
    UnlistedDeviceError,
)
from lenskeep.messages.sync import Carried, Happening, Receipt, Record
from lenskeep.registry import outbox
from lenskeep.trust import envelope
from lenskeep.trust import stick as layout
from tests.device import Device
from tests.fleetrig import FleetServer, Member, running_fleet
from tests.journeys.test_fleet_membership import lenskeep
from tests.repositories import Repository

ID = "cam-1"
NAME = "ab" * 16
MORE = f'[device]\nid = "{ID}"\n[fleet]\npoll_s = 1.0\nwait_s = 3.0'


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    with running_fleet() as server:
        yield server


@contextmanager
def away(fleet: FleetServer) -> Iterator[None]:
    """Without a fleet meanwhile."""
    fleet.kill()
    try:
        yield
    finally:
        fleet.start()


def joined(fleet: FleetServer, device: Device, name: str) -> None:
    """Start a device and let it become a member; return when it has told its first news."""
    device.start()
    lenskeep("enrol", fleet.url, "--token", fleet.token(name), device=device)
    device.until(lambda: (now := device.client.status().fleet) and now.level and not now.waiting, "nothing waits")


def carried(device: Device, stick: Path) -> TakenBack:
    """Write what the fleet should get."""
    stick.mkdir(exist_ok=True)
    done = write_back(Screen(json=True), device.client, stick, device.client.identity().device)
    assert not done.faults
    return done


def one(path: Path, sql: str) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database, database:
        return int(database.execute(sql).fetchone()[0] or 0)


def told(fleet: FleetServer, device: str) -> list[str]:
    """What the fleet has heard happen on a device, once all is merged."""
    deadline = time.monotonic() + 20
    while one(fleet.database, "SELECT COUNT(*) FROM inbox"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with closing(sqlite3.connect(f"file:{fleet.database}?mode=ro", uri=True)) as database, database:
        rows = database.execute("SELECT text FROM happening WHERE device = ? ORDER BY id", (device,)).fetchall()
    return [text for (text,) in rows]


def holds(fleet: FleetServer, device: str = ID) -> int:
    return sum(text.startswith(("hold by", "resume by")) for text in told(fleet, device))


# --- the whole way ----------------------------------------------------------------------------------------------------


def stick_of(repository: Repository, folder: Path) -> Path:
    stick = folder / "stick"
    stick.mkdir(exist_ok=True)
    shutil.copytree(repository.folder, stick, dirs_exist_ok=True, ignore=shutil.ignore_patterns("requests", "*.lock"))
    return stick


def words_of(*words: object, device: Device) -> str:
    """What a command says to people."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LENSKEEP_DEVICE": str(device.socket)}
    command = [sys.executable, "-m", "lenskeep.cli.main", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout


def stir(device: Device, times: int) -> None:
    for number in range(times):
        device.client.hold("main", number % 2 == 0)


def test_metrics_and_events_travel_by_stick_each_once_and_a_receipt_lets_the_device_forget_them(
    fleet: FleetServer, tmp_path: Path, make_device: Any
) -> None:
    device = make_device(more=f'[device]\nid = "{ID}"')
    repository = Repository(tmp_path / "repository", time.time())
    repository.assign(ID)
    (device.folder / "root.json").write_bytes(repository.root())
    device.config.write_text(device.config.read_text() + f'\n[trust]\nroot = "{device.folder}/root.json"\n')
    device.start()
    stick, metrics = stick_of(repository, tmp_path), device.folder / "state/metrics.sqlite"
    before = lenskeep("sync", "--import", stick, device=device)
    assert before["outbox"]["records"] == 0, "a device of no fleet has nobody to tell"
    lenskeep("identity", "csr", stick, device=device)
    mine = device.client.identity().fingerprint
    granted = lenskeep(
        "fleet", "enrol", "--csr", stick / f"csr/{ID}.csr", "--out", stick, "--fingerprint", mine, fleet=fleet
    )
    authority = lenskeep("fleet", "ca", "show", fleet=fleet)["fingerprint"]
    lenskeep("identity", "install", granted["file"], "--ca-fingerprint", authority, device=device)
    lenskeep("sync", "--import", stick, device=device)
    stir(device, 6)
    device.kill()
    device.start()  # what happened before a power cut is told as well, though no fleet was ever heard
    stir(device, 4)
    assert "by stick alone" in words_of("sync", "--status", device=device)
    first = lenskeep("sync", "--import", stick, device=device)
    assert first["outbox"]["records"] >= 11, "ten, and vitals"
    assert first["outbox"]["left"] == 0
    waiting = device.client.status().fleet
    assert waiting is not None and waiting.url == "" and waiting.waiting >= first["outbox"]["records"]
    assert "reached by stick, " in (said := words_of("status", device=device)) and "records waiting since" in said
    assert not first["outbox"]["faults"]
    again = lenskeep("sync", "--import", stick, device=device)
    assert again["outbox"]["records"] >= first["outbox"]["records"], "they stay until they are acknowledged"
    assert len(list(layout.batches(stick))) == 1, "what a newer file holds as well is not kept twice"
    old = tmp_path / "old"
    shutil.copytree(stick, old)

    taken = lenskeep("fleet", "take", stick, fleet=fleet)
    assert taken["records"] == again["outbox"]["records"]
    assert holds(fleet) == 10
    assert lenskeep("fleet", "take", stick, fleet=fleet)["records"] == 0
    assert lenskeep("fleet", "take", old, fleet=fleet)["records"] == 0, "an old stick tells nothing new"

    back = lenskeep("sync", "--import", stick, device=device)
    assert back["outbox"]["acknowledged"] == taken["records"]
    assert one(metrics, f"SELECT COUNT(*) FROM outbox_record WHERE n < {taken['records']}") == 0
    shutil.copytree(old, stick, dirs_exist_ok=True)  # the attacker's: what was there before, put back
    stir(device, 2)
    lenskeep("sync", "--import", stick, device=device)
    lenskeep("fleet", "take", stick, fleet=fleet)
    assert holds(fleet) == 12


def test_stick_and_network_tell_each_record_once_in_whatever_order(fleet: FleetServer, make_device: Any) -> None:
    device = make_device(more=MORE.replace(ID, "cam-both"))
    stick = device.folder / "stick"
    joined(fleet, device, "cam-both")
    with away(fleet):
        stir(device, 6)
        assert carried(device, stick).records >= 6
        stir(device, 2)
    device.until(lambda: holds(fleet, "cam-both") == 8, "the network was faster", 60)
    assert lenskeep("fleet", "take", stick, fleet=fleet)["records"] == 0
    with away(fleet):
        stir(device, 4)
        assert carried(device, stick).records >= 4
        device.kill()
    assert lenskeep("fleet", "take", stick, fleet=fleet)["records"] >= 4, "the stick was faster"
    device.start()
    device.until(lambda: (now := device.client.status().fleet) and now.level and not now.waiting, "all is told", 60)
    assert holds(fleet, "cam-both") == 12
    assert one(device.folder / "state/metrics.sqlite", "SELECT dropped FROM outbox") == 0


@pytest.mark.attack(92)
def test_an_outbox_that_was_put_back_from_a_copy_is_found_without_the_fleet(
    fleet: FleetServer, make_device: Any
) -> None:
    device = make_device(more=MORE.replace(ID, "cam-copy"))
    state, kept, stick = device.folder / "state", device.folder / "kept", device.folder / "stick"
    joined(fleet, device, "cam-copy")
    stir(device, 2)
    device.until(lambda: holds(fleet, "cam-copy") == 2, "they are told")
    with away(fleet):
        device.kill()
        kept.mkdir()
        for path in state.glob("metrics.sqlite*"):
            shutil.copy(path, kept)
        device.start()
        stir(device, 6)
        carried(device, stick)
        device.kill()
        for path in state.glob("metrics.sqlite*"):
            path.unlink()
        for path in kept.iterdir():
            shutil.copy(path, state)
        device.start()
        stir(device, 2)
        carried(device, stick)
        assert len({batch.outbox for batch in layout.batches(stick)}) == 2
        device.kill()
    lenskeep("fleet", "take", stick, fleet=fleet)
    assert holds(fleet, "cam-copy") == 10, "each once"


# --- how much, and what goes wrong at the stick -----------------------------------------------------------------------


def test_what_has_no_room_waits_for_the_next_stick_the_oldest_first(
    fleet: FleetServer, make_device: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    device = make_device(more='[device]\nid = "cam-full"')
    stick = device.folder / "stick"
    joined(fleet, device, "cam-full")
    with away(fleet):
        fill(device, 1800)
        stick.mkdir()
        part = write_back(Screen(), device.client, stick, "cam-full", bytes_max=200_000)
        first = list(layout.batches(stick))
        assert part.records_bytes <= 200_000
        assert 0 < part.records < 1800 <= part.records + part.left
        (stick / "outbox").rename(stick / "elsewhere")
        (stick / "outbox").write_text("no folder")
        broken = write_back(Screen(), device.client, stick, "cam-full")
        assert broken.records == 0
        assert broken.left >= 1800
        assert "not all written" in capsys.readouterr().err
        assert any(name.startswith("record/") for name in broken.files), "the rest went on"
        (stick / "outbox").unlink()
        whole = write_back(Screen(), device.client, stick, "cam-full")
        assert whole.left == 0
        assert min(layout.batches(stick)).first == min(first).first
        device.kill()
    assert lenskeep("fleet", "take", stick, fleet=fleet)["records"] == whole.records
    assert len([text for text in told(fleet, "cam-full") if text.startswith("filled")]) == 1800


@pytest.mark.attack(99)
def test_a_full_stick_and_one_with_links_cost_nothing_but_another_way(
    fleet: FleetServer, make_device: Any, tmp_path: Path
) -> None:
    device = make_device(more='[device]\nid = "cam-small"')
    joined(fleet, device, "cam-small")
    stick, elsewhere = tmp_path / "stick", tmp_path / "elsewhere"
    elsewhere.mkdir()
    stick.mkdir()
    (stick / "outbox").symlink_to(elsewhere)
    (stick / "record").symlink_to(elsewhere)
    with away(fleet):
        fill(device, 3000)
        linked = write_back(Screen(json=True), device.client, stick, "cam-small")
        assert linked.faults == [StorageError.code] * 2
        assert not list(elsewhere.iterdir())
        (stick / "outbox").unlink()
        (stick / "record").unlink()
        if (
            os.geteuid()
            or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "small", stick], check=False).returncode
        ):
            pytest.skip("no small disk can be mounted here")
        try:
            small = write_back(Screen(json=True), device.client, stick, "cam-small")
            assert set(small.faults) == {StorageFullError.code}
            assert 0 < small.records < 3000 <= small.records + small.left
            assert not [path for path in stick.rglob(".*") if path.is_file()], "whole or not at all"
            device.kill()
            fleet.start()
            taken = lenskeep("fleet", "take", stick, fleet=fleet)
            fleet.kill()
        finally:
            subprocess.run(["umount", "-l", stick], check=True)
    assert taken["records"] == small.records
    device.start()
    device.until(lambda: (now := device.client.status().fleet) and now.level and not now.waiting, "the rest", 60)
    assert len([text for text in told(fleet, "cam-small") if text.startswith("filled")]) == 3000


def fill(device: Device, number: int) -> None:
    """Put events into the outbox of a device that is stopped meanwhile."""
    device.kill()

    async def put() -> None:
        path = device.folder / "state/metrics.sqlite"
        async with open_database(path, "lenskeep.registry.metrics_schema") as database, database.write() as tx:
            records: list[Record] = [
                Happening(n=0, kind="other", at_ms=1, text=f"filled {n} {'x' * 80}") for n in range(number)
            ]
            await outbox.add(tx, records)

    asyncio.run(put())
    device.start()


# --- receipts, at the device ------------------------------------------------------------------------------------------


def test_a_device_believes_its_own_fleets_receipt_alone(fleet: FleetServer, make_device: Any) -> None:
    device = make_device(more='[device]\nid = "cam-receipt"')
    device.start()
    with pytest.raises(NotEnrolledError):
        device.client.take_receipt("{}")
    device.kill()
    joined(fleet, device, "cam-receipt")
    with away(fleet):
        stir(device, 2)
        packed = device.client.pack_outbox(-1)
        authority = fleet.authority().key

        def receipt(signer: Any = authority, kind: str = envelope.RECEIPT, **words: Any) -> str:
            said = Receipt(device="cam-receipt", outbox=packed.outbox, taken=packed.last)
            return envelope.seal(msgspec.json.encode(msgspec.structs.replace(said, **words)), kind, signer).decode()

        good = receipt()
        for wrong in (
            receipt(generate_key()), receipt(device="cam-2"), receipt(kind=envelope.REPORT), "{}", "\N{SNOWMAN}",
            good.replace("eyJ", "eyK", 1), receipt(taken=-1),
        ):  # fmt: skip
            with pytest.raises(ReceiptRefusedError):
                device.client.take_receipt(wrong)
        assert device.client.take_receipt(receipt(outbox="cd" * 16)).forgotten == 0
        assert device.client.pack_outbox(-1).first == packed.first, "nothing was forgotten"
        assert device.client.take_receipt(good).forgotten == packed.records
        assert device.client.take_receipt(good).forgotten == 0
        assert device.client.take_receipt(receipt(taken=packed.first)).forgotten == 0, "an old one"


# --- what the fleet refuses -------------------------------------------------------------------------------------------


def batch(member: Member, numbers: range, *, after: int | None = None, name: str = NAME, **words: Any) -> bytes:
    records: list[Record] = [Happening(n=n, kind="swap", at_ms=1, text=f"{member.device} {n}") for n in numbers]
    said = Carried(
        device=member.device, outbox=name, after=numbers.start - 1 if after is None else after, records=records
    )
    said = msgspec.structs.replace(said, **words)
    return envelope.seal(msgspec.msgpack.encode(said), envelope.OUTBOX, member.key)


@pytest.mark.attack(100)
async def test_carried_records_are_taken_once_and_in_their_order(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "cam-order", tmp_path).join()
    take = fleet.client.take_records
    with pytest.raises(RecordsMissingError):
        take("cam-order", batch(member, range(500, 600), after=99))  # behind records that have not arrived
    assert take("cam-order", batch(member, range(100, 500), after=99)).fresh == 400
    assert take("cam-order", batch(member, range(500, 600), after=99)).fresh == 100
    said = take("cam-order", batch(member, range(300, 610), after=99))
    assert (said.fresh, said.taken) == (10, 609)
    assert take("cam-order", batch(member, range(100, 500), after=99)).fresh == 0
    with pytest.raises(RecordsMissingError):
        take("cam-order", batch(member, range(9_000_000, 9_000_010), after=609))  # a number from the future
    assert len(told(fleet, "cam-order")) == len(set(told(fleet, "cam-order"))) == 510
    key = fleet.authority().key.public
    proof = envelope.verify(envelope.open_envelope(said.receipt.encode()), envelope.RECEIPT, key)
    assert msgspec.json.decode(proof) == {"device": "cam-order", "outbox": NAME, "taken": 609}


@pytest.mark.attack(99)
async def test_what_was_made_up_on_the_way_is_refused_and_counts_nothing(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "cam-true", tmp_path).join()
    other = await Member(fleet, "cam-other", tmp_path).join()
    gone = await Member(fleet, "cam-gone", tmp_path).join()
    stranger = Member(fleet, "cam-true", tmp_path)
    fleet.client.revoke("cam-gone", "stolen")
    good = batch(member, range(3))
    changed = bytearray(good)
    changed[60] ^= 1
    take = fleet.client.take_records
    for device, data, fault in (
        ("cam-true", bytes(changed), CarriedRecordsError),
        ("cam-true", b"", CarriedRecordsError),
        ("cam-true", good[:-2], CarriedRecordsError),
        ("cam-true", batch(stranger, range(3)), UnlistedDeviceError),
        ("cam-true", batch(other, range(3)), UnlistedDeviceError),
        ("cam-other", good, UnlistedDeviceError),
        ("cam-true", batch(member, range(3), device="cam-other"), CarriedRecordsError),
        ("cam-gone", batch(gone, range(3)), UnlistedDeviceError),
        ("cam-true", batch(member, range(3), after=7), CarriedRecordsError),
        ("cam-true", batch(member, range(3), after=10**15), CarriedRecordsError),
        ("cam-true", batch(member, range(3), records=[]), CarriedRecordsError),
        ("cam-true", batch(member, range(3), outbox="x"), CarriedRecordsError),
        ("cam-true", batch(member, range(501)), CarriedRecordsError),
        ("cam-true", envelope.seal(msgspec.json.encode({"x": 1}), envelope.REPORT, member.key), CarriedRecordsError),
        ("cam-true", envelope.seal(b"\xc1", envelope.OUTBOX, member.key), CarriedRecordsError),
    ):  # fmt: skip
        with pytest.raises(fault):
            take(device, data)
    large = tmp_path / "stick"
    layout.write(large, layout.Batch("cam-true", NAME, 0, 9).file, b"x" * 10_000_000)
    (large / "outbox/cam-true" / f"{NAME}-1-1.json").symlink_to("/etc/passwd")
    refused = lenskeep("fleet", "take", large, fleet=fleet, code=4)["refused"]
    assert {each["code"] for each in refused} == {MetadataTooLargeError.code, SourceError.code}
    for device in ("cam-true", "cam-other", "cam-gone"):
        assert told(fleet, device) == []
    assert one(fleet.database, "SELECT COUNT(*) FROM intake WHERE device IN ('cam-true', 'cam-other')") == 0
    assert take("cam-true", good).fresh == 3, "nothing of it is in the way of what is true"


async def test_a_record_that_a_newer_device_writes_does_not_hold_up_the_others(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "cam-newer", tmp_path).join()
    said = {
        "device": "cam-newer", "outbox": NAME, "after": -1, "later": "unknown",
        "records": [{"type": "hologram", "n": 0}, {"type": "event", "n": 1, "kind": "swap", "at_ms": 1, "text": "it"}],
    }  # fmt: skip
    data = envelope.seal(msgspec.msgpack.encode(said), envelope.OUTBOX, member.key)
    assert fleet.client.take_records("cam-newer", data).fresh == 2
    assert told(fleet, "cam-newer")[1] == "it"
