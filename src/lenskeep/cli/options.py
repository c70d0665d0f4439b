"""Options and kinds of values that several commands share."""

from __future__ import annotations

import re
from typing import Any

import click

from lenskeep.cli.words import clean

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


class Ref(click.ParamType[str]):
    """A version by its name, or the newest of a name."""

    name = "version"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as `NAME` or `NAME@VERSION`."""
        text = str(value).strip()
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}(@[0-9a-z.\-]{1,60})?", text):
            self.fail(f"{clean(text)!r} is no version; write NAME@VERSION, as in cap-inspect@1.1.0.", param, ctx)
        return text


DURATION = Duration()
REF = Ref()

slot_option = click.option("--slot", metavar="SLOT", help="Which slot; not needed when there is only one.")
reason_option = click.option("--reason", default="", metavar="TEXT", help="Why; it goes on record.")
