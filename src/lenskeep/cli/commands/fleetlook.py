"""`fleet devices|show|versions|drift|history|overview`: what people look at, on a terminal or as JSON."""

from __future__ import annotations

import click
import msgspec

from lenskeep.cli.fleetclient import client_of
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.words import clean, count, milliseconds, moment, plural, short, size, span
from lenskeep.messages.fleetviews import (
    HEALTHS,
    BehaviourLine,
    DeviceLine,
    DevicePage,
    DevicesPage,
    DriftLine,
    HistoryLine,
    OverviewView,
    SlotLine,
    TrialLine,
    TriedLine,
    VersionLine,
)

MARKS = {"healthy": "good", "behind": "warn", "refused": "bad", "silent": "bad", "invited": "info", "revoked": "info"}
PAGE = 500
SHOWN = ("line", "vitals", "trials", "history")  # of a device, beside its detail
TRIALS_SHOWN = 4


@click.command()
@click.pass_context
def overview(context: click.Context) -> None:
    """Show the fleet at a glance: how many are well, behind, silent or refused; what needs a look.

    \b
      lenskeep fleet overview
      lenskeep fleet overview --json
      lenskeep fleet drift
    """
    view = client_of(context).overview()
    emit(context, "fleet-overview/1", view, lambda screen: _show_overview(screen, view))


def _show_overview(screen: Screen, view: OverviewView) -> None:
    screen.line(f"{plural(view.devices, 'device')}, {plural(view.versions, 'version')} running")
    for name in HEALTHS:
        if number := view.health.get(name, 0):
            screen.line(f"  {screen.mark(MARKS[name])} {name:<9} {number}")
    if view.certificates_ending:
        screen.line(f"  {screen.mark('warn')} {plural(view.certificates_ending, 'certificate')} end within 30 days")
    for state, number in sorted(view.rollouts.items()):
        screen.line(f"  rollouts {state}: {number}")
    for alarm in view.newest_alarms:
        who = alarm.device or "fleet"
        screen.line(f"  {screen.mark('bad')} {clean(who)}: {clean(alarm.code)} {clean(short(alarm.text, 90))}")
    if view.alarms > len(view.newest_alarms):
        screen.next("lenskeep fleet alarms")


@click.command()
@click.option("--state", "health", type=click.Choice(HEALTHS), multiple=True, help="Only those; may be given again.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Only with this tag; may be given again.")
@click.option("--group", metavar="NAME", help="Only of this group.")
@click.option("--target", metavar="SELECTOR", help="Only those that a rollout with this target would take.")
@click.option("--version", "runs", metavar="NAME[@VERSION]", help="Only those that run it.")
@click.option("--behind", is_flag=True, help="Only those that do not run what they should.")
@click.option("--silent", is_flag=True, help="Only those of which nothing is heard.")
@click.option("--name", "text", metavar="TEXT", help="Only those with this in their name.")
@click.pass_context
def devices(
    context: click.Context, health: tuple[str, ...], tags: tuple[str, ...], group: str | None, target: str | None,
    runs: str | None, behind: bool, silent: bool, text: str | None,
) -> None:  # fmt: skip
    """List the devices: how they stand, what they run, when they were heard.

    \b
      lenskeep fleet devices
      lenskeep fleet devices --behind --tag site=aachen
      lenskeep fleet devices --version cap-inspect@1.1.0 --json
    """
    wanted = [*health, *(["behind", "refused"] if behind else []), *(["silent"] if silent else [])]
    terms = [*([target] if target else []), *tags, *([f"group={group}"] if group else [])]
    client = client_of(context)
    found: list[DeviceLine] = []
    page = DevicesPage(devices=[], total=0, next="")
    while not found or page.next:
        page = client.list_devices(
            health=",".join(wanted) or None, target=" ".join(terms) or None, runs=runs, text=text, limit=PAGE,
            after=page.next or None,
        )  # fmt: skip
        found += page.devices
        if not page.devices:
            break
    emit(context, "fleet-devices/2", found, lambda screen: _show_devices(screen, found, bool(wanted or terms or runs)))


def _show_devices(screen: Screen, found: list[DeviceLine], narrowed: bool) -> None:
    if not found:
        screen.line("No device is like that." if narrowed else "No device belongs to this fleet yet.")
        if not narrowed:
            screen.next("lenskeep fleet token DEVICE")
        return
    rows = [
        [line.device, line.health, _runs(line.slots), _heard(line), line.hardware, str(line.alarms or ""),
         short(line.reason, 50)]
        for line in found
    ]  # fmt: skip
    screen.table(rows, ["DEVICE", "STATE", "RUNS", "HEARD", "HARDWARE", "ALARMS", "WHY"])


def _runs(slots: list[SlotLine]) -> str:
    return ", ".join(
        f"{slot.slot}: {slot.running or 'nothing'}"
        + (f" → {slot.desired}" if slot.desired and slot.desired != slot.running else "")
        + (" (pinned)" if slot.pinned else "")
        for slot in slots
    )


def _heard(line: DeviceLine) -> str:
    return "never" if line.heard_s is None else f"{span(max(0.0, line.heard_s))} ago"


@click.command()
@click.argument("name", metavar="DEVICE")
@click.pass_context
def show(context: click.Context, name: str) -> None:
    """Show one device: what it should run and runs, its state, its key, its record, its trials, what happened.

    \b
      lenskeep fleet show cam-7
      lenskeep fleet show cam-7 --json
      lenskeep fleet history cam-7
    """
    page = client_of(context).look_at(name)
    data = {**msgspec.to_builtins(page.detail), **{name: getattr(page, name) for name in SHOWN}}
    emit(context, "fleet-device/1", data, lambda screen: _show_device(screen, page))


def _show_device(screen: Screen, page: DevicePage) -> None:
    line, row = page.line, page.detail.device
    screen.line(f"{clean(line.device)}  {screen.mark(MARKS[line.health])} {line.health}")
    if line.reason:
        screen.line(f"  {clean(line.reason)}")
    screen.line(f"  Heard        {_heard(line)}, report {row.counter}")
    for slot in line.slots:
        _show_slot(screen, slot)
    if line.tags:
        screen.line(f"  Tags         {clean(', '.join(f'{key}={value}' for key, value in sorted(line.tags.items())))}")
    if line.hardware or line.version:
        screen.line(f"  Hardware     {clean(line.hardware) or 'unknown'}, Lenskeep {clean(line.version) or 'unknown'}")
    if page.vitals is not None:
        vitals = page.vitals
        warm = "" if vitals.temperature_c is None else f", {vitals.temperature_c:.0f} °C"
        disk, memory = size(vitals.disk_free_mb * 1e6), size(vitals.memory_free_mb * 1e6)
        screen.line(f"  Vitals       {disk} of disk and {memory} of memory free, load {vitals.load:.2f}{warm}")
    if not line.clock_trusted:
        screen.line(f"  {screen.mark('warn')} its clock cannot be right")
    if row.fingerprint:
        screen.line(f"  Key          {row.fingerprint}, certificate until {moment(row.certificate_ends)}")
    if row.revoked:
        screen.line(f"  Revoked      {moment(row.revoked)}: {clean(row.revoked_reason)}")
    _show_report(screen, page)
    _show_trials(screen, page.trials)
    if page.history:
        screen.line("  Lately")
        for each in page.history[:5]:
            screen.line(f"    {moment(each.at, seconds=True)}  {clean(_told(each))}")


def _show_slot(screen: Screen, slot: SlotLine) -> None:
    apart = slot.desired and slot.desired != slot.running
    digest = f"  {slot.digest[:12]}" if slot.digest else ""
    pinned = "  pinned at the device" if slot.pinned else ""
    screen.line(
        f"  {clean(slot.slot):<12} runs {clean(slot.running) or 'nothing'}{digest}  {clean(slot.state)}{pinned}"
    )
    if apart:
        screen.line(f"               {screen.mark('warn')} should run {clean(slot.desired)}")
    if slot.code or slot.reason:
        since = f" (since {moment(slot.since)})" if slot.since else ""
        screen.line(f"               {clean(f'{slot.code} {slot.reason}'.strip())}{since}")


def _show_report(screen: Screen, page: DevicePage) -> None:
    report = page.detail.report
    if report is not None:
        trusted = report.trusted
        screen.line(
            f"  Repository   root {trusted.root}, timestamp {trusted.timestamp}, snapshot {trusted.snapshot},"
            f" director {trusted.director}"
        )
        if report.refusal is not None:
            screen.line(f"  Refused      {clean(report.refusal.code)} {clean(report.refusal.text)}")
    if page.detail.head_hash:
        screen.line(f"  Record       witnessed up to entry {page.detail.head_sequence} ({page.detail.head_hash[:12]}…)")


def _show_trials(screen: Screen, trials: list[TrialLine]) -> None:
    """Say how the versions that were tried last did here."""
    for number, one in enumerate(trials[:TRIALS_SHOWN]):
        mark = f"{screen.mark('bad')} {clean(one.code)}" if one.code else screen.mark("good")
        golden = f"golden {one.golden_passed} of {one.golden_total}, score {one.golden_score:.4f}"
        facts = [
            golden if one.golden_total else "", f"p50 {milliseconds(one.p50_ms)}" if one.p50_ms else "",
            f"p99 {milliseconds(one.p99_ms)}" if one.p99_ms else "", f"{one.memory_mb} MB" if one.memory_mb else "",
        ]  # fmt: skip
        name = "Tried" if number == 0 else ""
        screen.line(f"  {name:<12} {clean(one.bundle)}  {mark} {', '.join(filter(None, facts))}  {moment(one.at)}")


@click.command()
@click.argument("bundle", metavar="[NAME@VERSION]", required=False)
@click.option("--hours", type=float, default=24.0, show_default=True, help="How far back its behaviour is taken from.")
@click.pass_context
def versions(context: click.Context, bundle: str | None, hours: float) -> None:
    """Show which version runs where, how fast on each class of hardware, and how much it rejects.

    Percentiles are merged from all devices of a class and true within 1 %. GOLDEN is how well devices reproduced the
    golden outputs when they tried the version: the mean of their newest trials, and the worst; TRIED is how many did.

    \b
      lenskeep fleet versions
      lenskeep fleet versions cap-inspect@1.1.0 --hours 2
      lenskeep fleet versions --json
    """
    found = client_of(context).versions(bundle, hours)
    emit(context, "fleet-versions/1", found, lambda screen: _show_versions(screen, found))


def _show_versions(screen: Screen, found: list[VersionLine]) -> None:
    if not found:
        screen.line("No version runs anywhere yet.")
        return
    rows = []
    for one in found:
        runs = f"{one.devices}" + (f" of {one.wanted}" if one.wanted else "")
        first = [one.bundle, runs]
        if len(one.digests) > 1:
            first[0] += f" ({len(one.digests)} different digests!)"
        measured, tried = {line.hardware: line for line in one.behaviour}, {line.hardware: line for line in one.tried}
        for hardware in sorted({*measured, *tried}):
            rows.append(
                [*first, hardware or "unknown", *_measured(measured.get(hardware)), *_tried(tried.get(hardware))]
            )
            first = ["", ""]
        if not measured and not tried:
            rows.append([*first, *[""] * 7])
    screen.table(rows, ["VERSION", "DEVICES", "HARDWARE", "P50", "P99", "NG", "PICTURES", "GOLDEN", "TRIED"])


def _measured(line: BehaviourLine | None) -> list[str]:
    if line is None:
        return [""] * 4
    return [
        milliseconds(line.p50_ms), milliseconds(line.p99_ms), f"{line.ng_share * 100:.1f} %", count(line.frames),
    ]  # fmt: skip


def _tried(line: TriedLine | None) -> list[str]:
    if line is None:
        return ["", ""]
    golden = f"{line.golden_mean:.4f} / {line.golden_worst:.4f}" if line.scored else ""
    return [golden, str(line.devices) + (f", {line.failed} failed" if line.failed else "")]


@click.command()
@click.pass_context
def drift(context: click.Context) -> None:
    """Show who does not run what it should, why, and since when. Ends with 6 when somebody does.

    \b
      lenskeep fleet drift
      lenskeep fleet drift --json
      lenskeep fleet show cam-7
    """
    found = client_of(context).drift()
    emit(context, "fleet-drift/1", found, lambda screen: _show_drift(screen, found))
    if found:
        context.exit(6)


def _show_drift(screen: Screen, found: list[DriftLine]) -> None:
    if not found:
        screen.line(f"{screen.mark('good')} Every device runs what it should.")
        return
    rows = [
        [one.device, one.slot, one.desired, one.running or "nothing", one.state + (" (pinned)" if one.pinned else ""),
         moment(one.since) if one.since else "", short(f"{one.code} {one.reason}".strip(), 70)]
        for one in found
    ]  # fmt: skip
    screen.table(rows, ["DEVICE", "SLOT", "SHOULD RUN", "RUNS", "STATE", "SINCE", "WHY"])


@click.command()
@click.argument("subject", metavar="DEVICE|NAME@VERSION")
@click.pass_context
def history(context: click.Context, subject: str) -> None:
    """Show what happened on a device or with a version, newest first.

    \b
      lenskeep fleet history cam-7
      lenskeep fleet history cap-inspect@1.1.0
      lenskeep fleet history cam-7 --json
    """
    key = "bundle" if "@" in subject else "device"
    found = client_of(context).history(**{key: subject})

    def human(screen: Screen) -> None:
        if not found:
            screen.line("Nothing happened there yet.")
            return
        rows = [[moment(each.at, seconds=True), each.device, each.slot, _told(each)] for each in found]
        screen.table(rows, ["AT", "DEVICE", "SLOT", "WHAT"])

    emit(context, "fleet-history/1", found, human)


def _told(each: HistoryLine) -> str:
    return short(" ".join(filter(None, (each.kind, each.bundle, each.code, each.text))), 110)
