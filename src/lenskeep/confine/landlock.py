"""Landlock, the kernel's own sandbox for unprivileged processes: which files and which TCP ports are left.

Rules. What a kernel can refuse is refused, all of it; exceptions are named one by one. A rule holds for what a path
led to when it was made: a folder with all that will ever be in it, a file as long as it is not replaced. It is in force
for the calling thread and the threads it begins, so it must come before any other thread.
Source: Linux 6.18, Documentation/userspace-api/landlock.rst. Later kernels refuse no less for what is asked here.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from lenskeep.confine import kernel

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # on every machine
_ASK_VERSION = 1
_BENEATH, _PORT = 1, 2

WRITE_FILE, READ_FILE, READ_FOLDER = 1 << 1, 1 << 2, 1 << 3
TRUNCATE, DEVICE_CONTROL = 1 << 14, 1 << 15
READ = READ_FILE | READ_FOLDER
WRITE = WRITE_FILE | TRUNCATE
# all that one does with plain files, folders and links in a folder of one's own
FOLDER = READ | WRITE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 13
_FILE_RIGHTS = 1 | WRITE_FILE | READ_FILE | TRUNCATE | DEVICE_CONTROL
_BIND, _CONNECT = 1, 2
_ALL_SCOPES = 3  # nameless sockets and signals stay among the processes of the sandbox

PORTS_SINCE, SCOPES_SINCE = 4, 6


def version() -> int:
    """Return which Landlock this kernel has. Raises: OSError when it has none, or none that may be used here."""
    return kernel.call(_CREATE, None, 0, _ASK_VERSION)


def why_not(error: OSError) -> str:
    """Say in words why there is no Landlock."""
    if error.errno == errno.EPERM:
        return "the container or service around it does not let Landlock be used"
    return "this kernel has no Landlock, or it is switched off"


def _file_rights(abi: int) -> int:
    """All rights that a version knows."""
    rights = 13 + sum(abi >= since for since in (2, 3, 5))
    return (1 << rights) - 1


def restrict(abi: int, paths: Mapping[Path, int], ports: Iterable[int]) -> None:
    """Leave to this thread only these files and folders and, where the kernel can tell, TCP to these ports.

    Args:
        paths: what is left, with the rights to it; a path that is not there is left out.
    Raises: OSError.
    """
    handled = _file_rights(abi)
    words = [handled, _BIND | _CONNECT if abi >= PORTS_SINCE else 0, _ALL_SCOPES if abi >= SCOPES_SINCE else 0]
    known = 3 if abi >= SCOPES_SINCE else 2 if abi >= PORTS_SINCE else 1
    rules = kernel.call(_CREATE, struct.pack(f"={known}Q", *words[:known]), 8 * known, 0)
    try:
        for path, rights in paths.items():
            _leave(rules, path, rights & handled)
        for port in ports if abi >= PORTS_SINCE else ():
            kernel.call(_ADD, rules, _PORT, struct.pack("=QQ", _CONNECT, port), 0)
        kernel.call(_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _leave(rules: int, path: Path, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= _FILE_RIGHTS
    if rights:
        kernel.call(_ADD, rules, _BENEATH, struct.pack("=Qi", rights, place), 0)
    # The kernel makes its files under /proc anew when memory is short, and a rule would not know them again; while
    # one is held open it stays the same.
    if not path.is_relative_to("/proc"):
        os.close(place)
