"""`config`: checks, reads and changes the configuration file. Works without a device."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import click
import msgspec

from lenskeep import config as configs
from lenskeep.cli import tomltext
from lenskeep.cli.output import Screen, emit
from lenskeep.cli.words import clean, nearest, plural
from lenskeep.config import Config
from lenskeep.errors import StorageError, UnknownNameError

PLACE = Path("/etc/lenskeep/device.toml")

config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=PLACE,
    show_default=True,
    help="The file.",
)


@click.group()
def config() -> None:
    """Check, read and change the configuration file.

    \b
      lenskeep config validate
      lenskeep config get control.port
      lenskeep config set camera.cam-1.source rtsp://10.0.0.7/live
    """


@config.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=PLACE)
@click.pass_context
def validate(context: click.Context, file: Path) -> None:
    """Check a configuration file; a wrong word is named.

    \b
      lenskeep config validate
      lenskeep config validate ./device.toml
      lenskeep config validate ./device.toml --json
    """
    found = configs.load(file)
    slots, cameras = plural(len(found.slot), "slot"), plural(len(found.camera), "camera")
    data = {"file": str(file), "valid": True}
    emit(
        context, "config-valid/1", data,
        lambda screen: screen.line(f"{screen.mark('good')} {clean(file)} is valid: {slots}, {cameras}."),
    )  # fmt: skip


@config.command()
@click.argument("key", required=False)
@config_option
@click.pass_context
def get(context: click.Context, key: str | None, path: Path) -> None:
    """Read a value, a table or everything.

    \b
      lenskeep config get
      lenskeep config get limits
      lenskeep config get camera.cam-1.source
    """
    values = flat(configs.load(path))
    found = {name: value for name, value in values.items() if key is None or name == key or name.startswith(f"{key}.")}
    if not found:
        raise UnknownNameError(
            f"{path} has no key {key!r}.{nearest(key or '', list(values))}", hint="All keys: lenskeep config get."
        )

    def human(screen: Screen) -> None:
        if list(found) == [key]:
            screen.line(clean(_spoken(found[str(key)])))
        else:
            screen.lines(f"{clean(name)} = {clean(_spoken(value))}" for name, value in found.items())

    emit(context, "config/1", found.get(key or "", found), human)


def flat(config: Config) -> dict[str, Any]:
    """Return every value under the name that people use for it."""
    values: dict[str, Any] = {}
    for table, content in msgspec.to_builtins(config).items():
        for each in content if isinstance(content, list) else [content]:
            head = f"{table}.{each['name']}" if isinstance(content, list) else table
            values.update({f"{head}.{name}": value for name, value in each.items()})
    return values


def _spoken(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


@config.command("set")
@click.argument("key")
@click.argument("value")
@config_option
@click.pass_context
def set_(context: click.Context, key: str, value: str, path: Path) -> None:
    """Change a value in the file; comments stay. A wrong value is refused and the file is left as it is.

    \b
      lenskeep config set control.port 8500
      lenskeep config set camera.cam-1.source v4l2:/dev/v4l/by-id/usb-cam
      lenskeep config set slot.main.threads 2
    """
    before = flat(configs.load(path))
    if key not in before:
        raise UnknownNameError(
            f"{path} has no key {key!r}.{nearest(key, list(before))}", hint="All keys: lenskeep config get."
        )
    text = path.read_text(encoding="utf-8")
    wanted = tomltext.quoted(value) if isinstance(before[key], str) else tomltext.literal(value)
    changed = tomltext.replaced(text, key, wanted)
    after = flat(configs.parse(changed))
    renamed = {name: content for name, content in after.items() if before.get(name) != content}
    if renamed:
        _write(path, changed)
    data = {"key": key, "before": before[key], "after": after.get(key, value), "file": str(path)}

    def human(screen: Screen) -> None:
        if not renamed:
            screen.line(f"{clean(key)} is {clean(_spoken(before[key]))} already; nothing was changed.")
            return
        screen.line(
            f"{clean(key)} was {clean(_spoken(before[key]))} and is now {clean(_spoken(after.get(key, value)))}."
        )
        screen.next("it counts from the next start of the service: systemctl restart lenskeep")

    emit(context, "config-set/1", data, human)


def _write(path: Path, text: str) -> None:
    """Replace the file in one step, with the mode and owner that it had."""
    part = path.with_name(f".{path.name}.part")
    try:
        known = path.stat()
        with part.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(known.st_mode))
            if os.geteuid() == 0:
                os.fchown(file.fileno(), known.st_uid, known.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"{path} cannot be written: {error.strerror}. It was not changed.", hint="Use sudo."
        ) from error
