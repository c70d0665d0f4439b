"""`python -m lenskeep.fleet.moving`: moves, backs up and restores the fleet's memory, beside the server.

Rules. A backup may be taken while the fleet serves; it is one moment. Moving and restoring are refused while a server
answers here, because what it takes meanwhile would be missing. A restore and a move fill empty databases alone. The
authority's key goes into a backup only on request and only under a passphrase, and a restore never replaces one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from lenskeep.bundle.keys import load_private_key
from lenskeep.credentials import read_secret
from lenskeep.errors import ConfigError, ConflictError, LenskeepError, RequestError, StorageError
from lenskeep.fleet import config as configs
from lenskeep.fleet.authority import AUTHORITY_CERTIFICATE, AUTHORITY_KEY
from lenskeep.fleet.config import FleetConfig, FleetPlaces
from lenskeep.fleet.store import backup
from lenskeep.fleet.store.copying import Tally, copy
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.opening import SCHEMA, SQLITE, open_engine
from lenskeep.fleet.store.sqlite import open_sqlite
from lenskeep.trust.identity import write_durably

PASSPHRASE_MIN = 12

Told = Callable[[Tally], None]


class Mover:
    """What is done to the memory that a configuration names."""

    def __init__(self, config: FleetConfig, places: FleetPlaces) -> None:
        self._config = config
        self._places = places

    async def migrate(self, source: str, target: str, passwords: tuple[str, str], told: Told) -> list[Tally]:
        """Copy the memory from one engine into another; the source stays as it is."""
        self._refuse_served()
        if source == target:
            raise RequestError("Source and target are the same.")
        async with self._open(source, passwords[0]) as one, self._open(target, passwords[1]) as other:
            return await copy(one, other, told)

    async def back_up(self, file: Path, passphrase: str, told: Told) -> list[Tally]:
        """Write a backup; with a passphrase the authority is in it."""
        if file.exists():  # noqa: ASYNC240 - a process of its own, with nobody waiting
            raise ConflictError(f"{file} is there already.", hint="Name another file; backups are never overwritten.")
        parts = self._authority_parts(passphrase) if passphrase else {}
        staged = file.with_name(f".{file.name}.{os.getpid()}")
        storage = self._config.storage
        try:
            async with self._open(storage.database, storage.database_password) as engine:
                async with open_sqlite(staged, SCHEMA) as copied:
                    tallies = await copy(engine, copied, told)
                await asyncio.to_thread(backup.seal_in_thread, staged, parts)
            staged.rename(file)
            _settle(file.parent)
        except OSError as error:
            raise StorageError(f"{file} cannot be written: {error.strerror}.") from error
        finally:
            for name in (staged, *(staged.with_name(staged.name + end) for end in ("-wal", "-shm"))):
                name.unlink(missing_ok=True)
        return tallies

    async def restore(self, file: Path, passphrase: str, told: Told) -> list[Tally]:
        """Fill the configured memory, which must be empty, from a backup."""
        self._refuse_served()
        parts = await asyncio.to_thread(backup.parts_in_thread, file)
        if passphrase and not parts:
            raise RequestError(f"{file} holds no authority.")
        key = load_private_key(parts[AUTHORITY_KEY], passphrase) if passphrase else None
        storage, copied = self._config.storage, self._places.state_dir / f".restoring.{os.getpid()}"
        try:
            await asyncio.to_thread(backup.duplicate_in_thread, file, copied)
            async with (
                open_sqlite(copied, SCHEMA) as one,
                self._open(storage.database, storage.database_password) as other,
            ):
                tallies = await copy(one, other, told)
        finally:
            for name in (copied, *(copied.with_name(copied.name + end) for end in ("-wal", "-shm"))):
                name.unlink(missing_ok=True)
        if key is not None:
            self._put_authority(key.pem(), parts[AUTHORITY_CERTIFICATE])
        return tallies

    def _put_authority(self, key: bytes, certificate: bytes) -> None:
        folder = self._places.authority
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (folder / AUTHORITY_KEY).exists():
            raise ConflictError(
                f"There is an authority in {folder}; it was not replaced. The database was restored.",
                hint="Set that folder aside, and restore into an empty database once more if the backup's is wanted.",
            )
        write_durably(folder / AUTHORITY_CERTIFICATE, certificate, 0o644)
        write_durably(folder / AUTHORITY_KEY, key, 0o600)

    def _authority_parts(self, passphrase: str) -> dict[str, bytes]:
        folder = self._places.authority
        try:
            key = load_private_key((folder / AUTHORITY_KEY).read_bytes())
            return {
                AUTHORITY_KEY: key.pem(passphrase),
                AUTHORITY_CERTIFICATE: (folder / AUTHORITY_CERTIFICATE).read_bytes(),
            }
        except OSError as error:
            raise ConfigError(f"The authority in {folder} cannot be read: {error.strerror}.") from error

    @asynccontextmanager
    async def _open(self, database: str, password: str) -> AsyncIterator[Engine]:
        async with open_engine(
            database, password, self._places.database, os.environ, self._config.storage.proofs()
        ) as engine:
            yield engine

    def _refuse_served(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(self._places.socket)) == 0:
                raise ConflictError(
                    "The fleet server is running; what it takes meanwhile would be missing. Nothing was changed.",
                    hint="Stop it, and every other replica: systemctl stop lenskeep-fleet.",
                )


def _settle(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lenskeep fleet")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--json", action="store_true")
    verbs = parser.add_subparsers(dest="verb", required=True)
    migrate = verbs.add_parser("migrate")
    migrate.add_argument("--from", dest="source", default="")
    migrate.add_argument("--to", dest="target", required=True)
    migrate.add_argument("--from-password", default="")
    migrate.add_argument("--to-password", default="")
    for name in ("backup", "restore"):
        verb = verbs.add_parser(name)
        verb.add_argument("file", type=Path)
        verb.add_argument("--passphrase", default="")
    return parser


async def _work(arguments: argparse.Namespace, told: Told) -> list[Tally]:
    config = configs.load(arguments.config) if arguments.config else FleetConfig()
    places = FleetPlaces.find(config.storage, os.environ)
    places.make()
    mover = Mover(config, places)
    if arguments.verb == "migrate":
        source = arguments.source or config.storage.database
        passwords = (arguments.from_password or config.storage.database_password, arguments.to_password)
        if source == SQLITE and not places.database.exists():
            raise RequestError(f"There is no {places.database}.", hint="Name the configuration: --config FILE.")
        return await mover.migrate(source, arguments.target, passwords, told)
    passphrase = read_secret(arguments.passphrase, os.environ, "--passphrase") if arguments.passphrase else ""
    if passphrase and len(passphrase) < PASSPHRASE_MIN:
        raise RequestError(f"A passphrase has {PASSPHRASE_MIN} characters or more.")
    work = mover.back_up if arguments.verb == "backup" else mover.restore
    return await work(arguments.file, passphrase, told)


def main() -> int:
    """Do one of the three and say what was copied."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    os.umask(0o077)
    quiet = arguments.json

    def told(tally: Tally) -> None:
        if not quiet:
            print(f"  {tally.table:<16} {tally.rows:>10} rows  {tally.sha256[:12]}…", flush=True)

    try:
        tallies = asyncio.run(_work(arguments, told))
    except LenskeepError as error:
        print(f"{error.code} {error}\nFix: {error.hint}", file=sys.stderr)
        return 1
    rows = sum(tally.rows for tally in tallies)
    if quiet:
        tables = {tally.table: {"rows": tally.rows, "sha256": tally.sha256} for tally in tallies}
        print(json.dumps({"schema": f"fleet-{arguments.verb}/1", "rows": rows, "tables": tables}))
    else:
        print(f"{rows} rows in {len(tallies)} tables, read back and compared: the same.")
        if arguments.verb == "migrate":
            print("Next: name the new database in the configuration, [storage] database, and start the fleet.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
