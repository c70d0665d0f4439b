"""The door to `/metrics`: a device that nobody scrapes does not carry the library that writes its format."""

from __future__ import annotations

from collections.abc import Callable

from lenskeep.clock import Clock
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.registry.blobs import Blobs


class Scrape:
    """Answers scrapes; the first one imports and builds what answers them."""

    def __init__(self, metrics: Metrics, supervisor: Supervisor, blobs: Blobs, clock: Clock) -> None:
        self._parts = (metrics, supervisor, blobs, clock)
        self._answer: Callable[[], bytes] | None = None

    def prometheus(self) -> bytes:
        """Return the page in Prometheus' text form. Cost: a few milliseconds, some tens at the first time."""
        if self._answer is None:
            from lenskeep.daemon.exposition import Exposition

            self._answer = Exposition(*self._parts).prometheus
        return self._answer()
