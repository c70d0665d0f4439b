"""The chain of the record: what its hashes are made of, and that nothing done to an export goes unseen."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lenskeep.bundle.keys import generate_key
from lenskeep.errors import RecordFormatError, RecordHeadError
from lenskeep.trust import chain, recordfile
from tests import records

SEED, CASES, ENTRIES = 20270131, 12_000, 40


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    import asyncio

    return asyncio.run(records.exported(tmp_path_factory.mktemp("record"), ENTRIES))


def judged(lines: list[bytes], **words: object) -> bool:
    """Say whether the export is taken for whole, by the device's own key."""
    try:
        return recordfile.verify(lines, key=records.KEY.public, **words).whole  # type: ignore[arg-type]
    except RecordFormatError:
        return False


# --- the written description is enough --------------------------------------------------------------------------------


def test_the_hashes_can_be_computed_from_their_description_alone(lines: list[bytes]) -> None:
    def netstrings(*words: str) -> bytes:
        return b"".join(b"%d:%s," % (len(word.encode()), word.encode()) for word in words)

    previous = "0" * 64
    for line in lines[1:-1]:
        entry = json.loads(line)
        content = hashlib.sha256(
            b"lenskeep record content 1\n"
            + netstrings(
                str(entry["at_ms"]), str(entry["monotonic_ms"]), entry["boot"], "1" if entry["clock_trusted"] else "0",
                entry["actor"], entry["action"], entry["subject"], entry["reason"], entry["before"], entry["after"],
            )
        ).hexdigest()  # fmt: skip
        words = netstrings(previous, str(entry["sequence"]), content)
        previous = hashlib.sha256(b"lenskeep record entry 1\n" + words).hexdigest()
        assert previous == entry["hash"]


def test_fields_cannot_be_moved_into_each_other() -> None:
    facts = {"at_ms": 1, "monotonic_ms": 1, "boot": "", "clock_trusted": True, "action": "a", "subject": "s"}
    one = chain.Facts(**facts, actor="x", reason="ab", before="c", after="")  # type: ignore[arg-type]
    two = chain.Facts(**facts, actor="x", reason="a", before="bc", after="")  # type: ignore[arg-type]
    assert chain.content_of(one) != chain.content_of(two)


# --- a whole one ------------------------------------------------------------------------------------------------------


def test_an_untouched_export_is_whole_and_says_how_far_it_goes(lines: list[bytes]) -> None:
    verdict = recordfile.verify(lines, key=records.KEY.public)
    assert verdict.whole and not verdict.gaps
    assert verdict.device == records.DEVICE
    assert (verdict.first, verdict.last, verdict.entries) == (0, ENTRIES + 2, ENTRIES + 3)
    assert verdict.head_sequence == verdict.last


async def test_an_export_of_some_days_leaves_the_others_out_and_still_proves_them(tmp_path: Path) -> None:
    async with records.kept(tmp_path) as device:
        await device.begin()
        await device.note(5)
        times = [json.loads(line)["at_ms"] for line in (await device.lines())[1:-1]]
        lines = await device.lines(times[-1] + 1)
    verdict = recordfile.verify(lines, key=records.KEY.public)
    assert verdict.whole and verdict.left_out == 7 and verdict.entries == 1  # what begins a record is always shown
    for number in range(1, len(lines) - 1):
        assert not judged(lines[:number] + lines[number + 1 :])


# --- what is done to it -----------------------------------------------------------------------------------------------

Attack = Callable[[random.Random, list[bytes]], list[bytes]]


def _flip_a_bit(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    number = chance.randrange(len(lines))
    data = bytearray(lines[number])
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return [*lines[:number], bytes(data), *lines[number + 1 :]]


def _edit_a_byte(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    number = chance.randrange(len(lines))
    data = bytearray(lines[number])
    at, how = chance.randrange(len(data)), chance.randrange(3)
    if how == 0:
        data[at] = (data[at] + chance.randrange(1, 256)) % 256
    elif how == 1:
        del data[at]
    else:
        data.insert(at, chance.randrange(256))
    return [*lines[:number], bytes(data), *lines[number + 1 :]]


def _edit_a_field(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    """Change what an entry says and write it down properly, with a hash that fits it, or without."""
    number = chance.randrange(1, len(lines) - 1)
    entry = json.loads(lines[number])
    field = chance.choice([name for name in entry if name not in ("kind", "hash")])
    if isinstance(entry[field], bool):
        entry[field] = not entry[field]
    elif isinstance(entry[field], int):
        entry[field] = max(0, entry[field] + chance.choice([-1000, -1, 1, 1000, 10**9])) ^ 1
    else:
        entry[field] += chance.choice(["x", " ", "\u200b", "é"])
    if chance.random() < 0.5:
        facts = {name: entry[name] for name in chain.Facts.__struct_fields__}
        previous = json.loads(lines[number - 1]).get("hash", chain.ZERO_HASH)
        entry["hash"] = chain.hash_of(previous, entry["sequence"], chain.content_of(chain.Facts(**facts)))
    data = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    return [*lines[:number], data, *lines[number + 1 :]]


def _rewrite_from_here(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    """Change an entry and chain everything after it anew: only the signature of the head is missing."""
    number = chance.randrange(1, len(lines) - 1)
    out = list(lines)
    at = chain.BEFORE_ALL
    for index in range(1, len(lines) - 1):
        entry = json.loads(lines[index])
        if index == number:
            entry["reason"] += "!"
        facts = chain.Facts(**{name: entry[name] for name in chain.Facts.__struct_fields__})
        new = chain.put(at, facts)
        out[index] = recordfile.entry_line(new, True)
        at = new.point
    return out


def _remove(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    first = chance.randrange(len(lines))
    count = chance.randrange(1, min(5, len(lines) - first) + 1)
    return lines[:first] + lines[first + count :]


def _swap(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    one, two = chance.sample(range(len(lines)), 2)
    out = list(lines)
    out[one], out[two] = out[two], out[one]
    return out


def _move(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    out = list(lines)
    source = chance.randrange(len(out))
    line = out.pop(source)
    out.insert(chance.choice([n for n in range(len(out) + 1) if n != source]), line)
    return out


def _duplicate(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    out = list(lines)
    out.insert(chance.randrange(len(out) + 1), chance.choice(lines))
    return out


def _insert(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    """Put in an entry of one's own that follows properly from the one before."""
    number = chance.randrange(2, len(lines))
    before = json.loads(lines[number - 1])
    facts = {name: before[name] for name in chain.Facts.__struct_fields__} | {"reason": "was always here"}
    entry = chain.put(chain.Point(before["sequence"], before["hash"]), chain.Facts(**facts))
    return [*lines[:number], recordfile.entry_line(entry, chance.random() < 0.7), *lines[number:]]


def _hide(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    """Leave an entry out, with another digest in its place."""
    number = chance.randrange(1, len(lines) - 1)
    entry = json.loads(lines[number])
    content = hashlib.sha256(chance.randbytes(8)).hexdigest()
    data = {"kind": "left-out", "content": content, "sequence": entry["sequence"], "hash": entry["hash"]}
    return [*lines[:number], json.dumps(data, separators=(",", ":")).encode() + b"\n", *lines[number + 1 :]]


def _truncate(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    data = b"".join(lines)
    return data[: chance.randrange(len(data))].splitlines(keepends=True)


def _cut_before_the_head(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    return [*lines[: chance.randrange(1, len(lines) - 1)], lines[-1]]


def _shuffle(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    middle = lines[1:-1]
    chance.shuffle(middle)
    return [lines[0], *middle, lines[-1]]


def _begin_again(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    """Drop what came before an entry and put a beginning in its place, as the device does after a loss."""
    number = chance.randrange(2, len(lines) - 1)
    before = json.loads(lines[number - 1])
    facts = {name: json.loads(lines[1])[name] for name in chain.Facts.__struct_fields__}
    older = json.loads(lines[max(1, number - 2)])
    facts["before"] = f"{older['sequence']} {older['hash']}" if number > 2 else ""
    beginning = chain.beginning_of(chain.put(chain.BEFORE_ALL, chain.Facts(**facts)))
    assert beginning is not None
    entry = chain.put(beginning.follows, chain.Facts(**facts), sequence=before["sequence"])
    return [lines[0], recordfile.entry_line(entry, True), *lines[number:]]


ATTACKS: list[Attack] = [
    _flip_a_bit, _edit_a_byte, _edit_a_field, _rewrite_from_here, _remove, _swap, _move, _duplicate, _insert, _hide,
    _truncate, _cut_before_the_head, _shuffle, _begin_again,
]  # fmt: skip


def test_twelve_thousand_random_edits_removals_swaps_insertions_and_cuts_are_all_found(lines: list[bytes]) -> None:
    chance = random.Random(SEED)
    counts: Counter[str] = Counter()
    while counts.total() < CASES:
        attack = chance.choice(ATTACKS)
        spoiled = attack(chance, lines)
        if b"".join(spoiled) == b"".join(lines):
            continue  # two equal lines were exchanged, or all of it was kept
        assert not judged(spoiled), f"seed {SEED}, case {counts.total()}: {attack.__name__}"
        counts[attack.__name__.strip("_")] += 1
    print(f"\nseed {SEED}, {counts.total()} cases, all found: {dict(sorted(counts.items()))}")


def test_the_first_wrong_entry_is_named(lines: list[bytes]) -> None:
    def found(spoiled: list[bytes]) -> tuple[int, str]:
        finding = recordfile.verify(spoiled, key=records.KEY.public).finding
        assert finding is not None
        return finding.sequence, finding.kind

    edited = lines[11].replace(b'"action":"', b'"action":"x', 1)  # line 11 is entry 10
    assert found([*lines[:11], edited, *lines[12:]]) == (10, "edited")
    assert found([*lines[:11], *lines[12:]]) == (10, "missing")
    assert found([*lines[:12], lines[11], *lines[12:]]) == (10, "repeated")
    assert found([*lines[:12], lines[5], *lines[12:]]) == (4, "reordered")
    assert found([*lines[:11], lines[-1]]) == (10, "cut short")
    assert found(lines[:-1]) == (ENTRIES + 3, "cut short")
    assert found([*lines[:11], b"<html>\n", *lines[12:]]) == (10, "unreadable")
    assert found([lines[0], *lines[2:]]) == (0, "missing")


# --- keys and witnesses -----------------------------------------------------------------------------------------------


def test_a_record_forged_whole_and_signed_by_another_key_is_refused_by_the_devices_key(lines: list[bytes]) -> None:
    forger = generate_key()
    entries = [json.loads(line) for line in lines[1:-1]]
    head = chain.Head(
        device=records.DEVICE, sequence=entries[-1]["sequence"], hash=entries[-1]["hash"], at="2027-01-01T00:00:00Z",
        counter=9,
    )  # fmt: skip
    forged = [
        recordfile.header_line(records.DEVICE, forger.public),
        *lines[1:-1],
        recordfile.head_line(chain.sign_head(head, forger)),
    ]
    assert recordfile.verify(forged).whole, "by its own key it fits itself; that proves nothing"
    finding = recordfile.verify(forged, key=records.KEY.public).finding
    assert finding is not None and finding.kind == "foreign"


async def test_an_old_export_is_found_cut_short_by_a_head_that_was_kept_elsewhere(tmp_path: Path) -> None:
    async with records.kept(tmp_path) as device:
        await device.begin()
        await device.note(4)
        old = await device.lines()
        await device.note(3)
        witness = (await device.record.head()).envelope.encode()
        new = await device.lines()
    assert recordfile.verify(new, key=records.KEY.public, witnesses=[witness]).witnesses == 1
    finding = recordfile.verify(old, key=records.KEY.public, witnesses=[witness]).finding
    assert finding is not None and (finding.sequence, finding.kind) == (7, "cut short")


async def test_a_record_that_was_written_anew_with_the_devices_own_key_is_found_by_a_witness(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    async with records.kept(tmp_path / "one") as device:
        await device.begin()
        await device.note(4, seed=1)
        witness = (await device.record.head()).envelope.encode()
    other = await records.exported(tmp_path / "two", 9, seed=2)
    finding = recordfile.verify(other, key=records.KEY.public, witnesses=[witness]).finding
    assert finding is not None and (finding.sequence, finding.kind) == (6, "rewritten")


def test_a_head_signed_as_something_else_is_no_witness(lines: list[bytes]) -> None:
    from lenskeep.trust import envelope

    head = recordfile.Reading(lines).head
    assert head is not None
    import msgspec

    as_report = envelope.seal(msgspec.json.encode(head), envelope.REPORT, records.KEY)
    with pytest.raises(RecordHeadError):
        recordfile.verify(lines, key=records.KEY.public, witnesses=[as_report])


# --- a laptop ---------------------------------------------------------------------------------------------------------

LAPTOP = """
import sys

class NoDevice:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"aiohttp", "aiosqlite", "onnxruntime", "cv2", "numpy", "psutil", "tuf"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoDevice())
from lenskeep.cli.main import main
main()
"""


def test_an_export_verifies_on_a_laptop_that_has_no_device_libraries(tmp_path: Path, lines: list[bytes]) -> None:
    export, key = tmp_path / "record.jsonl", tmp_path / "cam-07.pub"
    export.write_bytes(b"".join(lines))
    key.write_text(records.KEY.public.pem)

    def verify() -> subprocess.CompletedProcess[str]:
        words = ["audit", "verify", str(export), "--key", str(key), "--json"]
        return subprocess.run([sys.executable, "-c", LAPTOP, *words], capture_output=True, text=True, check=False)

    whole = verify()
    assert whole.returncode == 0, whole.stderr
    assert json.loads(whole.stdout)["data"]["whole"] is True
    export.write_bytes(b"".join([*lines[:20], *lines[21:]]))
    spoiled = verify()
    assert spoiled.returncode == 4
    assert json.loads(spoiled.stdout)["data"]["finding"]["sequence"] == 19


@pytest.mark.parametrize("at_ms", [-1, 10**15, 2**63, 2**80])
def test_an_entry_at_a_time_that_no_calendar_has_is_unreadable(lines: list[bytes], at_ms: int) -> None:
    entry = json.loads(lines[5]) | {"at_ms": at_ms}
    spoiled = [*lines[:5], json.dumps(entry, separators=(",", ":")).encode() + b"\n", *lines[6:]]
    finding = recordfile.verify(spoiled).finding
    assert finding is not None and finding.kind == "unreadable"


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"{}\n", b"[" * 100_000, b"\xff\xfe\n", b"<html>", b'{"kind":"record"}\n']
)
def test_a_file_that_is_no_record_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(RecordFormatError):
        recordfile.verify(data.splitlines(keepends=True))
