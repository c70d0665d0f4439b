"""What the command line prints: results on standard output, everything said along the way on standard error.

Rules. `emit` is how a command ends well: people get words, `--json` gets one envelope with a schema name. Colour only
on a terminal, never alone, and not with NO_COLOR. Text that came from a bundle or a device goes through `clean`. A
failure names what remained unchanged and ends with the fix; the same code is on the page and in the API.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

import click
import msgspec

from lenskeep.cli.words import Exit, clean, clean_json, clean_lines, exit_of
from lenskeep.errors import LenskeepError

STYLES = {"good": "32", "warn": "33", "bad": "31;1", "strong": "1", "dim": "2"}
MARKS = {"good": "✓", "bad": "✗", "warn": "!", "info": "·"}
PLAIN_MARKS = {"good": "ok", "bad": "NO", "warn": "! ", "info": "- "}


class Screen:
    """Where a command writes to, and in which form."""

    def __init__(
        self, *, json: bool = False, colour: bool | None = None, environment: dict[str, str] | None = None,
        stdout: TextIO | None = None, stderr: TextIO | None = None,
    ) -> None:  # fmt: skip
        environment = environment or {}
        self.json = json
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        wanted = "NO_COLOR" not in environment and environment.get("TERM") != "dumb"
        self.colour = (wanted and self.stdout.isatty()) if colour is None else colour
        self.marks = MARKS if (self.stdout.encoding or "").lower().replace("-", "") == "utf8" else PLAIN_MARKS

    def style(self, text: str, style: str) -> str:
        """Colour a text that says the same without its colour."""
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if self.colour else text

    def mark(self, kind: str) -> str:
        """Return the sign of a good, bad, warning or plain line."""
        sign = self.marks[kind]
        return sign if kind == "info" else self.style(sign, kind)

    def line(self, text: str = "") -> None:
        """Write a line of the result."""
        print(text, file=self.stdout)

    def lines(self, lines: Iterable[str]) -> None:
        """Write lines of the result."""
        for line in lines:
            self.line(line)

    def note(self, text: str) -> None:
        """Say something along the way."""
        print(text, file=self.stderr)

    def next(self, text: str) -> None:
        """Say what may be done now."""
        self.line(f"{self.style('Next:', 'strong')} {text}")

    def table(self, rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
        """Write aligned columns; cells are cleaned."""
        cells = [list(header), *[[clean(cell) for cell in row] for row in rows]]
        widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
        for number, row in enumerate(cells):
            text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            self.line(self.style(text, "dim") if number == 0 else text)

    def envelope(self, schema: str, data: Any, warnings: Sequence[str] = ()) -> None:
        """Write the JSON form: additive changes only within a schema's number."""
        said = {"schema": f"lenskeep.{schema}", "data": data, "warnings": list(warnings)}
        self.line(clean_json(msgspec.json.encode(said).decode()))


def screen_of(context: click.Context) -> Screen:
    """Return the screen that the root made for this run."""
    screen = context.find_root().obj.screen
    assert isinstance(screen, Screen), "the root makes the screen before any command runs"
    return screen


def emit(
    context: click.Context, schema: str, data: Any, human: Callable[[Screen], None], warnings: Sequence[str] = ()
) -> None:
    """Print a result: `human(screen)` for people, the envelope `lenskeep.SCHEMA` for `--json`.

    Args:
        schema: name and number, such as `status/1`.
        data: a struct, or anything that msgspec can write as JSON.
    """
    screen = screen_of(context)
    if screen.json:
        screen.envelope(schema, data, warnings)
        return
    human(screen)
    for warning in warnings:
        screen.note(f"{screen.mark('warn')} {clean(warning)}")


def fail(screen: Screen, error: LenskeepError) -> Exit:
    """Print a fault and return its exit code."""
    code = exit_of(error)
    if screen.json:
        said = {"code": error.code, "title": error.title(), "detail": str(error), "hint": error.hint, "exit": int(code)}
        screen.envelope("problem/1", said)
        return code
    screen.note(f"{screen.style(clean(error.code), 'bad')} {clean_lines(str(error))}")
    screen.note(f"{screen.style('Fix:', 'strong')} {clean_lines(error.hint)}")
    screen.note(f"{screen.style('More:', 'strong')} lenskeep explain {clean(error.code)}")
    return code


class Progress:
    """One line on a terminal that is drawn over; a plain line per stage elsewhere; silent with `--json`."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._live = screen.stderr.isatty() and not screen.json
        self._drawn = 0
        self._stage = ""

    def show(self, stage: str, text: str) -> None:
        """Say where the work is."""
        if self._live:
            line = f"{stage}: {text}" if text else stage
            self._screen.stderr.write("\r" + line.ljust(self._drawn))
            self._screen.stderr.flush()
            self._drawn = len(line)
        elif stage != self._stage and not self._screen.json:
            self._screen.note(f"{stage} ...")
        self._stage = stage

    def clear(self) -> None:
        """Take the line away."""
        if self._live and self._drawn:
            self._screen.stderr.write("\r" + " " * self._drawn + "\r")
            self._screen.stderr.flush()
        self._drawn = 0
