"""What happens on this device, as a numbered stream that a page or a script can follow and resume.

The newest thousand events stay in memory; results are passed on to whoever listens but not kept here. A listener that
does not keep up loses the oldest of what waits for it, never the daemon's time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

from lenskeep.clock import Clock, rfc3339
from lenskeep.messages.control import Event

Type = Literal["result", "slot", "operation", "fault", "camera", "bundle", "audit"]
KEPT = 1000
WAITING_MAX = 2000


class Events:
    """The stream; `first` is above every number of an earlier start of the daemon."""

    def __init__(self, clock: Clock, first: int) -> None:
        self._clock = clock
        self._sequence = first
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._listeners: set[asyncio.Queue[Event]] = set()
        self.heed: Callable[[Type, Any], None] = lambda _type, _data: None  # is told what is kept, without listening

    @property
    def watched(self) -> bool:
        """Say whether anybody listens; results need not be built otherwise."""
        return bool(self._listeners)

    def publish(self, type_: Type, data: Any, *, keep: bool = True) -> None:
        """Tell everybody that something happened; what passes at once (results, progress) is not kept."""
        self._sequence += 1
        event = Event(
            sequence=self._sequence,
            type=type_,
            at=rfc3339(self._clock.now_s()),
            data=data,
        )
        if keep:
            self._kept.append(event)
            self.heed(type_, data)
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    async def subscribe(self, since: int | None = None) -> AsyncIterator[Event]:
        """Yield events after `since` (None = from now on) as they come, until the caller stops."""
        queue: asyncio.Queue[Event] = asyncio.Queue(WAITING_MAX)
        if since is not None:
            for event in self._kept:
                if event.sequence > since:
                    queue.put_nowait(event)
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)
