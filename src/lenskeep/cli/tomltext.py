"""Changes one value in a TOML text and leaves everything else as it was: comments, order, spacing.

Rules. A key is written as people say it: `control.port`, `slot.main.threads`, `camera.cam-1.source`. Tables of the
configuration are `[name]` or, where there are several, `[[name]]` with a `name` of their own. The value on a line ends
where its TOML ends, so a comment behind it stays. Not here: whether the result makes sense (config).
"""

from __future__ import annotations

import json
import re
import tomllib

from lenskeep.errors import ConfigError, UnknownNameError

_HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_-]+)\s*\]\]?\s*(#.*)?$")
_LINE = re.compile(r"^(\s*)([A-Za-z0-9_-]+)(\s*=\s*)")


def literal(text: str) -> str:
    """Return what somebody typed as a TOML value; what is none is taken as text."""
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return quoted(text)
    return text


def quoted(text: str) -> str:
    """Return a text as a TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def replaced(text: str, key: str, value: str) -> str:
    """Return the text with `key` set to the TOML `value`. Raises: UnknownNameError for a table that is not there."""
    *table, name = key.split(".")
    if not 1 <= len(table) <= 2:
        raise UnknownNameError(f"{key!r} is no key of the configuration.", hint="Keys: lenskeep config get.")
    lines = text.splitlines(keepends=True)
    begin, end = _table(lines, table)
    for number in range(begin, end):
        match = _LINE.match(lines[number])
        if match and match[2] == name:
            length = _value_lines(lines[number:end])
            last = lines[number + length - 1]
            lines[number : number + length] = [
                f"{match[0]}{value}{_comment(''.join(lines[number : number + length]), last)}"
            ]
            return "".join(lines)
    while end > begin and not lines[end - 1].strip():
        end -= 1
    lines.insert(end, f"{name} = {value}\n")
    return "".join(lines)


def _table(lines: list[str], table: list[str]) -> tuple[int, int]:
    """Return the lines of a table, without its header."""
    starts = [(number, match[1], match[2]) for number, line in enumerate(lines) if (match := _HEADER.match(line))]
    for index, (number, bracket, name) in enumerate(starts):
        end = starts[index + 1][0] if index + 1 < len(starts) else len(lines)
        if name != table[0] or (bracket == "[[") != (len(table) == 2):
            continue
        if len(table) == 1 or _own_name("".join(lines[number + 1 : end])) == table[1]:
            return number + 1, end
    raise UnknownNameError(f"There is no [{'.'.join(table)}] in the file.", hint="Write the table into the file first.")


def _own_name(text: str) -> str:
    try:
        return str(tomllib.loads(text).get("name", ""))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The file is not TOML: {error}.") from error


def _value_lines(lines: list[str]) -> int:
    """Return over how many lines the value of the first one goes."""
    for length in range(1, len(lines) + 1):
        try:
            tomllib.loads("".join(lines[:length]))
        except tomllib.TOMLDecodeError:
            continue
        return length
    raise ConfigError(f"The file is not TOML at {lines[0].strip()!r}.")


def _comment(whole: str, last: str) -> str:
    """Return what stands behind the value: the shortest tail from a `#` on without which the value is the same."""
    known = tomllib.loads(whole)
    ending = "\n" if last.endswith("\n") else ""
    for match in re.finditer(r"\s*#", last):
        try:
            same = tomllib.loads(whole[: len(whole) - len(last) + match.start()]) == known
        except tomllib.TOMLDecodeError:
            continue
        if same:
            return last[match.start() :].rstrip("\n") + ending
    return ending
