"""`trust`: for the people who hold a repository's keys, and for the server that renews it.

The work itself is in `trust_work`, imported when a command runs, so that a laptop without the repository's libraries
still shows this help and says what to install.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lenskeep.errors import RequestError

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
KEY_HELP = "A key to sign with: a PEM file, credential:NAME, or 'cmd:PROGRAM ARG…'; repeatable."

repository_option = click.option(
    "--repository", type=FOLDER, default=Path(), envvar="LENSKEEP_REPOSITORY", metavar="DIR",
    help="The repository's folder; this folder, or LENSKEEP_REPOSITORY.",
)  # fmt: skip
key_option = click.option("--key", "keys", multiple=True, metavar="KEY", help=KEY_HELP)
passphrase_option = click.option(
    "--passphrase-file", type=FILE, help="Take passphrases from the first line of a file; or LENSKEEP_PASSPHRASE."
)
dry_option = click.option("--dry-run", is_flag=True, help="Say what would change; write nothing.")


def changing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of all commands that change a repository."""
    for option in (dry_option, passphrase_option, key_option, repository_option):
        command = option(command)
    return click.pass_context(command)


def work() -> Any:
    """Return the module that does the work. Raises: RequestError when its libraries are not installed."""
    if importlib.util.find_spec("tuf") is None or importlib.util.find_spec("securesystemslib") is None:
        raise RequestError(
            "Keeping a repository needs the libraries tuf and securesystemslib, which are not installed here.",
            hint="Install them with: pip install 'lenskeep[trust]'",
        )
    from lenskeep.cli.commands import trust_work

    return trust_work


@click.group()
def trust() -> None:
    """Keep the repository: who may sign, what is released, who runs what.

    \b
      lenskeep trust status
      lenskeep trust publish cap-inspect-1.1.0.lkb --key acme.pem --key online.pem
      lenskeep trust sign root-2.request --key anna.pem
    """


@trust.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--root-key", "root", multiple=True, required=True, metavar="PUB", help="A root holder's public key.")
@click.option("--threshold", type=click.IntRange(1), default=2, show_default=True, help="Root holders that must sign.")
@click.option("--targets-key", "targets", multiple=True, required=True, metavar="PUB", help="Who says who publishes.")
@click.option("--targets-threshold", type=click.IntRange(1), default=1, show_default=True)
@click.option("--online-key", "online", multiple=True, required=True, metavar="PUB", help="The server's public key.")
@click.option("--director-key", "director", multiple=True, metavar="PUB", help="Who assigns; else the online key.")
@click.option("--usb", is_flag=True, help="Some sites are served by stick: timestamps are good for 14 days.")
@key_option
@passphrase_option
@dry_option
@click.pass_context
def init(context: click.Context, /, folder: Path, **options: Any) -> None:
    """Begin a repository with its first root.

    A public key is FILE.pub or NAME=FILE.pub; the file's name is the holder's name otherwise. Holders whose private key
    is not here get a request as a file.

    \b
      lenskeep trust init plant --root-key anna.pub --root-key ben.pub --root-key clara.pub \\
          --threshold 2 --targets-key tara.pub --online-key server.pub
      lenskeep trust status plant
    """
    work().init(context, folder, **options)


@trust.command()
@click.argument("folder", metavar="[DIR]", type=FOLDER, required=False)
@repository_option
@click.pass_context
def status(context: click.Context, folder: Path | None, repository: Path) -> None:
    """Show roles, keys, what waits for whom, and what runs out when.

    \b
      lenskeep trust status
      lenskeep trust status plant
      lenskeep trust status plant --json
    """
    work().status(context, folder or repository)


@trust.command("add-publisher")
@click.argument("role")
@click.option("--public", "public", multiple=True, required=True, metavar="PUB", help="A publisher's public key.")
@click.option("--threshold", type=click.IntRange(1), default=1, show_default=True, help="Keys that must sign.")
@click.option("--for", "patterns", multiple=True, required=True, metavar="PATTERN", help="Model names, as 'cap-*'.")
@changing
def add_publisher(context: click.Context, role: str, **options: Any) -> None:
    """Let a team sign models of some names. The holders of targets sign it.

    \b
      lenskeep trust add-publisher acme --public acme.pub --for 'cap-*' --key tara.pem
      lenskeep trust add-publisher weld --public a.pub --public b.pub --threshold 2 --for weld-seam --key tara.pem
      lenskeep trust status
    """
    work().add_publisher(context, role, **options)


@trust.command()
@click.argument("role")
@click.option("--add", multiple=True, metavar="PUB", help="A public key that comes in.")
@click.option("--remove", multiple=True, metavar="NAME|ID", help="A key that goes.")
@click.option("--threshold", type=click.IntRange(1), help="Keys that must sign from now on.")
@changing
def rotate(context: click.Context, role: str, **options: Any) -> None:
    """Give a role other keys: root, targets, online, director, snapshot, timestamp or a publisher.

    A root is signed by its old and its new holders. What a role has signed is signed again by its new keys.

    \b
      lenskeep trust rotate root --add dora.pub --remove clara --key anna.pem
      lenskeep trust rotate acme --add acme-2027.pub --remove acme --key tara.pem --key acme-2027.pem
      lenskeep trust rotate online --add server-2.pub --remove server --key anna.pem --key tara.pem
    """
    work().rotate(context, role, **options)


@trust.command()
@click.argument("what", metavar="PUBLISHER|KEY")
@click.option("--add", multiple=True, metavar="PUB", help="A public key that takes its place.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; the other holders read it.")
@changing
def revoke(context: click.Context, what: str, **options: Any) -> None:
    """Take out a publisher, or a key that was lost or stolen, at once.

    \b
      lenskeep trust revoke server --add server-2.pub --reason "server stolen" --key anna.pem --key tara.pem
      lenskeep trust revoke acme --reason "contract ended" --key tara.pem
      lenskeep trust status
    """
    work().revoke(context, what, **options)


@trust.command()
@click.argument("role")
@changing
def renew(context: click.Context, role: str, **options: Any) -> None:
    """Sign what a role says once more, for another term.

    \b
      lenskeep trust renew root --key anna.pem
      lenskeep trust renew acme --key acme.pem
      lenskeep trust status
    """
    work().renew(context, role, **options)


@trust.command()
@click.argument("role")
@changing
def cancel(context: click.Context, role: str, **options: Any) -> None:
    """Give up what waits for signatures of a role.

    \b
      lenskeep trust cancel root
      lenskeep trust cancel acme --dry-run
      lenskeep trust status
    """
    work().cancel(context, role, **options)


@trust.command()
@click.argument("files", nargs=-1, metavar="[REQUEST|ANSWER…] [DIR]", type=click.Path(path_type=Path, exists=True))
@click.option("--import", "import_", is_flag=True, help="Collect the holders' answers.")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Where the answer is written.")
@click.option("--known", type=FILE, help="The root that you trust: the request has to build upon that very one.")
@click.option("--yes", is_flag=True, help="Do not ask; the words were compared.")
@changing
def sign(context: click.Context, files: tuple[Path, ...], **options: Any) -> None:
    """Sign a request, collect answers, or sign what waits in a repository.

    \b
      lenskeep trust sign root-2.request --key anna.pem        on the holder's machine
      lenskeep trust sign --import anna.answer ben.answer plant
      lenskeep trust sign --repository plant --key tara.pem    sign what waits there
    """
    work().sign(context, files, **options)


@trust.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE.lkb…", type=FILE)
@changing
def publish(context: click.Context, files: tuple[Path, ...], **options: Any) -> None:
    """Release bundles: verify them, list them, sign the list.

    \b
      lenskeep trust publish cap-inspect-1.1.0.lkb --key acme.pem
      lenskeep trust publish *.lkb --key acme.pem --dry-run
      lenskeep trust publish cap-inspect-1.1.0.lkb --key 'cmd:yubikey-sign slot9' --key online.pem
    """
    work().publish(context, files, **options)


@trust.command()
@click.argument("version", metavar="NAME@VERSION")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is signed with it.")
@changing
def withdraw(context: click.Context, version: str, **options: Any) -> None:
    """List a version no more: no device activates it or goes back to it. What runs goes on.

    \b
      lenskeep trust withdraw cap-inspect@1.1.0 --reason "misses cracks" --key acme.pem
      lenskeep trust refresh --key server.pem
      lenskeep trust status
    """
    work().withdraw(context, version, **options)


@trust.command()
@click.argument("device")
@click.argument("slots", nargs=-1, metavar="SLOT=NAME@VERSION…")
@click.option("--only", is_flag=True, help="Slots that are not named are assigned nothing.")
@changing
def assign(context: click.Context, device: str, slots: tuple[str, ...], **options: Any) -> None:
    """Say what a device should run; SLOT=none takes an assignment back.

    \b
      lenskeep trust assign cam-1 main=cap-inspect@1.1.0 --key server.pem
      lenskeep trust assign cam-1 side=none --key server.pem
      lenskeep trust assign cam-1 main=cap-inspect@1.1.0 --only --key server.pem --dry-run
    """
    work().assign(context, device, slots, **options)


@trust.command()
@click.option("--usb/--no-usb", default=None, help="Timestamps are good for 14 days, for sites served by stick.")
@click.option("--if-due", is_flag=True, help="Sign only what needs it; for a timer.")
@changing
def refresh(context: click.Context, **options: Any) -> None:
    """Renew what the online keys sign, and make visible what is in place.

    \b
      lenskeep trust refresh --key server.pem
      lenskeep trust refresh --key credential:online --if-due
      lenskeep trust refresh --key server.pem --usb
    """
    work().refresh(context, **options)


@trust.command()
@click.argument("root", metavar="ROOT.json", type=FILE)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def follow(context: click.Context, /, root: Path, yes: bool) -> None:
    """Make a device follow the repository of this root.

    From then on it imports and activates only what that repository lists, and its own trusted keys no longer count.
    What runs goes on. Compare the root's fingerprint with its holders before.

    \b
      lenskeep trust follow 1.root.json
      lenskeep sync
      lenskeep sync --import STICK
    """
    import hashlib

    from lenskeep.cli.output import Screen, emit
    from lenskeep.cli.run import run_of
    from lenskeep.cli.words import clean

    data = root.read_text(encoding="utf-8", errors="replace")
    run = run_of(context)
    print_ = hashlib.sha256(data.encode()).hexdigest()
    if not yes and not run.screen.json:
        run.screen.note(f"{clean(root.name)}  sha256 {print_[:16]} {print_[16:32]} {print_[32:48]} {print_[48:]}")
        click.confirm("Follow the repository of this root?", abort=True, err=True)
    view = run.client().follow_repository(data)

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} {clean(view.device)} follows the repository of this root.")
        screen.next("lenskeep sync" if view.source else "lenskeep sync --import STICK")

    emit(context, "repository/1", view, human)
