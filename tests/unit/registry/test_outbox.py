"""The outbox on disk: numbers, what is sent, what is dropped first, and what is counted as lost."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from lenskeep.database import Database, open_database, raw, schema_steps
from lenskeep.errors import StorageFullError
from lenskeep.messages.sync import Happening, Record, Trial, Vitals, Window
from lenskeep.registry import outbox
from lenskeep.registry.windows import HOUR_S, MINUTE_S, Span, SpanKey
from lenskeep.sketch import Sketch

SCHEMA = "lenskeep.registry.metrics_schema"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "metrics.sqlite", SCHEMA) as opened:
        yield opened


def window(minute: int, frames: int = 10, bundle: str = "cap@1.0.0") -> Window:
    sketch = Sketch()
    for number in range(frames):
        sketch.add(1000.0 + number)
    return Window(
        n=0, slot="main", bundle=bundle, digest="d" * 64, provider="CPU", start_s=minute * MINUTE_S, seconds=MINUTE_S,
        frames=frames, misses=1, outcomes={"OK": frames}, sketches={"total": sketch.to_bytes()},
    )  # fmt: skip


def event(text: str) -> Happening:
    return Happening(n=0, kind="swap", at_ms=1, text=text)


def vitals(at_ms: int) -> Vitals:
    return Vitals(n=0, at_ms=at_ms)


async def put(database: Database, *records: Record) -> None:
    async with database.write() as tx:
        await outbox.add(tx, records)


async def everything(database: Database) -> list[Record]:
    async with database.read() as tx:
        rows = await tx.all("SELECT body FROM outbox_record ORDER BY n")
    return [msgspec.msgpack.decode(row["body"], type=Record) for row in rows]  # type: ignore[arg-type, misc]


async def room(database: Database, *, bytes_max: int = 1 << 40, records_max: int = 1 << 40) -> int:
    async with database.write() as tx:
        return await outbox.make_room(tx, bytes_max=bytes_max, records_max=records_max)


def frames(records: list[Record]) -> int:
    return sum(one.frames for one in records if isinstance(one, Window))


async def test_numbers_grow_by_one_and_are_given_once_also_after_all_was_taken(database: Database) -> None:
    await put(database, event("a"), event("b"))
    async with database.write() as tx:
        await outbox.note_sent(tx, 1)
        assert await outbox.forget(tx, 1) == 2
        assert await outbox.gone_up_to(tx) == 1
    await put(database, event("c"))
    assert [one.n for one in await everything(database)] == [2]


async def test_results_count_into_a_window_until_its_minute_is_over_and_late_ones_into_another(
    database: Database,
) -> None:
    def span(number: int) -> Span:
        made = Span()
        made.frames, made.outcomes = number, {"OK": number}
        made.sketches["total"].add(5000.0)
        return made

    key = SpanKey(MINUTE_S, 600, "main", "cap@1.0.0")
    async with database.write() as tx:
        await outbox.count(tx, key, "d", span(3))
        await outbox.count(tx, key, "d", span(4))
        assert not await outbox.ripe(tx, 655, 659)
        assert not await outbox.ripe(tx, 658, 662), "what comes late may still come"
        assert await outbox.ripe(tx, 660, 664)
        await outbox.close(tx, 660, 664, {"main": "CPU"})
        await outbox.count(tx, key, "d", span(5))
        await outbox.close(tx, 660, 664, {})
    first, late = await everything(database)
    assert isinstance(first, Window)
    assert isinstance(late, Window)
    assert (first.frames, first.provider, late.frames) == (7, "CPU", 5)
    assert Sketch.from_bytes(first.sketches["total"]).total == 2
    assert list(first.sketches) == ["total"], "a stage without samples is not sent"


async def test_a_leap_of_the_clock_leaves_no_window_open(database: Database) -> None:
    async with database.write() as tx:
        for start_s in (0, 600, 10**10):
            await outbox.count(tx, SpanKey(MINUTE_S, start_s, "main", "cap@1.0.0"), "d", Span())
        await outbox.close(tx, 1200, 1204, {})
        assert not await outbox.ripe(tx, 1200, 1204)
    assert len(await everything(database)) == 3


async def test_weeks_without_a_fleet_lose_detail_first_and_no_frame(database: Database) -> None:
    await put(database, event("first"), *(window(minute) for minute in range(3 * 24 * 60)))
    before = await everything(database)
    async with database.read() as tx:
        has = await outbox.held(tx)
    assert await room(database, bytes_max=has.bytes // 30) == 0, "nothing is dropped while merging is enough"
    after = await everything(database)
    assert frames(after) == frames(before)
    assert len(after) == 1 + 3 * 24
    merged = after[1]
    assert isinstance(merged, Window)
    assert (merged.start_s, merged.seconds, merged.misses) == (0, HOUR_S, 60)
    assert Sketch.from_bytes(merged.sketches["total"]).total == 600
    numbers = [one.n for one in after]
    assert numbers == sorted(set(numbers))


async def test_a_full_outbox_drops_vitals_then_windows_then_events_and_counts_them(database: Database) -> None:
    await put(database, *(vitals(n) for n in range(50)), *(window(n * 60) for n in range(50)))
    await put(database, *(event(str(n)) for n in range(50)))
    assert await room(database, records_max=120) == 42
    kinds = [type(one).__name__ for one in await everything(database)]
    assert (kinds.count("Vitals"), kinds.count("Window"), kinds.count("Happening")) == (8, 50, 51)
    await room(database, records_max=60)
    left = await everything(database)
    assert not any(isinstance(one, Vitals) for one in left)
    assert [one.text for one in left if isinstance(one, Happening) and one.kind == "swap"] == [
        str(n) for n in range(50)
    ]
    await room(database, records_max=20)
    left = await everything(database)
    texts = [one.text for one in left if isinstance(one, Happening) and one.kind == "swap"]
    assert texts == [str(n) for n in range(50 - len(texts), 50)], "the oldest go first"
    lost = [one for one in left if isinstance(one, Happening) and one.kind == "lost"]
    assert len(lost) == 1, "one record says how many"
    assert lost[0].count + len(left) - 1 == 150, "everything is here or counted"


async def test_a_full_outbox_gives_up_trials_last(database: Database) -> None:
    tried = [Trial(n=0, at_ms=n, bundle=f"cap@1.0.{n}", digest="d") for n in range(3)]
    await put(database, *tried, *(event(str(n)) for n in range(50)))
    await room(database, records_max=5)
    assert [one.at_ms for one in await everything(database) if isinstance(one, Trial)] == [0, 1, 2]
    async with database.read() as tx:
        assert (await outbox.held(tx)).kinds["trial"] == 3


async def test_an_outbox_of_the_version_before_keeps_its_records_and_begins_to_tell_trials(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sqlite"
    async with open_database(path, SCHEMA) as database:
        await put(database, event("kept"), window(3))
        kept = await everything(database)
    with raw(path) as older:  # as the steps before made it
        for statement in schema_steps(SCHEMA)[3][1]:
            if "CREATE TABLE outbox_record" in statement:
                older.execute("CREATE TABLE held AS SELECT * FROM outbox_record")
                older.execute("DROP TABLE outbox_record")
                older.execute(statement)
                older.execute("INSERT INTO outbox_record SELECT * FROM held")
                older.execute("DROP TABLE held")
        older.execute("CREATE INDEX outbox_kind ON outbox_record (kind, seconds, n)")
        older.execute("ALTER TABLE outbox DROP COLUMN trial")
        older.execute("DELETE FROM schema_step WHERE number = 4")
        older.commit()
    async with open_database(path, SCHEMA) as database:
        assert await everything(database) == kept
        await put(database, Trial(n=0, at_ms=1, bundle="cap@1.0.0", digest="d"))
        async with database.read() as tx:
            assert (await outbox.state(tx)).trial == -1  # type: ignore[union-attr]
            assert [one.n for one in await outbox.oldest(tx, 9)] == [0, 1, 2]


async def test_what_may_be_at_the_fleet_already_is_neither_merged_nor_dropped(database: Database) -> None:
    await put(database, *(window(n) for n in range(10)))
    async with database.write() as tx:
        await outbox.note_sent(tx, 9)
    await put(database, *(window(n) for n in range(10, 200)))
    sent = (await everything(database))[:10]
    await room(database, records_max=5)
    assert (await everything(database))[:10] == sent


async def test_an_outbox_that_was_put_back_goes_on_under_a_new_name_and_gives_up_what_is_in_doubt(
    database: Database,
) -> None:
    await put(database, *(event(f"old {n}") for n in range(5)))
    async with database.write() as tx:
        before = await outbox.begin(tx)
        assert await outbox.rename(tx, 5) == 5
        after = await outbox.begin(tx)
    assert after.name != before.name
    await put(database, event("new"))
    left = await everything(database)
    assert [(one.n, one.kind, one.count) for one in left if isinstance(one, Happening)] == [
        (0, "lost", 5), (1, "swap", 0)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_every_frame_is_taken_once_or_counted_as_lost(database: Database, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    fleet: dict[int, Record] = {}
    taken, put_in, minute = -1, 0, 0
    for _ in range(300):
        what = chance.random()
        if what < 0.6:
            await put(database, window(minute), chance.choice([event("e"), vitals(minute)]))
            put_in, minute = put_in + 10, minute + chance.randint(0, 3)
        elif what < 0.7:
            await room(database, records_max=chance.randint(20, 60))
        else:
            async with database.write() as tx:
                batch = await outbox.oldest(tx, chance.randint(1, 30))
                if batch:
                    await outbox.note_sent(tx, batch[-1].n)
            if chance.random() < 0.7:  # it arrives, once or twice
                fresh = [one for one in batch if one.n > taken]
                fleet |= {one.n: one for one in fresh}
                taken = max([taken, *(one.n for one in fresh)])
            if chance.random() < 0.6:  # the answer arrives
                async with database.write() as tx:
                    await outbox.forget(tx, taken)
    rest = [one for one in await everything(database) if one.n > taken]
    records = [*fleet.values(), *rest]
    dropped = sum(one.count for one in records if isinstance(one, Happening))
    async with database.read() as tx:
        state = await outbox.state(tx)
    assert state is not None
    assert state.dropped == dropped
    assert frames(records) <= put_in
    if not dropped:
        assert frames(records) == put_in


async def test_a_full_disk_changes_nothing_in_the_outbox(database: Database) -> None:
    await put(database, event("a"))
    async with database.write() as tx:
        pages = (await tx.one("PRAGMA page_count"))[0]  # type: ignore[index]
        await tx.one(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StorageFullError):
        await put(database, *(window(n, 50) for n in range(2000)))
    assert [one.n for one in await everything(database)] == [0]
    async with database.write() as tx:
        await tx.one("PRAGMA max_page_count=1000000")
    await put(database, event("b"))
    assert [one.n for one in await everything(database)] == [0, 1]


async def test_what_lies_on_a_stick_is_not_merged_and_goes_rather_than_everything_newer(database: Database) -> None:
    await put(database, *(event(f"old {number}") for number in range(100)), *(window(minute) for minute in range(60)))
    async with database.write() as tx:
        await outbox.note_carried(tx, 159)
    assert await room(database, records_max=140) > 0
    kept = await everything(database)
    assert len([one for one in kept if isinstance(one, Window)]) < 60, "the least valuable goes first, whole"
    assert all(one.seconds == MINUTE_S for one in kept if isinstance(one, Window)), "it may be at the fleet as it is"
    await put(database, *(event(f"new {number}") for number in range(100)))
    await room(database, records_max=100)
    texts = [one.text for one in await everything(database) if isinstance(one, Happening) and one.kind == "swap"]
    assert len([text for text in texts if text.startswith("new")]) > 80
    async with database.read() as tx:
        found = await outbox.state(tx)
    assert found is not None
    assert found.shown == 159
