"""Opens the engine that the configuration names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from lenskeep.credentials import read_secret
from lenskeep.errors import ConfigError, RegistryCorruptError
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.proving import Proofs
from lenskeep.fleet.store.sqlite import open_sqlite

SCHEMA = "lenskeep.fleet.store.schema"
SQLITE = "sqlite"


@asynccontextmanager
async def open_engine(
    database: str, password: str, path: Path, environment: Mapping[str, str], proofs: Proofs | None = None
) -> AsyncIterator[Engine]:
    """Open the fleet's memory.

    Args:
        database: "sqlite", or an address of PostgreSQL without a password.
        password: where the password is, as `read_secret` takes it.
        path: the file, for SQLite.
        proofs: how both prove themselves by TLS; for PostgreSQL.
    Raises: ConfigError, RegistryCorruptError, StorageError, StoreUnreachableError.
    """
    if database == SQLITE:
        try:
            async with open_sqlite(path, SCHEMA) as file:
                yield file
        except RegistryCorruptError as error:
            raise RegistryCorruptError(
                f"{error} The fleet server does not start without it.",
                hint=f"Restore {path} from its backup. Without one, set it aside and enrol every device again.",
            ) from error
        return
    check_address(database)
    try:
        from lenskeep.fleet.store.postgres import open_postgres
    except ImportError as error:
        raise ConfigError(
            "storage.database: PostgreSQL needs the extra parts of the package.",
            hint="Install them: pip install 'lenskeep[fleet,fleet-replicas]'.",
        ) from error
    secret = read_secret(password, environment, "storage.database_password") if password else None
    context = await asyncio.to_thread((proofs or Proofs()).context, database, environment)
    async with open_postgres(database, secret, SCHEMA, context) as server:
        yield server


def check_address(database: str) -> None:
    """Refuse an address that is none, or that holds a password. Raises: ConfigError, which does not repeat it."""
    try:
        parts = urlsplit(database)
        secret, named = parts.password, bool(parts.path.strip("/"))
    except ValueError:
        raise ConfigError("storage.database: this is no address.") from None
    if parts.scheme not in ("postgresql", "postgres") or not named:
        raise ConfigError('storage.database: "sqlite" or postgresql://USER@HOST/NAME is needed.')
    if secret is not None or "password=" in parts.query:
        raise ConfigError(
            "storage.database: a password does not belong into the address; addresses are shown and logged.",
            hint='Put it into a file and name that: database_password = "/etc/lenskeep-fleet/database.password".',
        )
