"""`approvals`, `approve`, `refuse`: what waits for people, and their word on it."""

from __future__ import annotations

from typing import Any

import click

from lenskeep.cli.client import Client
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import clean, moment, plural
from lenskeep.errors import UnknownNameError
from lenskeep.messages.control import Approval, RefuseRequest, SignRequest

MEANINGS = ("review", "approval", "responsibility")


@click.command()
@click.option("--all", "everything", is_flag=True, help="With those that have ended, and how.")
@click.pass_context
def approvals(context: click.Context, everything: bool) -> None:
    """List what waits for people's approval.

    \b
      lenskeep approvals
      lenskeep approvals --all
      lenskeep approve 1f3a9c20 --meaning approval --reason "validated, report 17"
    """
    found = run_of(context).client().approvals(everything=everything)
    emit(context, "approvals/1", found, lambda screen: _show(screen, found))


def _show(screen: Screen, found: list[Approval]) -> None:
    if not found:
        screen.line("Nothing waits for approval.")
        return
    for one in found:
        screen.line(
            f"{screen.style(clean(one.id), 'strong')}  {clean(one.bundle)} in slot {clean(one.slot)}  {_state(one)}"
        )
        screen.line(f"  sha256:{clean(one.digest)}")
        why = f": {clean(one.reason)}" if one.reason else ""
        screen.line(f"  asked by {clean(one.by)} {moment(one.asked)}{why}")
        screen.lines(
            f"  {screen.mark('good')} {clean(each.person)} ({clean(each.role)}), {clean(each.meaning)},"
            f" {moment(each.at)}: {clean(each.reason)}"
            for each in one.signatures
        )
        if one.ended_reason:
            screen.line(f"  {clean(one.ended_reason)}")
    waiting = next((one for one in found if one.state == "waiting"), None)
    if waiting is not None:
        screen.next(f"lenskeep approve {clean(waiting.id)} --meaning {clean(waiting.meanings[0])} --reason …")


def _state(one: Approval) -> str:
    if one.state == "waiting":
        return f"waits for {waits_for(one)}, until {moment(one.expires)}"
    return "approved; it is activated as soon as the slot is free" if one.state == "granted" else one.state


def waits_for(one: Approval) -> str:
    """Say what a request still lacks: `1 more approval (supervisor or admin)`."""
    missing = one.needed - len(one.signatures)
    *others, last = [clean(role) for role in one.roles]
    roles = f"{', '.join(others)} or {last}" if others else last
    return f"{plural(missing, 'more approval')} ({roles})"


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--meaning", type=click.Choice(MEANINGS), required=True, help="What your signature means.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it goes on record with your name.")
@click.option("--digest", metavar="SHA256", help="The bytes you looked at; those that wait otherwise.")
@click.pass_context
def approve(context: click.Context, id_: str, meaning: Any, reason: str, digest: str | None) -> None:
    """Approve a version that waits.

    Your name, the meaning and the reason are on record, for exactly these bytes.

    \b
      lenskeep approve 1f3a9c20 --meaning review --reason "compared with report 17"
      lenskeep approve 1f3a9c20 --meaning approval --reason "validated" --digest 9f3c…
      lenskeep approvals
    """
    client = run_of(context).client()
    waiting = _find(client, id_)
    digest = (digest or waiting.digest).removeprefix("sha256:")
    done = client.approve(waiting.slot, SignRequest(id=id_, digest=digest, meaning=meaning, reason=reason))

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} Your {clean(meaning)} of {clean(done.bundle)} is on record.")
        screen.line(f"  sha256:{clean(done.digest)}")
        if done.state == "waiting":
            screen.line(f"  It waits for {waits_for(done)}.")
        else:
            screen.line("  It is activated now.")
            screen.next(f"lenskeep op show {clean(done.operation)}")

    emit(context, "approval/1", done, human)


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it goes on record with your name.")
@click.pass_context
def refuse(context: click.Context, id_: str, reason: str) -> None:
    """Refuse a version that waits.

    What runs goes on.

    \b
      lenskeep refuse 1f3a9c20 --reason "golden pictures are of the old cap"
      lenskeep approvals --all
      lenskeep audit
    """
    client = run_of(context).client()
    done = client.refuse(_find(client, id_).slot, RefuseRequest(id=id_, reason=reason))

    def human(screen: Screen) -> None:
        screen.line(
            f"{screen.mark('good')} {clean(done.bundle)} is refused in slot {clean(done.slot)}; what runs goes on."
        )

    emit(context, "approval/1", done, human)


def _find(client: Client, id_: str) -> Approval:
    found = next((one for one in client.approvals(everything=True) if one.id == id_), None)
    if found is None:
        raise UnknownNameError(f"Nothing waits under {id_!r}.", hint="List what waits: lenskeep approvals")
    return found
