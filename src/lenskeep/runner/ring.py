"""Results that the daemon has not acknowledged yet: kept in order, bounded, sent again to the next daemon.

Rules. The loop only appends: one atomic step, no lock. Everything else belongs to the reporter's thread. Sequence
numbers grow by one, so what fell off is seen as a gap and counted, never guessed.
"""

from __future__ import annotations

from collections import deque

from lenskeep.messages.runner import Result

BATCH_RESULTS_MAX = 500
BATCH_BOXES_MAX = 50_000  # with the longest labels still below the largest frame of the socket


class ResultRing:
    """The last `size` results of one run of the runner."""

    def __init__(self, run: str, size: int) -> None:
        self.run = run
        self._size = size
        self._fresh: deque[Result] = deque(maxlen=size)  # never sent on any connection
        self._again: deque[Result] = deque()  # sent on an earlier connection, to be sent on this one
        self._sent: deque[Result] = deque()  # sent on this connection, not acknowledged
        self._next = 1  # the sequence that `_fresh` must give next
        self._lost = 0
        self.append = self._fresh.append  # the loop's end, bound once because it is called for every frame

    @property
    def waiting(self) -> bool:
        """Say whether there is something to send."""
        return bool(self._again or self._fresh)

    def __len__(self) -> int:
        return len(self._sent) + len(self._again) + len(self._fresh)

    def batch(self) -> tuple[list[Result], int]:
        """Take the next results to send, and how many were forgotten since the last batch."""
        taken: list[Result] = []
        boxes = 0
        while len(taken) < BATCH_RESULTS_MAX and boxes < BATCH_BOXES_MAX:
            result = self._take()
            if result is None:
                break
            taken.append(result)
            boxes += len(result.detections)
        self._sent.extend(taken)
        self._trim()
        lost, self._lost = self._lost, 0
        return taken, lost

    def acknowledge(self, run: str, sequence: int) -> None:
        """Forget what is stored: results of this run up to and including `sequence`."""
        if run != self.run:
            return
        for results in (self._sent, self._again):
            while results and results[0].sequence <= sequence:
                results.popleft()

    def rewind(self) -> None:
        """A new connection: everything unacknowledged is to be sent again."""
        self._again.extendleft(reversed(self._sent))
        self._sent.clear()
        self._trim()

    def _take(self) -> Result | None:
        if self._again:
            return self._again.popleft()
        try:
            result = self._fresh.popleft()
        except IndexError:
            return None
        self._lost += result.sequence - self._next
        self._next = result.sequence + 1
        return result

    def _trim(self) -> None:
        while len(self) > self._size:
            oldest = self._sent or self._again
            if not oldest:
                break
            oldest.popleft()
            self._lost += 1
