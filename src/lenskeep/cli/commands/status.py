"""`status` and `doctor`: how the device does, the verdict first."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from lenskeep.cli.client import Client
from lenskeep.cli.commands.approvals import waits_for
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import Run, run_of
from lenskeep.cli.words import Exit, clean, count, milliseconds, moment, plural, size, span
from lenskeep.errors import ConfigError, LenskeepError, PeerError
from lenskeep.messages.control import Check, LatencyView, SlotView, Status
from lenskeep.messages.identity import FleetView
from lenskeep.messages.runner import CameraState

WIDTH = 78
VERDICT_STYLE = {"RUNNING": "good", "DEGRADED": "warn", "STOPPED": "bad", "EMPTY": "warn"}
# the convention of Nagios, Icinga, Checkmk and Zabbix
PLUGIN_EXIT = {"RUNNING": 0, "DEGRADED": 1, "EMPTY": 1, "STOPPED": 2}
PLUGIN_WORD = {0: "OK", 1: "WARNING", 2: "CRITICAL", 3: "UNKNOWN"}
SEVERITY_MARK = {"ok": "good", "info": "info", "warn": "warn", "fault": "bad", "stop": "bad"}
SEVERITY_ORDER = ("stop", "fault", "warn", "info", "ok")


@click.command()
@click.option("--watch", is_flag=True, help="Draw it again every second until Ctrl-C.")
@click.option("--check", "plugin", is_flag=True, help="One line and exit code 0, 1, 2 or 3, for monitoring systems.")
@click.pass_context
def status(context: click.Context, watch: bool, plugin: bool) -> None:
    """Show the device on one screen.

    \b
      lenskeep status           one screen: verdict, version, timing, faults
      lenskeep status --watch   the same, drawn again every second
      lenskeep status --check   one line for a monitoring system
    """
    run = run_of(context)
    if plugin:
        context.exit(_plugin(run))
    client = run.client()
    while watch:
        now = client.status()
        run.screen.stdout.write("\x1b[H\x1b[2J" if run.screen.stdout.isatty() else "")
        emit(context, "status/1", now, lambda screen, now=now: show(screen, now))  # type: ignore[misc]
        run.screen.stdout.flush()
        time.sleep(1.0)
    now = client.status()
    emit(context, "status/1", now, lambda screen: show(screen, now))


def show(screen: Screen, now: Status) -> None:
    """Print the one screen."""
    verdict = screen.style(now.verdict, VERDICT_STYLE[now.verdict])
    name = clean(now.device)
    screen.line(
        f"{screen.style(name, 'strong')}{' ' * max(2, WIDTH - 26 - len(name))}{verdict}   up {_since(now.since)}"
    )
    for slot in now.slots:
        if len(now.slots) > 1:
            screen.line(screen.style(f" slot {clean(slot.slot)}", "strong"))
        screen.lines(f"  {title:9}{text}" for title, text in _slot_lines(screen, slot))
    box = (
        f"disk {size(now.disk_free_mb * 1e6)} free · memory {size(now.memory_free_mb * 1e6)} free · load {now.load:.1f}"
    )
    box += f" · {now.temperature_c:.0f} °C" if now.temperature_c is not None else ""
    screen.line(f"  {'Device':9}{box}" + ("" if now.clock_trusted else " · clock not to be trusted"))
    if now.fleet is not None:
        screen.line(f"  {'Fleet':9}{fleet_line(now.fleet)}")
    faults = [*(fault for slot in now.slots for fault in slot.faults), *now.faults]
    screen.lines(_fault_lines(screen, faults))
    _next(screen, now)


def fleet_line(fleet: FleetView) -> str:
    """Say on one line how things stand with the fleet."""
    if not fleet.url:
        heard = "reached by stick"
    elif fleet.heard_s is None:
        heard = "not heard yet"
    else:
        heard = f"{'level' if fleet.level else 'behind'}, last heard {span(fleet.heard_s)} ago"
    said = f"{heard}, {plural(fleet.waiting, 'record')} waiting"
    said += f" since {moment(fleet.oldest)}" if fleet.oldest and not fleet.level else ""
    said += f", {plural(fleet.dropped, 'record')} dropped" if fleet.dropped else ""
    return said + (", paused by the fleet" if fleet.paused else "")


def _since(text: str) -> str:
    return f"since {moment(text)}"


def _slot_lines(screen: Screen, slot: SlotView) -> list[tuple[str, str]]:
    lines = [("Model", _model(slot))]
    lines += [("", text) for text in _state(screen, slot)]
    if slot.waiting is not None:
        said = f"{clean(slot.waiting.bundle)} waits for {waits_for(slot.waiting)}, asked by {clean(slot.waiting.by)}"
        granted = f"{clean(slot.waiting.bundle)} is approved and comes when the slot is free"
        lines.append(("Approval", screen.style(granted if slot.waiting.state == "granted" else said, "warn")))
    lines += [("Camera" if number == 0 else "", _camera(state)) for number, state in enumerate(slot.cameras)]
    if slot.active:
        lines += [("Timing", _timing(screen, slot)), ("Results", results(slot.outcomes))]
    return lines


def _model(slot: SlotView) -> str:
    if not slot.active:
        return "none yet" if not slot.wanted else f"none yet; {clean(slot.wanted)} is being made ready"
    text = f"{clean(slot.active).replace('@', ' ')}  sha256:{clean(slot.active_digest)[:8]}…"
    text += f"  signed by {clean(slot.signer)}"
    if slot.previous:
        warm = "ready for rollback" if slot.previous_warm else "can be loaded again"
        text += f"  [previous {clean(slot.previous).rpartition('@')[2]} {warm}]"
    return f"{text}  since {moment(slot.since)}"


def _state(screen: Screen, slot: SlotView) -> list[str]:
    lines = []
    if slot.runner not in ("running", "adopted"):
        lines.append(screen.style(f"its process is {slot.runner}", "warn"))
    if slot.state == "swapping":
        lines.append(f"{clean(slot.wanted)} is being made ready beside it")
    if slot.state == "probation" and slot.trial_ends_s is not None:
        how = "on trial, goes back by itself in" if slot.confirm_needed else "watched for another"
        lines.append(screen.style(f"{how} {span(slot.trial_ends_s)}", "warn"))
    if slot.state == "rolled_back":
        why = f": {clean(slot.reason)}" if slot.reason.startswith("LK-") else " on request"
        lines.append(screen.style(f"went back to it{why}", "warn"))
    if slot.held:
        lines.append(screen.style("swaps are held (lenskeep resume lets them go on)", "warn"))
    return lines


def _camera(state: CameraState) -> str:
    text = f"{clean(state.name)} {state.state}"
    if state.state == "running":
        age = f"frame age {milliseconds(state.frame_age_s * 1000)}" if state.frame_age_s >= 0 else "no frame yet"
        text = f"{clean(state.name)} {state.fps:.1f} fps  {state.width_px}×{state.height_px}  {age}"
    dropped = sum(state.drops.values())
    text += f"  {count(dropped)} passed over" if dropped else ""
    return text + (f"  {plural(state.reconnects, 'reconnect')}" if state.reconnects else "")


def _timing(screen: Screen, slot: SlotView) -> str:
    total = total_latency(slot)
    if total is None:
        return "no frame in the last minute"
    p99 = f"p99 {milliseconds(total.p99_ms)}"
    if slot.budget_ms and total.p99_ms > slot.budget_ms:
        p99 = screen.style(f"{p99} over budget", "warn")
    budget = f"  budget {milliseconds(slot.budget_ms)}" if slot.budget_ms else ""
    provider = clean(slot.provider).removesuffix("ExecutionProvider")
    return f"p50 {milliseconds(total.p50_ms)}  {p99}{budget}  misses {slot.misses}  on {provider}"


def total_latency(slot: SlotView) -> LatencyView | None:
    """Return the durations from a frame's arrival to its result, if there were frames."""
    return next((view for view in slot.latency if view.stage == "total" and view.count), None)


def results(outcomes: dict[str, int]) -> str:
    """Say the last minute's outcomes on one line."""
    total = sum(outcomes.values())
    if not total:
        return "none in the last minute"
    text = f"OK {count(outcomes.get('OK', 0))}  NG {count(outcomes.get('NG', 0))}"
    text += f" ({100 * outcomes.get('NG', 0) / total:.2f} %)"
    for outcome, word in (("UNCERTAIN", "uncertain"), ("ERROR", "errors")):
        text += f"  {word} {count(outcomes[outcome])}" if outcomes.get(outcome) else ""
    return f"{text}  in the last minute"


def _fault_lines(screen: Screen, faults: list[Check]) -> list[str]:
    lines = []
    for number, fault in enumerate(sorted(faults, key=lambda fault: SEVERITY_ORDER.index(fault.severity))):
        title = ("Faults" if fault.severity in ("stop", "fault") else "Warnings") if number == 0 else ""
        style = "bad" if fault.severity in ("stop", "fault") else "warn"
        lines.append(f"  {title:9}{screen.style(clean(fault.code), style)} {clean(fault.name)}: {clean(fault.text)}")
        lines.append(f"  {'':9}→ lenskeep explain {clean(fault.code)}")
    return lines


def _next(screen: Screen, now: Status) -> None:
    if now.verdict == "EMPTY":
        screen.next("plug in a stick and run lenskeep usb, or lenskeep import FILE")
    elif any(slot.waiting is not None for slot in now.slots):
        screen.next("lenskeep approvals shows what waits and for whom")
    elif any(slot.confirm_needed for slot in now.slots):
        screen.next("lenskeep confirm keeps it, lenskeep rollback takes it back")


def _plugin(run: Run) -> int:
    """Print the line that monitoring systems read; whatever goes wrong is a line too."""
    try:
        now = run.client().status()
    except LenskeepError as error:
        code = 2 if isinstance(error, PeerError) else 3
        run.screen.line(f"{PLUGIN_WORD[code]} - {error.code} {clean(error)}")
        return code
    code = PLUGIN_EXIT[now.verdict]
    parts = [clean(slot.active) or "no model" for slot in now.slots]
    faults = [fault.code for slot in now.slots for fault in slot.faults if fault.code]
    figures = [figure for slot in now.slots for figure in _figures(slot)]
    said = f"{PLUGIN_WORD[code]} - {now.verdict} {', '.join(parts)}"
    said += f" ({', '.join(map(clean, faults))})" if faults else ""
    run.screen.line(said + (f" | {' '.join(figures)}" if figures else ""))
    return code


def _figures(slot: SlotView) -> list[str]:
    total = total_latency(slot)
    frames = [f"{slot.slot}_misses={slot.misses}c"]
    return [f"{slot.slot}_p99={total.p99_ms:.1f}ms;{slot.budget_ms:g}", *frames] if total else frames


@click.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Examine the device; each finding with its fix.

    \b
      lenskeep doctor                    examine this device
      lenskeep doctor --json             the same for a script
      lenskeep explain LK-2001           what a finding means
    """
    run = run_of(context)
    checks = _examine(run.client)
    emit(context, "doctor/1", checks, lambda screen: _show_checks(screen, checks))
    if any(check.severity in ("fault", "stop") for check in checks):
        context.exit(int(Exit.FAILED))


def _examine(connect: Callable[[], Client]) -> list[Check]:
    try:
        client = connect()
        return [Check(name="service", passed=True, text=f"answers at {client.address}"), *client.health()]
    except PeerError as error:
        return [_failed("service", error), *_configuration_line()]


def _configuration_line() -> list[Check]:
    """Look at the usual reason why a service does not start."""
    from lenskeep import config
    from lenskeep.cli.commands.config import PLACE

    if not PLACE.exists():
        return []
    try:
        config.load(PLACE)
    except ConfigError as error:
        return [_failed("configuration", error)]
    return [Check(name="configuration", passed=True, text=f"{PLACE} is valid")]


def _failed(name: str, error: LenskeepError) -> Check:
    return Check(name=name, passed=False, text=str(error), code=error.code, hint=error.hint, severity="stop")


def _show_checks(screen: Screen, checks: list[Check]) -> None:
    wide = max(len(check.name) for check in checks)
    for check in sorted(checks, key=lambda check: SEVERITY_ORDER.index(check.severity)):
        code = f"{clean(check.code)} " if check.code else ""
        screen.line(
            f" {screen.mark(SEVERITY_MARK[check.severity])} {clean(check.name):{wide}}  {code}{clean(check.text)}"
        )
        if not check.passed and check.hint:
            screen.line(f"   {'':{wide}}  {screen.style('Fix:', 'strong')} {clean(check.hint)}")
    bad = [check for check in checks if check.severity in ("fault", "stop", "warn")]
    if bad:
        screen.line(f"{plural(len(bad), 'finding')}, {plural(len(checks) - len(bad), 'check')} passed.")
        screen.next(f"lenskeep explain {clean(bad[0].code)}")
    else:
        screen.line(f"All {len(checks)} checks passed.")
