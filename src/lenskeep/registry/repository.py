"""What this device knows about the repository that it follows: metadata as verified, roles, listings, assignments."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from lenskeep.database import Row, Transaction
from lenskeep.errors import MetadataRollbackError
from lenskeep.messages.trust import Delegation, Listing, RoleView, Verdict

State = Literal["new", "staged", "asked", "followed", "refused", "rolled_back"]
ROOT_FILE = "root.json"


class Known(Struct, frozen=True, kw_only=True):
    """The repository as it was last verified."""

    roles: list[RoleView] = []
    delegations: list[Delegation] = []
    assignment: bytes = b""  # the verified bytes of devices/ID.json; empty = none
    issued_s: float = 0.0
    checked_ms: int = 0

    def version(self, role: str) -> int:
        """Return the trusted version of a role; 0 = none."""
        return next((view.version for view in self.roles if view.name == role), 0)


class Assigned(Struct, frozen=True, kw_only=True):
    """What the director assigned to one slot, and what became of it."""

    slot: str
    generation: int
    target: str
    sha256: str
    state: State
    operation: str = ""  # the activation that was asked for
    code: str = ""
    reason: str = ""


async def known(tx: Transaction) -> Known | None:
    """Return the repository as it was last verified, or None before the first time."""
    row = await tx.one("SELECT * FROM repository WHERE id = 1")
    if row is None:
        return None
    return Known(
        roles=msgspec.json.decode(row["roles"], type=list[RoleView]),
        delegations=msgspec.json.decode(row["delegations"], type=list[Delegation]),
        assignment=row["assignment"], issued_s=row["issued_s"], checked_ms=row["checked_ms"],
    )  # fmt: skip


async def metadata(tx: Transaction) -> dict[str, bytes]:
    """Return the verified metadata by file name."""
    return {row["name"]: row["raw"] for row in await tx.all("SELECT name, raw FROM tuf")}


async def keep_metadata(tx: Transaction, stored: dict[str, bytes], roles: list[RoleView]) -> None:
    """Replace the metadata by what was verified now.

    Raises: MetadataRollbackError when a version would fall: roots never do, other roles only under a newer root.
    """
    versions = {f"{role.name}.json": role.version for role in roles}
    before = {row["name"]: row["version"] for row in await tx.all("SELECT name, version FROM tuf")}
    rotated = versions.get(ROOT_FILE, 0) > before.get(ROOT_FILE, 0)
    for name, version in versions.items():
        if version < before.get(name, 0) and (name == ROOT_FILE or not rotated):
            raise MetadataRollbackError(f"{name} would fall from version {before[name]} to {version}.")
    await tx.run("DELETE FROM tuf")
    await tx.many(
        "INSERT INTO tuf VALUES (?, ?, ?)",
        ((name, versions.get(name, before.get(name, 0)), raw) for name, raw in stored.items()),
    )


async def keep_verdict(tx: Transaction, verdict: Verdict, *, at_ms: int) -> None:
    """Keep what a look found: metadata, roles, and the listings that were asked for."""
    await keep_metadata(tx, verdict.stored, verdict.roles)
    await tx.run(
        "INSERT OR REPLACE INTO repository VALUES (1, ?, ?, ?, ?, ?)",
        msgspec.json.encode(verdict.roles).decode(), msgspec.json.encode(verdict.delegations).decode(),
        verdict.assignment or b"", verdict.issued_s, at_ms,
    )  # fmt: skip
    await tx.many(
        "INSERT OR REPLACE INTO listing VALUES (?, ?, ?, ?, ?, ?)",
        (
            (one.path, one.role, one.length_bytes, one.sha256, msgspec.json.encode(one.keys).decode(), one.expires_s)
            for one in verdict.listings
        ),
    )
    await tx.many(
        "INSERT OR REPLACE INTO listing VALUES (?, '', 0, '', '[]', 0)", ((path,) for path in verdict.unlisted)
    )


async def keep_roles(tx: Transaction, roles: list[RoleView]) -> None:
    """Keep how roles stand when only some of the metadata was verified."""
    await tx.run("UPDATE repository SET roles = ? WHERE id = 1", msgspec.json.encode(roles).decode())


async def touch(tx: Transaction, *, at_ms: int) -> None:
    """Note that the source was asked and has nothing new."""
    await tx.run("UPDATE repository SET checked_ms = ? WHERE id = 1", at_ms)


async def forget(tx: Transaction) -> None:
    """Forget everything about the repository: another root is followed from now on."""
    for table in ("tuf", "repository", "listing", "assignment"):
        await tx.run(f"DELETE FROM {table}")  # noqa: S608 - our own words


async def listing(tx: Transaction, path: str) -> Listing | None:
    """Return how a path is listed; None when it was never asked for. Not listed: an empty sha256."""
    row = await tx.one("SELECT * FROM listing WHERE path = ?", path)
    return None if row is None else _listing(row)


async def listings(tx: Transaction) -> dict[str, Listing]:
    """Return every path that was asked for."""
    return {row["path"]: _listing(row) for row in await tx.all("SELECT * FROM listing")}


async def assigned(tx: Transaction) -> list[Assigned]:
    """Return what the director assigned, by slot."""
    return [_assigned(row) for row in await tx.all("SELECT * FROM assignment ORDER BY slot")]


async def assign(tx: Transaction, one: Assigned) -> None:
    """Write what was assigned to a slot, or what became of it."""
    await tx.run(
        "INSERT OR REPLACE INTO assignment VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        one.slot, one.generation, one.target, one.sha256, one.state, one.operation, one.code, one.reason,
    )  # fmt: skip


def _listing(row: Row) -> Listing:
    return Listing(
        path=row["path"], role=row["role"], length_bytes=row["length_bytes"], sha256=row["sha256"],
        keys=msgspec.json.decode(row["keys"], type=list[str]), expires_s=row["expires_s"],
    )  # fmt: skip


def _assigned(row: Row) -> Assigned:
    return Assigned(
        slot=row["slot"], generation=row["generation"], target=row["target"], sha256=row["sha256"], state=row["state"],
        operation=row["operation"], code=row["code"], reason=row["reason"],
    )  # fmt: skip
