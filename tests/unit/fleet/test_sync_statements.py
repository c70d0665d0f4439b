"""How many statements of SQL calls cost: counted where SQLite executes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from lenskeep.clock import Clock
from lenskeep.fleet.config import SyncSettings
from lenskeep.fleet.intake import Intake
from lenskeep.fleet.presence import Presence
from lenskeep.fleet.reports import Reports
from lenskeep.fleet.store.intake import IntakeStore
from lenskeep.fleet.store.opening import SCHEMA
from lenskeep.fleet.store.sqlite import open_sqlite
from lenskeep.fleet.store.store import Store
from lenskeep.fleet.sync import Sync
from lenskeep.messages.sync import Answer, Call, Happening, SlotNow, Vitals

DEVICES = [f"cam-{n}" for n in range(50)]


class Rig:
    """The way in, over a file whose statements are counted."""

    def __init__(self, sync: Sync, presence: Presence, statements: list[str]) -> None:
        self.sync, self.presence, self.statements = sync, presence, statements

    async def all_call(self, call: Call) -> None:
        await asyncio.gather(*(self.sync.answer(device, "10.0.0.1", call) for device in DEVICES))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    clock, statements = Clock(), []  # type: ignore[var-annotated]
    async with open_sqlite(tmp_path / "fleet.sqlite", SCHEMA) as engine:
        store, intake_store = Store(engine), IntakeStore(engine)
        for connection in (engine._database._writer, engine._database._reader):
            await connection.set_trace_callback(statements.append)
        presence, intake = Presence(intake_store, tmp_path, clock), Intake(intake_store, clock)
        sync = Sync(store, intake_store, intake, presence, Reports(store, clock, kept=10), SyncSettings(), clock)
        loop = asyncio.create_task(intake.run())
        yield Rig(sync, presence, statements)
        loop.cancel()


async def test_an_unchanged_call_costs_no_statement(rig: Rig) -> None:
    call = Call(seen=1, outbox="a", after=3, slots=[SlotNow(slot="main", state="followed")])
    await rig.all_call(Call(records=[Vitals(n=n, at_ms=0) for n in range(4)], outbox="a", after=-1))
    await rig.all_call(call)
    rig.statements.clear()
    for _ in range(20):
        await rig.all_call(call)
    assert rig.statements == []


async def test_who_was_heard_is_written_together(rig: Rig) -> None:
    await rig.all_call(Call())
    rig.statements.clear()
    await rig.presence.write()
    assert [each.split()[0] for each in rig.statements] == ["BEGIN", "INSERT", "COMMIT"]
    rig.statements.clear()
    await rig.presence.write()
    assert rig.statements == []


async def test_calls_with_records_share_their_transactions(rig: Rig) -> None:
    await rig.all_call(Call(outbox="a"))
    rig.statements.clear()
    await rig.all_call(Call(records=[Vitals(n=0, at_ms=0)], outbox="a", after=-1))
    assert [each.split()[0] for each in rig.statements].count("COMMIT") <= 2


async def test_a_call_that_cannot_be_kept_costs_the_calls_beside_it_nothing(rig: Rig) -> None:
    good = Call(records=[Vitals(n=0, at_ms=0)], outbox="a", after=-1)
    lie = msgspec.structs.replace(good, records=[Happening(n=0, kind="other", at_ms=1 << 70)])
    answers = await asyncio.gather(
        *(rig.sync.answer(name, "", call) for name, call in (("cam-1", good), ("cam-2", lie), ("cam-3", good))),
        return_exceptions=True,
    )
    taken = [answer.taken if isinstance(answer, Answer) else type(answer) for answer in answers]
    assert taken == [0, OverflowError, 0]
