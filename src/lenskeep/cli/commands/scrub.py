"""`scrub`: are the stored files still what was stored?"""

from __future__ import annotations

import click

from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import Exit, clean, plural, size, span
from lenskeep.messages.control import ScrubView

WAIT_S = 24 * 3600.0


@click.command()
@click.option("--now", is_flag=True, help="Read everything now and wait for the end.")
@click.pass_context
def scrub(context: click.Context, now: bool) -> None:
    """Show whether the stored files are whole, or read them all now.

    The device reads every stored file slowly, again and again, beside the line. A damaged file is set aside and never
    run. Importing its bundle again makes it whole.

    \b
      lenskeep scrub
      lenskeep scrub --now
      lenskeep scrub --json
    """
    run = run_of(context)
    client = run.client()
    if now:
        run.follow(client, client.start_scrub(), WAIT_S)
    view = client.scrub()
    emit(context, "scrub/1", view, lambda screen: _show(screen, view))
    if view.damaged:
        context.exit(int(Exit.FAILED))


def _show(screen: Screen, view: ScrubView) -> None:
    last = f"last read through {view.finished}" if view.finished else "not read through yet"
    screen.line(f"{plural(view.files_total, 'stored file')}, {last}.")
    if view.state == "resting":
        screen.line(f"The next reading begins in {span(view.next_s)} of service.")
    else:
        why = f", paused: {view.reason}" if view.reason else ""
        screen.line(f"Reading: {view.files_done} of {view.files_total} files, {size(view.bytes_done)}{why}.")
    if not view.damaged:
        screen.line(f"{screen.mark('good')} No damage is known.")
    for one in view.damaged:
        names = clean(", ".join(one.bundles)) or "no version"
        screen.line(f"{screen.mark('bad')} {names}: {one.kind} {one.file[:16]} is {one.what}, found {one.found}.")
        screen.line("  Fix: import the bundle again; if that happens twice, replace the disk or card.")
