"""Where a repository's files come from: a folder (a stick), or whoever answers for a network.

Rules. A source only carries bytes; nothing that it says is believed. A stick is somebody else's file system: regular
files only, opened without following links, never more than was asked for.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol

from lenskeep.errors import MetadataTooLargeError, SourceError


class Source(Protocol):
    """Files of a repository by their names in it."""

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """Return a file's bytes, or None when it is not there.

        Raises: MetadataTooLargeError for more than `bytes_max` bytes, SourceError when it cannot be had.
        """
        ...


class FolderSource:
    """A repository in a folder. Cost: blocks on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """Return a file's bytes, or None when it is not there. Raises: MetadataTooLargeError, SourceError."""
        descriptor = open_regular(self._folder, name)
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb") as file:
            try:
                data = file.read(bytes_max + 1)
            except OSError as error:
                raise SourceError(f"{name} cannot be read: {error.strerror}.") from error
        if len(data) > bytes_max:
            raise MetadataTooLargeError(f"{name} has more than the {bytes_max} bytes that it may have.")
        return data


def open_regular(folder: Path, name: str) -> int | None:
    """Open a regular file below a folder for reading and return its descriptor; None when it is not there.

    No part of the way may be a symbolic link, and the name may not leave the folder.
    Raises: SourceError for anything that is not a plain file.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise SourceError(f"{name!r} is no name of a file in a repository.")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=at)
                os.close(at)
                at = inner
            descriptor = os.open(parts[-1], flags, dir_fd=at)
        finally:
            os.close(at)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"{name} cannot be opened: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{name} is not a plain file.")
    return descriptor
