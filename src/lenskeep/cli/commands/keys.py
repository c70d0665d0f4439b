"""`keys` and `token`: whose signature counts on a device, and who may ask it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import clean, moment
from lenskeep.errors import ConflictError, RequestError, StorageError
from lenskeep.messages.control import Key, KeyRequest, Token, TokenRequest
from lenskeep.permissions import ROLES, TABLE

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@click.group()
def keys() -> None:
    """Make, trust and revoke signing keys.

    \b
      lenskeep keys gen plant-release --out ~/keys
      lenskeep keys trust plant-release.pub --for 'cap-*'
      lenskeep keys list
    """


@keys.command()
@click.argument("name")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Folder for the two files."
)
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase that protects the private half.")
@click.option("--passphrase-file", type=FILE, help="Take the passphrase from the first line of a file.")
@click.pass_context
def gen(context: click.Context, name: str, out: Path, passphrase: bool, passphrase_file: Path | None) -> None:
    """Make a signing key.

    NAME.pem stays with the signer, NAME.pub goes to the devices. Works without a device.

    \b
      lenskeep keys gen plant-release
      lenskeep keys gen plant-release --out ~/keys --passphrase
      lenskeep keys trust plant-release.pub --for 'cap-*'
    """
    from lenskeep.bundle.keys import generate_key

    _check_name(name)
    secret = passphrase_file.read_text(encoding="utf-8").partition("\n")[0] if passphrase_file else None
    if passphrase:
        secret = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    key = generate_key()
    private, public = out / f"{name}.pem", out / f"{name}.pub"
    _write_new(private, key.pem(secret), 0o600)
    _write_new(public, key.public.pem.encode(), 0o644)
    data = {"id": key.public.id, "private": str(private), "public": str(public)}

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} Made key {name}, id {key.public.id[:12]}…")
        screen.line(f"  {clean(private)}  private: keep it where only the signer can read it")
        screen.line(f"  {clean(public)}  public: for the devices")
        screen.next(f"lenskeep keys trust {clean(public)} --for 'NAME-*'   on each device")

    emit(context, "key-files/1", data, human)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
        raise RequestError(f"{name!r} cannot be a key's name; use a-z, 0-9, dot, dash and underscore.")


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that was not there; a key is never overwritten."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ConflictError(
            f"{path} is there already and was not changed.", hint="Choose another name or --out folder."
        ) from None
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


@keys.command("list")
@click.pass_context
def list_keys(context: click.Context) -> None:
    """List the keys that this device trusts, and for what.

    \b
      lenskeep keys list
      lenskeep keys list --json
      lenskeep keys revoke plant-release --reason "laptop lost"
    """
    found = run_of(context).client().keys()
    emit(context, "keys/1", found, lambda screen: _show_keys(screen, found))


def _show_keys(screen: Screen, found: list[Key]) -> None:
    if not found:
        screen.line("No key is trusted yet, so every bundle is refused.")
        screen.next("lenskeep keys trust FILE.pub --for 'NAME-*'")
        return
    screen.table(
        [[key.name, " ".join(key.patterns), _validity(key), f"{key.id[:12]}…", key.added_by] for key in found],
        ["KEY", "MAY SIGN", "VALID", "ID", "ADDED BY"],
    )


def _validity(key: Key) -> str:
    if key.revoked:
        return f"revoked {moment(key.revoked)}: {key.revoked_reason}"
    begins = f"from {key.not_before[:10]}" if key.not_before else ""
    ends = f"until {key.not_after[:10]}" if key.not_after else ""
    return f"{begins} {ends}".strip() or "no end"


@keys.command()
@click.argument("file", type=FILE)
@click.option(
    "--for", "patterns", multiple=True, required=True, metavar="PATTERN", help="Model names it may sign; repeatable."
)
@click.option("--name", help="What to call it here; the file's name otherwise.")
@click.option("--from", "not_before", default="", metavar="DAY", help="First day, as 2027-01-31.")
@click.option("--until", "not_after", default="", metavar="DAY", help="Day from which it no longer counts.")
@click.pass_context
def trust(
    context: click.Context, file: Path, patterns: tuple[str, ...], name: str | None, not_before: str, not_after: str
) -> None:
    """Trust a public key on this device for some model names.

    \b
      lenskeep keys trust plant-release.pub --for 'cap-*'
      lenskeep keys trust plant-release.pub --for cap-inspect --for weld-seam --until 2028-01-01
      lenskeep keys list
    """
    name = name or file.stem
    _check_name(name)
    try:
        pem = file.read_text(encoding="ascii")
    except (UnicodeDecodeError, OSError) as error:
        raise RequestError(f"{file} is no public key in PEM. Nothing was changed.") from error
    request = KeyRequest(
        name=name, pem=pem, patterns=list(patterns), not_before=_day(not_before), not_after=_day(not_after)
    )
    key = run_of(context).client().trust_key(request)

    def human(screen: Screen) -> None:
        screen.line(
            f"{screen.mark('good')} {clean(key.name)} ({key.id[:12]}…) may sign {clean(' '.join(key.patterns))}."
        )
        screen.line("  Compare the id with the publisher's before you rely on it.")

    emit(context, "key/1", key, human)


def _day(text: str) -> str:
    if not text:
        return ""
    if not DAY.fullmatch(text):
        raise RequestError(f"{text!r} is no day; write it as 2027-01-31.")
    return f"{text}T00:00:00Z"


@keys.command()
@click.argument("name", metavar="NAME|ID")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it goes on record.")
@click.pass_context
def revoke(context: click.Context, name: str, reason: str) -> None:
    """Withdraw trust in a key.

    What it signed is neither imported nor activated any more. What runs goes on.

    \b
      lenskeep keys revoke plant-release --reason "laptop lost"
      lenskeep keys list
      lenskeep models
    """
    key = run_of(context).client().revoke_key(name, reason)

    def human(screen: Screen) -> None:
        screen.line(f"{screen.mark('good')} {clean(key.name)} is revoked; its bundles are refused from now on.")
        screen.line("  What runs goes on.")

    emit(context, "key/1", key, human)


@click.command()
@click.pass_context
def whoami(context: click.Context) -> None:
    """Say who you are for the device, and what you may do.

    \b
      lenskeep whoami
      lenskeep whoami --json
      lenskeep help roles
    """
    who = run_of(context).client().whoami()

    def human(screen: Screen) -> None:
        screen.line(f"{screen.style(clean(who.name), 'strong')}  {clean(who.role)}")
        if who.person and who.person != who.name.partition(":")[2]:
            screen.line(f"  Approvals count for {clean(who.person)}.")
        if who.slots:
            screen.line(f"  Changes only the slots {clean(', '.join(who.slots))}.")
        for name, rule in TABLE.items():
            kind = "good" if name in who.may else "info"
            needs = "" if name in who.may else f"  (needs {clean(' or '.join(who.needs.get(name, [])))})"
            screen.line(f"  {screen.mark(kind)} {rule.words}{needs}")

    emit(context, "whoami/1", who, human)


@click.group()
def token() -> None:
    """Make and remove tokens for the page and for tools.

    \b
      lenskeep token add panel-3 --role operator
      lenskeep token list
      lenskeep token remove panel-3
    """


@token.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What its holder may do.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it counts.")
@click.option("--hours", type=click.IntRange(1, 24 * 3650), help="How long it counts, in place of --days.")
@click.option("--slot", "slots", multiple=True, metavar="SLOT", help="It changes only this slot; repeatable.")
@click.option("--person", default="", metavar="NAME", help="For whom its approvals count; its own name otherwise.")
@click.pass_context
def add(
    context: click.Context, name: str, role: Any, days: int, hours: int | None, slots: tuple[str, ...], person: str
) -> None:
    """Make a token. Its secret is shown this once.

    It never reaches further, nor lasts longer, than the token it is made with.

    \b
      lenskeep token add panel-3 --role operator
      lenskeep token add line-plc --role supervisor --slot main --days 30
      LENSKEEP_TOKEN=... lenskeep status --device http://127.0.0.1:8417
    """
    request = TokenRequest(name=name, role=role, days=days, hours=hours or 0, slots=list(slots), person=person)
    made = run_of(context).client().add_token(request)

    def human(screen: Screen) -> None:
        screen.line(clean(made.secret))
        where = f" for {clean(', '.join(made.slots))}" if made.slots else ""
        screen.note(f"This is the secret of {clean(made.name)} ({made.role}{where}); it is not shown again.")
        screen.note(f"It counts until {moment(made.expires)}.")

    emit(context, "token/1", made, human)


@token.command("list")
@click.pass_context
def list_tokens(context: click.Context) -> None:
    """List the tokens, without their secrets.

    \b
      lenskeep token list
      lenskeep token list --json
      lenskeep token remove panel-3
    """
    found: list[Token] = run_of(context).client().tokens()

    def human(screen: Screen) -> None:
        rows = [
            [
                each.name, each.role, each.person, ", ".join(each.slots) or "all", moment(each.created),
                moment(each.expires), moment(each.last_used), each.id,
            ]
            for each in found
        ]  # fmt: skip
        screen.table(rows, ["TOKEN", "ROLE", "PERSON", "SLOTS", "MADE", "ENDS", "USED", "ID"])

    emit(context, "tokens/1", found, human)


@token.command()
@click.argument("name", metavar="NAME|ID")
@click.pass_context
def remove(context: click.Context, name: str) -> None:
    """Remove a token; whoever uses it is a stranger from now on.

    \b
      lenskeep token remove panel-3
      lenskeep token list
      lenskeep audit
    """
    run_of(context).client().remove_token(name)
    emit(context, "token-removed/1", {"name": name}, lambda screen: screen.line(f"Removed the token {clean(name)}."))
