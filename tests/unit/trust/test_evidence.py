"""The record for people: a page that can be printed and does nothing, and a table that no spreadsheet computes."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser

import pytest

from lenskeep.messages.record import RecordFinding, RecordVerdict
from lenskeep.trust import chain, evidence
from lenskeep.trust.chain import Entry

DIGEST = "b7" * 32
HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><script>", "' onmouseover='x", "&lt;b&gt;",
    "\u202egnp.exe\u202c", "a\u200bb", "\x1b[31mred", "<!--", "]]>", "javascript:alert(1)", "line\nbreak",
]  # fmt: skip
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =HYPERLINK(0)", "＝1", "|cmd", "%0A=1"]


def entries(*facts: tuple[str, str, str, str, str]) -> list[Entry]:
    """Entries of (actor, action, subject, reason, after), a minute apart."""
    found: list[Entry] = []
    at = chain.BEFORE_ALL
    for number, (actor, action, subject, reason, after) in enumerate(facts):
        said = chain.Facts(
            at_ms=1_795_154_400_000 + number * 60_000, monotonic_ms=number, boot="", clock_trusted=number != 3,
            actor=actor, action=action, subject=subject, reason=reason, before="", after=after,
        )  # fmt: skip
        found.append(chain.put(at, said))
        at = found[-1].point
    return found


def verdict(**changes: object) -> RecordVerdict:
    facts: dict[str, object] = {
        "whole": True, "device": "cam-07", "first": 0, "last": 9, "entries": 10, "left_out": 0, "head_sequence": 9,
        "head_at": "2026-11-20T06:12:00Z", "key_id": "ab" * 32,
    }  # fmt: skip
    return RecordVerdict(**(facts | changes))  # type: ignore[arg-type]


def page(found: list[Entry], **changes: object) -> str:
    return "".join(evidence.pack(found, verdict(**changes), key_given=True))


LIFE = [
    ("device", "begin record", "cam-07", "a new record", "key ab"),
    ("unix:anna", "import", "cap@1.0.0", f"signed by plant, digest {DIGEST}", "imported"),
    ("unix:anna", "trial", "cap@1.0.0", "passed", "qualified: passed"),
    ("unix:anna", "activate", "slot main", "new caps", "cap@1.0.0"),
    ("device", "swapped", "slot main", "4 ms between two results", "cap@1.0.0"),
    ("device", "confirm", "slot main", "probation passed", "cap@1.0.0"),
    ("unix:ben", "refuse import", "bundle file", "LK-4001 unknown signer", "refused"),
    ("device", "swapped", "slot main", "4 ms", f"cap@1.1.0 bundle {'cd' * 32} model {'ef' * 32}"),
    ("unix:ben", "rollback", "slot main", "too many NG", "cap@1.0.0"),
    ("fleet", "approve", "slot main", "release", "2 of 2"),
]


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.text += "" if tag == "wbr" else "\n"
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_ran_is_told_from_when_to_when_with_signer_digest_and_end() -> None:
    runs = evidence.runs(entries(*LIFE))
    assert [(run.slot, run.bundle.split()[0], run.outcome) for run in runs] == [
        ("main", "cap@1.0.0", "kept by device"),
        ("main", "cap@1.1.0", "taken back: too many NG"),
        ("main", "cap@1.0.0", ""),
    ]
    assert (runs[0].ended, runs[1].ended, runs[2].ended) == (runs[1].begun, runs[2].begun, "")
    text = Seen(page(entries(*LIFE))).text
    assert "plant" in text and DIGEST in text and "cd" * 32 in text


def test_the_pack_holds_decisions_approvals_trials_refusals_and_the_keys_fingerprint() -> None:
    text = Seen(page(entries(*LIFE))).text
    for said in ("Decisions", "Approvals", "2 of 2", "LK-4001 unknown signer", "Verified", "too many NG", "ab" * 32):
        assert said in text
    assert evidence.fingerprint("ab" * 32) in text
    assert "(clock not set)" in text


def test_a_record_that_is_not_whole_is_said_to_be_so_at_the_top() -> None:
    finding = RecordFinding(sequence=5, kind="edited", text="It was changed.")
    text = page(entries(*LIFE), whole=False, finding=finding)
    assert "NOT WHOLE" in text and "entry 5 (edited)" in text and "Verified" not in text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_in_an_evidence_pack_is_shown_and_does_nothing(hostile: str) -> None:
    found = entries((hostile, hostile, hostile, hostile, hostile), (hostile, "swapped", "slot " + hostile, "", hostile))
    plain = Seen(page(entries(*LIFE)))
    seen = Seen(page(found, device=hostile))
    assert seen.tags <= plain.tags | {"table", "td", "wbr"}
    assert seen.attributes == plain.attributes
    assert not seen.tags & {"script", "img", "a", "iframe", "link", "form", "object"}
    assert all(letter.isprintable() or letter == "\n" for letter in seen.text)


def test_a_pack_loads_and_runs_nothing() -> None:
    text = page(entries(*LIFE))
    assert "default-src 'none'" in text
    for word in ("<script", "http://", "https://", "url(", "@import", "onload", "<link", "<a "):
        assert word not in text


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_formula_in_the_record_is_text_in_the_table(formula: str) -> None:
    [entry] = entries((formula, "activate", formula, formula, formula))
    [row] = csv.reader(io.StringIO(evidence.csv_line(entry)))
    assert len(row) == len(evidence.COLUMNS)
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@", "＝", "|", "%")) for cell in row)


def test_a_text_with_quotes_commas_and_lines_stays_one_cell() -> None:
    [entry] = entries(("unix:anna", "activate", "slot main", 'he said "go", then\r\nleft', ""))
    [row] = csv.reader(io.StringIO(evidence.csv_line(entry)))
    assert row[evidence.COLUMNS.index("reason")] == 'he said "go", then\\r\\nleft'


def test_a_pack_without_the_devices_key_from_elsewhere_does_not_call_itself_verified() -> None:
    text = "".join(evidence.pack(entries(*LIFE), verdict(), key_given=False))
    assert "Verified:" not in text and "is not proved here" in text and "compare the fingerprint" in text
