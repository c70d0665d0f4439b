"""The record on the device: what is done to its registry is found, and what is lost is said."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from lenskeep.bundle.keys import generate_key
from lenskeep.clock import Clock
from lenskeep.database import open_database
from lenskeep.errors import RecordCutError, RecordHeadError, RecordLostError, StorageFullError
from lenskeep.messages.record import RecordVerdict
from lenskeep.registry import audit
from lenskeep.trust import chain, recordfile
from tests import records

SEED = 41
REGISTRY = "registry.sqlite"


async def made(folder: Path, count: int = 12) -> None:
    """A record that was signed in the middle and at its end."""
    async with records.kept(folder) as device:
        await device.begin()
        await device.note(count // 2)
        await device.record.sign()
        await device.note(count - count // 2)
        await device.record.sign()


async def verified(folder: Path) -> RecordVerdict:
    async with records.kept(folder) as device:
        return await device.record.verify()


def tamper(folder: Path, *statements: str, guards: bool = True) -> None:
    """Work on the database file as somebody with SQLite does; the triggers are put back afterwards."""
    with closing(sqlite3.connect(folder / REGISTRY)) as database, database:
        triggers = [row[0] for row in database.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'")]
        database.execute("DROP TRIGGER record_is_not_changed")
        database.execute("DROP TRIGGER record_is_not_removed")
        for statement in statements:
            database.execute(statement)
        for trigger in triggers if guards else []:
            database.execute(trigger)
    database.close()


def copied(folder: Path, name: str) -> Path:
    """The folder as it is now, with nothing left in the write-ahead log."""
    with closing(sqlite3.connect(folder / REGISTRY)) as database, database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(shutil.copytree(folder, folder.with_name(name)))


# --- the registry's file ----------------------------------------------------------------------------------------------


async def test_the_record_cannot_be_changed_through_the_database_by_mistake(tmp_path: Path) -> None:
    await made(tmp_path)
    async with records.kept(tmp_path) as device:
        for statement in ("UPDATE record SET reason = 'x' WHERE sequence = 3", "DELETE FROM record WHERE sequence = 3"):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                async with device.database.write() as tx:
                    await tx.run(statement)
        assert (await device.record.verify()).whole


@pytest.mark.parametrize(
    ("statements", "sequence", "kind"),
    [
        (["UPDATE record SET reason = 'nothing happened' WHERE sequence = 5"], 5, "edited"),
        (["UPDATE record SET actor = 'device' WHERE sequence = 14"], 14, "edited"),
        (["UPDATE record SET clock_trusted = 2 WHERE sequence = 5"], 5, "edited"),
        (["UPDATE record SET hash = upper(hash) WHERE sequence = 5"], 5, "edited"),
        (["UPDATE record SET reason = CAST(x'ff' AS TEXT) WHERE sequence = 5"], 0, "unreadable"),
        (["DELETE FROM record WHERE sequence = 5"], 5, "missing"),
        (["DELETE FROM record WHERE sequence > 12"], 13, "cut short"),
        (["DELETE FROM record"], 0, "cut short"),
        (["DELETE FROM record WHERE sequence < 4"], 0, "missing"),
        (
            ["INSERT INTO record SELECT -1, at_ms, monotonic_ms, boot, clock_trusted, actor, action, subject, reason,"
             " before, after, hash FROM record WHERE sequence = 5"], 0, "missing",
        ),
        (
            ["DELETE FROM record WHERE sequence = 5", "UPDATE record SET sequence = sequence - 1 WHERE sequence > 5"],
            5, "edited",
        ),
        (["DELETE FROM record_head WHERE counter > 1"], 14, "head"),
        (["UPDATE record_head SET sequence = 3"], 3, "head"),
    ],
)  # fmt: skip
async def test_sql_tampering_with_the_registry_is_found(
    tmp_path: Path, statements: list[str], sequence: int, kind: str
) -> None:
    await made(tmp_path)
    tamper(tmp_path, *statements)
    verdict = await verified(tmp_path)
    assert verdict.finding is not None and (verdict.finding.sequence, verdict.finding.kind) == (sequence, kind)


async def test_a_registry_whose_guards_were_taken_away_is_found(tmp_path: Path) -> None:
    await made(tmp_path)
    tamper(tmp_path, guards=False)
    finding = (await verified(tmp_path)).finding
    assert finding is not None and finding.kind == "unguarded"


async def test_a_record_that_was_chained_anew_behind_an_edit_is_found_by_its_signed_heads(tmp_path: Path) -> None:
    await made(tmp_path)
    async with open_database(tmp_path / REGISTRY, records.SCHEMA) as database, database.read() as tx:
        entries = await audit.after(tx, -1, 100)
    statements, at = [], entries[3].point
    for entry in entries[4:]:
        facts = {name: getattr(entry, name) for name in chain.Facts.__struct_fields__} | {"actor": "nobody"}
        new = chain.put(at, chain.Facts(**facts))
        statements.append(f"UPDATE record SET actor = 'nobody', hash = '{new.hash}' WHERE sequence = {new.sequence}")
        at = new.point
    tamper(tmp_path, *statements)
    finding = (await verified(tmp_path)).finding
    assert finding is not None and (finding.sequence, finding.kind) == (8, "rewritten"), "8 is the first signed entry"


async def test_two_hundred_random_tamperings_with_the_database_file_are_all_found(tmp_path: Path) -> None:
    original = tmp_path / "device"
    original.mkdir()
    await made(original)
    copied(original, "clean")
    chance, counts = random.Random(SEED), Counter[str]()
    texts = ["actor", "action", "subject", "reason", "before", "after", "boot"]
    for case in range(200):
        one, two = chance.sample(range(15), 2)
        how = chance.choice(["text", "number", "remove", "swap", "cut", "copy"])
        column = chance.choice(texts)
        statements = {
            "text": [f"UPDATE record SET {column} = {column} || 'x' WHERE sequence = {one}"],
            "number": [f"UPDATE record SET at_ms = at_ms + {chance.choice([-1, 1, 86400000])} WHERE sequence = {one}"],
            "remove": [f"DELETE FROM record WHERE sequence = {one}"],
            "swap": [
                f"UPDATE record SET sequence = -9 WHERE sequence = {one}",
                f"UPDATE record SET sequence = {one} WHERE sequence = {two}",
                f"UPDATE record SET sequence = {two} WHERE sequence = -9",
            ],
            "cut": [f"DELETE FROM record WHERE sequence >= {one}"],
            "copy": [
                "INSERT INTO record SELECT sequence + 15, at_ms, monotonic_ms, boot, clock_trusted, actor, action,"
                f" subject, reason, before, after, hash FROM record WHERE sequence = {one}"
            ],
        }[how]
        for path in original.iterdir():
            path.unlink()
        shutil.copytree(tmp_path / "clean", original, dirs_exist_ok=True)
        tamper(original, *statements)
        assert not (await verified(original)).whole, f"seed {SEED}, case {case}: {statements}"
        counts[how] += 1
    print(f"\nseed {SEED}: {dict(sorted(counts.items()))}")


# --- lost, restored, exchanged ----------------------------------------------------------------------------------------


async def test_an_old_copy_of_the_registry_is_found_at_the_start_and_the_gap_stays_visible(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    folder.mkdir()
    await made(folder)  # entries 0 to 14
    old = copied(folder, "old")
    async with records.kept(folder) as device:
        await device.begin(2)
        await device.note(5)
        await device.record.sign()  # entries up to 20
    shutil.copy(old / REGISTRY, folder / REGISTRY)
    for suffix in ("-wal", "-shm"):
        (folder / f"{REGISTRY}{suffix}").unlink(missing_ok=True)
    async with records.kept(folder) as device:
        await device.begin(3)
        assert [type(note) for note in device.notes] == [RecordCutError]
        verdict = await device.record.verify()
        lines = await device.lines()
    assert verdict.finding is None and not verdict.whole
    assert [(gap.first, gap.last) for gap in verdict.gaps] == [(15, 20)]
    assert recordfile.verify(lines, key=records.KEY.public).gaps == verdict.gaps
    async with records.kept(folder) as device:  # told once, not at every start
        await device.begin(4)
        assert device.notes == []
        assert len((await device.record.verify()).gaps) == 1
        [line] = await device.record.checks()
        assert line.passed and "what was lost before entry 21" in line.text
    # the entries before the gap are held as well
    tamper(folder, "UPDATE record SET reason = 'x' WHERE sequence = 6")
    assert (await verified(folder)).finding is not None


async def test_a_lost_registry_begins_a_record_that_names_the_last_signed_entry(tmp_path: Path) -> None:
    await made(tmp_path)
    for path in tmp_path.glob(f"{REGISTRY}*"):
        path.unlink()
    async with records.kept(tmp_path) as device:
        await device.begin(1)
        assert [type(note) for note in device.notes] == [RecordLostError]
        verdict = await device.record.verify()
        first = json.loads((await device.lines())[1])
    assert (verdict.first, [(gap.first, gap.last) for gap in verdict.gaps]) == (15, [(0, 14)])
    assert first["action"] == "begin record" and first["before"].startswith("14 ")


async def test_the_registry_of_another_device_is_found_at_the_start(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    await made(ours)
    async with records.kept(theirs, generate_key(), "cam-99") as device:
        await device.begin()
        await device.note(30)
        await device.record.sign()
    copied(theirs, "copy")
    shutil.copy(tmp_path / "copy" / REGISTRY, ours / REGISTRY)
    async with records.kept(ours) as device:
        await device.begin(2)
        assert RecordCutError in [type(note) for note in device.notes]
        verdict = await device.record.verify()
        assert not verdict.whole and verdict.device == records.DEVICE


async def test_registry_and_head_put_back_together_are_found_by_the_fleets_witness(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    folder.mkdir()
    await made(folder)
    old = copied(folder, "old")
    async with records.kept(folder) as device:
        await device.begin(2)
        await device.note(5)
        seen = await device.record.head()
    shutil.rmtree(folder)
    old.rename(folder)
    async with records.kept(folder) as device:
        await device.begin(3)
        assert device.notes == []  # nothing on the device tells it
        await device.record.note_witness(seen.sequence, seen.hash, seen.envelope.encode())
        assert [type(note) for note in device.notes] == [RecordCutError]
        assert not (await device.record.verify()).whole
        with pytest.raises(RecordHeadError):
            await device.record.note_witness(seen.sequence, "0" * 64, seen.envelope.encode())


async def test_a_witnessed_head_is_remembered(tmp_path: Path) -> None:
    async with records.kept(tmp_path) as device:
        await device.begin()
        head = await device.record.head()
        assert head.witnessed == -1
        await device.record.note_witness(head.sequence, head.hash, head.envelope.encode())
        assert (await device.record.head()).witnessed == head.sequence


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff" * 400])
async def test_a_head_file_that_was_removed_or_spoiled_is_told(tmp_path: Path, content: bytes | None) -> None:
    await made(tmp_path)
    path = tmp_path / "record.head.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert not (await verified(tmp_path)).whole
    async with records.kept(tmp_path) as device:
        await device.begin(2)
        assert [type(note) for note in device.notes] == [RecordHeadError]
        await device.record.sign()
        assert (await device.record.verify()).whole


async def test_a_new_key_and_a_new_name_of_the_device_are_on_record(tmp_path: Path) -> None:
    await made(tmp_path)
    key = generate_key()
    async with records.kept(tmp_path, key, "cam-08") as device:
        await device.begin(2)
        assert (await device.record.verify()).whole
        lines = await device.lines()
    verdict = recordfile.verify(lines, key=key.public)
    assert verdict.whole and verdict.device == "cam-08"
    actions = [json.loads(line).get("action") for line in lines]
    assert actions.count("begin record") == 2
    assert any(f"key {key.public.id}" in json.loads(line).get("after", "") for line in lines)


# --- accidents --------------------------------------------------------------------------------------------------------

APPENDING = """
import asyncio, sys
from pathlib import Path
from tests import records

async def main():
    async with records.kept(Path(sys.argv[1])) as device:
        await device.begin(2)
        print("ready", flush=True)
        number = 0
        while True:
            await device.note(1, number)
            if number % 5 == 0:
                await device.record.sign()
            number += 1

asyncio.run(main())
"""


def test_a_record_whose_writer_is_killed_again_and_again_stays_whole(tmp_path: Path) -> None:
    rounds, chance, last = 20, random.Random(SEED), 0
    # the same key must sign in every process
    environment = os.environ | {"RECORD_KEY": records.KEY.pem().decode()}
    for number in range(rounds):
        child = subprocess.Popen(
            [sys.executable, "-c", APPENDING, str(tmp_path)], stdout=subprocess.PIPE, env=environment
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(chance.random() * 0.15)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        verdict = asyncio.run(_verdict_after_a_start(tmp_path))
        assert verdict.whole, f"seed {SEED}, round {number}: {verdict.finding} {verdict.gaps}"
        assert verdict.last > last
        last = verdict.last
    print(f"\nseed {SEED}: {rounds} kills, {last + 1} entries, whole")


async def _verdict_after_a_start(folder: Path) -> RecordVerdict:
    async with records.kept(folder) as device:
        await device.begin(2)
        assert device.notes == []
        await device.record.sign()
        return await device.record.verify()


async def test_what_was_recorded_before_there_was_a_chain_is_carried_over(tmp_path: Path) -> None:
    async with open_database(tmp_path / REGISTRY, records.SCHEMA) as database, database.write() as tx:
        for number in range(1, 4):
            await tx.insert(
                "INSERT INTO audit_unchained (at_ms, monotonic_s, clock_trusted, actor, action, subject, reason,"
                " before, after) VALUES (?, ?, 1, 'unix:root', 'activate', 'slot main', ?, '', '')",
                number * 1000, number * 1.5, f"change {number}",
            )  # fmt: skip
    async with records.kept(tmp_path) as device:
        await device.begin()
        lines = await device.lines()
        assert (await device.record.verify()).whole
    told = [json.loads(line).get("reason") for line in lines[1:-1]]
    assert told[1:4] == ["change 1", "change 2", "change 3"]


async def test_an_entry_with_letters_that_cannot_be_written_is_recorded_all_the_same(tmp_path: Path) -> None:
    async with records.kept(tmp_path) as device:
        await device.begin()
        async with device.database.write() as tx:
            await audit.add(tx, Clock(), by="x\udcff", action="a\0b", subject="s", reason="y" * 100_000)
        assert (await device.record.verify()).whole
        assert recordfile.verify(await device.lines(), key=records.KEY.public).whole


async def test_an_entry_of_a_change_that_was_rolled_back_leaves_no_hole(tmp_path: Path) -> None:
    async with records.kept(tmp_path) as device:
        await device.begin()
        with pytest.raises(ZeroDivisionError):
            async with device.database.write() as tx:
                await audit.add(tx, Clock(), by="x", action="a", subject="s")
                raise ZeroDivisionError
        await device.note(2)
        assert (await device.record.verify()).whole


async def test_changes_at_once_stand_one_behind_the_other(tmp_path: Path) -> None:
    async with records.kept(tmp_path) as device:
        await device.begin()
        await asyncio.gather(
            *(device.note(5, seed) for seed in range(10)), device.record.sign(), device.record.verify()
        )
        verdict = await device.record.verify()
        assert verdict.whole and verdict.entries == 53


async def test_a_full_disk_neither_ends_the_loop_nor_the_stop(tmp_path: Path) -> None:
    async with records.kept(tmp_path) as device:
        await device.begin()
        async with device.database.write() as tx:
            pages = await tx.one("PRAGMA page_count")
            assert pages is not None
            await tx.one(f"PRAGMA max_page_count = {pages[0]}")
        await device.note(1)
        with pytest.raises(StorageFullError):
            await device.note(200)
        task = asyncio.create_task(device.record.run())
        await device.record.stop()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
