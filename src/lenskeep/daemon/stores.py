"""The device's two databases, opened or renewed, and what the daemon before left in them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lenskeep.clock import Clock
from lenskeep.daemon.places import Places
from lenskeep.database import Database, open_database
from lenskeep.errors import LenskeepError, RegistryCorruptError
from lenskeep.lifecycle import SlotState
from lenskeep.registry import bundles, journal, slots

log = logging.getLogger(__name__)

REGISTRY_SCHEMA = "lenskeep.registry.schema"
METRICS_SCHEMA = "lenskeep.registry.metrics_schema"
START, ORDERLY_STOP = "start", "orderly stop"  # counters: a start whose number was noted ended orderly


@dataclass(frozen=True, kw_only=True)
class Stores:
    """Open databases, and how the last daemon left them."""

    registry: Database
    windows: Database
    start: int  # which start of the daemon this is
    orderly: bool  # the last one ended because it was told to
    prepared: set[str]
    standing: set[str]  # operations whose wish still stands
    carried_out: set[str]  # operations whose version runs
    notes: list[LenskeepError] = field(default_factory=list)  # what went wrong at the start and was survived

    async def note_orderly_stop(self) -> None:
        """Write that this daemon ends because it was told to."""
        async with self.registry.write() as tx:
            await journal.note(tx, ORDERLY_STOP, await journal.noted(tx, START))


async def open_stores(stack: AsyncExitStack, places: Places, clock: Clock, slot_names: list[str]) -> Stores:
    """Open both databases for as long as the stack lives."""
    notes: list[LenskeepError] = []
    registry = await stack.enter_async_context(_open_or_renew(places.registry, REGISTRY_SCHEMA, clock, notes))
    windows = await stack.enter_async_context(_open_or_renew(places.metrics, METRICS_SCHEMA, clock, notes))
    async with registry.write() as tx:
        await slots.ensure(tx, slot_names, at_ms=clock.now_ms())
        orderly = await journal.noted(tx, ORDERLY_STOP) == await journal.noted(tx, START)
        start = await journal.count_up(tx, START)
        prepared = await bundles.prepared_files(tx)
        every = await slots.everything(tx)
        standing = {slot.operation for slot in every if slot.state == SlotState.SWAPPING}
        carried_out = {slot.operation for slot in every if slot.state in (SlotState.PROBATION, SlotState.SETTLED)}
    return Stores(
        registry=registry, windows=windows, start=start, orderly=orderly, prepared=prepared, standing=standing,
        carried_out=carried_out, notes=notes,
    )  # fmt: skip


@asynccontextmanager
async def _open_or_renew(path: Path, schema: str, clock: Clock, notes: list[LenskeepError]) -> AsyncIterator[Database]:
    """Open a database; a damaged one is set aside and a new one begun, so that the line comes up all the same."""
    async with AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(open_database(path, schema))
        except RegistryCorruptError as error:
            aside = await asyncio.to_thread(_set_aside, path, clock.now_ms())
            note = RegistryCorruptError(
                f"{error} It was set aside as {aside.name}; slots run from their pointer files."
            )
            log.error("%s %s", note.code, note)
            notes.append(note)
            database = await stack.enter_async_context(open_database(path, schema))
        yield database


def _set_aside(path: Path, now_ms: int) -> Path:
    number = now_ms
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1  # a clock that begins anew with every start must not overwrite what was kept
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    return aside
