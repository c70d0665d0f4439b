"""Options and kinds of values that several commands share."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """A time span such as 45, 30s, 10m, 2h or 1d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip())
        if match is None or match[2] not in _UNITS:
            self.fail(f"{value!r} is no time span; write 45, 30s, 10m, 2h or 1d.", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


DURATION = Duration()

slot_option = click.option("--slot", metavar="SLOT", help="Which slot; not needed when there is only one.")
reason_option = click.option("--reason", default="", metavar="TEXT", help="Why; it goes on record.")
