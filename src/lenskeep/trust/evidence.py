"""A record as people read, print and file it: an evidence pack in HTML, and a table in CSV.

Rules. Every text is a stranger's: it is escaped, and letters that hide, turn round or steer are shown as what they are.
The page loads nothing, runs nothing and needs nothing but itself. It is made of entries that were verified; it proves
nothing by itself: the export that it was made of does.
"""

from __future__ import annotations

import csv
import html
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct

from lenskeep.clock import rfc3339
from lenskeep.messages.record import RecordVerdict
from lenskeep.trust.chain import BEGIN, Entry
from lenskeep.trust.identity import fingerprint

_SIGNED = re.compile(r"signed by (.{1,200}), digest ([0-9a-f]{64})")
_LONG = re.compile(r"\S{16}(?=\S{4})")
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
# A cell that begins so is taken for a formula by some spreadsheet.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "|", "%")

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#16202a;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .2rem}
h2{font-size:1.15rem;margin:2rem 0 .4rem;border-bottom:1px solid #b8c2cc}
table{border-collapse:collapse;width:100%;font-size:.86rem}
th,td{text-align:left;vertical-align:top;padding:.25rem .5rem .25rem 0;border-bottom:1px solid #dde3e8}
td{unicode-bidi:isolate}
th,dt{color:#4a5763}
.good,.bad,.open{padding:.6rem .8rem;border-left:.4rem solid;margin:1rem 0}
.good{border-color:#1b7f4b;background:#e9f6ef}
.bad{border-color:#b3261e;background:#fbeae9}
.open{border-color:#8a6100;background:#fdf3dc}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}
dd{margin:0;overflow-wrap:anywhere}
@media print{
body{margin:0;max-width:none;font-size:10pt}h2{break-after:avoid}tr{break-inside:avoid}
thead{display:table-header-group}
}
"""

Row = tuple[str, ...]
Picks = Callable[[Entry], bool]


class Run(Struct, kw_only=True):
    """A time span in which a version was active in a slot."""

    slot: str
    bundle: str
    begun: str
    ended: str = ""
    outcome: str = ""


def shown(text: str) -> str:
    """Return a stranger's text with every letter visible that would not be seen."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in _HIDDEN else letter
        for letter in text
    )


def _escaped(text: str) -> str:
    return html.escape(shown(text), quote=True)


def _cell(text: str) -> str:
    """Escape a text; a long word may be broken where the line ends, a short one is not."""
    marked = _LONG.sub(lambda part: f"{part[0]}\0", shown(text))  # what is shown holds no NUL of its own
    return html.escape(marked, quote=True).replace("\0", "<wbr>")


def at(entry: Entry) -> str:
    """Say when, and with a question mark when the clock could not be right."""
    return rfc3339(entry.at_ms / 1000).replace("T", " ") + ("" if entry.clock_trusted else " (clock not set)")


# --- the pack ---------------------------------------------------------------------------------------------------------


def pack(entries: Sequence[Entry], verdict: RecordVerdict, *, key_given: bool) -> Iterator[str]:
    """Yield the evidence pack, piece by piece.

    Args:
        key_given: the device's key came from elsewhere; else it is the one that the export itself names.
    """
    title = f"Record of {_escaped(verdict.device)}"
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>\n<style>{STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n"
    )
    yield _verdict_part(verdict, key_given)
    signers = _signers(entries)
    yield _table(
        "What ran", ("Slot", "Version", "From", "To", "How it ended", "Signed by", "Digest"),
        ((run.slot, _ref(run.bundle), run.begun, run.ended or "still runs", run.outcome, *_signer(run.bundle, signers))
         for run in runs(entries)),
    )  # fmt: skip
    for heading, picks in SECTIONS:
        yield _entries_part(heading, [entry for entry in entries if picks(entry)])
    yield _table(
        "Every entry", ("No", "When (UTC)", "Who", "What", "On", "Why", "Before", "After", "Hash"),
        ((str(e.sequence), at(e), e.actor, e.action, e.subject, e.reason, e.before, e.after, e.hash[:16])
         for e in entries),
    )  # fmt: skip
    yield "</body></html>\n"


def _verdict_part(verdict: RecordVerdict, key_given: bool) -> str:
    if verdict.whole and not key_given:
        said = (
            "The entries fit each other and the key in the export. Whether that is the device's key is not proved here."
        )
    elif verdict.whole:
        said = "Verified: no entry was changed, removed, moved or added, and none is missing at the end."
    elif verdict.finding is not None:
        said = (
            f"NOT WHOLE. First wrong: entry {verdict.finding.sequence} ({verdict.finding.kind}). {verdict.finding.text}"
        )
    else:
        lost = ", ".join(f"{gap.first} to {gap.last} (noted {gap.noted}: {gap.text})" for gap in verdict.gaps)
        said = f"NOT COMPLETE. Entries are lost, as the device noted itself: {lost}. All others are verified."
    origin = "given by the verifier" if key_given else "taken from the export itself: compare the fingerprint"
    facts = {
        "Device": verdict.device,
        "Entries": f"{verdict.first} to {verdict.last}: {verdict.entries} shown, {verdict.left_out} left out"
        " (their digests are in the export, the chain was verified with them)",
        "Signed by the device": f"up to entry {verdict.head_sequence}, {verdict.head_at}",
        "Heads kept elsewhere that fit": str(verdict.witnesses),
        "Key": f"{fingerprint(verdict.key_id)}, {origin}",
        "Key id": verdict.key_id,
    }
    rows = "".join(f"<dt>{_cell(name)}</dt><dd>{_cell(value)}</dd>" for name, value in facts.items())
    look = "good" if verdict.whole and key_given else "open" if verdict.whole else "bad"
    return f'<p class="{look}">{_cell(said)}</p>\n<dl>{rows}</dl>\n'


def _entries_part(heading: str, entries: list[Entry]) -> str:
    return _table(
        heading, ("No", "When (UTC)", "Who", "What", "On", "Why", "Before", "After"),
        ((str(e.sequence), at(e), e.actor, e.action, e.subject, e.reason, e.before, e.after) for e in entries),
    )  # fmt: skip


def _table(heading: str, head: Sequence[str], rows: Iterable[Row]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    if not body:
        return f"<h2>{_cell(heading)}</h2>\n<p>None in this time.</p>\n"
    columns = "".join(f"<th>{_cell(name)}</th>" for name in head)
    return f"<h2>{_cell(heading)}</h2>\n<table><thead><tr>{columns}</tr></thead><tbody>\n{body}</tbody></table>\n"


# --- what the entries mean --------------------------------------------------------------------------------------------


def runs(entries: Iterable[Entry]) -> list[Run]:
    """Return what ran in each slot from when to when, oldest first."""
    open_runs: dict[str, Run] = {}
    found: list[Run] = []
    for entry in entries:
        if not entry.subject.startswith("slot "):
            continue
        now, slot = open_runs.get(entry.subject), entry.subject.removeprefix("slot ")
        if entry.action in ("swapped", "rollback"):
            if now is not None:
                now.ended = at(entry)
                now.outcome = f"taken back: {entry.reason}" if entry.action == "rollback" else now.outcome or "replaced"
            open_runs[entry.subject] = run = Run(slot=slot, bundle=entry.after, begun=at(entry))
            found.append(run)
        elif entry.action == "stop" and now is not None:
            now.ended, now.outcome = at(entry), f"stopped: {entry.reason}"
            del open_runs[entry.subject]
        elif entry.action == "confirm" and now is not None:
            now.outcome = f"kept by {entry.actor}"
    return found


def _ref(said: str) -> str:
    return said.partition(" ")[0]


def _signers(entries: Iterable[Entry]) -> dict[str, tuple[str, str]]:
    signers = {}
    for entry in entries:
        if entry.action == "import" and (match := _SIGNED.search(entry.reason)):
            signers[entry.subject] = (match[1], match[2])
    return signers


def _signer(said: str, signers: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """Return who signed a version and its digest; what the entry itself says goes before the import's words."""
    name, digest = signers.get(_ref(said), ("", ""))
    words = said.split(" ")
    return name, words[words.index("bundle") + 1] if "bundle" in words[:-1] else digest


def _is(*actions: str) -> Picks:
    return lambda entry: entry.action in actions


def _has(*parts: str) -> Picks:
    return lambda entry: any(part in entry.action for part in parts)


def _decides(entry: Entry) -> bool:
    return entry.action in DECISIONS and (entry.action != "stop" or entry.subject != "device")


DECISIONS = {
    "activate", "not activated", "confirm", "rollback", "hold", "resume", "pin", "unpin", "remove", "withdraw", "stop",
}  # fmt: skip
SECTIONS: list[tuple[str, Picks]] = [
    ("Decisions", _decides),
    ("Approvals", _has("approv")),
    ("Assignments of the fleet", _has("assign")),
    ("Imports and trials on this device", _is("import", "trial")),
    ("Refusals", lambda entry: entry.action.startswith("refuse") or "refused" in entry.action + entry.after),
    ("Keys, tokens and rights", _has("key", "token", "trust", "repository", "enrol", "certificate", "polic")),
    ("The device itself", lambda entry: entry.subject == "device" or entry.action == BEGIN),
]


# --- the table --------------------------------------------------------------------------------------------------------

COLUMNS = (
    "sequence", "at", "clock_trusted", "actor", "action", "subject", "reason", "before", "after", "monotonic_ms",
    "boot", "hash",
)  # fmt: skip


def csv_head() -> str:
    """Return the first line of the table."""
    return _csv(COLUMNS)


def csv_line(entry: Entry) -> str:
    """Return an entry as a line of the table; no cell can be taken for a formula."""
    return _csv((
        str(entry.sequence), rfc3339(entry.at_ms / 1000), "yes" if entry.clock_trusted else "no", entry.actor,
        entry.action, entry.subject, entry.reason, entry.before, entry.after, str(entry.monotonic_ms), entry.boot,
        entry.hash,
    ))  # fmt: skip


def _csv(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerow([_harmless(cell) for cell in cells])
    return line.getvalue()


def _harmless(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet would compute, also behind blanks; show what would not be seen."""
    said = shown(cell)
    return f"'{said}" if said.lstrip().startswith(_FORMULA) or cell[:1] in ("\t", "\r", "\n") else said
