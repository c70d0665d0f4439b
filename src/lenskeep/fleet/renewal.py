"""Keeps the repository fresh with the keys that are online: what devices trust must not run out because nobody looked.

Rules. Only what was verified as a device verifies it is signed anew; that is the repository tool's work, done in a
thread. A fleet without online keys serves the repository as it is, and its holders refresh it. What goes wrong is an
alarm of the fleet's own, and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from lenskeep.clock import Clock
from lenskeep.errors import ClockUntrustedError, LenskeepError
from lenskeep.fleet.store.store import Store
from lenskeep.trust.names import METADATA

log = logging.getLogger("lenskeep.fleet")

LOOK_S, AGAIN_S = 3600.0, 300.0
FLEET_ITSELF = ""  # alarms that are about no device

Leads = Callable[[], Awaitable[bool]]


async def _alone() -> bool:
    return True


class Renewal:
    """Signs online roles anew in time."""

    def __init__(
        self,
        repository: Path,
        keys: list[str],
        environment: Mapping[str, str],
        store: Store,
        clock: Clock,
        *,
        leads: Leads = _alone,
    ) -> None:
        self._repository = repository
        self._keys = keys
        self._environment = environment
        self._store = store
        self._clock = clock
        self._leads = leads

    async def run(self) -> None:
        """Look every hour; without online keys there is nothing to do."""
        while self._keys:
            pause_s = LOOK_S
            try:
                if await self._leads():  # of several replicas one signs
                    await self.look()
            except LenskeepError as error:
                pause_s = AGAIN_S
                log.warning("%s The repository was not renewed: %s", error.code, error)
                with contextlib.suppress(LenskeepError):  # the database may be what is away
                    await self._store.note_alarm(FLEET_ITSELF, error.code, str(error), now_ms=self._clock.now_ms())
            await asyncio.sleep(pause_s)

    async def look(self) -> None:
        """Renew what is due. Raises: TrustError, ClockUntrustedError."""
        if not (self._repository / METADATA / "1.root.json").exists():
            return  # no repository yet
        if not self._clock.trusted():
            raise ClockUntrustedError("The fleet's clock cannot be right; nothing is signed by it.")
        renewed = await asyncio.to_thread(self._resign_in_thread, self._clock.now_s())
        if renewed:
            log.info("Renewed: %s", ", ".join(renewed))

    def _resign_in_thread(self, now_s: float) -> tuple[str, ...]:
        from lenskeep.trust.keeping.keyring import open_signer
        from lenskeep.trust.keeping.online import resign

        signers = [open_signer(word, self._environment, lambda _what: None) for word in self._keys]
        settled = resign(self._repository, signers, now_s)
        return (*settled.placed, *settled.renewed)
