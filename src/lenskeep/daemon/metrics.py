"""What versions cost and how they judge: every result is counted once, durably, into windows.

Rules. Results are counted in memory and written every two seconds; the window rows and the position up to which they
are complete share one transaction, and only then is the runner told that it may forget. So a daemon that is killed at
any moment neither loses a result nor counts one twice, as far back as the runner's ring reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from lenskeep.clock import Clock
from lenskeep.config import MetricsRetention
from lenskeep.daemon.events import Events
from lenskeep.database import Database
from lenskeep.errors import DeviceError
from lenskeep.messages.control import LatencyView, result_view
from lenskeep.messages.runner import STAGES, Result, Results
from lenskeep.registry import outbox, windows
from lenskeep.registry.windows import MINUTE_S, Span, SpanKey

log = logging.getLogger(__name__)

FLUSH_S = 2.0
LIVE_S = 60.0
RESULTS_KEPT = 1000
_pack, _RESULT = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Result)
THIN_S = 3600.0
BELIEVED_S = 86400.0  # a frame's wall clock that is further from ours was wrong when the frame was taken


class SlotCounts:
    """What is known about one slot's results in this daemon."""

    def __init__(self, run: str, sequence: int) -> None:
        self.run = run
        self.sequence = sequence
        self.lost = 0
        self.fresh: dict[SpanKey, Span] = {}  # counted since the last flush
        self.live: deque[tuple[float, Span]] = deque()
        self.tenure: dict[str, Span] = {}  # per version since it last became active
        self.recent: deque[bytes] = deque(maxlen=RESULTS_KEPT)  # packed: a sixth of what the objects take


class Metrics:
    """Counts results, keeps windows, answers what the pages and gates ask."""

    def __init__(self, database: Database, events: Events, clock: Clock, retention: MetricsRetention) -> None:
        self.database = database
        self._events = events
        self._clock = clock
        self._retention = retention
        self._slots: dict[str, SlotCounts] = {}
        self._waiting: dict[SpanKey, Span] = {}  # counted, not yet written
        self._positions: dict[str, tuple[str, int]] = {}  # up to where `_waiting` and the rows together reach
        self.durable: dict[str, tuple[str, int]] = {}  # up to where the rows reach
        self._flushing = asyncio.Lock()
        self.told_to_fleet: Callable[[], bool] = lambda: False  # what is counted goes into the outbox too
        self._digests: dict[str, str] = {}
        self._budget_us: dict[str, float] = {}
        self._totals: dict[tuple[str, str], Span] = {}
        self._thinned_s = 0.0

    async def load(self, slots: list[str]) -> None:
        """Find out up to where each slot was counted."""
        async with self.database.read() as tx:
            for slot in slots:
                run, sequence = await windows.position(tx, slot)
                self._slots[slot] = SlotCounts(run, sequence)

    def set_budget(self, bundle: str, latency_p99_ms: float) -> None:
        """Say from which duration a frame of this version counts as a miss."""
        self._budget_us[bundle] = latency_p99_ms * 1000

    def take(self, slot: str, batch: Results) -> None:
        """Count a batch; results that were counted before are passed over. Cost: about 3 us a result."""
        counts = self._slots[slot]
        if batch.run != counts.run:
            counts.run, counts.sequence = batch.run, 0
        counts.lost += batch.lost
        now_s = self._clock.now_s()
        for result in batch.results:
            if result.sequence > counts.sequence:
                counts.sequence = result.sequence
                self._count(counts, slot, result, now_s)

    def _count(self, counts: SlotCounts, slot: str, result: Result, now_s: float) -> None:
        taken_s = result.captured_ms / 1000
        start_s = int(taken_s if abs(taken_s - now_s) < BELIEVED_S else now_s) // MINUTE_S * MINUTE_S
        key = SpanKey(MINUTE_S, start_s, slot, result.bundle)
        span = counts.fresh.get(key)
        if span is None:
            span = counts.fresh[key] = Span()
            self._digests[result.bundle] = result.digest
        span.frames += 1
        span.outcomes[result.outcome] = span.outcomes.get(result.outcome, 0) + 1
        sketches = span.sketches
        sketches["wait"].add(result.wait_us)
        sketches["preprocess"].add(result.preprocess_us)
        sketches["inference"].add(result.inference_us)
        sketches["decode"].add(result.decode_us)
        sketches["total"].add(result.total_us)
        if result.total_us > self._budget_us.get(result.bundle, float("inf")):
            span.misses += 1
        counts.recent.append(_pack(result))
        if self._events.watched:
            self._events.publish("result", {"slot": slot, "result": result_view(result)}, keep=False)

    def position(self, slot: str) -> tuple[str, int]:
        """Return the run and the last result counted, durable or not."""
        counts = self._slots[slot]
        return counts.run, counts.sequence

    # --- what others ask ------------------------------------------------------------------------------------------

    def begin_tenure(self, slot: str, bundle: str) -> None:
        """Begin to count a version anew; called when it becomes active."""
        self._slots[slot].tenure[bundle] = Span()

    def tenure(self, slot: str, bundle: str) -> Span:
        """Return what a version did in a slot since it last became active."""
        return self._slots[slot].tenure.get(bundle) or Span()

    def live(self, slot: str) -> Span:
        """Return what the slot did in the last minute."""
        merged = Span()
        for _, span in self._slots[slot].live:
            merged.merge(span)
        return merged

    def totals(self) -> dict[tuple[str, str], Span]:
        """Return everything counted since this daemon started, by slot and version."""
        return self._totals

    def lost(self, slot: str) -> int:
        """Return how many results a runner's ring had to forget before they were counted."""
        return self._slots[slot].lost

    def still_s(self, slot: str) -> float:
        """Return for how long no result came; infinite when none came in the last minute."""
        live = self._slots[slot].live
        return self._clock.monotonic_s() - live[-1][0] if live else float("inf")

    def recent(self, slot: str) -> Iterator[Result]:
        """Yield the kept results, the newest first. Cost: about 1 us for each that is taken."""
        return (_RESULT.decode(packed) for packed in reversed(self._slots[slot].recent))

    # --- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Flush every two seconds, thin out once an hour."""
        thin_at = 0.0
        while True:
            await asyncio.sleep(FLUSH_S)
            with contextlib.suppress(DeviceError):  # a full disk must not stop the counting; it is tried again
                await self.flush()
                if self._clock.monotonic_s() >= thin_at:
                    await self.thin()
                    thin_at = self._clock.monotonic_s() + THIN_S

    async def flush(self) -> None:
        """Make durable what was counted; afterwards the runners may forget it."""
        async with self._flushing:
            self._absorb()
            if not self._waiting:
                return
            told = self.told_to_fleet()
            async with self.database.write() as tx:
                rows = []
                for key, span in self._waiting.items():
                    merged = await windows.load(tx, key) or Span()
                    merged.merge(span)
                    rows.append(windows.row_of(key, merged))
                    if told:
                        await outbox.count(tx, key, self._digests.get(key.bundle, ""), span)
                await windows.save(tx, rows)
                for slot, (run, sequence) in self._positions.items():
                    await windows.save_position(tx, slot, run, sequence)
            self._waiting = {}
            self.durable.update(self._positions)

    def _absorb(self) -> None:
        """Move what was counted since the last time to where it is asked for and waits to be written."""
        now = self._clock.monotonic_s()
        for slot, counts in self._slots.items():
            for key, span in counts.fresh.items():
                self._waiting.setdefault(key, Span()).merge(span)
                counts.live.append((now, span))
                counts.tenure.setdefault(key.bundle, Span()).merge(span)
                self._totals.setdefault((slot, key.bundle), Span()).merge(span)
                self._positions[slot] = (counts.run, counts.sequence)
            counts.fresh = {}
            while counts.live and counts.live[0][0] < now - LIVE_S:
                counts.live.popleft()

    async def thin(self) -> None:
        """Merge and forget what is old: by a time that moves on with the hours that we were up, never with a leap."""
        keep = self._retention
        boot_s = self._clock.boot_s()
        gone_s, self._thinned_s = (boot_s - self._thinned_s if self._thinned_s else THIN_S), boot_s
        async with self.database.write() as tx:
            horizon_s = await windows.move_horizon(tx, now_s=int(self._clock.now_s()), by_s_max=int(2 * gone_s))
            await windows.thin(
                tx, now_s=horizon_s, minutes_days=keep.minutes_days, quarters_days=keep.quarters_days,
                hours_days=keep.hours_days,
            )  # fmt: skip


def latency_views(span: Span) -> list[LatencyView]:
    """Say a span's durations stage by stage."""
    return [
        LatencyView(
            stage=stage, count=sketch.total, p50_ms=round(sketch.quantile_us(0.5) / 1000, 3),
            p99_ms=round(sketch.quantile_us(0.99) / 1000, 3),
        )
        for stage in STAGES
        if (sketch := span.sketches[stage]).total
    ]  # fmt: skip
