"""Calls as strangers write them: read, read in part, or refused; never a fault of ours."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from lenskeep.clock import Clock
from lenskeep.errors import LimitExceededError, RequestError
from lenskeep.fleet.config import SyncSettings
from lenskeep.fleet.sync import Sync
from lenskeep.messages.sync import MEDIA_MSGPACK, Call, Happening, SlotNow, Trial, Vitals, Window


@pytest.fixture
def sync() -> Sync:
    return Sync(None, None, None, None, None, SyncSettings(), Clock())  # type: ignore[arg-type] - reading needs no others


def whole() -> Call:
    window = Window(
        n=1, slot="main", bundle="a@1.0.0", digest="ab", provider="cpu", start_s=1, seconds=60, frames=9,
        outcomes={"good": 9}, sketches={"total": b"\0\5\1"},
    )  # fmt: skip
    records = [window, Happening(n=2, kind="swap", at_ms=1), Vitals(n=3, at_ms=1)]
    records.append(Trial(n=4, at_ms=1, bundle="a@1.0.0", digest="ab", golden_total=8, golden_score=0.5, p99_ms=4.5))
    return Call(seen=1, records=records, outbox="a", after=0, slots=[SlotNow(slot="main")])


@pytest.mark.parametrize("media", [MEDIA_MSGPACK, "application/json"])
def test_spoiled_calls_are_read_or_refused(sync: Sync, media: str) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    rng, encode = random.Random(seed), msgspec.msgpack.encode if media == MEDIA_MSGPACK else msgspec.json.encode
    good, read = encode(whole()), 0
    assert sync.read(good, media) == whole()
    for _ in range(20_000):
        spoiled = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 8])):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
        cut = spoiled[: rng.randrange(len(spoiled))] if rng.random() < 0.1 else spoiled
        try:
            call = sync.read(bytes(cut), media)
        except (RequestError, LimitExceededError):
            continue
        read += 1
        assert all(record.n >= 0 for record in call.records)
    assert read > 100


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"records":' + b"[" * 100_000, b"\x91" * 100_000, b"", b"null", b"\xc0"]
)
def test_deep_and_empty_calls_are_refused(sync: Sync, data: bytes) -> None:
    for media in (MEDIA_MSGPACK, "application/json"):
        with pytest.raises(RequestError):
            sync.read(data, media)


@pytest.mark.parametrize("spoiled", [
    {"golden_score": 1.5}, {"golden_score": -0.1}, {"golden_score": float("nan")}, {"p99_ms": -1.0}, {"p99_ms": 1e300},
    {"memory_mb": -1}, {"golden_total": 2**63}, {"bundle": "x" * 200}, {"code": "LK-8001" * 9}, {"digest": None},
])  # fmt: skip
def test_a_trial_that_cannot_be_is_noted_and_the_records_beside_it_count(
    sync: Sync, spoiled: dict[str, object]
) -> None:
    said = msgspec.to_builtins(whole(), builtin_types=(bytes,))
    said["records"][3] |= spoiled
    records = sync.read(msgspec.msgpack.encode(said), MEDIA_MSGPACK).records
    assert [type(one) for one in records] == [Window, Happening, Vitals, Happening]
    assert (records[3].n, records[3].kind) == (4, "other")  # type: ignore[union-attr]


def test_a_record_of_a_kind_that_is_not_known_here_is_kept_as_one_that_cannot_be_read(
    sync: Sync, tmp_path: Path
) -> None:
    newer = msgspec.msgpack.encode({"outbox": "a", "records": [{"type": "weather", "n": 7, "rain": True}]})
    (record,) = sync.read(newer, MEDIA_MSGPACK).records
    assert isinstance(record, Happening) and (record.n, record.kind) == (7, "other") and "weather" in record.text


def test_numbers_that_no_database_holds_are_refused_or_cost_their_own_record_alone(sync: Sync) -> None:
    good = msgspec.json.encode(whole())
    with pytest.raises(RequestError):
        sync.read(good.replace(b'"after":0', b'"after":1000000000000000000000000000000'), "application/json")
    call = sync.read(good.replace(b'"good":9', b'"good":1000000000000000000000000000000'), "application/json")
    assert [type(record) for record in call.records] == [Happening, Happening, Vitals, Trial]
    assert call.records[1:] == whole().records[1:]
