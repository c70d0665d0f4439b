"""Calls of devices at the real server: nothing lost, nothing counted twice, whoever is killed, doubled or put back."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import random
import resource
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from lenskeep.messages.control import Problem
from lenskeep.messages.fleet import SlotReport
from lenskeep.messages.sync import MEDIA_MSGPACK, Answer, Call, Happening, Outcome, SlotNow, Vitals, Window
from lenskeep.sketch import Sketch
from tests.fleetrig import WAIT_S, FleetServer, Member, code_of, running_fleet

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    yield from _fleet()


@pytest.fixture
def own_fleet() -> Iterator[FleetServer]:
    """A server of the test's own, to be killed."""
    yield from _fleet()


def _fleet() -> Iterator[FleetServer]:
    with running_fleet(request_s_max=2.0, idle_s_max=2.0) as server:
        yield server


@asynccontextmanager
async def held(member: Member) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=member.context(), limit=0)) as session:
        yield session


async def call(
    session: aiohttp.ClientSession, member: Member, said: Call | bytes, device: str = ""
) -> Answer | Problem:
    body = said if isinstance(said, bytes) else msgspec.msgpack.encode(said)
    url = f"{member.fleet.url}/v1/devices/{device or member.device}/sync"
    async with session.post(url, data=body, headers={"Content-Type": MEDIA_MSGPACK}) as answer:
        data = await answer.read()
        if answer.status != 200:
            return msgspec.json.decode(data, type=Problem)
        return msgspec.msgpack.decode(data, type=Answer)


def window(n: int, frames: int = 1, bundle: str = "cap@1.0.0", **words: Any) -> Window:
    start_s = words.pop("start_s", int(time.time()))
    return Window(
        n=n,
        slot="main",
        bundle=bundle,
        digest="ab" * 32,
        provider="cpu",
        start_s=start_s,
        seconds=60,
        frames=frames,
        **words,
    )


def asked(fleet: FleetServer, path: str) -> Any:
    """Ask the operators' door."""
    connection = http.client.HTTPConnection("fleet")
    with socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.settimeout(WAIT_S)
        connection.sock.connect(str(fleet.socket))
        connection.request("GET", path)
        with connection.getresponse() as answer:
            return json.loads(answer.read())


async def counted(fleet: FleetServer, bundle: str, frames: int) -> dict[str, Any]:
    """Wait until the fleet has counted so many frames of a version, and return its row; more would never come."""
    deadline = time.monotonic() + WAIT_S
    while True:
        rows = await asyncio.to_thread(asked, fleet, f"/v1/fleet/behaviour?bundle={bundle}&by=")
        if rows and rows[0]["frames"] >= frames:
            assert rows[0]["frames"] == frames
            return dict(rows[0])
        assert time.monotonic() < deadline, rows
        await asyncio.sleep(0.05)


def taken(said: object) -> int:
    assert isinstance(said, Answer), said
    return said.taken


# --- once each ------------------------------------------------------------------------------------------------------


async def test_records_are_taken_once_however_often_they_come(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "syn-1", tmp_path).join()
    first = Call(records=[window(n, 10, "dup@1.0.0") for n in range(5)], outbox="a", after=-1)
    async with held(member) as session:
        assert [taken(each) for each in await asyncio.gather(*(call(session, member, first) for _ in range(8)))] == [
            4
        ] * 8
        more = Call(records=[window(n, 10, "dup@1.0.0") for n in range(3, 8)], outbox="a", after=2)
        assert taken(await call(session, member, more)) == 7
        assert taken(await call(session, member, first)) == 7
    await counted(fleet, "dup@1.0.0", 80)


async def test_a_call_that_overtakes_an_older_one_waits_for_it(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "syn-2", tmp_path).join()
    old = Call(records=[window(n, 1, "late@1.0.0") for n in range(3)], outbox="a", after=-1)
    new = Call(records=[window(n, 1, "late@1.0.0") for n in range(3, 6)], outbox="a", after=-1)
    async with held(member) as session:
        assert taken(await call(session, member, new)) == -1
        assert taken(await call(session, member, old)) == 2
        assert taken(await call(session, member, new)) == 5
    await counted(fleet, "late@1.0.0", 6)


async def test_numbers_that_the_device_has_dropped_do_not_hold_up_the_rest(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "syn-3", tmp_path).join()
    async with held(member) as session:
        assert taken(await call(session, member, Call(records=[window(0), window(4)], outbox="a", after=-1))) == 4
        lost = Happening(n=12, kind="lost", at_ms=1, count=5)
        assert taken(await call(session, member, Call(records=[window(10), lost], outbox="a", after=9))) == 12


async def test_an_outbox_that_begins_anew_loses_nothing(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "syn-4", tmp_path).join()
    async with held(member) as session:
        for outbox in ("first", "second"):
            records = [window(n, 1, "anew@1.0.0") for n in range(4)]
            assert taken(await call(session, member, Call(records=records, outbox=outbox, after=-1))) == 3
        assert taken(await call(session, member, Call(outbox="first", after=3))) == 3
        assert taken(await call(session, member, Call(outbox="third", after=-1))) == -1
    await counted(fleet, "anew@1.0.0", 8)


async def test_records_in_any_order_within_a_call_are_all_taken(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "syn-5", tmp_path).join()
    records = [window(n, 1, "mixed@1.0.0") for n in (3, 0, 2, 1, 2)]
    async with held(member) as session:
        assert taken(await call(session, member, Call(records=records, outbox="a", after=-1))) == 3
    await counted(fleet, "mixed@1.0.0", 4)


async def test_two_connections_of_one_device_count_each_record_once(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "syn-6", tmp_path).join()
    calls = [Call(records=[window(n, 1, "two@1.0.0") for n in range(k + 1)], outbox="a", after=-1) for k in range(20)]
    async with held(member) as one, held(member) as other:
        said = await asyncio.gather(*(call(each, member, it) for it in calls for each in (one, other)))
    assert max(taken(each) for each in said) == 19
    await counted(fleet, "two@1.0.0", 20)


async def test_answers_that_are_lost_cost_no_record_and_double_none(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "syn-7", tmp_path).join()
    for n in range(10):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", fleet.port, ssl=member.context(), server_hostname="fleet.lenskeep.internal"
        )
        body = msgspec.msgpack.encode(Call(records=[window(n, 1, "lostanswer@1.0.0")], outbox="a", after=None))
        head = f"POST /v1/devices/syn-7/sync HTTP/1.1\r\nHost: x\r\nContent-Type: {MEDIA_MSGPACK}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.transport.abort()
        assert reader is not None
    async with held(member) as session:
        again = Call(records=[window(n, 1, "lostanswer@1.0.0") for n in range(10)], outbox="a", after=-1)
        assert taken(await call(session, member, again)) >= 9
    rows = asked(fleet, "/v1/fleet/behaviour?bundle=lostanswer@1.0.0&by=")
    assert not rows or rows[0]["frames"] <= 10


async def test_a_server_killed_between_commit_and_answer_loses_and_doubles_nothing(
    own_fleet: FleetServer, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    rng, fleet = random.Random(seed), own_fleet
    members = [await Member(fleet, f"kill-{n}", tmp_path).join() for n in range(8)]
    next_n, acked = [0] * 8, [-1] * 8
    stop = asyncio.Event()

    async def busy(at: int) -> None:
        member = members[at]
        while not stop.is_set():
            try:
                async with held(member) as session:
                    while not stop.is_set():
                        next_n[at] += 1
                        records = [window(n, 1, "kill@1.0.0") for n in range(acked[at] + 1, next_n[at])]
                        acked[at] = max(
                            acked[at],
                            taken(await call(session, member, Call(records=records, outbox="a", after=acked[at]))),
                        )
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        for at in range(8):
            group.create_task(busy(at))
        for _ in range(4):
            await asyncio.sleep(rng.uniform(0.1, 0.5))
            fleet.kill()
            await asyncio.to_thread(fleet.start)
        stop.set()
    for at, member in enumerate(members):
        async with held(member) as session:
            records = [window(n, 1, "kill@1.0.0") for n in range(acked[at] + 1, next_n[at] + 1)]
            assert taken(await call(session, member, Call(records=records, outbox="a", after=acked[at]))) == next_n[at]
    await counted(fleet, "kill@1.0.0", sum(next_n) + 8)


async def test_a_full_disk_at_the_fleet_leaves_the_records_with_their_device(
    own_fleet: FleetServer, tmp_path: Path
) -> None:
    fleet, member = own_fleet, await Member(own_fleet, "full-1", tmp_path).join()
    assert fleet.process is not None
    async with held(member) as session:
        assert taken(await call(session, member, Call(records=[window(0, 1, "full@1.0.0")], outbox="a", after=-1))) == 0
        before = resource.prlimit(fleet.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(fleet.process.pid, resource.RLIMIT_FSIZE, (4096, before[1]))
        more = Call(records=[window(n, 1, "full@1.0.0") for n in range(1, 400)], outbox="a", after=0)
        said = await call(session, member, more)
        assert isinstance(said, Problem) and said.status in (503, 507), said
        assert taken(await call(session, member, Call(outbox="a", after=0))) == 0  # it answers all the same
        resource.prlimit(fleet.process.pid, resource.RLIMIT_FSIZE, before)
        assert taken(await call(session, member, more)) == 399
    await counted(fleet, "full@1.0.0", 400)


async def test_a_fleet_put_back_from_an_old_copy_and_its_devices_agree_again(
    own_fleet: FleetServer, tmp_path: Path
) -> None:
    fleet, member = own_fleet, await Member(own_fleet, "back-1", tmp_path).join()
    copy = tmp_path / "copy.sqlite"
    async with held(member) as session:
        assert (
            taken(await call(session, member, Call(records=[window(n) for n in range(5)], outbox="a", after=-1))) == 4
        )
        with (
            closing(sqlite3.connect(fleet.database)) as source,
            closing(sqlite3.connect(copy)) as target,
            source,
            target,
        ):
            source.backup(target)
        assert (
            taken(await call(session, member, Call(records=[window(n) for n in range(5, 9)], outbox="a", after=4))) == 8
        )
    fleet.kill()
    for each in fleet.database.parent.glob("fleet.sqlite*"):
        each.unlink()
    shutil.copy(copy, fleet.database)
    await asyncio.to_thread(fleet.start)
    async with held(member) as session:
        assert taken(await call(session, member, Call(outbox="a", after=8))) == 4  # it says honestly what it has
        assert taken(await call(session, member, Call(records=[window(9)], outbox="a", after=8))) == 9
    deadline = time.monotonic() + WAIT_S
    while not (noted := asked(fleet, "/v1/fleet/happenings?device=back-1&kind=other")):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert noted[0]["count"] == 4


# --- what is wrong with it ------------------------------------------------------------------------------------------


async def test_a_record_that_cannot_be_read_holds_nothing_up(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "bad-1", tmp_path).join()
    good = msgspec.to_builtins(window(0, 3, "bad@1.0.0"), builtin_types=(bytes,))
    body = msgspec.msgpack.encode(
        {"outbox": "a", "after": -1, "records": [good, {"type": "dream", "n": 1}, good | {"n": 2}]}
    )
    async with held(member) as session:
        assert taken(await call(session, member, body)) == 2
    await counted(fleet, "bad@1.0.0", 6)
    assert [each["n"] for each in asked(fleet, "/v1/fleet/happenings?device=bad-1")] == [1]


async def test_a_spoiled_sketch_costs_that_sketch_alone(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "bad-2", tmp_path).join()
    good = Sketch()
    good.add(9000.0)
    records = [window(0, 2, "spoiled@1.0.0", sketches={"inference": b"\xff" * 40, "total": good.to_bytes()})]
    async with held(member) as session:
        assert taken(await call(session, member, Call(records=records, outbox="a", after=-1))) == 0
    row = await counted(fleet, "spoiled@1.0.0", 2)
    assert row["outcomes"] == {"unreadable sketch": 1}
    assert [each["stage"] for each in asked(fleet, "/v1/fleet/telemetry?bundle=spoiled@1.0.0")] == ["total"]


async def test_numbers_that_no_camera_can_have_do_not_stop_the_counting(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "huge-1", tmp_path).join()
    words = {f"w{n}": 1 << 62 for n in range(15)} | {"neg": -5}
    records = [window(n, 9_999_999_999_999_999, "huge@1.0.0", outcomes=words) for n in range(400)]
    async with held(member) as session:
        for first in range(0, 2000, 400):
            some = [msgspec.structs.replace(each, n=each.n + first) for each in records]
            assert taken(await call(session, member, Call(records=some, outbox="a", after=first - 1))) == first + 399
        small = [window(2000, 1, "after-huge@1.0.0")]
        assert taken(await call(session, member, Call(records=small, outbox="a", after=1999))) == 2000
    await counted(fleet, "after-huge@1.0.0", 1)
    rows = await asyncio.to_thread(asked, fleet, "/v1/fleet/behaviour?bundle=huge@1.0.0&by=")
    assert rows[0]["windows"] == 2000 and rows[0]["outcomes"]["neg"] == 0


@pytest.mark.parametrize("start_s", [0, 4_102_444_800])
async def test_windows_of_a_lying_clock_count_when_they_come(fleet: FleetServer, tmp_path: Path, start_s: int) -> None:
    member = await Member(fleet, f"clock-{start_s}", tmp_path).join()
    bundle = f"clock{start_s}@1.0.0"
    async with held(member) as session:
        await call(session, member, Call(records=[window(0, 7, bundle, start_s=start_s)], outbox="a", after=-1))
    await counted(fleet, bundle, 7)
    rows = asked(fleet, f"/v1/fleet/behaviour?bundle={bundle}&by=hour&since={int(time.time()) - 3600}")
    assert abs(rows[0]["begin_s"] - time.time()) < 7200


async def test_ten_megabytes_are_refused_unread(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "big-1", tmp_path).join()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", fleet.port, ssl=member.context(), server_hostname="fleet.lenskeep.internal"
    )
    writer.write(b"POST /v1/devices/big-1/sync HTTP/1.1\r\nHost: x\r\nContent-Length: 10485760\r\n\r\n")
    async with asyncio.timeout(2):
        assert (await reader.readline()).split()[1] == b"413"  # nothing of the body was sent
    writer.transport.abort()
    chunked = b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20))
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", fleet.port, ssl=member.context(), server_hostname="fleet.lenskeep.internal"
    )
    writer.write(b"POST /v1/devices/big-1/sync HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked * 5)
    async with asyncio.timeout(5):
        assert (await reader.readline()).split()[1] == b"413"
    writer.transport.abort()
    assert (await member.ask("POST", "/v1/devices/big-1/sync", b"\xc1garbage"))[0] == 400


async def test_a_slow_loris_is_hung_up_on_and_holds_nobody_up(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "slow-1", tmp_path).join()
    slow = []
    for _ in range(20):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", fleet.port, ssl=member.context(), server_hostname="fleet.lenskeep.internal"
        )
        writer.write(b"POST /v1/devices/slow-1/sync HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
        slow.append((reader, writer))
    async with held(member) as session:
        began_s = time.monotonic()
        assert isinstance(await call(session, member, Call()), Answer)
        assert time.monotonic() - began_s < 1
    async with asyncio.timeout(WAIT_S):
        for reader, writer in slow:
            assert (await reader.readline()).split()[1:2] in ([b"400"], [])
            writer.transport.abort()


# --- who may call ---------------------------------------------------------------------------------------------------


async def test_a_revoked_device_is_out_at_once_also_where_it_waits(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "gone-1", tmp_path).join()
    async with held(member) as session:
        assert isinstance(await call(session, member, Call()), Answer)
        waits = asyncio.create_task(call(session, member, Call(wait_s=60.0)))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(fleet.client.revoke, "gone-1", "lost")
        async with asyncio.timeout(2):
            assert code_of(await waits) == "LK-4302" or code_of(await waits).startswith("LK-43")
        assert code_of(await call(session, member, Call(records=[window(0)], outbox="a"))).startswith("LK-43")


async def test_a_device_cannot_speak_for_another(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "own-1", tmp_path).join()
    await Member(fleet, "own-2", tmp_path).join()
    async with held(member) as session:
        assert code_of(await call(session, member, Call(records=[window(0)]), device="own-2")).startswith("LK-43")
    assert (await Member(fleet, "own-3", tmp_path).ask("POST", "/v1/devices/own-3/sync", b"{}"))[0] == 401


async def test_a_device_that_comes_back_goes_on_with_its_session_and_is_still_itself(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "res-1", tmp_path).join()
    context, reused = member.context(), []
    body = msgspec.msgpack.encode(Call())
    head = f"POST /v1/devices/res-1/sync HTTP/1.1\r\nHost: x\r\nContent-Type: {MEDIA_MSGPACK}\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(3):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", fleet.port, ssl=context, server_hostname="fleet.lenskeep.internal"
        )
        writer.write(head.encode() + body)
        assert (await reader.readline()).split()[1] == b"200"
        reused.append(writer.get_extra_info("ssl_object").session_reused)
        writer.transport.abort()
    assert reused == [False, True, True]


@pytest.mark.alone
async def test_a_storm_of_connections_is_let_in_at_a_bounded_rate_and_none_is_lost(tmp_path: Path) -> None:
    fleet = FleetServer(Path(tempfile.mkdtemp(prefix="lf-")))
    with fleet.config.open("a") as config:
        config.write("[sync]\nconnections_per_second = 50\n")
    fleet.start()
    try:
        member = await Member(fleet, "storm-1", tmp_path).join()
        async with held(member) as one:
            assert isinstance(await call(one, member, Call()), Answer)
            began_s, late_s = time.monotonic(), 0.0

            async def comes() -> None:
                async with held(member) as session:
                    assert isinstance(await call(session, member, Call()), Answer)

            storm = [asyncio.create_task(comes()) for _ in range(100)]
            while not all(each.done() for each in storm):
                asked_s = time.monotonic()
                assert isinstance(await call(one, member, Call()), Answer)
                late_s = max(late_s, time.monotonic() - asked_s)
                await asyncio.sleep(0.02)
            await asyncio.gather(*storm)
            assert time.monotonic() - began_s > 1.5
            assert late_s < 1.0
    finally:
        fleet.close()
        shutil.rmtree(fleet.folder)


# --- news -----------------------------------------------------------------------------------------------------------


def publish(fleet: FleetServer, version: int) -> None:
    folder = fleet.repository / "metadata"
    folder.mkdir(exist_ok=True)
    part = folder / "part"
    part.write_text(json.dumps({"signed": {"version": version}}))
    part.rename(folder / "timestamp.json")


async def test_a_hundred_waiting_devices_hear_of_news_within_a_second(own_fleet: FleetServer, tmp_path: Path) -> None:
    fleet = own_fleet
    publish(fleet, 1)
    members = [await Member(fleet, f"wait-{n}", tmp_path).join() for n in range(10)]
    async with held(members[0]) as first:
        while (said := await call(first, members[0], Call())) and isinstance(said, Answer) and said.newest != 1:
            await asyncio.sleep(0.05)
    sessions = [held(member) for member in members for _ in range(10)]
    opened = [await each.__aenter__() for each in sessions]
    try:
        waits = [
            asyncio.create_task(call(each, members[n // 10], Call(seen=1, wait_s=30.0)))
            for n, each in enumerate(opened)
        ]
        await asyncio.sleep(1.5)
        assert not any(each.done() for each in waits)
        began_s = time.monotonic()
        publish(fleet, 2)
        said_all = await asyncio.gather(*waits)
        assert time.monotonic() - began_s < 1.0
        assert all(isinstance(each, Answer) and each.newest == 2 for each in said_all)
    finally:
        for each in sessions:
            await each.__aexit__(None, None, None)


async def test_a_command_wakes_its_device_and_is_told_until_it_is_done(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "cmd-1", tmp_path).join()
    async with (
        held(member) as session,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(fleet.socket))) as operator,
    ):
        await call(session, member, Call())
        waits = asyncio.create_task(call(session, member, Call(wait_s=30.0)))
        await asyncio.sleep(0.2)
        async with operator.post("http://fleet/v1/devices/cmd-1/commands", json={"kind": "sync"}) as answer:
            assert answer.status == 201, await answer.text()
        async with asyncio.timeout(2):
            said = await waits
        assert isinstance(said, Answer) and [each.kind for each in said.commands] == ["sync"]
        again = await call(session, member, Call())
        assert isinstance(again, Answer) and again.commands == said.commands
        done = await call(session, member, Call(done=[Outcome(id=said.commands[0].id, state="done")]))
        assert isinstance(done, Answer) and done.commands == []
    assert asked(fleet, "/v1/devices/cmd-1/commands")[0]["state"] == "done"


async def test_a_report_that_comes_along_is_judged_and_a_forged_one_costs_no_record(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "rep-sync", tmp_path).join()
    report = member.report(slots=[SlotReport(slot="main", running="cap@1.0.0", digest="ab" * 32)]).decode()
    async with held(member) as session:
        said = await call(session, member, Call(report=report))
        assert isinstance(said, Answer) and said.counter == 1 and len(said.known) == 64 and said.problem == ""
        again = await call(session, member, Call(report=report, known=said.known))
        assert isinstance(again, Answer) and again.known == said.known
        forged = report.replace('"sig": "', '"sig": "AA').replace('"sig":"', '"sig":"AA')
        bad = await call(session, member, Call(report=forged, records=[window(0)], outbox="a", after=-1))
        assert isinstance(bad, Answer) and bad.problem.startswith("LK-43") and bad.taken == 0
    assert {"bundle": "cap@1.0.0", "digest": "ab" * 32}.items() <= asked(fleet, "/v1/fleet/running")[0].items()


# --- telemetry ------------------------------------------------------------------------------------------------------


async def test_merged_percentiles_are_within_one_percent_of_the_exact_ones(fleet: FleetServer, tmp_path: Path) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    rng, samples = random.Random(seed), {"fast": [], "slow": []}  # type: dict[str, list[float]]
    for at in range(6):
        kind = ("fast", "slow")[at % 2]
        member = await Member(fleet, f"tele-{at}", tmp_path).join()
        records: list[Any] = [Vitals(n=0, at_ms=0, hardware=kind)]
        for n in range(1, 21):
            sketch, middle = Sketch(), math.log({"fast": 9000, "slow": 30000}[kind] * rng.uniform(0.9, 1.3))
            for _ in range(500):
                sample = rng.lognormvariate(middle, 0.3) * (4 if rng.random() < 0.02 else 1)
                sketch.add(sample)
                samples[kind].append(sample / 1000)
            records.append(window(n, 500, "tele@1.0.0", sketches={"inference": sketch.to_bytes()}))
        async with held(member) as session:
            assert taken(await call(session, member, Call(records=records, outbox="a", after=-1))) == 20
    await counted(fleet, "tele@1.0.0", 60_000)
    rows = {
        row["hardware"]: row
        for row in asked(fleet, "/v1/fleet/telemetry?bundle=tele@1.0.0&stage=inference&by=hardware")
    }
    for kind, exact in samples.items():
        exact.sort()
        for name, fraction in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)):
            assert rows[kind][name] == pytest.approx(exact[int(fraction * (len(exact) - 1))], rel=0.0101)
        assert rows[kind]["samples"] == len(exact)


async def test_slots_and_presence_are_shown_to_operators(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "slot-1", tmp_path).join()
    async with held(member) as session:
        await call(session, member, Call(seen=3, slots=[SlotNow(slot="main", generation=2, state="probation")]))
    row = asked(fleet, "/v1/fleet/slots?device=slot-1")[0]
    assert (row["state"], row["generation"]) == ("probation", 2) and row["since_ms"] > 0
