"""Who may sign (trusted keys) and who may ask (tokens), as rows."""

from __future__ import annotations

from lenskeep.bundle.authority import TrustedKey
from lenskeep.database import Row, Transaction


async def keys(tx: Transaction) -> list[Row]:
    """Return every key that was ever trusted, by name."""
    return await tx.all("SELECT * FROM trusted_key ORDER BY name")


async def key(tx: Transaction, id_or_name: str) -> Row | None:
    """Return one key by its id or name."""
    return await tx.one("SELECT * FROM trusted_key WHERE id = ?1 OR name = ?1", id_or_name)


async def trusted_keys(tx: Transaction) -> list[TrustedKey]:
    """Return the keys in the form that bundles are judged with, revoked ones included."""
    return [trusted(row) for row in await keys(tx)]


async def add_key(tx: Transaction, key: TrustedKey, *, at_ms: int, by: str) -> None:
    """Trust a key."""
    await tx.run(
        "INSERT INTO trusted_key (id, name, pem, patterns, not_before_s, not_after_s, added_ms, added_by)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        key.id, key.name, key.pem, " ".join(key.patterns), key.not_before_s, key.not_after_s, at_ms, by,
    )  # fmt: skip


async def revoke_key(tx: Transaction, key_id: str, *, at_ms: int, reason: str) -> None:
    """Withdraw trust in a key; the row stays, so that its bundles are refused by name."""
    await tx.run("UPDATE trusted_key SET revoked_ms = ?, revoked_reason = ? WHERE id = ?", at_ms, reason, key_id)


def trusted(row: Row) -> TrustedKey:
    """Turn a row into the form that bundles are judged with."""
    return TrustedKey(
        id=row["id"], name=row["name"], pem=row["pem"], patterns=tuple(row["patterns"].split()),
        not_before_s=row["not_before_s"], not_after_s=row["not_after_s"],
        revoked_s=None if row["revoked_ms"] is None else row["revoked_ms"] / 1000,
    )  # fmt: skip


async def tokens(tx: Transaction) -> list[Row]:
    """Return every token, by name; never a secret."""
    return await tx.all("SELECT id, name, role, created_ms, expires_ms FROM token ORDER BY name")


async def add_token(
    tx: Transaction,
    token_id: str,
    *,
    name: str,
    role: str,
    secret_sha256: str,
    created_ms: int,
    expires_ms: int,
) -> None:
    """Let a secret stand for a role until it expires."""
    await tx.run(
        "INSERT INTO token VALUES (?, ?, ?, ?, ?, ?)",
        token_id,
        name,
        role,
        secret_sha256,
        created_ms,
        expires_ms,
    )


async def token_by_secret(tx: Transaction, secret_sha256: str) -> Row | None:
    """Return the token that a secret's hash belongs to."""
    return await tx.one("SELECT * FROM token WHERE secret_sha256 = ?", secret_sha256)


async def remove_token(tx: Transaction, id_or_name: str) -> int:
    """Forget a token; return how many there were."""
    return await tx.run("DELETE FROM token WHERE id = ?1 OR name = ?1", id_or_name)
