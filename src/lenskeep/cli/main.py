"""`lenskeep`: the root of the command line.

It parses, runs one command, and turns every fault into words and an exit code.
Commands are imported only when they are used, so that each starts quickly. Every command takes --json, --device and
--no-color, wherever it comes from, because the root adds them.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence

import click

from lenskeep.cli.output import Screen, fail
from lenskeep.cli.run import Run
from lenskeep.cli.words import Exit, nearest
from lenskeep.errors import LenskeepError

EXAMPLES = """\
  lenskeep status                                  what runs, since when, how well
  lenskeep import cap-inspect-1.1.0.lkb            verify, store and try a bundle
  lenskeep activate cap-inspect@1.1.0 --trial 30s  swap it in; back by itself unless confirmed
"""

# section -> command -> (module, what it does)
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Every day": {
        "status": ("status", "Show the device on one screen."),
        "doctor": ("status", "Examine the device; each finding with its fix."),
        "models": ("models", "List the versions on this device."),
        "usb": ("bring", "Look through a USB stick; changes nothing."),
        "import": ("bring", "Verify, store and try a bundle file or a folder of them."),
        "sync": ("sync", "Bring the device level with its repository; what runs goes on meanwhile."),
        "check": ("change", "Try a version on this device; changes nothing."),
        "activate": ("change", "Swap a version in between two frames."),
        "confirm": ("change", "Keep the version that is on trial."),
        "rollback": ("change", "Go back to the version before."),
        "approvals": ("approvals", "List what waits for people's approval."),
        "approve": ("approvals", "Approve a version that waits."),
        "refuse": ("approvals", "Refuse a version that waits."),
        "camera": ("camera", "List, test and look through the cameras."),
        "watch": ("camera", "Watch speed and results as they come."),
        "logs": ("journal", "Show what happened on the device."),
        "explain": ("journal", "Explain a fault code in plain words."),
        "ui": ("service", "Print the address of the device's page."),
    },
    "Models and slots": {
        "bench": ("change", "Measure a version's speed here, longer than a check."),
        "bundle": ("bundle", "Make, sign, verify and compare bundle files."),
        "export": ("models", "Write a stored bundle to a file, as it was signed."),
        "pin": ("models", "Keep a version from being removed."),
        "unpin": ("models", "Let a version be removed again."),
        "remove": ("models", "Remove a version that is not in use."),
        "hold": ("change", "Hold swaps while the line must not change."),
        "resume": ("change", "Let held swaps go on."),
        "history": ("journal", "Show what ran when, why and by whom."),
        "audit": ("audit", "Show, verify and export the record of every change."),
        "op": ("journal", "List and follow long work."),
        "scrub": ("scrub", "Show whether the stored files are whole, or read them all now."),
    },
    "Administration": {
        "identity": ("identity", "Show who this device is; bring its certificate on a stick."),
        "enrol": ("identity", "Make this device a member of a fleet."),
        "fleet": ("fleet", "Run the fleet server; invite, look after and revoke devices."),
        "keys": ("keys", "Make, trust and revoke signing keys."),
        "whoami": ("keys", "Say who you are for the device, and what you may do."),
        "token": ("keys", "Make and remove tokens for the page and for tools."),
        "trust": ("trust", "Keep the repository: who may sign, what is released, who runs what."),
        "config": ("config", "Check, read and change the configuration file."),
        "daemon": ("service", "Run the service in the foreground."),
        "bugreport": ("service", "Gather what support needs, without pictures or passwords."),
        "completion": ("service", "Print the completion script of a shell."),
        "version": ("service", "Print the versions of this tool and of the device."),
        "help": ("service", "Show help: lenskeep help COMMAND, exit-codes or roles."),
    },
}
ATTRIBUTES = {"import": "import_", "help": "help_"}
PLACES = {name: place for section in COMMANDS.values() for name, place in section.items()}


class Root(click.Group):
    """All commands by name, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return every command's name."""
        return list(PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command and give it the options that all commands take."""
        if cmd_name not in PLACES:
            return None
        module = importlib.import_module(f"lenskeep.cli.commands.{PLACES[cmd_name][0]}")
        command = getattr(module, ATTRIBUTES.get(cmd_name, cmd_name))
        assert isinstance(command, click.Command), cmd_name
        return with_common(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was probably meant."""
        if args and not args[0].startswith("-") and args[0] not in PLACES:
            ctx.fail(f"There is no command {args[0]!r}.{nearest(args[0], list(PLACES))}")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Open with three examples, then list the commands by who uses them."""
        formatter.write("Lenskeep keeps the right model running on every camera.\n\n")
        formatter.write(EXAMPLES)
        for section, commands in COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl([(name, what) for name, (_, what) in commands.items()])
        formatter.write("\n")
        self.format_options(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options and not the commands again."""
        click.Command.format_options(self, ctx, formatter)


def with_common(command: click.Command) -> click.Command:
    """Add the options that every command takes, once."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            with_common(inner)
    elif not any(param.name == "json_" for param in command.params):
        command.params += _common()
    return command


def _common() -> list[click.Parameter]:
    return [
        click.Option(
            ["--json", "json_"], is_flag=True, expose_value=False, callback=_set_json, help="Print JSON for scripts."
        ),
        click.Option(
            ["--device"], metavar="ADDRESS", expose_value=False, callback=_set_device,
            help="A socket's path or http://HOST:PORT; the token for it is taken from LENSKEEP_TOKEN.",
        ),
        click.Option(
            ["--no-color"], is_flag=True, expose_value=False, callback=_set_plain, help="Print without colour."
        ),
    ]  # fmt: skip


def _set_json(context: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        context.find_root().obj.screen.json = True


def _set_plain(context: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        context.find_root().obj.screen.colour = False


def _set_device(context: click.Context, _param: click.Parameter, address: str | None) -> None:
    if address is not None:
        context.find_root().obj.device = address


root = Root(
    "lenskeep", params=_common(), context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)  # fmt: skip


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run one command line and return its exit code."""
    screen = Screen(environment=dict(environment))
    try:
        with root.make_context("lenskeep", list(arguments), obj=Run(screen, environment)) as context:
            root.invoke(context)
            return int(Exit.OK)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show(file=screen.stderr)
        return int(Exit.USAGE) if isinstance(error, click.UsageError) else int(Exit.FAILED)
    except (KeyboardInterrupt, click.Abort):
        screen.note("Interrupted.")
        return int(Exit.INTERRUPTED)
    except LenskeepError as error:
        return int(fail(screen, error))


def main() -> None:
    """Be the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter still gets the line
    if "_LENSKEEP_COMPLETE" in os.environ:
        root.main(prog_name="lenskeep", complete_var="_LENSKEEP_COMPLETE")
    try:
        code = run(sys.argv[1:], os.environ)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = int(Exit.OK)
    sys.exit(code)


if __name__ == "__main__":
    main()
