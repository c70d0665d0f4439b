"""`fleet rollout`, `fleet groups`, `fleet tag`: which devices take which version when, and how that goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from lenskeep.cli.commands.rollout_words import say_list, say_rollout
from lenskeep.cli.fleetclient import client_of
from lenskeep.cli.output import Progress, Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import Exit, clean, plural
from lenskeep.config import read_toml
from lenskeep.errors import RequestError
from lenskeep.messages.rollouts import Gates, GroupAsk, Plan, RolloutAsk, RolloutDetail, TagAsk, Wave

LOOK_EVERY_S = 1.0
ENDS = {
    "finished": Exit.OK, "aborted": Exit.ROLLED_BACK, "paused": Exit.GATE, "proposed": Exit.AWAITS_APPROVAL,
}  # fmt: skip
WAYS = click.Choice(["skip", "attempt", "forced"])
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
why = click.option("--reason", default="", metavar="TEXT", help="Why; it goes on record.")


@click.group()
def rollout() -> None:
    """Bring a version to devices in waves that stop by themselves.

    \b
      lenskeep fleet rollout start cap-inspect@1.1.0 --slot main --target site=a --wave 2 --wave 10% --wave 100%
      lenskeep fleet rollout start --plan plan.toml --dry-run
      lenskeep fleet rollout watch 7
    """


@rollout.command()
@click.argument("bundle", metavar="NAME@VERSION", required=False)
@click.option("--plan", "file", type=FILE, help="A plan as TOML or JSON; what else is given here counts over it.")
@click.option("--slot", metavar="SLOT", help="The slot on each device.")
@click.option("--target", metavar="SELECTOR", help="Which devices: all, site=a, group=pilots, cam-1,cam-2, cam-*.")
@click.option("--wave", "waves", multiple=True, metavar="N|P%|SELECTOR", help="A wave; given in order.")
@click.option("--soak", "soak_s", type=float, metavar="SECONDS", help="How long a wave is watched before the next.")
@click.option("--gate", "gates", multiple=True, metavar="NAME=VALUE", help="A gate's limit, or NAME=off; any number.")
@click.option("--on-broken", type=click.Choice(["pause", "abort-keep", "abort-revert"]), help="When a gate breaks.")
@click.option("--approvals", type=click.IntRange(0, 10), help="How many others must approve before it starts.")
@click.option("--window", "windows", multiple=True, metavar="22:00-05:00", help="Activate inside it alone (UTC).")
@click.option("--download", type=WAYS, help="Fetch: not now, when it suits the device, or at once.")
@click.option("--activate", type=WAYS, help="Activate: not now, when it suits the line, or at once.")
@click.option("--again", is_flag=True, help="Also where this version failed before.")
@click.option("--dry-run", is_flag=True, help="Only show who would be in which wave.")
@why
@click.pass_context
def start(context: click.Context, /, file: Path | None, dry_run: bool, again: bool, **words: Any) -> None:
    """Start a rollout, or show with --dry-run what it would do.

    \b
      lenskeep fleet rollout start cap-inspect@1.1.0 --slot main --dry-run
      lenskeep fleet rollout start cap-inspect@1.1.0 --slot main --wave canary=yes --wave 20% --wave 100% --soak 900
      lenskeep fleet rollout start --plan plan.toml --approvals 1 --gate golden_score_min=0.98

    Gates and everything else of a plan, each with its default, stand in config/rollout-plan.toml.
    """
    plan = _plan(file, {**words, "again": again or None})
    shown = client_of(context).start_rollout(RolloutAsk(plan=plan, dry_run=dry_run))

    def human(screen: Screen) -> None:
        say_rollout(screen, shown, members=dry_run)
        if dry_run:
            screen.note("Nothing was started.")
        elif shown.rollout.state == "proposed":
            screen.next(f"somebody else approves it: lenskeep fleet rollout approve {shown.rollout.id}")
        else:
            screen.next(f"lenskeep fleet rollout watch {shown.rollout.id}")

    emit(context, "fleet-rollout/1", shown, human)


def _plan(file: Path | None, words: dict[str, Any]) -> Plan:
    """Read a plan, with what the command line says laid over it. Raises: RequestError."""
    try:
        text = file.read_text(encoding="utf-8") if file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read: {error}.") from error
    plain: dict[str, Any] = {}
    if file:
        plain = _json(text) if file.suffix == ".json" else dict(read_toml(text))
    waves, gates = words.pop("waves"), _gates(words.pop("gates"))
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in words.items()}
    plain |= {name: value for name, value in given.items() if value not in (None, "", [])}
    if waves:
        plain["waves"] = [msgspec.to_builtins(Wave(take=take)) for take in waves]
    if gates:
        known = plain.get("gates", {})
        plain["gates"] = {**known, **gates} if isinstance(known, dict) else known  # what it is else is refused below
    if "bundle" not in plain or "slot" not in plain:
        raise RequestError(
            "A rollout needs a version and a slot.", hint="lenskeep fleet rollout start NAME@VERSION --slot SLOT"
        )
    try:
        return msgspec.convert(plain, Plan, strict=False)
    except msgspec.ValidationError as error:
        raise RequestError(f"The plan is not right: {error}.") from error


def _gates(words: Sequence[str]) -> dict[str, Any]:
    """Read gates as the command line gives them. Raises: RequestError."""
    given: dict[str, Any] = {}
    for word in words:
        name, is_, value = word.partition("=")
        if name not in Gates.__struct_fields__ or not is_:
            raise RequestError(
                f"{word!r} is no gate.", hint=f"Write NAME=VALUE; there are {', '.join(Gates.__struct_fields__)}."
            )
        given[name] = None if value == "off" else value
    return given


def _json(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise RequestError(f"The plan is not JSON: {error}.") from error


@rollout.command("list")
@click.pass_context
def list_(context: click.Context) -> None:
    """List rollouts, the newest first.

    \b
      lenskeep fleet rollout list
      lenskeep fleet rollout list --json
      lenskeep fleet rollout show 7
    """
    found = client_of(context).rollouts()
    emit(context, "fleet-rollouts/1", found, lambda screen: say_list(screen, found))


@rollout.command()
@click.argument("number", type=int)
@click.option("--devices", is_flag=True, help="Every device with its state, reason and since when.")
@click.pass_context
def show(context: click.Context, number: int, devices: bool) -> None:
    """Show where a rollout stands: waves, gates, and with --devices each device.

    \b
      lenskeep fleet rollout show 7
      lenskeep fleet rollout show 7 --devices
      lenskeep fleet rollout show 7 --json
    """
    shown = client_of(context).rollout(number)
    emit(context, "fleet-rollout/1", shown, lambda screen: say_rollout(screen, shown, members=devices))


@rollout.command()
@click.argument("number", type=int)
@why
@click.pass_context
def pause(context: click.Context, number: int, reason: str) -> None:
    """Stop before anything new; devices that have not begun to exchange wait.

    \b
      lenskeep fleet rollout pause 7
      lenskeep fleet rollout pause 7 --reason "audit on line 3"
      lenskeep fleet rollout resume 7
    """
    _changed(context, client_of(context).pause_rollout(number, reason))


@rollout.command()
@click.argument("number", type=int)
@why
@click.pass_context
def resume(context: click.Context, number: int, reason: str) -> None:
    """Go on; what the gates show now counts as seen and accepted.

    \b
      lenskeep fleet rollout show 7                  what would be accepted
      lenskeep fleet rollout resume 7 --reason "cam-3 has a broken lamp"
      lenskeep fleet rollout watch 7
    """
    _changed(context, client_of(context).resume_rollout(number, reason))


@rollout.command()
@click.argument("number", type=int)
@click.option("--revert", is_flag=True, help="Bring back what each device ran before.")
@why
@click.pass_context
def abort(context: click.Context, number: int, revert: bool, reason: str) -> None:
    """End a rollout; what runs stays, or with --revert every device goes back.

    \b
      lenskeep fleet rollout abort 7 --reason "wrong lot"
      lenskeep fleet rollout abort 7 --revert --reason "misses scratches"
      lenskeep fleet rollout show 7 --devices
    """
    _changed(context, client_of(context).abort_rollout(number, reason, revert=revert))


@rollout.command()
@click.argument("number", type=int)
@click.pass_context
def approve(context: click.Context, number: int) -> None:
    """Approve a rollout that somebody else asked for.

    \b
      lenskeep fleet rollout show 7
      lenskeep fleet rollout approve 7
      lenskeep fleet rollout list
    """
    _changed(context, client_of(context).approve_rollout(number))


@rollout.command()
@click.argument("number", type=int)
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Look for so long at most.")
@click.pass_context
def watch(context: click.Context, number: int, timeout_s: float | None) -> None:
    """Follow a rollout until it is over or has stopped itself; the exit code says which.

    \b
      lenskeep fleet rollout watch 7
      lenskeep fleet rollout watch 7 --timeout 600
      lenskeep fleet rollout watch 7 --json
    """
    client, run = client_of(context), run_of(context)
    progress = Progress(run.screen)
    until = None if timeout_s is None else time.monotonic() + timeout_s
    shown = client.rollout(number)
    while shown.rollout.state in ("running", "reverting") and (until is None or time.monotonic() < until):
        states = ", ".join(f"{count} {state}" for state, count in shown.rollout.states.items())
        progress.show(f"{shown.rollout.state}, {shown.rollout.reason}", states)
        time.sleep(LOOK_EVERY_S)
        shown = client.rollout(number)
    progress.clear()
    emit(context, "fleet-rollout/1", shown, lambda screen: say_rollout(screen, shown, members=False))
    context.exit(ENDS.get(shown.rollout.state, Exit.STILL_RUNNING))


def _changed(context: click.Context, shown: RolloutDetail) -> None:
    emit(context, "fleet-rollout/1", shown, lambda screen: say_rollout(screen, shown, members=False))


# --- groups and tags ------------------------------------------------------------------------------------------------


@click.command()
@click.argument("name", required=False)
@click.argument("selector", required=False)
@click.option("--remove", is_flag=True, help="Forget the group; its devices stay.")
@click.pass_context
def groups(context: click.Context, name: str | None, selector: str | None, remove: bool) -> None:
    """List groups and who is in them; give a selector a name, or forget one.

    \b
      lenskeep fleet groups
      lenskeep fleet groups pilots "site=a line=1,2"
      lenskeep fleet groups pilots --remove
    """
    client = client_of(context)
    if name and remove:
        client.remove_group(name)
    elif name and selector:
        client.set_group(GroupAsk(name=name, selector=selector))
    found = [one for one in client.groups() if remove or name in (None, one.name)]

    def human(screen: Screen) -> None:
        rows = [(one.name, one.selector, plural(len(one.devices), "device")) for one in found]
        screen.table(rows, ("GROUP", "SELECTOR", "NOW"))
        if name and not remove:
            screen.lines(f"  {clean(device)}" for one in found for device in one.devices)

    emit(context, "fleet-groups/1", found, human)


@click.command()
@click.argument("words", metavar="DEVICE... KEY=VALUE|-KEY...", nargs=-1)
@click.pass_context
def tag(context: click.Context, words: tuple[str, ...]) -> None:
    """Tag devices, take a tag away with KEY=, or list all tags.

    \b
      lenskeep fleet tag
      lenskeep fleet tag cam-1 cam-2 site=a line=3
      lenskeep fleet tag cam-1 canary=
    """
    client = client_of(context)
    devices = [word for word in words if "=" not in word]
    tags = {key: value or None for key, _, value in (word.partition("=") for word in words if "=" in word)}
    if words and not (devices and tags):
        raise RequestError("Name devices and tags.", hint="lenskeep fleet tag cam-1 cam-2 site=a")
    if words:
        try:
            ask = msgspec.convert({"devices": devices, "tags": tags}, TagAsk)
        except msgspec.ValidationError as error:
            raise RequestError(f"A tag is KEY=VALUE: {error}.") from error
        client.tag(ask)
    found = {name: each for name, each in client.tags().items() if not devices or name in devices}

    def human(screen: Screen) -> None:
        rows = [(name, ", ".join(f"{key}={value}" for key, value in each.items())) for name, each in found.items()]
        screen.table(rows, ("DEVICE", "TAGS"))

    emit(context, "fleet-tags/1", found, human)
