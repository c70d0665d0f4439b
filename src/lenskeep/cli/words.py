"""How the command line speaks: exit codes, and times, sizes and strangers' text as people read them."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from enum import IntEnum

from lenskeep.errors import (
    ApprovalExpiredError,
    ApprovalMismatchError,
    ApprovalRefusedError,
    ApprovalVoidError,
    BundleError,
    ConfigError,
    ConflictError,
    CrashedInProbationError,
    CrashLoopError,
    DaemonUnreachableError,
    ErrorRateGateError,
    IdempotencyError,
    IdentityError,
    InUseError,
    LatencyGateError,
    LenskeepError,
    NotConfirmedError,
    NotPermittedError,
    NotSignedInError,
    OutcomeShiftGateError,
    PreconditionError,
    QualificationError,
    RecordError,
    RepositoryBusyError,
    RepositoryFolderError,
    RequestError,
    SlotError,
    SlotLockedError,
    StorageFullError,
    SwapRefusedError,
    TimedOutError,
    TrustError,
    UnknownNameError,
)

_FAR = re.compile(r"[^\x20-\x7e\n]")


class Exit(IntEnum):
    """What a script learns without reading a word; `lenskeep help exit-codes` prints this list."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    NOT_FOUND = 5
    CONFLICT = 6
    NOT_PERMITTED = 7
    GATE = 8
    ROLLED_BACK = 9
    STILL_RUNNING = 10
    AWAITS_APPROVAL = 11
    INTERRUPTED = 130


EXIT_WORDS: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.FAILED: "failed",
    Exit.USAGE: "the command line is wrong",
    Exit.UNREACHABLE: "the Lenskeep service does not answer",
    Exit.REFUSED: "the bundle was refused: signature, digest, trust or layout",
    Exit.NOT_FOUND: "nothing has that name",
    Exit.CONFLICT: "something else is in the way: busy, in use, or changed meanwhile",
    Exit.NOT_PERMITTED: "not permitted, or a sign-in is needed",
    Exit.GATE: "a gate on this device said no; nothing was changed",
    Exit.ROLLED_BACK: "it was activated and took itself back",
    Exit.STILL_RUNNING: "it takes longer than was waited for and goes on by itself",
    Exit.AWAITS_APPROVAL: "it was asked for and waits for the approval of other people",
    Exit.INTERRUPTED: "interrupted",
}

# The nearest entry up the fault's own tree counts.
EXIT_OF: dict[type[LenskeepError], Exit] = {
    LenskeepError: Exit.FAILED,
    RequestError: Exit.USAGE,
    UnknownNameError: Exit.NOT_FOUND,
    ConflictError: Exit.CONFLICT,
    PreconditionError: Exit.CONFLICT,
    IdempotencyError: Exit.CONFLICT,
    NotSignedInError: Exit.NOT_PERMITTED,
    NotPermittedError: Exit.NOT_PERMITTED,
    SlotLockedError: Exit.NOT_PERMITTED,
    ApprovalMismatchError: Exit.CONFLICT,
    ApprovalRefusedError: Exit.NOT_PERMITTED,
    ApprovalExpiredError: Exit.CONFLICT,
    ApprovalVoidError: Exit.CONFLICT,
    BundleError: Exit.REFUSED,
    TrustError: Exit.REFUSED,
    RepositoryBusyError: Exit.CONFLICT,
    RepositoryFolderError: Exit.NOT_FOUND,
    RecordError: Exit.REFUSED,
    IdentityError: Exit.REFUSED,
    QualificationError: Exit.GATE,
    StorageFullError: Exit.GATE,
    SwapRefusedError: Exit.GATE,
    SlotError: Exit.CONFLICT,
    InUseError: Exit.CONFLICT,
    ErrorRateGateError: Exit.ROLLED_BACK,
    LatencyGateError: Exit.ROLLED_BACK,
    OutcomeShiftGateError: Exit.ROLLED_BACK,
    CrashedInProbationError: Exit.ROLLED_BACK,
    NotConfirmedError: Exit.ROLLED_BACK,
    CrashLoopError: Exit.ROLLED_BACK,
    DaemonUnreachableError: Exit.UNREACHABLE,
    TimedOutError: Exit.STILL_RUNNING,
    ConfigError: Exit.FAILED,
}


def exit_of(error: LenskeepError) -> Exit:
    """Return the exit code of a fault."""
    return next(EXIT_OF[kind] for kind in type(error).__mro__ if kind in EXIT_OF)


def clean(text: object) -> str:
    """Show a stranger's text on one line; nothing in it can move the cursor, colour, hide or turn letters round."""
    said = str(text)
    if said.isprintable() and said.isascii():
        return said
    return "".join(letter if _harmless(letter) else _escaped(letter) for letter in said)


def clean_lines(text: str) -> str:
    """Show a stranger's text of several lines; only line breaks and tabs keep their meaning."""
    return "\n".join(clean(line.expandtabs(4)) for line in text.splitlines())


def clean_json(text: str) -> str:
    """Write the same JSON so that a terminal shows it and does not obey it."""
    return _FAR.sub(lambda match: match[0] if _harmless(match[0]) else _json_escaped(match[0]), text)


def _json_escaped(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def _harmless(letter: str) -> bool:
    """Control, format (bidi, zero width), surrogate, private and line-separator letters are shown as escapes."""
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def size(count_bytes: float) -> str:
    """Say a number of bytes: `812 B`, `14.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count_bytes < 1000 or unit == "GB":
            return f"{count_bytes:.0f} {unit}" if unit == "B" or count_bytes >= 100 else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1000
    raise AssertionError("the last unit returns")


def milliseconds(value: float) -> str:
    """Say a duration: `8.4 ms`, `27 ms`, `1.2 s`."""
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def count(number: int) -> str:
    """Say a large number in groups of three: `12 404`."""
    return f"{number:,}".replace(",", " ")


def span(seconds: float) -> str:
    """Say how long: `45 s`, `12 min`, `3 h`, `9 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def short(text: str, length_max: int = 40) -> str:
    """Return a text that fits a column; the whole of it is in the JSON form."""
    return text if len(text) <= length_max else text[: length_max - 1] + "…"


def moment(text: str, now: datetime | None = None, *, seconds: bool = False) -> str:
    """Say an RFC 3339 time in local time: `06:02 today`, `18 Nov 06:02`, `18 Nov 2025`."""
    if not text:
        return "never"
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    except ValueError:
        return clean(text)
    now = (now or datetime.now().astimezone()).astimezone()
    if at.date() == now.date():
        return f"{at:%H:%M:%S} today" if seconds else f"{at:%H:%M} today"
    return f"{at:%d %b %H:%M}" if at.year == now.year else f"{at:%d %b %Y}"


def plural(number: int, one: str, many: str = "") -> str:
    """Say a number with its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def nearest(word: str, known: list[str]) -> str:
    """Say ` Did you mean ...?` when a known word is close, else nothing."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
