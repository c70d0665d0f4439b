"""Who may sign which model name, and when.

Rules. Trust is given by an administrator of this device, key by key, for model names that match the key's
patterns, and for a time. A revoked key stays listed, so that its bundles are refused by name and not as
strangers. `Authority` is the seam: a fleet's signed roles answer the same questions in place of this store.
Not here: the arithmetic of signatures (keys), the clock (`now_s` is passed in).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct

from lenskeep.bundle.keys import PublicKey, admit
from lenskeep.clock import rfc3339
from lenskeep.errors import (
    KeyExpiredError,
    KeyRevokedError,
    RequestError,
    SignerScopeError,
    UnknownSignerError,
)


class TrustedKey(Struct, frozen=True, kw_only=True):
    """A public key and what it is trusted for."""

    id: str  # sha256 of the PEM text, as in the signature's hint
    name: str
    pem: str
    patterns: tuple[str, ...]  # whole model names; `*` stands for any run of characters
    not_before_s: float | None = None
    not_after_s: float | None = None
    revoked_s: float | None = None

    def public_key(self) -> PublicKey:
        """Return the key to verify with. Raises: UnknownSignerError when id and PEM do not match."""
        try:
            public = admit(self.pem)
        except RequestError as error:
            raise UnknownSignerError(f"The stored key {self.name} is damaged: {error}") from error
        if public.id != self.id:
            raise UnknownSignerError(f"The stored key {self.name} is damaged: its id belongs to another key.")
        return public


class Authority(Protocol):
    """Whoever answers for signers: this device's trusted keys, or a fleet's roles."""

    def key_for(self, key_id: str) -> TrustedKey:
        """Return the key that a signature names. Raises: UnknownSignerError."""

    def check_time(self, key: TrustedKey, now_s: float) -> None:
        """Refuse a key that is withdrawn or out of its time. Raises: KeyRevokedError, KeyExpiredError."""

    def authorise(self, key: TrustedKey, model_name: str, now_s: float) -> None:
        """Refuse a key for a model name. Raises: SignerScopeError, KeyRevokedError, KeyExpiredError."""


class TrustStore:
    """The trusted keys of a stand-alone device."""

    def __init__(self, keys: Iterable[TrustedKey]) -> None:
        self._keys = {key.id: key for key in keys}

    def key_for(self, key_id: str) -> TrustedKey:
        """Return the key that a signature names. Raises: UnknownSignerError."""
        key = self._keys.get(key_id)
        if key is None:
            known = ", ".join(sorted(key.name for key in self._keys.values())) or "no key at all"
            raise UnknownSignerError(f"The bundle is signed by the key {key_id[:16]}…; this device trusts {known}.")
        return key

    def check_time(self, key: TrustedKey, now_s: float) -> None:
        """Refuse a key that is withdrawn or out of its time. Raises: KeyRevokedError, KeyExpiredError."""
        if key.revoked_s is not None:
            raise KeyRevokedError(f"The bundle is signed by {key.name}, revoked on {rfc3339(key.revoked_s)}.")
        if key.not_before_s is not None and now_s < key.not_before_s:
            raise KeyExpiredError(f"The key {key.name} is trusted from {rfc3339(key.not_before_s)} on.")
        if key.not_after_s is not None and now_s >= key.not_after_s:
            raise KeyExpiredError(f"The key {key.name} was trusted until {rfc3339(key.not_after_s)}.")

    def authorise(self, key: TrustedKey, model_name: str, now_s: float) -> None:
        """Refuse a key for a model name. Raises: SignerScopeError, KeyRevokedError, KeyExpiredError."""
        self.check_time(key, now_s)
        if not any(matches(pattern, model_name) for pattern in key.patterns):
            raise SignerScopeError(
                f"The bundle is signed by {key.name}, which may sign {', '.join(key.patterns) or 'nothing'} "
                f"and not {model_name}."
            )


def matches(pattern: str, model_name: str) -> bool:
    """Say whether a pattern covers a whole model name; only `*` is special in it."""
    literal = pattern.replace("[", "[[]").replace("?", "[?]")
    return fnmatch.fnmatchcase(model_name, literal)
