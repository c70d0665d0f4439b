"""Who of a site serves its neighbours: two tags of a device, `site=NAME` and `serves=HOST:PORT`, as operators set them.

A device is told of the others of its site in the answer to its next call. Only an operator knows which devices see each
other and by which addresses; what they are told is a hint and no promise: a device checks what a neighbour gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from lenskeep.errors import PeerError, StorageError
from lenskeep.fleet.presence import Presence
from lenskeep.fleet.store.rollouts import RolloutStore

SITE, SERVES = "site", "serves"
LOOK_S = 5.0
NEIGHBOURS_MAX = 8
_ADDRESS = re.compile(r"[A-Za-z0-9.\-]{1,120}(:[0-9]{1,5})?")


class Sites:
    """The addresses of each site, kept in mind and looked up anew now and then."""

    def __init__(self, store: RolloutStore) -> None:
        self._store = store
        self._site: dict[str, str] = {}
        self._serving: dict[str, list[tuple[str, str]]] = {}  # by site: device and address

    def neighbours(self, device: str) -> list[str]:
        """Return where others of the device's site serve; each device begins with another one."""
        near = self._serving.get(self._site.get(device, ""), [])
        turn = hash(device) % max(1, len(near))
        return [address for name, address in near[turn:] + near[:turn] if name != device][:NEIGHBOURS_MAX]

    async def look(self) -> None:
        """Take over how devices are tagged now."""
        site: dict[str, str] = {}
        serving: dict[str, list[tuple[str, str]]] = {}
        for device, tags in (await self._store.tagged(SITE, SERVES)).items():
            if name := tags.get(SITE, ""):
                site[device] = name
                if _ADDRESS.fullmatch(tags.get(SERVES, "")):
                    serving.setdefault(name, []).append((device, f"http://{tags[SERVES]}"))
        self._site, self._serving = site, serving

    async def run(self, presence: Presence) -> None:
        """Look until cancelled; devices hear of it at their calls."""
        presence.neighbours = self.neighbours
        while True:
            with contextlib.suppress(PeerError, StorageError):  # a database that is away: what is in mind goes on
                await self.look()
            await asyncio.sleep(LOOK_S)
