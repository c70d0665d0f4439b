"""The folder of a repository, changed so that a crash at any moment leaves what a device accepts.

Layout. `metadata/` and `targets/` are what a server serves (`names`). Beside them, for the keepers alone: `pending/`
(proposals that lack signatures), `keeping.toml` (settings), `.scratch/`, `.lock`, `.flip.json`.
Rules. Changes are gathered in memory and written by `commit`: files that nothing refers to yet come first, and what
makes them visible (`timestamp.json`, a new root) last. A root and a timestamp that belong together stand in a small
journal before either is written; whoever works on the folder next finishes it. One writer at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from lenskeep.errors import (
    LenskeepError,
    RepositoryBusyError,
    RepositoryDamagedError,
    StorageError,
    StorageFullError,
)
from lenskeep.trust.keeping.documents import DOCUMENT_BYTES_MAX
from lenskeep.trust.names import DIRECTOR, METADATA, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TOP_TARGETS
from lenskeep.trust.source import FolderSource, open_regular

PENDING, SETTINGS = "pending", "keeping.toml"
_SCRATCH, _LOCK, _FLIP = ".scratch", ".lock", ".flip.json"
_NUMBERED = re.compile(r"([1-9][0-9]{0,15})\.([a-z0-9][a-z0-9-]{0,62})\.json")
_TIMESTAMP_FILE = f"{METADATA}/{TIMESTAMP}.json"
LOCK_WAIT_S = 10.0
CHUNK_BYTES = 1 << 20
_SYNCS_MAX = 16

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Workspace:
    """A repository's files, with the changes that are not written yet laid over them."""

    def __init__(self, folder: Path, progress: Progress | None = None) -> None:
        self.folder = folder
        self.timestamp_first = False  # set when the new timestamp is good under the old root as well
        self._source = FolderSource(folder)
        self._progress = progress
        self._new: dict[str, bytes] = {}
        self._copies: dict[str, tuple[Path, str]] = {}
        self._dropped: set[str] = set()
        self._listed: dict[str, set[int]] | None = None

    @property
    def changed(self) -> list[str]:
        """Names of what `commit` would write or take away, in its order."""
        return [*sorted((*self._copies, *self._new), key=self._rank), *sorted(self._dropped)]

    def read(self, name: str, bytes_max: int = DOCUMENT_BYTES_MAX) -> bytes | None:
        """Return a file's bytes as they will be, or None. Raises: SourceError, MetadataTooLargeError."""
        if name in self._dropped:
            return None
        return self._new[name] if name in self._new else self._source.read(name, bytes_max)

    def has(self, name: str) -> bool:
        """Say whether a file will be there; a folder or a link is none. Raises: SourceError."""
        if name in self._new or name in self._copies:
            return True
        descriptor = open_regular(self.folder, name)
        if descriptor is None:
            return False
        os.close(descriptor)
        return name not in self._dropped

    def size_of(self, name: str) -> int | None:
        """Return a file's length as it will be, or None. Raises: SourceError."""
        if name in self._new:
            return len(self._new[name])
        if name in self._copies:
            return self._copies[name][0].stat().st_size
        descriptor = open_regular(self.folder, name)
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return os.fstat(file.fileno()).st_size

    def place_of(self, name: str) -> tuple[Path, str]:
        """Return where a large file can be read now, as folder and name: a copy that waits is read at its source."""
        source = self._copies[name][0] if name in self._copies else None
        return (self.folder, name) if source is None else (source.resolve().parent, source.resolve().name)

    def versions(self, role: str) -> list[int]:
        """Return the versions of a role that have a file, the highest first."""
        if self._listed is None:
            self._listed = {}
            with contextlib.suppress(FileNotFoundError):
                for path in (self.folder / METADATA).iterdir():
                    self._list(path.name)
        return sorted(self._listed.get(role, ()), reverse=True)

    def _list(self, name: str) -> None:
        found = _NUMBERED.fullmatch(name)
        if found is not None and self._listed is not None:
            self._listed.setdefault(found[2], set()).add(int(found[1]))

    def pending(self) -> list[str]:
        """Return the roles for which something waits for signatures."""
        folder = self.folder / PENDING
        there = {f"{PENDING}/{path.name}" for path in folder.glob("*.json")} if folder.is_dir() else set()
        there |= {name for name in self._new if name.startswith(f"{PENDING}/")}
        return sorted(Path(name).stem for name in there - self._dropped)

    def put(self, name: str, data: bytes) -> None:
        """Write a file at the next commit."""
        self._dropped.discard(name)
        self._new[name] = data
        if name.startswith(f"{METADATA}/"):
            self.versions("")
            self._list(name.removeprefix(f"{METADATA}/"))

    def put_copy(self, name: str, source: Path, sha256: str) -> None:
        """Copy a file at the next commit; its content has to be this one still."""
        self._copies[name] = (source, sha256)

    def drop(self, name: str) -> None:
        """Take a file away at the next commit."""
        self._new.pop(name, None)
        self._dropped.add(name)

    def commit(self) -> None:
        """Write all changes in the order that keeps the repository acceptable.

        Raises: StorageFullError, StorageError; then devices see the repository as it was.
        """
        with _translated():
            (self.folder / _SCRATCH).mkdir(parents=True, exist_ok=True)
            for name, (source, sha256) in self._copies.items():
                self._copy(name, source, sha256)
            names = sorted(self._new, key=self._rank)
            flip = {name: self._new[name].decode() for name in names if self._rank(name)[0] == _FLIP_RANK}
            for rank in sorted({self._rank(name) for name in names}):
                if rank[0] == _FLIP_RANK and len(flip) > 1:
                    self._write([(_FLIP, msgspec.json.encode(flip))])  # what it names is all there by now
                self._write([(name, self._new[name]) for name in names if self._rank(name) == rank])
            for name in (*sorted(self._dropped), _FLIP):
                (self.folder / name).unlink(missing_ok=True)
        self._new.clear()
        self._copies.clear()
        self._dropped.clear()

    def repair(self) -> bool:
        """Finish what a crash interrupted; say whether there was something. Asserts: the lock is held."""
        with _translated():
            for leftover in (self.folder / _SCRATCH).glob("*"):
                leftover.unlink()
            flip = self.folder / _FLIP
            if not flip.is_file():
                return False
            interrupted: dict[str, str] = msgspec.json.decode(flip.read_bytes(), type=dict[str, str])
            for name, text in interrupted.items():
                self._write([(name, text.encode())])
            flip.unlink()
        return True

    def _rank(self, name: str) -> tuple[int, int]:
        """Return where a file stands in the order of writing."""
        room, _, rest = name.partition("/")
        role = rest.removesuffix(".json").rpartition(".")[2]
        if room == TARGETS:
            return 0, 0
        if room != METADATA:
            return _FLIP_RANK + 1, 0
        if role == TIMESTAMP:
            return _FLIP_RANK, 0 if self.timestamp_first else 2
        if role == ROOT:
            return _FLIP_RANK, 1
        if role == DIRECTOR:
            return 1, 1  # it may be the first that speaks of its bins
        return {TOP_TARGETS: 2, SNAPSHOT: 3}.get(role, 1), 0

    def _write(self, files: list[tuple[str, bytes]]) -> None:
        """Write files that may appear in any order among themselves; durable when it returns."""
        with ThreadPoolExecutor(_SYNCS_MAX if len(files) > _SYNCS_MAX else 1) as pool:  # disks like many at once
            scratch = list(pool.map(lambda one: (self._scratch(one[1], durable=True), one[0]), files))
        for path, name in scratch:
            self._appear(path, name)
        for folder in sorted({(self.folder / name).parent for _, name in scratch}):
            _sync(folder, os.O_RDONLY | os.O_DIRECTORY)

    def _scratch(self, data: bytes, *, durable: bool = False) -> Path:
        path = self.folder / _SCRATCH / f"{os.getpid()}-{hashlib.sha256(data).hexdigest()[:16]}-{time.monotonic_ns()}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        return path

    def _appear(self, scratch: Path, name: str) -> None:
        final = self.folder / name
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch.replace(final)

    def _copy(self, name: str, source: Path, sha256: str) -> None:
        total, done, digest = source.stat().st_size, 0, hashlib.sha256()
        scratch = self._scratch(b"")
        with source.open("rb") as reader, scratch.open("wb") as writer:
            while chunk := reader.read(CHUNK_BYTES):
                digest.update(chunk)
                writer.write(chunk)
                done += len(chunk)
                if self._progress is not None:
                    self._progress(done, total)
            writer.flush()
            os.fsync(writer.fileno())
        if digest.hexdigest() != sha256:
            scratch.unlink()
            raise RepositoryDamagedError(f"{source} was changed while it was published. Nothing was published.")
        self._appear(scratch, name)
        _sync((self.folder / name).parent, os.O_RDONLY | os.O_DIRECTORY)


_FLIP_RANK = 4


@contextlib.contextmanager
def writing(folder: Path, *, wait_s: float = LOCK_WAIT_S, progress: Progress | None = None) -> Iterator[Workspace]:
    """Lend a repository's folder to one writer, repaired if the last one was interrupted.

    Raises: RepositoryBusyError when another writer does not finish in time, StorageError.
    """
    with _translated():
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, folder, wait_s)
        work = Workspace(folder, progress)
        work.repair()
        yield work
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise RepositoryBusyError(f"{folder} is being changed by somebody else.") from None
            time.sleep(0.05)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except LenskeepError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("The disk is full. Devices see the repository as it was.") from error
        raise StorageError(f"The repository cannot be written: {error.strerror}: {error.filename}.") from error
