"""Every method of the fleet's stores says the same on every engine, and does what it is named for."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from lenskeep.errors import (
    EnrolmentTokenError,
    ForeignIdentityError,
    TokenUsedError,
    UnknownNameError,
    UnlistedDeviceError,
)
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.opening import open_engine
from tests import fleetstore
from tests.fleetstore import ENDS_MS, NOW_MS, NOW_S, Filled, certify, key, listed, report
from tests.postgresql import Postgres


async def test_every_engine_answers_every_question_alike(postgres: Postgres, tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    for address in ("sqlite", postgres.make()):
        async with open_engine(address, "", tmp_path / "fleet.sqlite", {}) as engine:
            said.append(await Filled(engine).fill())
    sqlite, postgresql = said
    for name, answer in sqlite.items():
        if name == "happenings":  # PostgreSQL cannot keep a NUL
            answer = [
                [type(each)(**{**_fields(each), "text": each.text.replace("\0", "\ufffd")}) for each in part]
                for part in answer
            ]
        if name == "deeds":
            answer = [each for each in answer if "token:" not in each.by]
            postgresql[name] = [each for each in postgresql[name] if "token:" not in each.by]
        assert postgresql[name] == answer, name


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


def test_no_method_of_a_store_is_left_out() -> None:
    text = inspect.getsource(fleetstore) + Path(__file__).read_text()
    filled = Filled.__new__(Filled)
    Filled.__init__(filled, None)  # type: ignore[arg-type]
    for store in (filled.store, filled.intake, filled.telemetry, filled.rollouts, filled.survey):
        for name, _ in inspect.getmembers(type(store), inspect.iscoroutinefunction):
            if not name.startswith("_"):
                assert re.search(rf"\.{name}\(", text), f"{type(store).__name__}.{name}"


async def test_what_must_be_refused_is_refused_and_leaves_nothing(engine: Engine) -> None:
    filled = Filled(engine)
    await filled.fill()
    before = await filled.look() | {}
    store, made = filled.store, fleetstore.invitation.invite("ab" * 32)
    with pytest.raises(EnrolmentTokenError):
        await store.enrol(made, "cam-7", key("cam-7"), certify, now_ms=NOW_MS)
    with pytest.raises(UnlistedDeviceError):
        await store.grant("cam-10", key("cam-10"), certify, by="ann", now_ms=NOW_MS)
    with pytest.raises(UnlistedDeviceError):
        await store.take(report("cam-10", 9), now_ms=NOW_MS, kept=3)
    with pytest.raises(ForeignIdentityError):
        await store.renew(listed("cam-1"), key("cam-2"), certify, now_ms=NOW_MS)
    for ask in (store.device("nobody"), store.revoke("nobody", reason="", by="", now_ms=1), store.accept(99, reason="", by="", now_ms=1),
                store.remove_operator("nobody", by="", now_ms=1), filled.rollouts.get(99), filled.rollouts.remove_group("no"),
                filled.rollouts.tag(["cam-1", "nobody"], {"site": "z"})):  # fmt: skip
        with pytest.raises(UnknownNameError):
            await ask
    assert (await filled.look())["survey"] == before["survey"]


async def test_a_used_token_lets_no_second_key_in(engine: Engine) -> None:
    store, made = Filled(engine).store, fleetstore.invitation.invite("ab" * 32)
    await store.invite(made, "cam-1", expires_ms=ENDS_MS, by="ann", now_ms=NOW_MS)
    await store.enrol(made, "cam-1", key("cam-1"), certify, now_ms=NOW_MS)
    with pytest.raises(TokenUsedError):
        await store.enrol(made, "cam-1", key("thief"), certify, now_ms=NOW_MS)


async def test_old_hours_become_days_and_keep_their_counts(engine: Engine) -> None:
    filled = Filled(engine)
    await filled.fill()
    before = await filled.telemetry.behaviour()
    assert await filled.telemetry.thin(NOW_S + 30 * 86400) > 0
    assert await filled.telemetry.behaviour() == before
    assert (await filled.telemetry.latency("ocr@1.0.0"))[0].samples == 2 * 49


async def test_news_reaches_whoever_listens_once_it_is_committed(engine: Engine) -> None:
    heard: list[str] = []
    engine.listen("revocations", heard.append)
    with pytest.raises(RuntimeError):
        async with engine.write() as tx:
            await tx.tell("revocations", "never")
            raise RuntimeError
    async with engine.write() as tx:
        await tx.tell("revocations", "cam-1")
        assert heard == []
    assert heard[0] == "cam-1"
    assert await engine.lead("conducting", 1)
