"""How the `trust` commands speak to holders of keys. Names and reasons are strangers' text: all of it is cleaned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lenskeep.cli.output import Screen
from lenskeep.cli.words import clean, plural, size
from lenskeep.errors import AnswerRefusedError, KeepingError, OnlineKeyMissingError
from lenskeep.trust.keeping import ceremony, describing
from lenskeep.trust.keeping.ceremony import Request
from lenskeep.trust.keeping.forecast import Due, RoleStatus, Status, Waiting
from lenskeep.trust.keeping.settling import Settled

DAY_S = 86400.0
_LISTED_MAX = 40


def show_done(screen: Screen, done: Any, folder: Path) -> None:
    """Say what a command did, or would do."""
    for line in done.did:
        screen.line(f"{screen.mark('good')} {clean(line)}")
    if done.in_place:
        screen.line(f"{screen.mark('good')} In force: {', '.join(done.in_place)}.")
    if done.renewed:
        screen.line(f"{screen.mark('good')} Signed online: {', '.join(done.renewed)}. Devices see it from now on.")
    for waiting in done.waiting:
        _show_waiting(screen, waiting, folder)
    for sentence in done.held_back:
        if "lacks signatures" in sentence:
            continue  # said above, with names
        screen.line(f"{screen.mark('info')} {clean(sentence)}")
    if done.dry_run:
        screen.line(f"Dry run: nothing was written; {plural(len(done.files), 'file')} would change.")
        for name in done.files[:_LISTED_MAX]:
            screen.line(f"  {clean(name)}")
    elif done.refresh_needed:
        screen.next(f"lenskeep trust refresh --repository {clean(folder)} --key ONLINE-KEY   so that devices see it")


def _show_waiting(screen: Screen, waiting: Waiting, folder: Path) -> None:
    urgent = ", urgent" if waiting.urgent else ""
    screen.line(f"{screen.mark('warn')} {waiting.role} {waiting.version} waits{urgent}: {clean(waiting.text)}")
    screen.line(f"    request for the holders: {clean(folder / waiting.request)}")
    screen.line(f"    its words, to be compared by telephone: {waiting.spoken}")


def show_request(say: Callable[[str], None], request: Request) -> None:
    """Show a holder what is to be signed."""
    document = request.document
    say(
        f"You are asked to sign {document.role} {document.version}" + (f": {clean(request.why)}" if request.why else "")
    )
    for line in describing.describe(document, request.present):
        say(f"  {clean(line)}")
    say(f"  {clean(describing.progress(request.tallies, document.role))}")
    say("Read these words to the other holders by telephone; they must be the same everywhere:")
    say(f"    {ceremony.spoken(document.digest)}")


def show_status(screen: Screen, status: Status, now_s: float) -> None:
    """Show a repository on one screen."""
    screen.table(
        [_row(role, now_s) for role in status.roles], ["ROLE", "VERSION", "SIGNED BY", "MAY SIGN", "GOOD UNTIL"]
    )
    for problem in status.problems:
        screen.line(f"{screen.mark('bad')} {clean(problem)}")
    for waiting in status.waiting:
        screen.line("")
        _show_waiting(screen, waiting, Path())
        screen.lines(f"      {clean(line)}" for line in waiting.changes)
    if status.forecast:
        screen.line("")
        screen.line(screen.style("What has to be done, by when", "strong"))
        screen.lines(_due(screen, due) for due in status.forecast)
    _show_versions(screen, status)


def _show_versions(screen: Screen, status: Status) -> None:
    screen.line("")
    screen.line(screen.style(f"Released: {plural(len(status.released), 'version')}", "strong"))
    for listed in status.released[:_LISTED_MAX]:
        screen.line(
            f"  {clean(listed.version)}  by {listed.role}  {size(listed.length_bytes)}  {clean(listed.sha256[:16])}…"
        )
    if len(status.released) > _LISTED_MAX:
        screen.line(f"  … and {len(status.released) - _LISTED_MAX} more (--json has them all)")
    for gone in status.withdrawn[:_LISTED_MAX]:
        screen.line(f"  withdrawn: {clean(gone.version)}  {gone.at[:10]}  {clean(gone.reason)}")
    shared = f", their list shared out to {status.bins} files" if status.bins else ""
    screen.line(f"Assigned: {plural(status.devices, 'device')}{shared}")


def _row(role: RoleStatus, now_s: float) -> list[str]:
    names = ", ".join(key.name or key.id[:12] for key in role.keys)
    days = (role.expires_s - now_s) / DAY_S
    until = f"{role.expires[:10]} ({days:.0f} d)" if role.version else "not signed yet"
    version = (
        str(role.version) if role.published in (0, role.version) else f"{role.version} (devices: {role.published})"
    )
    return [role.role, version, f"{role.threshold} of {names}", " ".join(role.paths), until]


def _due(screen: Screen, due: Due) -> str:
    mark = screen.mark("bad") if due.overdue else screen.mark("info")
    return f"{mark} by {due.act_by[:10]} (ends {due.expires[:10]}): {clean(due.text)}"


def not_renewed(settled: Settled) -> KeepingError:
    """Return why a refresh did not sign anything."""
    why = " ".join(settled.waiting)
    return OnlineKeyMissingError(f"These keys are not enough for snapshot and timestamp. {why}".strip())


def answers_refused(refused: Sequence[str]) -> KeepingError:
    """Return the fault for answers that were not taken; good ones were."""
    return AnswerRefusedError("\n".join(refused))
