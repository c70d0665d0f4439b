"""Who may sign (trusted keys) and who may ask (tokens), as rows."""

from __future__ import annotations

from msgspec import Struct

from lenskeep.bundle.authority import TrustedKey
from lenskeep.database import Row, Transaction
from lenskeep.errors import NotSignedInError


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
    return await tx.all(
        "SELECT id, name, role, person, slots, created_ms, expires_ms, added_by, last_used_ms FROM token ORDER BY name"
    )


class NewToken(Struct, frozen=True, kw_only=True):
    """What is stored of a token; its secret is not."""

    id: str
    name: str
    role: str
    secret_sha256: str
    created_ms: int
    expires_ms: int
    person: str
    slots: list[str]
    added_by: str


async def add_token(tx: Transaction, new: NewToken) -> None:
    """Let a secret stand for a role until it expires."""
    await tx.run(
        "INSERT INTO token (id, name, role, secret_sha256, created_ms, expires_ms, person, slots, added_by)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        new.id, new.name, new.role, new.secret_sha256, new.created_ms, new.expires_ms, new.person,
        " ".join(new.slots), new.added_by,
    )  # fmt: skip


async def token_by_secret(tx: Transaction, secret_sha256: str) -> Row | None:
    """Return the token that a secret's hash belongs to."""
    return await tx.one("SELECT * FROM token WHERE secret_sha256 = ?", secret_sha256)


async def token_by_name(tx: Transaction, name: str) -> Row | None:
    """Return a token by its name."""
    return await tx.one("SELECT * FROM token WHERE name = ?", name)


async def note_use(tx: Transaction, token_id: str, *, at_ms: int) -> None:
    """Write when a token was last used."""
    await tx.run("UPDATE token SET last_used_ms = ? WHERE id = ?", at_ms, token_id)


async def remove_token(tx: Transaction, id_or_name: str) -> int:
    """Forget a token; return how many there were."""
    return await tx.run("DELETE FROM token WHERE id = ?1 OR name = ?1", id_or_name)


async def forget_expired(tx: Transaction, *, before_ms: int) -> None:
    """Forget tokens whose time ended long ago."""
    await tx.run("DELETE FROM token WHERE expires_ms < ?", before_ms)


async def person(tx: Transaction, by: str, now_ms: int) -> str:
    """Return whom somebody's word counts for: an account's name, or the person whom a token stands for.

    Raises: NotSignedInError for a token that was removed or has expired meanwhile.
    """
    kind, _, name = by.partition(":")
    if kind != "token":
        return (name or kind).casefold()
    row = await token_by_name(tx, name)
    if row is None or row["expires_ms"] <= now_ms:
        raise NotSignedInError("This token is not known here or has expired. Nothing was changed.")
    return str(row["person"] or row["name"]).casefold()
