"""Stored versions, their files, and the trials they went through on this device."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from lenskeep.bundle.archive import VerifiedBundle
from lenskeep.database import Row, Transaction
from lenskeep.errors import UnknownNameError, VersionConflictError
from lenskeep.lifecycle import BundleEvent, BundleState, next_bundle_state
from lenskeep.messages.runner import TrialReport


class StoredBundle(Struct, frozen=True, kw_only=True):
    """One row of `bundle`."""

    id: str
    name: str
    version: str
    digest: str
    model_sha256: str
    manifest: bytes
    signature: bytes
    key_id: str
    signer: str
    size_bytes: int
    state: BundleState
    parent: str
    pinned: bool
    imported_ms: int
    imported_by: str
    file_sha256: str  # of the bundle file; empty when it was stored before that was kept

    @property
    def ref(self) -> str:
        """How people name this version."""
        return f"{self.name}@{self.version}"


class StoredFile(Struct, frozen=True):
    """One file of a stored version."""

    name: str
    sha256: str
    size_bytes: int


class StoredTrial(Struct, frozen=True, kw_only=True):
    """One trial of a stored version on this device."""

    sequence: int
    at_ms: int
    asked_by: str
    passed: bool
    provider: str
    runtime_key: str
    prepared_file: str
    prepared_sha256: str
    report: TrialReport


class TriedVersion(Struct, frozen=True):
    """A trial with the version that it was of."""

    ref: str
    model_sha256: str
    trial: StoredTrial


async def insert(tx: Transaction, bundle_id: str, verified: VerifiedBundle, *, at_ms: int, by: str) -> StoredBundle:
    """Store a verified version, or bring a retired one back.

    Raises: VersionConflictError when the name and version are known with another digest.
    """
    manifest = verified.manifest
    known = await tx.one("SELECT * FROM bundle WHERE name = ? AND version = ?", manifest.name, manifest.version)
    if known is not None:
        if known["digest"] != verified.digest:
            raise VersionConflictError(f"{manifest.ref} is known here with another content. Nothing was changed.")
        return await _renew(tx, _bundle(known), verified, at_ms=at_ms, by=by)
    model = next(file for file in verified.files if file.name == manifest.model)
    await tx.run(
        "INSERT INTO bundle (id, name, version, digest, model_sha256, manifest, signature, key_id, signer, size_bytes,"
        " state, parent, imported_ms, imported_by, file_sha256, import_order)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'imported', ?, ?, ?, ?,"
        " (SELECT COALESCE(MAX(import_order), 0) + 1 FROM bundle))",
        bundle_id, manifest.name, manifest.version, verified.digest, model.sha256, verified.manifest_json,
        verified.signature, verified.key_id, verified.signer, verified.size_bytes, manifest.provenance.parent, at_ms,
        by, verified.file_sha256,
    )  # fmt: skip
    await tx.many(
        "INSERT INTO bundle_file VALUES (?, ?, ?, ?, ?)",
        ((bundle_id, n, file.name, file.sha256, file.size_bytes) for n, file in enumerate(verified.files)),
    )
    await tx.many(
        "INSERT INTO bundle_metric VALUES (?, ?, ?)",
        ((bundle_id, name, value) for name, value in manifest.provenance.metrics.items()),
    )
    return await get(tx, bundle_id)


async def _renew(
    tx: Transaction, known: StoredBundle, verified: VerifiedBundle, *, at_ms: int, by: str
) -> StoredBundle:
    """Take the same version again: a newer signature counts, a retired version comes back."""
    state = next_bundle_state(known.state, BundleEvent.IMPORTED_AGAIN)
    await tx.run(
        "UPDATE bundle SET state = ?, signature = ?, key_id = ?, signer = ?, size_bytes = ?, imported_ms = ?,"
        " imported_by = ?, file_sha256 = ?, import_order = (SELECT MAX(import_order) + 1 FROM bundle) WHERE id = ?",
        state, verified.signature, verified.key_id, verified.signer, verified.size_bytes, at_ms, by,
        verified.file_sha256, known.id,
    )  # fmt: skip
    return await get(tx, known.id)


async def get(tx: Transaction, bundle_id: str) -> StoredBundle:
    """Return one version by its id. Raises: UnknownNameError."""
    row = await tx.one("SELECT * FROM bundle WHERE id = ?", bundle_id)
    if row is None:
        raise UnknownNameError(f"No bundle has the id {bundle_id}.")
    return _bundle(row)


def unknown(ref: str) -> UnknownNameError:
    """Say that a version is not here."""
    return UnknownNameError(f"No bundle {ref} is on this device.")


async def by_digest(tx: Transaction, digest: str) -> StoredBundle | None:
    """Return the version with this content, if it is known."""
    row = await tx.one("SELECT * FROM bundle WHERE digest = ?", digest)
    return None if row is None else _bundle(row)


async def of_name(tx: Transaction, name: str) -> list[StoredBundle]:
    """Return every stored version of a model name that is not retired."""
    return [_bundle(row) for row in await tx.all("SELECT * FROM bundle WHERE name = ? AND state <> 'retired'", name)]


async def everything(tx: Transaction, *, retired: bool = False) -> list[StoredBundle]:
    """Return every version, newest import first."""
    rows = await tx.all("SELECT * FROM bundle WHERE ? OR state <> 'retired' ORDER BY import_order DESC", retired)
    return [_bundle(row) for row in rows]


async def files(tx: Transaction, bundle_id: str) -> list[StoredFile]:
    """Return a version's files in the order of the bundle."""
    rows = await tx.all(
        "SELECT name, sha256, size_bytes FROM bundle_file WHERE bundle_id = ? ORDER BY position", bundle_id
    )
    return [StoredFile(row["name"], row["sha256"], row["size_bytes"]) for row in rows]


async def metrics(tx: Transaction, bundle_id: str) -> dict[str, float]:
    """Return what the publisher measured, from the manifest."""
    rows = await tx.all("SELECT name, value FROM bundle_metric WHERE bundle_id = ? ORDER BY name", bundle_id)
    return {row["name"]: row["value"] for row in rows}


async def wanted_blobs(tx: Transaction) -> set[str]:
    """Return the digest of every file of every version that is not retired."""
    rows = await tx.all(
        "SELECT DISTINCT sha256 FROM bundle_file JOIN bundle ON bundle.id = bundle_id WHERE state <> 'retired'"
    )
    return {row["sha256"] for row in rows}


async def record_state(tx: Transaction, bundle: StoredBundle, event: BundleEvent) -> BundleState:
    """Move a version along its life. Raises: SlotError when the table has no such step."""
    state = next_bundle_state(bundle.state, event)
    await tx.run("UPDATE bundle SET state = ? WHERE id = ?", state, bundle.id)
    return state


async def pin(tx: Transaction, bundle_id: str, pinned: bool) -> None:
    """Keep a version from retention, or let it go again."""
    await tx.run("UPDATE bundle SET pinned = ? WHERE id = ?", pinned, bundle_id)


async def record_trial(
    tx: Transaction,
    bundle_id: str,
    report: TrialReport,
    *,
    at_ms: int,
    by: str,
    runtime_key: str,
    prepared_file: str,
) -> None:
    """Add a trial's report to the version's history."""
    await tx.run(
        "INSERT INTO trial (bundle_id, at_ms, asked_by, passed, provider, runtime_key, prepared_file, prepared_sha256,"
        " report) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        bundle_id, at_ms, by, report.passed, report.provider, runtime_key, prepared_file, report.prepared_sha256,
        msgspec.json.encode(report).decode(),
    )  # fmt: skip


async def trials(tx: Transaction, bundle_id: str, limit: int = 20) -> list[StoredTrial]:
    """Return a version's trials, newest first."""
    rows = await tx.all("SELECT * FROM trial WHERE bundle_id = ? ORDER BY sequence DESC LIMIT ?", bundle_id, limit)
    return [_trial(row) for row in rows]


async def newest_trial(tx: Transaction, bundle_id: str) -> StoredTrial | None:
    """Return the trial that counts, if there was one."""
    found = await trials(tx, bundle_id, 1)
    return found[0] if found else None


async def last_trial(tx: Transaction) -> int:
    """Return the number of the newest trial of any version; 0 = there was none."""
    row = await tx.one("SELECT MAX(sequence) AS sequence FROM trial")
    return int(row["sequence"] or 0) if row is not None else 0


async def trials_after(tx: Transaction, sequence: int, limit: int) -> list[TriedVersion]:
    """Return trials above a number, oldest first; with a number below 0 those alone that count now."""
    which = "trial.sequence > ?"
    if sequence < 0:
        which += (
            " AND state <> 'retired'"
            " AND trial.sequence = (SELECT MAX(t.sequence) FROM trial AS t WHERE t.bundle_id = trial.bundle_id)"
        )
    rows = await tx.all(
        "SELECT trial.*, bundle.name, bundle.version, bundle.model_sha256 FROM trial JOIN bundle"  # noqa: S608 - our own words
        f" ON bundle.id = bundle_id WHERE {which} ORDER BY trial.sequence LIMIT ?",
        sequence, limit,
    )  # fmt: skip
    return [TriedVersion(f"{row['name']}@{row['version']}", row["model_sha256"], _trial(row)) for row in rows]


async def prepared_files(tx: Transaction) -> set[str]:
    """Return the prepared models that a trial still points to."""
    rows = await tx.all(
        "SELECT prepared_file FROM trial JOIN bundle ON bundle.id = bundle_id WHERE state <> 'retired' AND passed"
    )
    return {row["prepared_file"] for row in rows}


def _bundle(row: Row) -> StoredBundle:
    return StoredBundle(
        id=row["id"], name=row["name"], version=row["version"], digest=row["digest"], model_sha256=row["model_sha256"],
        manifest=row["manifest"], signature=row["signature"], key_id=row["key_id"], signer=row["signer"],
        size_bytes=row["size_bytes"], state=BundleState(row["state"]), parent=row["parent"], pinned=bool(row["pinned"]),
        imported_ms=row["imported_ms"], imported_by=row["imported_by"],
        file_sha256=row["file_sha256"],
    )  # fmt: skip


def _trial(row: Row) -> StoredTrial:
    return StoredTrial(
        sequence=row["sequence"], at_ms=row["at_ms"], asked_by=row["asked_by"], passed=bool(row["passed"]),
        provider=row["provider"], runtime_key=row["runtime_key"], prepared_file=row["prepared_file"],
        prepared_sha256=row["prepared_sha256"], report=msgspec.json.decode(row["report"], type=TrialReport),
    )  # fmt: skip
