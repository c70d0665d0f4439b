"""What a backup file holds beside the tables: parts such as the authority's locked key. Runs in threads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lenskeep.database import raw
from lenskeep.errors import RequestError


def seal_in_thread(file: Path, parts: dict[str, bytes]) -> None:
    """Put the parts in, make one plain file of it, and settle it on the disk."""
    with raw(file) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("CREATE TABLE backup_part (name TEXT PRIMARY KEY, body BLOB NOT NULL)")
        connection.executemany("INSERT INTO backup_part VALUES (?, ?)", parts.items())
        connection.commit()
    with file.open("rb") as written:
        os.fsync(written.fileno())


def parts_in_thread(file: Path) -> dict[str, bytes]:
    """Return the parts of a backup. Raises: RequestError for a file that is none, or that is damaged."""
    if not file.is_file():
        raise RequestError(f"{file} is no file.")
    with raw(file, read_only=True) as connection:
        made = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'backup_part'").fetchone()[0]
        if not made:
            raise RequestError(f"{file} is no backup of a fleet.")
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise RequestError(f"{file} is damaged.")
        return dict(connection.execute("SELECT name, body FROM backup_part"))


def duplicate_in_thread(file: Path, target: Path) -> None:
    """Copy a backup to where it may be brought up to date; the backup itself stays as it is."""
    shutil.copyfile(file, target)
    target.chmod(0o600)
