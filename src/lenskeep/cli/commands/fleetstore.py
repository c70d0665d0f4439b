"""`fleet migrate|backup|restore`: the fleet's memory moved, kept and brought back, on the fleet's machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from lenskeep.cli.run import run_of

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
configured = click.option("--config", "path", type=FILE, help="The fleet's configuration; without one the defaults.")
PASSPHRASE = "Also the authority, locked with a passphrase that is in this file, credential:NAME or env:NAME."  # noqa: S105


def _run(context: click.Context, path: Path | None, *words: str) -> None:
    common = [*(["--config", str(path)] if path else []), *(["--json"] if run_of(context).screen.json else [])]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "lenskeep.fleet.moving", *common, *words])  # noqa: S606


@click.command()
@configured
@click.option("--from", "source", metavar="WHERE", help='"sqlite" or postgresql://…; as configured without it.')
@click.option("--to", "target", metavar="WHERE", required=True, help='An empty database: postgresql://…, or "sqlite".')
@click.option("--from-password", metavar="PLACE", help="Where its password is: a file, credential:NAME or env:NAME.")
@click.option("--to-password", metavar="PLACE", help="Where the target's password is.")
@click.pass_context
def migrate(
    context: click.Context, path: Path | None, source: str | None, target: str, from_password: str | None,
    to_password: str | None,
) -> None:  # fmt: skip
    """Move the fleet's memory into another database; all of it or nothing.

    Every table is read back and compared. The source stays as it is. Stop the fleet before.

    \b
      lenskeep fleet migrate --config fleet.toml --from sqlite --to postgresql://lenskeep@db/fleet
      lenskeep fleet migrate --config fleet.toml --to sqlite
      lenskeep fleet migrate --to postgresql://lenskeep@db/fleet --to-password env:DB_PASSWORD
    """
    words = ["migrate", "--to", target]
    for name, value in (("--from", source), ("--from-password", from_password), ("--to-password", to_password)):
        words += [name, value] if value else []
    _run(context, path, *words)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@configured
@click.option("--passphrase", metavar="PLACE", help=PASSPHRASE)
@click.pass_context
def backup(context: click.Context, file: Path, path: Path | None, passphrase: str | None) -> None:
    """Write the fleet's memory into one file, also while it serves.

    The repository's folder is not in it; its holders keep that.

    \b
      lenskeep fleet backup /backup/fleet-$(date +%F).lkf
      lenskeep fleet backup fleet.lkf --config fleet.toml --passphrase /etc/lenskeep-fleet/passphrase
      lenskeep fleet restore fleet.lkf
    """
    _run(context, path, "backup", str(file), *(["--passphrase", passphrase] if passphrase else []))


@click.command()
@click.argument("file", type=FILE)
@configured
@click.option("--passphrase", metavar="PLACE", help=PASSPHRASE)
@click.pass_context
def restore(context: click.Context, file: Path, path: Path | None, passphrase: str | None) -> None:
    """Fill the fleet's empty memory from a backup; stop the fleet before.

    Devices that go on with a fleet that was put back tell it what it misses; none of them changes what it runs. A
    rollout stands as it stood; where the repository has assigned something else since, it waits for a person.

    \b
      lenskeep fleet restore fleet.lkf
      lenskeep fleet restore fleet.lkf --config fleet.toml --passphrase /etc/lenskeep-fleet/passphrase
      lenskeep fleet devices
    """
    _run(context, path, "restore", str(file), *(["--passphrase", passphrase] if passphrase else []))
