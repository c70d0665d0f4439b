"""Copies of devices' records, on every engine: each entry once, what contradicts never, what was signed for ever."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from lenskeep.errors import LimitExceededError, RecordContradictedError, RecordLostError, UnlistedDeviceError
from lenskeep.fleet.store import records
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.intake import Delivery, IntakeStore
from lenskeep.fleet.store.records import Kept, Offer, RecordStore
from lenskeep.fleet.store.store import Store
from lenskeep.messages.fleet import RecordHead
from lenskeep.trust.chain import Point
from tests.fleetstore import NOW_MS, certify, entries, happening, key, offer, report

ID = "cam-1"
MIB = 1 << 20


@pytest.fixture
async def store(engine: Engine) -> RecordStore:
    await Store(engine).grant(ID, key(ID), certify, by="ann", now_ms=NOW_MS)
    return RecordStore(engine)


async def add(store: RecordStore, what: Offer, bytes_max: int = MIB) -> Kept:
    return await store.add(what, bytes_max=bytes_max, now_ms=NOW_MS)


async def alarms(engine: Engine) -> list[str]:
    return [each.code for each in await Store(engine).alarms()]


async def test_a_piece_counts_once_however_often_and_from_wherever_it_comes(store: RecordStore) -> None:
    found = entries(ID, 20)
    piece = offer(ID, found[:10])
    both = await asyncio.gather(*(add(store, piece) for _ in range(4)))
    assert sorted(each.entries for each in both) == [0, 0, 0, 10]
    assert (await add(store, offer(ID, found[10:], found[9].point))).entries == 10
    assert (await add(store, offer(ID, found[10:], found[9].point, copy=7))).entries == 0
    first = await store.piece(ID, 1, -1)
    assert first is not None
    assert (first[0], first[1]) == (9, piece.piece.lines)


async def test_what_was_never_signed_goes_with_what_contradicts_and_what_was_signed_stays(
    store: RecordStore, engine: Engine
) -> None:
    found = entries(ID, 30)
    await add(store, offer(ID, found[:10], signed=True))
    await add(store, offer(ID, found[10:20], found[9].point))
    seen = RecordHead(device=ID, sequence=25, hash=found[25].hash)
    await Store(engine).take(report(ID, 1, head=seen), now_ms=NOW_MS, kept=3)
    forged = entries(ID, 10, after=found[19].point, text="other")
    assert (await add(store, offer(ID, forged, found[19].point, signed=True))).contradiction
    (copy,) = await store.copies(ID)
    assert (copy.sequence, copy.hash, copy.head_sequence) == (9, found[9].hash, 9)
    assert copy.bytes == len(offer(ID, found[:10]).piece.lines)
    assert await alarms(engine) == [RecordContradictedError.code]
    assert (await add(store, offer(ID, found[10:], found[9].point, signed=True))).entries == 20
    assert (await store.witness(ID, (await store.copies(ID))[0])) == (29, "head")


async def test_a_head_alone_is_compared_with_what_is_here(store: RecordStore, engine: Engine) -> None:
    found = entries(ID, 10)
    await add(store, offer(ID, found, signed=True))
    forged = entries(ID, 3, after=found[4].point, text="other")
    for entry in (found[0], found[5], found[9]):
        assert (await store.compare(ID, entry.point, now_ms=NOW_MS)).known
    assert await alarms(engine) == []
    assert (await store.compare(ID, forged[0].point, now_ms=NOW_MS)).contradiction
    assert await alarms(engine) == [RecordContradictedError.code]


async def test_a_record_that_began_anew_is_kept_beside_the_first_and_told(store: RecordStore, engine: Engine) -> None:
    await add(store, offer(ID, entries(ID, 5), signed=True))
    another = entries(ID, 3, text="after the accident")
    alarm = (await add(store, offer(ID, another, copy=2, signed=True))).contradiction
    assert not alarm, "nothing of the first was witnessed where this one has entries"
    assert [each.copy for each in await store.copies(ID)] == [2, 1]
    assert await alarms(engine) == [RecordLostError.code]


async def test_room_is_made_of_what_nobody_signed_alone(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    large = entries(ID, 20, text="x" * 900)
    await add(store, offer(ID, large), bytes_max=30_000)
    true = entries(ID, 12, text="y" * 900)
    await add(store, offer(ID, true, copy=2, signed=True), bytes_max=30_000)
    assert [each.copy for each in await store.copies(ID)] == [2]
    more = entries(ID, 20, after=Point(50, "0" * 64), text="z" * 900)
    with pytest.raises(LimitExceededError):
        await add(store, offer(ID, more, copy=3, signed=True), bytes_max=30_000)
    monkeypatch.setattr(records, "COPIES_MAX", 1)
    with pytest.raises(LimitExceededError):
        await add(store, offer(ID, more[:1], copy=3, signed=True))
    assert [each.copy for each in await store.copies(ID)] == [2]


async def test_a_key_that_is_listed_no_more_signs_nothing(store: RecordStore, engine: Engine) -> None:
    await Store(engine).revoke(ID, reason="stolen", by="ann", now_ms=NOW_MS)
    with pytest.raises(UnlistedDeviceError):
        await add(store, offer(ID, entries(ID, 2), signed=True))
    assert await store.copies(ID) == []


async def test_what_a_stick_and_the_network_bring_counts_once_on_every_engine(engine: Engine) -> None:
    intake = IntakeStore(engine)
    by_net = Delivery("cam-1", "a", -1, [happening(n) for n in range(4)])
    by_stick = [Delivery("cam-1", "a", -1, [happening(n) for n in part]) for part in (range(3), range(3, 6))]
    await asyncio.gather(*(intake.keep([each], now_ms=NOW_MS) for each in (by_net, *by_stick)))
    await intake.keep([by_stick[1]], now_ms=NOW_MS)
    assert await intake.taken("cam-1", "a") == 5
    fresh = [each.n for delivery in (by_net, *by_stick) for each in delivery.fresh]
    assert len(fresh) == len(set(fresh))


async def test_what_a_call_calls_gone_and_brings_is_not_counted_as_lost(engine: Engine) -> None:
    intake = IntakeStore(engine)
    for after, n, fresh in ((-1, 0, 1), (1 << 50, 3, 2)):
        call = Delivery("cam-1", "a", after, [happening(n)])
        await intake.keep([call], now_ms=NOW_MS)
        assert len(call.fresh) == fresh and call.fresh[-1].count <= 2  # type: ignore[union-attr]


async def test_a_head_is_no_contradiction_to_what_nobody_signed_or_a_person_has_accepted(
    store: RecordStore, engine: Engine
) -> None:
    forged = dataclasses.replace(offer(ID, entries(ID, 9, text="a stick's")), proven=False)
    assert (await add(store, forged)).entries == 9
    true = entries(ID, 20)
    compared = await store.compare(ID, true[8].point, now_ms=NOW_MS)
    assert not compared.known and not compared.contradiction and await alarms(engine) == []
    assert (await add(store, offer(ID, true, copy=2, signed=True))).entries == 20
    anew = entries(ID, 7, text="after the accident")
    assert (await store.compare(ID, anew[6].point, now_ms=NOW_MS)).contradiction
    (alarm,) = await Store(engine).alarms()
    await Store(engine).accept(alarm.id, reason="new disk", by="ann", now_ms=NOW_MS)
    assert not (await store.compare(ID, anew[6].point, now_ms=NOW_MS)).contradiction
    assert await alarms(engine) == []
