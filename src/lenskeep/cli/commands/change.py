"""`check`, `bench`, `activate`, `confirm`, `rollback`, `hold`, `resume`: what a slot runs, and what it could."""

from __future__ import annotations

import time
from typing import Any

import click

from lenskeep.cli.client import Client
from lenskeep.cli.options import DURATION, REF, reason_option, slot_option
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import WAIT_S, only_slot, run_of
from lenskeep.cli.words import Exit, clean, exit_of, milliseconds, span
from lenskeep.errors import LenskeepError, QualificationError, SlotError, TimedOutError, fault_book
from lenskeep.messages.control import ActivationRequest, Bundle, CheckRequest, Operation, SlotView
from lenskeep.messages.runner import TrialReport

LOOK_S = 0.5


@click.command()
@click.argument("ref", type=REF, metavar="NAME[@VERSION]")
@slot_option
@click.pass_context
def check(context: click.Context, ref: str, slot: str | None) -> None:
    """Try a version on this device; changes nothing.

    It runs away from the line, in a process of its own, with its golden pictures and its budget.

    \b
      lenskeep check cap-inspect@1.1.0
      lenskeep check cap-inspect           the newest version of that name
      lenskeep check cap-inspect@1.1.0 --json
    """
    _try(context, CheckRequest(bundle=ref, slot=slot), "check/1")


@click.command()
@click.argument("ref", type=REF, metavar="NAME[@VERSION]")
@click.option("--frames", type=click.IntRange(10, 100_000), default=1000, show_default=True, help="Measured frames.")
@slot_option
@click.pass_context
def bench(context: click.Context, ref: str, frames: int, slot: str | None) -> None:
    """Measure a version's speed here, longer than a check.

    Nothing is changed on the line.

    \b
      lenskeep bench cap-inspect@1.1.0
      lenskeep bench cap-inspect@1.1.0 --frames 20000
      lenskeep bench cap-inspect@1.1.0 --json
    """
    _try(context, CheckRequest(bundle=ref, slot=slot, frames=frames), "bench/1")


def _try(context: click.Context, request: CheckRequest, schema: str) -> None:
    run = run_of(context)
    client = run.client()
    operation = client.check(request)
    fault: LenskeepError | None = None
    try:
        run.follow(client, operation)
    except QualificationError as error:
        fault = error
    bundle = client.bundle(operation.subject).bundle
    report = bundle.trial
    if report is None:
        raise fault or QualificationError(f"{operation.subject} left no report. Nothing was changed.")
    emit(
        context,
        schema,
        {"bundle": operation.subject, "report": report},
        lambda screen: _show_report(screen, bundle, report),
    )
    if fault is not None:
        context.exit(int(exit_of(fault)))


def _show_report(screen: Screen, bundle: Bundle, report: TrialReport) -> None:
    name = f"{clean(bundle.name)}@{clean(bundle.version)}"
    screen.line(
        f"{screen.style(name, 'strong')}  {clean(bundle.title) or 'no title'}  signed by {clean(bundle.signer)}"
    )
    for line in report.checks:
        code = f"{clean(line.code)} " if line.code else ""
        screen.line(f" {screen.mark('good' if line.passed else 'bad')} {clean(line.name):9} {code}{clean(line.text)}")
    if report.p99_ms:
        speed = f"p50 {milliseconds(report.p50_ms)}, p99 {milliseconds(report.p99_ms)}"
        provider = clean(report.provider).removesuffix("ExecutionProvider")
        screen.line(f"   {speed}, loads in {milliseconds(report.load_ms)}, {report.memory_mb} MB, on {provider}")
    if report.passed:
        screen.line(f"{name} works on this device. Nothing was changed.")
        screen.next(f"lenskeep activate {name} --trial 30s")
        return
    hint = fault_book().get(report.code, QualificationError).hint
    screen.line(f"{screen.style(clean(report.code), 'bad')} Refused, nothing changed. {clean(report.message)}")
    screen.line(f"{screen.style('Fix:', 'strong')} {clean(hint)}")
    screen.line(f"{screen.style('More:', 'strong')} lenskeep explain {clean(report.code)}")


@click.command()
@click.argument("ref", type=REF, metavar="NAME[@VERSION]")
@slot_option
@click.option("--trial", type=DURATION, metavar="TIME", help="Go back by itself after this time unless confirmed.")
@reason_option
@click.option(
    "--accept-risk", "risks", multiple=True, type=click.Choice(["outcome-shift"]),
    help="Do not take it back for this reason; it goes on record.",
)  # fmt: skip
@click.option("--wait", "settle", is_flag=True, help="Wait until it has settled or gone back (exit code 9).")
@click.pass_context
def activate(
    context: click.Context, ref: str, slot: str | None, trial: float | None, reason: str, risks: tuple[Any, ...],
    settle: bool,
) -> None:  # fmt: skip
    """Swap a version in between two frames.

    The version before stays ready for rollback.

    \b
      lenskeep activate cap-inspect@1.1.0
      lenskeep activate cap-inspect@1.1.0 --trial 30s --reason "new lot"
      lenskeep activate cap-inspect@1.1.0 --wait
    """
    activate_and_follow(context, ref, slot=slot, trial_s=trial, reason=reason, risks=list(risks), settle=settle)


def activate_and_follow(
    context: click.Context, ref: str, *, slot: str | None, trial_s: float | None, reason: str,
    risks: list[Any] | None = None, settle: bool = False,
) -> None:  # fmt: skip
    """Ask for a version, show it being swapped in, and say what comes next."""
    run = run_of(context)
    client = run.client()
    request = ActivationRequest(bundle=ref, slot=slot, trial_s=trial_s, reason=reason, accept_risks=risks or [])
    operation = run.follow(client, client.activate(request))
    if operation.state == "awaiting_approval":
        emit(context, "activate/1", {"operation": operation}, lambda screen: _show_waiting(screen, operation))
        context.exit(int(Exit.AWAITS_APPROVAL))
    view = _slot_of(client, operation, slot)
    if settle:
        view = _settle(client, view)
    emit(
        context, "activate/1", {"operation": operation, "slot": view},
        lambda screen: _show_activated(screen, operation, view, trial_s),
    )  # fmt: skip


def _show_waiting(screen: Screen, operation: Operation) -> None:
    screen.line(f"{screen.mark('info')} {clean(operation.subject)} was asked for; nothing has changed on the line yet.")
    screen.line(f"  It waits: {clean(operation.waits)}")
    screen.next(f"lenskeep approvals; lenskeep op show {clean(operation.id)}")


def _slot_of(client: Client, operation: Operation, wanted: str | None) -> SlotView:
    """Return the slot that an operation was about."""
    if wanted is not None:
        return client.slot(wanted)
    slots = client.slots()
    return next((slot for slot in slots if slot.active == operation.subject), slots[0])


def _settle(client: Client, view: SlotView) -> SlotView:
    """Wait for the end of the probation. Raises: the fault that took it back, TimedOutError."""
    ends = time.monotonic() + (view.trial_ends_s or 0.0) + WAIT_S
    while view.state in ("probation", "swapping"):
        if time.monotonic() > ends:
            raise TimedOutError(f"{view.active} is still on trial.", hint="Look with: lenskeep status")
        time.sleep(LOOK_S)
        view = client.slot(view.slot)
    if view.state == "rolled_back":
        code, _, text = view.reason.partition(" ")
        raise fault_book().get(code, SlotError)(f"{text or view.reason} {view.active} is active again.")
    return view


def _show_activated(screen: Screen, operation: Operation, view: SlotView, trial_s: float | None) -> None:
    result = operation.result if isinstance(operation.result, dict) else {}
    took = result.get("interval_ms")
    between = f"; {milliseconds(took)} between two results" if isinstance(took, (int, float)) else ""
    screen.line(f"{screen.mark('good')} {clean(operation.subject)} runs in slot {clean(view.slot)}{between}.")
    if view.previous:
        screen.line(f"  {clean(view.previous)} is kept for rollback.")
    if view.state == "settled":
        screen.line("  It has settled.")
        return
    left = span(view.trial_ends_s or trial_s or 0.0)
    if view.confirm_needed:
        screen.line(f"  It goes back by itself in {left} unless it is confirmed.")
        screen.next("lenskeep confirm keeps it, lenskeep rollback takes it back now")
    else:
        screen.line(f"  It is watched for {left} and goes back by itself if it does badly.")
        screen.next("lenskeep status; lenskeep rollback takes it back now")


@click.command()
@slot_option
@reason_option
@click.pass_context
def confirm(context: click.Context, slot: str | None, reason: str) -> None:
    """Keep the version that is on trial.

    \b
      lenskeep confirm
      lenskeep confirm --slot left --reason "checked 20 parts"
      lenskeep status
    """
    view = run_of(context).client().confirm(slot, reason)

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} {clean(view.active)} stays in slot {clean(view.slot)}.")
        if view.previous:
            screen.line(f"  {clean(view.previous)} is still there for rollback.")

    emit(context, "slot/1", view, human)


@click.command()
@slot_option
@reason_option
@click.pass_context
def rollback(context: click.Context, slot: str | None, reason: str) -> None:
    """Go back to the version before.

    Within one frame where that version is still warm; no network is needed.

    \b
      lenskeep rollback
      lenskeep rollback --slot left --reason "too many rejects"
      lenskeep history
    """
    run = run_of(context)
    client = run.client()
    operation = run.follow(client, client.rollback(slot, reason))
    view = _slot_of(client, operation, slot)
    result = operation.result if isinstance(operation.result, dict) else {}
    took = result.get("interval_ms")

    def human(screen: Screen) -> None:
        if not result:
            screen.line(f"{screen.mark('good')} The activation was taken back; {clean(view.active) or 'nothing'} runs.")
            return
        between = f"; {milliseconds(took)} between two results" if isinstance(took, (int, float)) else ""
        screen.line(f"{screen.mark('good')} Back to {clean(operation.subject)} in slot {clean(view.slot)}{between}.")
        screen.next("lenskeep history shows what ran when")

    emit(context, "rollback/1", {"operation": operation, "slot": view}, human)


@click.command()
@slot_option
@click.pass_context
def hold(context: click.Context, slot: str | None) -> None:
    """Hold swaps while the line must not change.

    What runs goes on; an activation is made ready and waits.

    \b
      lenskeep hold
      lenskeep activate cap-inspect@1.1.0
      lenskeep resume
    """
    _hold(context, slot, True)


@click.command()
@slot_option
@click.pass_context
def resume(context: click.Context, slot: str | None) -> None:
    """Let held swaps go on.

    \b
      lenskeep resume
      lenskeep resume --slot left
      lenskeep status
    """
    _hold(context, slot, False)


def _hold(context: click.Context, slot: str | None, held: bool) -> None:
    client = run_of(context).client()
    view = client.hold(slot or only_slot(client, None).slot, held)
    text = "Swaps are held" if held else "Swaps go on"

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} {text} in slot {clean(view.slot)}; {clean(view.active) or 'nothing'} runs.")
        if held:
            screen.next("lenskeep resume lets them go on")

    emit(context, "slot/1", view, human)
