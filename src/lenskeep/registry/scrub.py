"""How far the reading of stored files has come, and which of them were found damaged, as rows."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from lenskeep.database import Row, Transaction

Kind = Literal["blob", "prepared"]


class Progress(Struct, frozen=True, kw_only=True):
    """The row of `scrub`. `up_s`: how long the device was up since the last whole pass."""

    whole_passes: int = 0
    cursor: str = ""
    files_done: int = 0
    bytes_done: int = 0
    up_s: int = 0
    finished_ms: int | None = None
    finished_trusted: bool = False


class Damage(Struct, frozen=True, kw_only=True):
    """A stored file that was not what it should be."""

    file: str
    kind: Kind
    sha256: str
    what: str
    found_ms: int
    found_by: str


class Stored(Struct, frozen=True, order=True):
    """A file that the store should hold; the order of these is the order of a pass."""

    kind: Kind
    file: str
    sha256: str
    size_bytes: int

    @property
    def cursor(self) -> str:
        """Name its place in a pass."""
        return f"{self.kind}:{self.file}"


async def progress(tx: Transaction) -> Progress:
    """Return how far the reading is."""
    row = await tx.one("SELECT * FROM scrub")
    if row is None:
        return Progress()
    return Progress(
        whole_passes=row["pass"], cursor=row["cursor"], files_done=row["files_done"], bytes_done=row["bytes_done"],
        up_s=row["up_s"], finished_ms=row["finished_ms"], finished_trusted=bool(row["finished_trusted"]),
    )  # fmt: skip


async def save_progress(tx: Transaction, at: Progress) -> None:
    """Write how far the reading is."""
    await tx.run(
        "INSERT OR REPLACE INTO scrub VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
        at.whole_passes, at.cursor, at.files_done, at.bytes_done, at.up_s, at.finished_ms, at.finished_trusted,
    )  # fmt: skip


async def stored(tx: Transaction) -> list[Stored]:
    """Return every file that versions here are made of, with the prepared models that would be loaded."""
    blobs = await tx.all(
        "SELECT DISTINCT sha256, bundle_file.size_bytes FROM bundle_file JOIN bundle ON bundle.id = bundle_id"
        " WHERE state <> 'retired'"
    )
    prepared = await tx.all(
        "SELECT prepared_file, prepared_sha256 FROM trial JOIN bundle ON bundle.id = bundle_id"
        " WHERE state <> 'retired' AND passed AND prepared_file <> '' AND sequence ="
        " (SELECT MAX(sequence) FROM trial AS newer WHERE newer.prepared_file = trial.prepared_file AND newer.passed)"
    )
    files = [Stored("blob", row["sha256"], row["sha256"], row["size_bytes"]) for row in blobs]
    files += [Stored("prepared", row["prepared_file"], row["prepared_sha256"], 0) for row in prepared]
    return sorted(files)


async def note_damage(tx: Transaction, found: Damage) -> bool:
    """Write that a file is damaged; say whether that is news."""
    return bool(
        await tx.run(
            "INSERT INTO damage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (file) DO NOTHING",
            found.file, found.kind, found.sha256, found.what, found.found_ms, found.found_by,
        )
    )  # fmt: skip


async def heal(tx: Transaction, files: set[str]) -> list[Damage]:
    """Forget the damage of files that are whole again; return what is healed."""
    healed = [one for one in await damages(tx) if one.file in files]
    await tx.many("DELETE FROM damage WHERE file = ?", ((one.file,) for one in healed))
    return healed


async def damages(tx: Transaction) -> list[Damage]:
    """Return every damaged file that a version here still needs, oldest finding first."""
    rows = await tx.all(
        "SELECT * FROM damage WHERE file IN (SELECT sha256 FROM bundle_file JOIN bundle ON bundle.id = bundle_id"
        " WHERE state <> 'retired' UNION SELECT prepared_file FROM trial JOIN bundle ON bundle.id = bundle_id"
        " WHERE state <> 'retired') ORDER BY rowid"
    )
    return [_damage(row) for row in rows]


async def damaged_models(tx: Transaction) -> set[str]:
    """Return the ids of the versions whose model file is damaged: they must not be started."""
    rows = await tx.all(
        "SELECT bundle.id FROM bundle JOIN damage ON damage.file = bundle.model_sha256 WHERE damage.kind = 'blob'"
    )
    return {row["id"] for row in rows}


async def owners(tx: Transaction, file: str) -> list[str]:
    """Return the names of the versions that a damaged file belongs to."""
    rows = await tx.all(
        "SELECT DISTINCT bundle.name, version FROM bundle JOIN bundle_file ON bundle.id = bundle_id"
        " WHERE state <> 'retired' AND sha256 = ?1"
        " UNION SELECT DISTINCT bundle.name, version FROM bundle JOIN trial ON bundle.id = trial.bundle_id"
        " WHERE state <> 'retired' AND prepared_file = ?1 ORDER BY 1, 2",
        file,
    )
    return [f"{row['name']}@{row['version']}" for row in rows]


def _damage(row: Row) -> Damage:
    return Damage(
        file=row["file"], kind=row["kind"], sha256=row["sha256"], what=row["what"], found_ms=row["found_ms"],
        found_by=row["found_by"],
    )  # fmt: skip
