"""`identity` and `enrol`: who this device is, and how it becomes a member of a fleet."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import clean, moment
from lenskeep.errors import NotPermittedError, RequestError, SourceError
from lenskeep.messages.identity import EnrolRequest, IdentityView, InstallRequest
from lenskeep.trust import stick as layout
from lenskeep.trust.identity import fingerprint, same_fingerprint
from lenskeep.trust.source import FolderSource

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def identity() -> None:
    """Show who this device is; bring its certificate on a stick.

    \b
      lenskeep identity show
      lenskeep identity csr /media/stick
      lenskeep identity install /media/stick/certificates/cam-7.crt
    """


@identity.command()
@click.pass_context
def show(context: click.Context) -> None:
    """Show the device's name, the fingerprint of its key, and its fleet.

    \b
      lenskeep identity show
      lenskeep identity show --json
      lenskeep identity csr /media/stick
    """
    view = run_of(context).client().identity()
    emit(context, "identity/1", view, lambda screen: _show(screen, view))


def _show(screen: Screen, view: IdentityView) -> None:
    screen.line(f"Device       {clean(view.device)}")
    screen.line(f"Fingerprint  {view.fingerprint}")
    if not view.enrolled:
        screen.line("Fleet        none yet")
        screen.next("lenskeep enrol URL --token TOKEN, or by stick: lenskeep identity csr STICK")
    else:
        screen.line(f"Fleet        {clean(view.fleet) or 'by stick'}, authority {view.authority_fingerprint}")
        screen.line(f"Certificate  until {moment(view.certificate_ends)}, renewed {moment(view.certificate_renews)}")
    if view.fault:
        screen.line(f"{screen.mark('warn')} {clean(view.fault)}")


@identity.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="STICK")
@click.pass_context
def csr(context: click.Context, folder: Path) -> None:
    """Write a request for a certificate to a stick. The key stays on the device.

    \b
      lenskeep identity csr /media/stick
      lenskeep fleet enrol --csr /media/stick/csr/cam-7.csr      then at the fleet
      lenskeep identity install /media/stick/certificates/cam-7.crt
    """
    asked = run_of(context).client().certificate_request()
    path = layout.write(folder, layout.csr_file(asked.device), asked.csr.encode())
    data = {"device": asked.device, "fingerprint": asked.fingerprint, "file": str(path)}

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} Wrote {clean(path)}.")
        screen.line(f"  Fingerprint {asked.fingerprint}: the fleet's operator compares it with you.")
        screen.next(f"at the fleet: lenskeep fleet enrol --csr {clean(path)}")

    emit(context, "identity-request/1", data, human)


@identity.command()
@click.argument("file", type=FILE)
@click.option("--ca-fingerprint", "named", metavar="F", help="The fleet's authority, compared already; asks nothing.")
@click.pass_context
def install(context: click.Context, file: Path, named: str | None) -> None:
    """Install a certificate that came on a stick.

    For a fleet that this device does not know yet, compare the authority's fingerprint with `lenskeep fleet ca show`.

    \b
      lenskeep identity install /media/stick/certificates/cam-7.crt
      lenskeep identity install cam-7.crt --ca-fingerprint HTQP-6WDW-...
      lenskeep identity show
    """
    from lenskeep.trust import certificates

    data = FolderSource(file.parent).read(file.name, layout.CERTIFICATE_BYTES_MAX)
    if data is None:
        raise SourceError(f"{file} is not there any more.")
    chain = data.decode("utf-8", "replace")
    authority = certificates.check_authority(certificates.split_chain(chain)[-1]).key.id
    client = run_of(context).client()
    known = client.identity().authority_fingerprint
    if named is None and not (known and same_fingerprint(known, authority)):
        named = _ask_whether_it_is(context, authority)
    view = client.install_certificate(InstallRequest(chain=chain, authority_fingerprint=named or ""))

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} {clean(view.device)} belongs to the fleet {view.authority_fingerprint}.")
        screen.line(f"  Its certificate is good until {moment(view.certificate_ends)}.")

    emit(context, "identity/1", view, human)


def _ask_whether_it_is(context: click.Context, key_id: str) -> str:
    said = fingerprint(key_id)
    screen = run_of(context).screen
    screen.note(f"Authority  {said}")
    screen.note("Compare it with the one that `lenskeep fleet ca show` prints at the fleet.")
    if not sys.stdin.isatty():
        raise RequestError(
            "Nobody is here to compare the fingerprint. Nothing was changed.",
            hint="Run it at a terminal, or give the compared one with --ca-fingerprint.",
        )
    if not click.confirm("Is it the same, to the last letter?", err=True):
        raise NotPermittedError("Not installed. Nothing was changed.", hint="Find out where the file comes from.")
    return said


@click.command()
@click.argument("url")
@click.option("--token", required=True, metavar="T", help="As `lenskeep fleet token DEVICE` printed it; - reads it.")
@click.option("--ca-fingerprint", "named", default="", metavar="F", help="The fleet's authority once more, to be sure.")
@click.pass_context
def enrol(context: click.Context, url: str, token: str, named: str) -> None:
    """Make this device a member of a fleet.

    The token names the fleet's authority, so that nobody in between is told anything.

    \b
      lenskeep enrol https://fleet.example:8443 --token lke_...
      lenskeep enrol https://10.0.0.5:8443 --token - < token.txt
      lenskeep identity show
    """
    if not url.startswith("https://"):
        raise RequestError(f"{url!r} is no fleet's address; write it as https://HOST:PORT.")
    if token == "-":  # noqa: S105 - a sign for standard input, no secret
        token = sys.stdin.readline(200)
    request = EnrolRequest(url=url, token=token.strip(), authority_fingerprint=named)
    view = run_of(context).client().enrol(request)

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} {clean(view.device)} belongs to the fleet at {clean(view.fleet)}.")
        screen.line(f"  Its certificate is good until {moment(view.certificate_ends)} and renews itself.")

    emit(context, "identity/1", view, human)
