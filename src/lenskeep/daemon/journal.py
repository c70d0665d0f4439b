"""Log lines for systemd's journal: the fault's code as a field, and the id under which the journal explains it.

Rules. A line about a fault begins with its code; a caller need know no more. Nothing here waits: a journal that does
not take a line loses it, and the daemon goes on. Without a journal, lines go to standard error as they are.
Source: systemd's Native Journal Protocol. Not here: the words of the catalog (`scripts/make-catalog`).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from lenskeep.errors import fault_book

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "lenskeep"
MESSAGE_CHARS_MAX = 32_000  # a datagram that does not fit is refused as a whole
PLAIN_FORMAT = "%(levelname)s %(name)s: %(message)s"
_CATALOG = uuid.UUID("5b7c1f0e-3a64-4c5e-9d0b-8f5e2c9a71d4")  # never changes: message ids are derived from it
_CODE = re.compile(r"LK-\d{4}\b")
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # syslog(3)


def message_id(code: str) -> str:
    """Return the journal's id for a fault, the same on every device and in every release."""
    return uuid.uuid5(_CATALOG, code).hex


class JournalHandler(logging.Handler):
    """Sends records to the journal.

    Cost: one datagram, never blocks.
    """

    def __init__(self, path: Path = JOURNAL_SOCKET) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))  # level and name are fields
        self._path = str(path)
        self._codes = frozenset(fault_book())
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, or lose it."""
        try:
            self._socket.sendto(_datagram(self._fields(record)), self._path)
        except OSError:  # full, restarting or gone: the cameras' keeper must not stop for its diary
            return

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        text = self.format(record)[:MESSAGE_CHARS_MAX]
        fields = {
            "MESSAGE": text,
            "PRIORITY": str(next((syslog for level, syslog in _PRIORITIES if record.levelno >= level), 7)),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName,
            "LENSKEEP_ROOM": record.name,
        }
        code = _CODE.match(text)
        if code and code.group() in self._codes:
            fields |= {"LENSKEEP_CODE": code.group(), "MESSAGE_ID": message_id(code.group())}
        return fields


def _datagram(fields: Mapping[str, str]) -> bytes:
    """Write fields as the journal reads them; a value with a line break is told by its length."""
    parts: list[bytes] = []
    for name, value in fields.items():
        data = value.encode("utf-8", "surrogateescape")
        if b"\n" in data:
            parts += (name.encode(), b"\n", len(data).to_bytes(8, "little"), data, b"\n")
        else:
            parts += (name.encode(), b"=", data, b"\n")
    return b"".join(parts)


def handler(environment: Mapping[str, str]) -> logging.Handler:
    """Return where this process logs: the journal when standard error leads there, else standard error."""
    status = os.fstat(sys.stderr.fileno())
    if environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
        return JournalHandler()
    plain = logging.StreamHandler()
    plain.setFormatter(logging.Formatter(PLAIN_FORMAT))
    return plain
