"""`logs`, `explain`, `history`, `op`: what happened, and what a code means."""

from __future__ import annotations

from typing import Any

import click

from lenskeep.cli.options import slot_option
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.wire import fault_of
from lenskeep.cli.words import EXIT_OF, clean, clean_lines, moment, nearest
from lenskeep.errors import LenskeepError, UnknownNameError, fault_book
from lenskeep.messages.control import Deployment, Event, Operation

LOGGED = ["fault", "camera", "bundle", "operation"]
LIMIT = click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many lines.")


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen, until Ctrl-C.")
@click.option("--faults", is_flag=True, help="Only what went wrong.")
@click.pass_context
def logs(context: click.Context, follow: bool, faults: bool) -> None:
    """Show what happened on the device.

    Since its service started.

    \b
      lenskeep logs
      lenskeep logs -f --faults
      journalctl -u lenskeep              the service's own journal
    """
    client = run_of(context).client()
    if follow:
        for event in client.events(since=0, types=LOGGED):
            if not faults or _is_fault(event):
                emit(context, "event/1", event, lambda screen, event=event: _show_event(screen, event))  # type: ignore[misc]
        return
    kept = [event for event in client.events(since=0, types=LOGGED, follow=False) if not faults or _is_fault(event)]

    def human(screen: Screen) -> None:
        for event in kept:
            _show_event(screen, event)
        if not any(_words(event) for event in kept):
            screen.line("Nothing went wrong since the service started." if faults else "Nothing has happened yet.")

    emit(context, "events/1", kept, human)


def _is_fault(event: Event) -> bool:
    data = event.data if isinstance(event.data, dict) else {}
    return event.type == "fault" or bool(data.get("code")) or data.get("state") in ("failed", "rolled_back")


def _show_event(screen: Screen, event: Event) -> None:
    text = _words(event)
    if text:
        code = screen.mark("bad" if _is_fault(event) else "info")
        screen.line(f"{moment(event.at, seconds=True):15} {code} {text}")


def _words(event: Event) -> str:
    """Say an event on one line; an operation's progress and a camera's counts are no news."""
    data: dict[str, Any] = event.data if isinstance(event.data, dict) else {}
    words = {name: clean(value) for name, value in data.items() if isinstance(value, str)}
    if event.type == "fault":
        return f"slot {words.get('slot', '')}: {words.get('code', '')} {words.get('message', '')}"
    if event.type == "camera":
        return f"camera {words.get('name', '')} {words.get('state', '')} {words.get('code', '')}".rstrip()
    if event.type == "bundle":
        return f"{words.get('bundle', '')} {words.get('state', '')} {words.get('code', '')}".rstrip()
    if event.type == "operation" and (data.get("progress") is None or data.get("state") != "running"):
        error = data.get("error") or {}
        why = f": {clean(error.get('code', ''))} {clean(error.get('detail', ''))}" if error else ""
        state = "begun" if words.get("state") == "running" else words.get("state", "").replace("_", " ")
        by = f" by {words['by']}" if words.get("by") else ""
        return f"{words.get('kind', '')} {words.get('subject', '')} {state}{by}{why}"
    return ""


@click.command()
@click.argument("code", required=False)
@click.pass_context
def explain(context: click.Context, code: str | None) -> None:
    """Explain a fault code in plain words.

    Works without a device.

    \b
      lenskeep explain LK-8001
      lenskeep explain 8001
      lenskeep explain                   every code on one line
    """
    book = fault_book()
    if code is None:
        rows = [[known, fault.title()] for known, fault in book.items()]
        data = [_fault_data(fault) for fault in book.values()]
        emit(context, "faults/1", data, lambda screen: screen.table(rows, ["CODE", "WHAT IT MEANS"]))
        return
    wanted = "LK-" + code.upper().removeprefix("LK").lstrip("-")
    if wanted not in book:
        raise UnknownNameError(
            f"No fault has the code {code!r}.{nearest(wanted, list(book))}", hint="lenskeep explain lists all."
        )
    fault = book[wanted]
    emit(context, "fault/1", _fault_data(fault), lambda screen: _show_fault(screen, fault))


def _fault_data(fault: type[LenskeepError]) -> dict[str, Any]:
    return {
        "code": fault.code, "title": fault.title(), "explanation": fault.explanation(), "hint": fault.hint,
        "retryable": fault.retryable,
        "exit": int(next(EXIT_OF[kind] for kind in fault.__mro__ if kind in EXIT_OF)),
    }  # fmt: skip


def _show_fault(screen: Screen, fault: type[LenskeepError]) -> None:
    screen.line(f"{screen.style(fault.code, 'strong')}  {fault.title()}")
    screen.line("")
    screen.line(fault.explanation())
    screen.line("")
    screen.line(f"{screen.style('Fix:', 'strong')} {fault.hint}")
    if fault.retryable:
        screen.line("Trying again later may help.")


@click.command()
@LIMIT
@slot_option
@click.pass_context
def history(context: click.Context, limit: int, slot: str | None) -> None:
    """Show what ran when, why and by whom.

    Newest first.

    \b
      lenskeep history
      lenskeep history --limit 100
      lenskeep history --slot left --json
    """
    rows = run_of(context).client().deployments(limit=limit, slot=slot)
    emit(context, "history/1", rows, lambda screen: _show_history(screen, rows))


def _show_history(screen: Screen, rows: list[Deployment]) -> None:
    if not rows:
        screen.line("Nothing has run here yet.")
        return
    header = ["FROM", "TO", "SLOT", "VERSION", "OUTCOME", "BY", "WHY"]
    cells = [
        [
            moment(row.started, seconds=True), moment(row.ended, seconds=True) if row.ended else "now", row.slot,
            row.bundle, row.outcome.replace("_", " "), row.by, row.reason,
        ]
        for row in rows
    ]  # fmt: skip
    screen.table(cells, header)


@click.group()
def op() -> None:
    """List and follow long work.

    \b
      lenskeep op list
      lenskeep op show 3f9a0c1b22d4
      lenskeep op show 3f9a0c1b22d4 --follow
    """


@op.command("list")
@LIMIT
@click.pass_context
def list_(context: click.Context, limit: int) -> None:
    """List long work, newest first.

    \b
      lenskeep op list
      lenskeep op list --limit 100
      lenskeep op list --json
    """
    rows = run_of(context).client().operations()[:limit]

    def human(screen: Screen) -> None:
        cells = [
            [row.id, row.kind, row.subject, row.state.replace("_", " "), moment(row.started), row.by] for row in rows
        ]
        screen.table(cells, ["ID", "WHAT", "ON", "STATE", "BEGUN", "BY"])

    emit(context, "operations/1", rows, human)


@op.command()
@click.argument("operation_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Wait for its end.")
@click.pass_context
def show(context: click.Context, operation_id: str, follow: bool) -> None:
    """Show one piece of long work, or wait for its end.

    \b
      lenskeep op show 3f9a0c1b22d4
      lenskeep op show 3f9a0c1b22d4 --follow
      lenskeep op show 3f9a0c1b22d4 --json
    """
    run = run_of(context)
    client = run.client()
    operation = client.operation(operation_id)
    if follow and operation.state == "running":
        operation = run.follow(client, operation)
    emit(context, "operation/1", operation, lambda screen: _show_operation(screen, operation))


def _show_operation(screen: Screen, operation: Operation) -> None:
    state = operation.state.replace("_", " ")
    screen.line(f"{clean(operation.kind)} {clean(operation.subject)}: {state}")
    if operation.waits:
        screen.line(f"  It waits: {clean(operation.waits)}")
    screen.line(f"  begun {moment(operation.started)} by {clean(operation.by)}")
    if operation.finished:
        screen.line(f"  ended {moment(operation.finished)}")
    elif operation.progress is not None:
        now = operation.progress
        screen.line(f"  {clean(now.stage)} {now.done} of {now.total or '?'} {clean(now.unit)}".rstrip())
    if operation.error is not None:
        fault = fault_of(operation.error)
        screen.line(f"  {screen.style(clean(fault.code), 'bad')} {clean_lines(str(fault))}")
        screen.line(f"  {screen.style('Fix:', 'strong')} {clean(fault.hint)}")
