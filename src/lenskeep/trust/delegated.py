"""Whose signature counts when a repository says so: its publisher roles in place of an administrator's keys.

Rules. The first role whose patterns cover a model's name decides when it is terminating, as the standard says for
targets. Whether a version is listed now, and when that ends, is the listing's matter and not this one's.
"""

from __future__ import annotations

from collections.abc import Iterable

from lenskeep.bundle.authority import TrustedKey, matches
from lenskeep.bundle.keys import admit
from lenskeep.errors import SignerScopeError, UnknownSignerError
from lenskeep.messages.trust import Delegation


class DelegatedTrust:
    """An `Authority` over the delegations of a verified repository."""

    def __init__(self, delegations: Iterable[Delegation]) -> None:
        self._roles = [(role, _models(role.paths), {admit(pem).id for pem in role.keys}) for role in delegations]
        self._keys: dict[str, TrustedKey] = {}
        for role, patterns, _ in self._roles:
            for pem in role.keys:
                public = admit(pem)
                known = self._keys.get(public.id)
                patterns_of_key = (known.patterns if known else ()) + patterns
                name = known.name if known else role.role
                self._keys[public.id] = TrustedKey(id=public.id, name=name, pem=public.pem, patterns=patterns_of_key)

    def key_for(self, key_id: str) -> TrustedKey:
        """Return the key that a signature names. Raises: UnknownSignerError."""
        key = self._keys.get(key_id)
        if key is None:
            known = ", ".join(sorted({role.role for role, _, _ in self._roles})) or "no publisher at all"
            raise UnknownSignerError(
                f"The bundle is signed by the key {key_id[:16]}…; the repository's publishers are {known}.",
                hint="The repository's holders add a publisher or its key: lenskeep trust add-publisher.",
            )
        return key

    def check_time(self, key: TrustedKey, now_s: float) -> None:
        """Roles expire, keys do not: nothing to refuse."""

    def authorise(self, key: TrustedKey, model_name: str, now_s: float) -> None:  # noqa: ARG002 - the seam's signature
        """Refuse a key for a model name. Raises: SignerScopeError."""
        for role, patterns, keys in self._roles:
            if any(matches(pattern, model_name) for pattern in patterns):
                if key.id in keys:
                    return
                if role.terminating:
                    break
        raise SignerScopeError(f"The bundle is signed by a key of {key.name}, which may not sign {model_name}.")


def _models(paths: list[str]) -> tuple[str, ...]:
    """Turn target patterns into patterns of model names: `models/cap-*/*` covers `cap-*`."""
    return tuple(parts[1] for path in paths if (parts := path.split("/"))[0] == "models" and len(parts) == 3)
