"""Whose signature counts here and who may ask: keys and tokens, changed by an administrator, always on record."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import uuid
from datetime import UTC, datetime

from lenskeep.bundle import keys as bundle_keys
from lenskeep.bundle.authority import TrustedKey
from lenskeep.clock import Clock, rfc3339
from lenskeep.database import Database, Row, Transaction
from lenskeep.errors import ConflictError, DeviceError, IdempotencyError, RequestError, UnknownNameError
from lenskeep.messages.control import Key, KeyRequest, Token, TokenRequest
from lenskeep.registry import access, audit, journal

log = logging.getLogger(__name__)

HOUR_MS = 3_600_000
NOTE_USE_MS = 60_000  # a use is noted at most once a minute, to spare the disk
KEEP_EXPIRED_MS = 30 * 24 * HOUR_MS


class Keys:
    """The keys that may sign bundles for this device."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def list(self) -> list[Key]:
        """Return every key that was ever trusted."""
        async with self._database.read() as tx:
            return [_key(row) for row in await access.keys(tx)]

    async def trust(self, request: KeyRequest, by: str) -> Key:
        """Trust a key for some model names. Raises: RequestError when it is no such key, ConflictError when known."""
        admitted = bundle_keys.admit(request.pem)
        key = TrustedKey(
            id=admitted.id, name=request.name, pem=admitted.pem, patterns=tuple(request.patterns),
            not_before_s=_seconds("not_before", request.not_before), not_after_s=_seconds("not_after",
            request.not_after),
            revoked_s=None,
        )  # fmt: skip
        async with self._database.write() as tx:
            for known in (await access.key(tx, key.id), await access.key(tx, key.name)):
                if known is not None:
                    state = "was revoked" if known["revoked_ms"] else "is trusted already"
                    raise ConflictError(
                        f"A key named {known['name']} with id {known['id'][:12]} {state} here. Nothing was changed.",
                        hint="Use another name, or another key; a revoked key does not come back.",
                    )
            await access.add_key(tx, key, at_ms=self._clock.now_ms(), by=by)
            await audit.add(
                tx,
                self._clock,
                by=by,
                action="trust key",
                subject=key.name,
                after=f"{key.id} for {' '.join(key.patterns)}",
            )
        return await self._get(key.id)

    async def revoke(self, id_or_name: str, reason: str, by: str) -> Key:
        """Withdraw trust in a key: its bundles are neither imported nor activated any more."""
        async with self._database.write() as tx:
            row = await access.key(tx, id_or_name)
            if row is None:
                raise UnknownNameError(f"No key is named {id_or_name!r}.")
            if row["revoked_ms"] is None:
                await access.revoke_key(tx, row["id"], at_ms=self._clock.now_ms(), reason=reason)
                await audit.add(
                    tx, self._clock, by=by, action="revoke key", subject=row["name"], reason=reason, before="trusted",
                    after="revoked",
                )  # fmt: skip
        return await self._get(id_or_name)

    async def _get(self, id_or_name: str) -> Key:
        async with self._database.read() as tx:
            row = await access.key(tx, id_or_name)
        assert row is not None
        return _key(row)


class Tokens:
    """Bearer tokens: 256 random bits, stored as their hash, with a role, an end, and whom they stand for."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def list(self) -> list[Token]:
        """Return every token without its secret."""
        async with self._database.read() as tx:
            return [_token(row, self._clock.now_ms()) for row in await access.tokens(tx)]

    async def add(self, request: TokenRequest, by: str) -> Token:
        """Make a token; its secret is in this answer and nowhere else. It ends no later than its maker's own token.

        Asserts: the maker may do all that the token's role may (the door looked).
        """
        secret, now_ms = f"lk_{secrets.token_urlsafe(32)}", self._clock.now_ms()
        ends_ms = now_ms + (request.hours * HOUR_MS if request.hours else request.days * 24 * HOUR_MS)
        async with self._database.write() as tx:
            kind, _, maker = by.partition(":")
            own = await access.token_by_name(tx, maker) if kind == "token" else None
            await self._make_room(tx, request.name, now_ms)
            new = access.NewToken(
                id=uuid.uuid4().hex[:12], name=request.name, role=request.role, secret_sha256=_hash(secret),
                created_ms=now_ms, expires_ms=min(ends_ms, own["expires_ms"]) if own is not None else ends_ms,
                person=request.person or request.name, slots=sorted(set(request.slots)), added_by=by,
            )  # fmt: skip
            await access.add_token(tx, new)
            scope = f" for slots {' '.join(new.slots)}" if new.slots else ""
            await audit.add(
                tx, self._clock, by=by, action="add token", subject=new.name,
                after=f"{new.role} of {new.person}{scope} until {rfc3339(new.expires_ms / 1000)}",
            )  # fmt: skip
            row = await access.token_by_secret(tx, new.secret_sha256)
        assert row is not None
        return _token(row, now_ms, secret)

    async def _make_room(self, tx: Transaction, name: str, now_ms: int) -> None:
        """Refuse a name that is in use; a token whose time is over gives its name free."""
        known = await access.token_by_name(tx, name)
        if known is not None and known["expires_ms"] > now_ms:
            raise ConflictError(f"A token named {name} exists already. Nothing was changed.")
        await access.remove_token(tx, name)
        if self._clock.trusted():
            await access.forget_expired(tx, before_ms=now_ms - KEEP_EXPIRED_MS)

    async def remove(self, id_or_name: str, by: str) -> None:
        """Forget a token; whoever uses it is a stranger from now on."""
        async with self._database.write() as tx:
            gone = next((row for row in await access.tokens(tx) if id_or_name in (row["id"], row["name"])), None)
            if gone is None or not await access.remove_token(tx, id_or_name):
                raise UnknownNameError(f"No token is named {id_or_name!r}.")
            await audit.add(
                tx, self._clock, by=by, action="remove token", subject=gone["name"], before=gone["role"],
                after="removed",
            )  # fmt: skip

    async def find(self, secret: str) -> Token | None:
        """Return the token that a secret belongs to, unless its time is over.

        What is looked up is the secret's hash, so how long it takes says nothing about a secret; the comparison takes
        the same time for every hash.
        """
        wanted, now_ms = _hash(secret), self._clock.now_ms()
        async with self._database.read() as tx:
            row = await access.token_by_secret(tx, wanted)
        if row is None or not hmac.compare_digest(row["secret_sha256"], wanted) or row["expires_ms"] <= now_ms:
            return None
        if abs(now_ms - (row["last_used_ms"] or 0)) >= NOTE_USE_MS:
            await self._note_use(row["id"], now_ms)
        return _token(row, now_ms)

    async def _note_use(self, token_id: str, now_ms: int) -> None:
        try:
            async with self._database.write() as tx:
                await access.note_use(tx, token_id, at_ms=now_ms)
        except DeviceError as error:  # a full disk must not lock out whoever comes to free it
            log.warning("%s the use of a token was not noted: %s", error.code, error)


class Idempotency:
    """Answers already given: a request that comes twice is carried out once."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def find(self, key: str, body_sha256: str) -> tuple[int, bytes] | None:
        """Return the stored answer. Raises: IdempotencyError when the key stood for another request."""
        async with self._database.read() as tx:
            row = await journal.answer(tx, key)
        if row is None:
            return None
        if row["body_sha256"] != body_sha256:
            raise IdempotencyError(f"The key {key!r} was used for another request within the last day.")
        return row["status"], row["body"]

    async def store(self, key: str, body_sha256: str, status: int, body: bytes) -> None:
        """Keep an answer for a day."""
        async with self._database.write() as tx:
            await journal.save_answer(
                tx, key, body_sha256=body_sha256, status=status, body=body, at_ms=self._clock.now_ms(),
                clock_trusted=self._clock.trusted(),
            )  # fmt: skip


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _seconds(field: str, text: str) -> float | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(f"{field}: {text!r} is not a date like 2027-01-31.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _key(row: Row) -> Key:
    def when(column: str, unit: float) -> str:
        return rfc3339(row[column] / unit) if row[column] is not None else ""

    return Key(
        id=row["id"], name=row["name"], patterns=row["patterns"].split(), not_before=when("not_before_s", 1),
        not_after=when("not_after_s", 1), added=when("added_ms", 1000), added_by=row["added_by"],
        revoked=when("revoked_ms", 1000), revoked_reason=row["revoked_reason"],
    )  # fmt: skip


def _token(row: Row, now_ms: int, secret: str = "") -> Token:
    used_ms = row["last_used_ms"]
    return Token(
        id=row["id"], name=row["name"], role=row["role"], created=rfc3339(row["created_ms"] / 1000),
        expires=rfc3339(row["expires_ms"] / 1000), secret=secret, person=row["person"] or row["name"],
        slots=row["slots"].split(), added_by=row["added_by"],
        last_used=rfc3339(used_ms / 1000) if used_ms is not None else "",
        left_s=max(0.0, (row["expires_ms"] - now_ms) / 1000),
    )  # fmt: skip
