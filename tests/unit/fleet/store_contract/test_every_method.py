"""Every method of the fleet's stores says the same on every engine, and does what it is named for."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lenskeep.errors import (
    EnrolmentTokenError,
    ForeignIdentityError,
    TokenUsedError,
    UnknownNameError,
    UnlistedDeviceError,
)
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.intake import Delivery, IntakeStore
from lenskeep.fleet.store.opening import open_engine
from lenskeep.fleet.store.telemetry import TelemetryStore, merge
from lenskeep.fleet.store.trials import KEPT, TrialStore
from lenskeep.messages.sync import Happening, Vitals, Window
from tests import fleetstore
from tests.fleetstore import ENDS_MS, NOW_MS, NOW_S, Filled, certify, happening, key, listed, report, trial, window
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
    stores = (
        filled.store,
        filled.intake,
        filled.telemetry,
        filled.rollouts,
        filled.survey,
        filled.trials,
        filled.records,
    )
    for store in stores:
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


async def test_of_two_trials_the_later_record_counts_and_both_are_added_up(engine: Engine) -> None:
    filled = Filled(engine)
    await filled.fill()
    (first, second) = (await filled.trials.of_device("cam-1"), await filled.trials.of_device("cam-2"))
    assert [(one.bundle, one.code, one.golden_score) for one in first] == [("ocr@1.1.0", "", 0.98)]
    assert {one.bundle for one in second} == {"ocr@1.0.0", "ocr@1.1.0"}
    (now,) = await filled.trials.now("ocr@1.1.0")
    assert (now.trials, now.failed, now.score_worst, now.score_mean) == (2, 0, 0.98, pytest.approx(0.99))
    (ever,) = await filled.trials.ever("ocr@1.1.0")
    assert (ever.trials, ever.failed, ever.score_worst, ever.score_mean) == (3, 1, 0.5, pytest.approx(2.48 / 3))
    assert (ever.p99_worst_us, ever.memory_worst_mb) == (12_500, 45)


async def test_a_runtime_that_was_exchanged_moves_a_device_to_its_new_class(engine: Engine) -> None:
    intake, telemetry, trials = IntakeStore(engine), TelemetryStore(engine), TrialStore(engine)
    store = Filled(engine).store
    await store.grant("cam-1", key("cam-1"), certify, by="ann", now_ms=NOW_MS)
    for n, hardware in enumerate(("ort1.30", "ort1.31")):
        await intake.keep([Delivery("cam-1", "a", None, [trial(n, 1 - n / 10, hardware=hardware)])], now_ms=NOW_MS)
        await telemetry.add(merge(await telemetry.waiting(9), {}))
    assert [(one.hardware, one.trials, one.score_worst) for one in await trials.now()] == [("ort1.31", 1, 0.9)]
    assert [(one.hardware, one.trials) for one in await trials.ever()] == [("ort1.30", 1), ("ort1.31", 1)]


async def test_of_a_device_a_few_versions_are_kept_and_old_sums_go(engine: Engine) -> None:
    intake, telemetry, trials = IntakeStore(engine), TelemetryStore(engine), TrialStore(engine)
    told = [trial(n, 1.0, bundle=f"ocr@1.0.{n}") for n in range(KEPT + 9)]
    await intake.keep([Delivery("cam-1", "a", None, told)], now_ms=NOW_MS)
    await telemetry.add(merge(await telemetry.waiting(9), {}))
    assert [one.n for one in told[::-1]][:KEPT] == [int(one.bundle[8:]) for one in await trials.of_device("cam-1")]
    assert len(await trials.ever()) == KEPT + 9
    await telemetry.thin(NOW_S + 500 * 86400)
    assert (len(await trials.ever()), len(await trials.of_device("cam-1"))) == (0, KEPT)


async def test_trials_wait_in_a_row_of_their_own_because_an_older_replica_passes_over_rows(engine: Engine) -> None:
    intake, telemetry = IntakeStore(engine), TelemetryStore(engine)
    await intake.keep([Delivery("cam-1", "a", None, [window(0), trial(1, 1.0), happening(2)])], now_ms=NOW_MS)
    older, read = msgspec.msgpack.Decoder(list[Window | Happening | Vitals]), []
    for row in await telemetry.waiting(9):
        try:
            read += older.decode(row.body)
        except msgspec.ValidationError:
            read.append(None)
    assert read == [window(0), happening(2), None]


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
