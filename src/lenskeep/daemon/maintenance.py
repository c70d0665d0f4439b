"""When the fleet's wishes may touch a line: at the device's own times, and while it stands still, if it says so."""

from __future__ import annotations

import time

from lenskeep.clock import Clock
from lenskeep.config import Fleet
from lenskeep.daemon.metrics import Metrics
from lenskeep.trust.assignment import Way

IDLE_S = 30.0


class Maintenance:
    """Judges the moment; what a person asks for at the device is never asked here."""

    def __init__(self, settings: Fleet, metrics: Metrics, clock: Clock) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock

    def why_not(self, slot: str, way: Way) -> str:
        """Say why an assigned version is not activated now; nothing when it may be."""
        if way == "skip":
            return "it is not to be activated yet"
        if way == "forced":
            return ""
        if self._settings.activate_when and (why := self._out_of_hours()):
            return why
        if self._settings.only_when_idle and self._metrics.still_s(slot) < IDLE_S:
            return "the line is working; it waits until it stands still"
        return ""

    def _out_of_hours(self) -> str:
        spans = self._settings.activate_when
        if not self._clock.trusted():
            return f"it waits for {' or '.join(spans)}, and the clock is not to be trusted"
        now = time.localtime(self._clock.now_s())
        minute = now.tm_hour * 60 + now.tm_min
        if any(is_in(span, minute) for span in spans):
            return ""
        return f"it waits for {' or '.join(spans)}; here it is {now.tm_hour:02}:{now.tm_min:02}"


def is_in(span: str, minute: int) -> bool:
    """Say whether a minute of the day lies in a span such as 22:00-05:00; equal ends are the whole day."""
    begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in span.split("-"))
    return begin <= minute < end if begin < end else minute >= begin or minute < end
