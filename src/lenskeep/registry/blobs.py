"""Stored bytes by their sha256, safe against power cuts: stage, write, sync, rename, sync the folder.

Rules. A name in `blobs/` exists only when its bytes are complete and on the disk. Nothing here knows why a blob is
kept: the caller says which digests are wanted and `sweep` removes the rest. What a crash leaves in `staging/` is
removed at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lenskeep.errors import StorageError, StorageFullError

MEBIBYTE = 1 << 20


class StagedFile:
    """A file being written into staging: the sink that a bundle reader writes a member to."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self._size_bytes = size_bytes
        self._written = 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o440)
        if size_bytes >= MEBIBYTE:
            # reserves the space now, so that a full disk shows before the work and not at 99 %
            self._reserve()

    def _reserve(self) -> None:
        try:
            os.posix_fallocate(self._fd, 0, self._size_bytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self.close()
                raise StorageFullError("The disk is too full for this bundle. Nothing was changed.") from error
            # a file system that cannot reserve shows a full disk while writing instead

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes. Cost: blocks on the disk."""
        view = memoryview(data)
        with translated(self.path):
            while view:
                count = os.write(self._fd, view)
                self._written += count
                view = view[count:]

    def close(self) -> None:
        """Finish the file; its bytes are on the disk when this returns. Cost: one sync."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        with translated(self.path):
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


class Staging:
    """A private folder for one import; gone when the import is, whatever happened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, StagedFile] = {}

    def open_member(self, name: str, size_bytes: int) -> StagedFile:
        """Open the sink for one member. The member's name never becomes a path."""
        staged = StagedFile(self.folder / f"{len(self._files):04d}", size_bytes)
        self._files[name] = staged
        return staged

    def path_of(self, name: str) -> Path:
        """Return where a member's bytes lie."""
        return self._files[name].path

    def close(self) -> None:
        """Close every file and remove the folder."""
        for staged in self._files.values():
            with contextlib.suppress(StorageError, StorageFullError):
                staged.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Blobs:
    """The folder of stored bytes."""

    def __init__(self, state_dir: Path, *, free_bytes_min: int) -> None:
        self.folder = state_dir / "blobs"
        self._staging = state_dir / "staging"
        self._free_bytes_min = free_bytes_min

    def prepare_in_thread(self) -> None:
        """Make the folders and remove what a crash left half written."""
        shutil.rmtree(self._staging, ignore_errors=True)
        for folder in (self.folder, self._staging):
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)

    def path(self, sha256: str) -> Path:
        """Return where a blob is or would be."""
        return self.folder / sha256[:2] / sha256

    def free_bytes(self) -> int:
        """Return how much an import may still use."""
        stat = os.statvfs(self.folder)
        return stat.f_bavail * stat.f_frsize - self._free_bytes_min

    def require_space(self, size_bytes: int) -> None:
        """Refuse before the work what would not fit. Raises: StorageFullError."""
        free = self.free_bytes()
        if size_bytes > free:
            raise StorageFullError(
                f"{size_bytes / MEBIBYTE:.0f} MiB are needed and {max(free, 0) / MEBIBYTE:.0f} MiB may be used. "
                "Nothing was changed."
            )

    def stage(self) -> Staging:
        """Begin an import in a folder of its own."""
        folder = self._staging / uuid.uuid4().hex
        with translated(folder):
            folder.mkdir(mode=0o700)
        return Staging(folder)

    def commit_in_thread(self, files: list[tuple[Path, str]]) -> None:
        """Move staged files to their digests; on the disk when this returns. Cost: one sync per folder touched."""
        touched: set[Path] = set()
        for staged, sha256 in files:
            target = self.path(sha256)
            with translated(target):
                target.parent.mkdir(exist_ok=True, mode=0o750)
                # also over a file that is there: its bytes may have rotted, these have just been hashed
                staged.rename(target)
                touched |= {target.parent, self.folder}
        for folder in touched:
            sync_folder(folder)

    def sweep_in_thread(self, wanted: set[str]) -> int:
        """Remove every blob that is not wanted; return the bytes freed."""
        freed = 0
        for path in self.folder.glob("??/*"):
            if path.name not in wanted:
                with contextlib.suppress(OSError):
                    size = path.stat().st_size
                    path.unlink()
                    freed += size
        return freed


def write_durably(path: Path, data: bytes, *, mode: int = 0o640) -> None:
    """Replace a small file so that a power cut leaves the old or the new one, whole. Cost: two syncs."""
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    with translated(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the operating system's word into ours. Raises: StorageFullError, StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("The disk became full. What was half written has been removed.") from error
        raise StorageError(f"{path.name}: {error.strerror}.") from error
