"""Maintenance windows: `22:00-05:00`, `Sat 06:00-18:00`, `Mon-Fri 22:00-04:00`, in UTC.

A window that passes midnight belongs to the day on which it begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from lenskeep.errors import RequestError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"(?:([A-Za-z]{3})(?:-([A-Za-z]{3}))? )?(\d\d):(\d\d)-(\d\d):(\d\d)")


def is_open(windows: Sequence[str], now_s: float) -> bool:
    """Say whether one of the windows is open; without windows it always is."""
    return not windows or any(_open(window, datetime.fromtimestamp(now_s, UTC)) for window in windows)


def check(windows: Sequence[str]) -> None:
    """Look at windows that somebody wrote. Raises: RequestError."""
    for window in windows:
        _read(window)


def _open(window: str, now: datetime) -> bool:
    days, begin, end = _read(window)
    minute = now.hour * 60 + now.minute
    if begin < end:
        return now.weekday() in days and begin <= minute < end
    yesterday = (now - timedelta(days=1)).weekday()
    return (now.weekday() in days and minute >= begin) or (yesterday in days and minute < end)


def _read(window: str) -> tuple[set[int], int, int]:
    found = _WINDOW.fullmatch(window)
    if found is None:
        raise RequestError(f"{window!r} is no window.", hint="Write 22:00-05:00 or Mon-Fri 22:00-05:00, in UTC.")
    first, last, *times = found.groups()
    days = set(range(7))
    try:
        if first:
            begin_day, end_day = DAYS.index(first.lower()), DAYS.index((last or first).lower())
            days = {(begin_day + step) % 7 for step in range((end_day - begin_day) % 7 + 1)}
    except ValueError:
        raise RequestError(f"{window!r} names no day; write Mon, Tue, Wed, Thu, Fri, Sat or Sun.") from None
    hours = [int(text) for text in times]
    if hours[0] > 23 or hours[2] > 24:
        raise RequestError(f"{window!r} names no time of a day.")
    return days, hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
