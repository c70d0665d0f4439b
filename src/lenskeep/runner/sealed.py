"""A model's bytes between the disk and ONNX Runtime: copied once into sealed memory, hashed there, read from there.

Rules. After the seal nobody can change the bytes, so what was hashed is what a session is built from, whatever happens
to the stored file. ONNX Runtime gets a path to that memory and no Python bytes: those it copies and parses while it
holds the interpreter's lock, 40-70 ms for 100 MB, and a loader of low priority that is put aside just then stops the
line for as long as the scheduler pleases. Here the lock is held for none of it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from lenskeep.errors import BlobDamagedError, LenskeepError, MemoryBudgetError, StorageError

Aside = Callable[[], AbstractContextManager[None]]
Reader = Callable[[str, str, Aside], AbstractContextManager["SealedModel"]]

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_WINDOW_BYTES = 16 << 20  # Python unmaps with the interpreter's lock held, 0.3 ms for so much
_COPY_BYTES = 1 << 30  # one call, so that a slow thread asks for the interpreter's lock only once


@dataclass(frozen=True, slots=True)
class SealedModel:
    """Checked bytes that stay as they are while the context lives."""

    path: str  # of this process alone
    size_bytes: int


@contextmanager
def sealed(path: str, sha256: str, aside: Aside = nullcontext) -> Iterator[SealedModel]:
    """Hold a stored file's bytes, if they have this digest, until the session is built.

    Args:
        aside: entered around each long call that does not hold the interpreter.
    Raises: BlobDamagedError, StorageError, MemoryBudgetError.
    Cost: a copy and a hash, 1 s per GB together; the memory is freed at the end of the context.
    """
    memory = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        size_bytes, found = _read(path, memory, aside)
        if found != sha256:
            raise BlobDamagedError(f"The stored file {path} no longer has the digest {sha256[:12]}….")
        yield SealedModel(f"/proc/self/fd/{memory}", size_bytes)
    finally:
        with aside():
            os.close(memory)  # frees the pages, some 10 ms for 100 MB


class ReadAhead(threading.Thread):
    """Reads one file while the process still imports its libraries; then stands in for `sealed`, once."""

    def __init__(self, path: str, sha256: str) -> None:
        super().__init__(name="read-ahead", daemon=True)
        self._file = (path, sha256)
        self._held = sealed(path, sha256)
        self._model: SealedModel | None = None
        self._fault: LenskeepError | None = None
        self.start()

    def run(self) -> None:
        """Read."""
        try:
            self._model = self._held.__enter__()
        except LenskeepError as fault:
            self._fault = fault

    @contextmanager
    def __call__(self, path: str, sha256: str, aside: Aside = nullcontext) -> Iterator[SealedModel]:
        """Hold the file that was read ahead; any other is read now. Raises: as `sealed`."""
        wanted, self._file = (path, sha256) == self._file, ("", "")
        if not wanted:
            with sealed(path, sha256, aside) as model:
                yield model
            return
        self.join()
        if self._model is None:
            raise self._fault or RuntimeError("reading ahead ended without a word")
        try:
            yield self._model
        finally:
            self._held.__exit__(None, None, None)


def _read(path: str, memory: int, aside: Aside) -> tuple[int, str]:
    try:
        size_bytes = _copy(path, memory, aside)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        return size_bytes, _sha256(memory, size_bytes, aside)
    except FileNotFoundError as error:
        raise BlobDamagedError(f"The stored file {path} is missing.") from error
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryBudgetError(f"{path} needs more memory than there is.") from error
        raise StorageError(f"{path}: {error.strerror}") from error


def _copy(path: str, memory: int, aside: Aside) -> int:
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copied, size_bytes = 0, os.fstat(source).st_size
        while copied < size_bytes:
            with aside():
                copied += os.sendfile(memory, source, copied, _COPY_BYTES)
        return copied
    finally:
        os.close(source)


def _sha256(memory: int, size_bytes: int, aside: Aside) -> str:
    found = hashlib.sha256()
    for begin in range(0, size_bytes, _WINDOW_BYTES):
        length = min(_WINDOW_BYTES, size_bytes - begin)
        with mmap.mmap(memory, length, prot=mmap.PROT_READ, offset=begin) as view, aside():
            found.update(view)
    return found.hexdigest()
