"""`fleet`: the central peer's server, and what its operators do: invite, enrol, look, revoke, take sticks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from lenskeep.cli.commands.fleetlook import devices, drift, history, overview, show, versions
from lenskeep.cli.commands.fleetop import op
from lenskeep.cli.commands.fleetrecord import record
from lenskeep.cli.commands.fleetstick import take
from lenskeep.cli.commands.fleetstore import backup, migrate, restore
from lenskeep.cli.commands.rollout import groups, rollout, tag
from lenskeep.cli.fleetclient import client_of
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import clean, moment
from lenskeep.errors import NotPermittedError, RequestError, SourceError
from lenskeep.messages.fleet import (
    FLEET_ROLES,
    AlarmView,
    GrantAsk,
    InvitationAsk,
    OperatorTokenAsk,
)
from lenskeep.trust import stick as layout
from lenskeep.trust.identity import fingerprint
from lenskeep.trust.names import DEVICE_ID
from lenskeep.trust.source import FolderSource

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
reason_required = click.option("--reason", required=True, metavar="TEXT", help="Why; it goes on record.")


@click.group()
@click.option("--fleet", "address", metavar="ADDRESS", help="The fleet's socket or http://HOST:PORT.")
@click.pass_context
def fleet(context: click.Context, address: str | None) -> None:
    """Run the fleet server; invite, look after and revoke devices.

    \b
      lenskeep fleet serve --config fleet.toml
      lenskeep fleet token cam-7
      lenskeep fleet devices
    """
    context.meta["lenskeep.fleet"] = address


@fleet.command()
@click.option("--config", "path", type=FILE, help="The configuration file; without one everything is at its default.")
def serve(path: Path | None) -> None:
    """Run the fleet server in the foreground.

    The first start makes the fleet's authority and prints its fingerprint.

    \b
      lenskeep fleet serve
      lenskeep fleet serve --config ./fleet.toml
      systemctl start lenskeep-fleet          as a service
    """
    arguments = ["--config", str(path)] if path else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "lenskeep.fleet", *arguments])  # noqa: S606


@fleet.group()
def ca() -> None:
    """The fleet's own authority.

    \b
      lenskeep fleet ca show
      lenskeep fleet ca show --json
      lenskeep identity install FILE --ca-fingerprint F       on a device
    """


@ca.command("show")
@click.pass_context
def show_authority(context: click.Context) -> None:
    """Show the authority's fingerprint, to be compared at a device.

    \b
      lenskeep fleet ca show
      lenskeep fleet ca show --json
      lenskeep enrol URL --token T --ca-fingerprint F         on a device
    """
    view = client_of(context).authority()

    def human(screen: Screen) -> None:
        screen.line(f"Authority {view.fingerprint}")
        screen.line(f"  good until {moment(view.ends)}; at a device: --ca-fingerprint {view.fingerprint}")

    emit(context, "fleet-authority/1", view, human)


# --- letting devices in and out -------------------------------------------------------------------------------------


@fleet.command()
@click.argument("name", metavar="DEVICE")
@click.option("--hours", type=click.IntRange(1, 24), default=24, show_default=True, help="How long it counts.")
@click.pass_context
def token(context: click.Context, name: str, hours: int) -> None:
    """Make the token with which one device enrols, once. It is shown this once.

    \b
      lenskeep fleet token cam-7
      lenskeep enrol https://fleet:8443 --token TOKEN       then on the device
      lenskeep fleet show cam-7
    """
    made = client_of(context).invite(InvitationAsk(device=_device(name), hours=hours))

    def human(screen: Screen) -> None:
        screen.line(clean(made.token))
        screen.note(f"Good for {clean(made.device)} alone, once, until {moment(made.expires)}; it is not shown again.")
        screen.note("On the device: lenskeep enrol https://HOST:PORT --token TOKEN")

    emit(context, "fleet-invitation/1", made, human)


def _device(name: str) -> str:
    if not DEVICE_ID.fullmatch(name):
        raise RequestError(f"{name!r} is no device's name; it has up to 63 lower-case letters, digits and hyphens.")
    return name


@fleet.command()
@click.option("--csr", "file", type=FILE, required=True, help="The request, as `lenskeep identity csr` wrote it.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The stick or folder for the answer.")
@click.option(
    "--fingerprint", "compared", metavar="F", help="The device's fingerprint, compared already; asks nothing."
)
@click.pass_context
def enrol(context: click.Context, file: Path, out: Path | None, compared: str | None) -> None:
    """Answer a device's request for a certificate that came on a stick.

    Compare the fingerprint with the one that `lenskeep identity show` prints on the device.

    \b
      lenskeep fleet enrol --csr /media/stick/csr/cam-7.csr --out /media/stick
      lenskeep identity install /media/stick/certificates/cam-7.crt      then on the device
      lenskeep fleet show cam-7
    """
    from lenskeep.trust import certificates
    from lenskeep.trust.identity import same_fingerprint

    data = FolderSource(file.parent).read(file.name, layout.CSR_BYTES_MAX)
    if data is None:
        raise SourceError(f"{file} is not there any more.")
    requested = certificates.read_request(data.decode("utf-8", "replace"))
    client = client_of(context)
    if compared is not None:
        if not same_fingerprint(compared, requested.key.id):
            raise NotPermittedError(
                f"The request's key is {fingerprint(requested.key.id)}, not {compared}. Nothing was changed.",
                hint="Write the request again on the device and compare once more.",
            )
    else:
        _ask_whether_it_is(context, requested.device, requested.key.id)
    granted = client.grant(GrantAsk(device=requested.device, csr=data.decode(), key_id=requested.key.id))
    folder = out or _stick_of(file)
    path = layout.write(
        folder, layout.certificate_file(granted.device), (granted.certificate + granted.authority).encode()
    )

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} {clean(granted.device)} is let in; its certificate is {clean(path)}.")
        screen.next(f"on the device: lenskeep identity install {clean(path)}")

    emit(context, "fleet-certificate/1", {"device": granted.device, "file": str(path)}, human)


def _ask_whether_it_is(context: click.Context, device: str, key_id: str) -> None:
    screen = run_of(context).screen
    screen.note(f"Device       {clean(device)}")
    screen.note(f"Fingerprint  {fingerprint(key_id)}")
    screen.note("Compare it with the one that `lenskeep identity show` prints on the device.")
    if not sys.stdin.isatty():
        raise RequestError(
            "Nobody is here to compare the fingerprint. Nothing was changed.",
            hint="Run it at a terminal, or give the compared one with --fingerprint.",
        )
    if not click.confirm("Is it the same, to the last letter?", err=True):
        raise NotPermittedError("It is not let in. Nothing was changed.", hint="Find out whose request this is.")


def _stick_of(file: Path) -> Path:
    """Return the stick that a request lies on, or the folder that it lies in."""
    return file.parent.parent if file.parent.name == "csr" else file.parent


@fleet.command()
@click.argument("name", metavar="DEVICE")
@reason_required
@click.pass_context
def revoke(context: click.Context, name: str, reason: str) -> None:
    """Let a device in no longer, from this moment on. Its key does not come back.

    The cameras of the device go on; it gets nothing from the fleet any more.

    \b
      lenskeep fleet revoke cam-7 --reason "stolen from line 3"
      lenskeep fleet show cam-7
      lenskeep fleet token cam-7                            for its successor
    """
    shown = client_of(context).revoke(_device(name), reason)

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} {clean(name)} is let in no longer; its key is refused for good.")
        screen.line("  Its cameras go on with what they run.")

    emit(context, "fleet-device/1", shown, human)


# --- looking --------------------------------------------------------------------------------------------------------


for command in (
    overview, devices, show, versions, drift, history, rollout, groups, tag, op, record, take, migrate, backup, restore,
):  # fmt: skip
    fleet.add_command(command)


@fleet.command()
@click.option("--accept", "number", type=int, metavar="NUMBER", help="Close one; say why with --reason.")
@click.option("--reason", default="", metavar="TEXT", help="Why it may be closed; it goes on record.")
@click.pass_context
def alarms(context: click.Context, number: int | None, reason: str) -> None:
    """Show what a person should look at, or close one of them.

    \b
      lenskeep fleet alarms
      lenskeep fleet alarms --accept 3 --reason "disk replaced, restored from backup"
      lenskeep explain LK-4310
    """
    client = client_of(context)
    if number is not None:
        if not reason:
            raise RequestError("An alarm is closed with a reason: --reason TEXT. Nothing was changed.")
        client.accept_alarm(number, reason)
    found = client.alarms()
    emit(context, "fleet-alarms/1", found, lambda screen: _show_alarms(screen, found))


def _show_alarms(screen: Screen, found: list[AlarmView]) -> None:
    if not found:
        screen.line(f"{screen.mark('good')} No alarm.")
        return
    screen.table(
        [[str(each.id), each.device, each.code, moment(each.last), str(each.count), each.text] for each in found],
        ["NUMBER", "DEVICE", "CODE", "LAST", "TIMES", "WHAT"],
    )


@fleet.command()
@click.pass_context
def log(context: click.Context) -> None:
    """Show what operators did.

    \b
      lenskeep fleet log
      lenskeep fleet log --json
      lenskeep fleet alarms
    """
    found = client_of(context).deeds()

    def human(screen: Screen) -> None:
        rows = [[moment(each.at, seconds=True), each.by, each.action, each.subject, each.reason] for each in found]
        screen.table(rows, ["AT", "BY", "WHAT", "ABOUT", "WHY"])

    emit(context, "fleet-log/1", found, human)


# --- other operators --------------------------------------------------------------------------------------------------


@fleet.group()
def operator() -> None:
    """Tokens for operators' tools at the fleet's port.

    \b
      lenskeep fleet operator add grafana --role viewer
      lenskeep fleet operator list
      lenskeep fleet operator remove grafana
    """


@operator.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(FLEET_ROLES), required=True, help="What its holder may do.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it counts.")
@click.pass_context
def add_operator(context: click.Context, name: str, role: str, days: int) -> None:
    """Make a token. Its secret is shown this once.

    \b
      lenskeep fleet operator add grafana --role viewer
      lenskeep fleet operator add night-shift --role operator --days 30
      LENSKEEP_FLEET_TOKEN=... lenskeep fleet --fleet http://127.0.0.1:8444 devices
    """
    made = client_of(context).add_operator(OperatorTokenAsk(name=name, role=role, days=days))  # type: ignore[arg-type]

    def human(screen: Screen) -> None:
        screen.line(clean(made.secret))
        screen.note(f"This is the secret of {clean(made.name)} ({made.role}); it is not shown again.")

    emit(context, "fleet-operator/1", made, human)


@operator.command("list")
@click.pass_context
def list_operators(context: click.Context) -> None:
    """List the tokens, without their secrets.

    \b
      lenskeep fleet operator list
      lenskeep fleet operator list --json
      lenskeep fleet operator remove grafana
    """
    found = client_of(context).operators()
    rows = [[each.name, each.role, moment(each.expires)] for each in found]
    emit(context, "fleet-operators/1", found, lambda screen: screen.table(rows, ["TOKEN", "ROLE", "ENDS"]))


@operator.command("remove")
@click.argument("name")
@click.pass_context
def remove_operator(context: click.Context, name: str) -> None:
    """Remove a token; whoever uses it is a stranger from now on.

    \b
      lenskeep fleet operator remove grafana
      lenskeep fleet operator list
      lenskeep fleet log
    """
    client_of(context).remove_operator(name)
    emit(context, "fleet-operator-removed/1", {"name": name}, lambda screen: screen.line(f"Removed {clean(name)}."))
