"""`ui`, `daemon`, `bugreport`, `completion`, `version`, `help`: the service itself, and help."""

from __future__ import annotations

import io
import os
import platform
import sys
import tarfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from lenskeep.cli.client import Client
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.run import run_of
from lenskeep.cli.words import EXIT_WORDS, clean, nearest, size
from lenskeep.errors import ConfigError, LenskeepError, NotPermittedError, StorageError, UnknownNameError
from lenskeep.messages.control import TokenRequest
from lenskeep.permissions import ROLES, TABLE


@click.command()
@click.option("--open", "open_", is_flag=True, help="Open it in the browser.")
@click.option("--role", type=click.Choice(ROLES), default="engineer", show_default=True, help="What the page may do.")
@click.option("--days", type=click.IntRange(1, 365), default=1, show_default=True, help="How long its token counts.")
@click.pass_context
def ui(context: click.Context, open_: bool, role: str, days: int) -> None:
    """Print the address of the device's page.

    A fresh token is in it, so that the page may do what --role says.

    \b
      lenskeep ui
      lenskeep ui --open
      lenskeep ui --role operator --days 30
    """
    client = run_of(context).client()
    port = client.configuration().get("control", {}).get("port", 0)
    if not port:
        raise ConfigError(
            "The page is off: control.port is 0.", hint="Switch it on: lenskeep config set control.port 8417"
        )
    address, warnings = f"http://127.0.0.1:{port}/", []
    try:
        name = f"ui-{uuid.uuid4().hex[:8]}"
        made = client.add_token(TokenRequest(name=name, role=role, days=days))  # type: ignore[arg-type]
        address += f"#token={made.secret}"
    except NotPermittedError:
        warnings.append("Only an administrator can make a token, so the page can be read but changes nothing.")
    if open_:
        click.launch(address)
    emit(context, "ui/1", {"address": address}, lambda screen: screen.line(clean(address)), warnings)


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--config", "path", type=click.Path(path_type=Path), help="The configuration file.")
@click.pass_context
def daemon(context: click.Context, path: Path | None) -> None:
    """Run the service in the foreground.

    \b
      lenskeep daemon
      lenskeep daemon --config ./device.toml
      systemctl start lenskeep            as a service
    """
    arguments = ["--config", str(path)] if path else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "lenskeep.daemon", *arguments, *context.args])  # noqa: S606


@click.command()
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path(),
    help="Folder to write to, such as a stick.",
)
@click.pass_context
def bugreport(context: click.Context, folder: Path) -> None:
    """Gather what support needs, without pictures or passwords.

    One file, for a stick or a mail.

    \b
      lenskeep bugreport
      lenskeep bugreport --to /media/stick
      lenskeep doctor
    """
    run = run_of(context)
    marker = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    target = folder / f"lenskeep-bugreport-{marker}.tar.gz"
    parts: dict[str, bytes] = {"tool.json": msgspec.json.encode(_tool())}
    warnings = []
    try:
        client = run.client()
        client.whoami()  # says at once when nobody is there
        for name, ask in _questions(client).items():
            try:
                parts[name] = msgspec.json.format(msgspec.json.encode(ask()))
            except LenskeepError as error:  # one answer that fails must not hide the others
                parts[f"{name}.failed.txt"] = f"{error.code} {error}\n".encode()
    except LenskeepError as error:
        parts["device.failed.txt"] = f"{error.code} {error}\n".encode()
        warnings.append(f"The device did not answer ({error.code}); the file says only that.")
    try:
        _write_parts(target, marker, parts)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.") from error
    data = {"file": str(target), "marker": marker, "parts": sorted(parts)}

    def human(screen: Screen) -> None:
        screen.line(f"Wrote {clean(target)} ({size(target.stat().st_size)}), marker {marker}.")
        screen.next("look into it before you pass it on: tar tzf FILE")

    emit(context, "bugreport/1", data, human, warnings)


def _questions(client: Client) -> dict[str, Callable[[], Any]]:
    return {
        "status.json": client.status,
        "health.json": client.health,
        "config.json": client.configuration,
        "bundles.json": lambda: client.bundles(everything=True),
        "operations.json": client.operations,
        "deployments.json": lambda: client.deployments(limit=500),
        "audit.json": lambda: client.audit(limit=500),
        "windows.json": lambda: client.windows(since_s=86400, seconds=900),
        "keys.json": client.keys,
        "cameras.json": lambda: {"cameras": client.cameras(), "devices": client.camera_devices()},
        "events.json": lambda: [event for event in client.events(0, follow=False) if event.type != "result"],
        "metrics.json": client.metrics,
    }


def _tool() -> dict[str, str]:
    return {
        "lenskeep": package_version(), "python": sys.version, "platform": platform.platform(),
        "machine": platform.machine(),
    }  # fmt: skip


def _write_parts(target: Path, marker: str, parts: dict[str, bytes]) -> None:
    with tarfile.open(target, "w:gz") as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(f"lenskeep-bugreport-{marker}/{name}")
            entry.size, entry.mtime = len(data), int(time.time())
            archive.addfile(entry, io.BytesIO(data))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
      lenskeep completion bash > /etc/bash_completion.d/lenskeep
      source <(lenskeep completion zsh)
      lenskeep completion fish > ~/.config/fish/completions/lenskeep.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "the choices are click's own"
    root = context.find_root().command
    script = kind(root, {}, "lenskeep", "_LENSKEEP_COMPLETE").source()
    emit(context, "completion/1", {"shell": shell, "script": script}, lambda screen: screen.line(script))


@click.command()
@click.pass_context
def version(context: click.Context) -> None:
    """Print the versions of this tool and of the device.

    \b
      lenskeep version
      lenskeep version --json
      lenskeep doctor
    """
    data, warnings = {"tool": package_version(), "device": ""}, []
    try:
        data["device"] = str(run_of(context).client().capabilities().get("version", ""))
    except LenskeepError as error:
        warnings.append(f"The device did not answer: {error}")

    def human(screen: Screen) -> None:
        screen.line(f"lenskeep {data['tool']}" + (f", device {clean(data['device'])}" if data["device"] else ""))

    emit(context, "version/1", data, human, warnings)


def package_version() -> str:
    """Return the installed version of this tool."""
    import importlib.metadata

    return importlib.metadata.version("lenskeep")


def _roles() -> dict[str, dict[str, Any]]:
    return {name: {"words": rule.words, "reach": rule.reach, "roles": list(rule.roles)} for name, rule in TABLE.items()}


def _show_roles(screen: Screen) -> None:
    rows = [[rule.words, *("yes" if role in rule.roles else "" for role in ROLES)] for rule in TABLE.values()]
    screen.table(rows, ["MAY", *(role.upper() for role in ROLES)])
    screen.line(
        "A slot may demand more: approvals by several people, or a list of versions (lenskeep config get slot)."
    )
    screen.next("lenskeep token add NAME --role ROLE makes a token; control.member gives accounts and groups a role")


@click.command()
@click.argument("topic", nargs=-1)
@click.pass_context
def help_(context: click.Context, topic: tuple[str, ...]) -> None:
    """Show help: lenskeep help COMMAND, exit-codes or roles.

    \b
      lenskeep help
      lenskeep help activate
      lenskeep help exit-codes
      lenskeep help roles
    """
    if topic == ("roles",):
        emit(context, "roles/1", _roles(), _show_roles)
        return
    if topic == ("exit-codes",):
        words = {int(code): text for code, text in EXIT_WORDS.items()}
        emit(
            context, "exit-codes/1", {str(code): text for code, text in words.items()},
            lambda screen: screen.table([[str(code), text] for code, text in words.items()], ["CODE", "MEANING"]),
        )  # fmt: skip
        return
    here, command = context.find_root(), context.find_root().command
    for word in topic:
        inner = command.get_command(here, word) if isinstance(command, click.Group) else None
        if inner is None:
            known = command.list_commands(here) if isinstance(command, click.Group) else []
            raise UnknownNameError(
                f"There is no help on {' '.join(topic)!r}.{nearest(word, [*known, 'exit-codes', 'roles'])}"
            )
        here, command = click.Context(inner, info_name=word, parent=here), inner
    emit(context, "help/1", {"text": command.get_help(here)}, lambda screen: screen.line(command.get_help(here)))
