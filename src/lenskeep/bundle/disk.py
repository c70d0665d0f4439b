"""Bundles as files and folders on an engineer's disk: read, write, take apart.

Rules. A folder is verified by the very reader that judges a file: it is laid out as the archive that it
would be. What is written appears whole under its name or not at all. Names come from a verified signature,
so they are safe.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from lenskeep.bundle.archive import (
    BLOCK_BYTES,
    BundleReader,
    FileFact,
    Limits,
    OpenMember,
    VerifiedBundle,
    check_names,
    rebuild_parts,
)
from lenskeep.bundle.authority import Authority
from lenskeep.bundle.modelcheck import check_model
from lenskeep.bundle.onnxcheck import OnnxFacts
from lenskeep.bundle.signing import SIGNATURE_BYTES_MAX, SIGNATURE_NAME
from lenskeep.errors import BundleFormatError, LimitExceededError, RequestError

CHUNK_BYTES = 1 << 20

Part = bytes | Path  # a file's content: at hand, or on the disk


class _Nowhere:
    def write(self, data: memoryview, /) -> None:
        """Forget the bytes."""

    def close(self) -> None:
        """Nothing was kept."""


def discard(_name: str, _size_bytes: int) -> _Nowhere:
    """Open a sink that keeps nothing: for reading only to verify."""
    return _Nowhere()


def read_file(
    path: Path,
    trust: Authority,
    now_s: float,
    limits: Limits | None = None,
    open_member: OpenMember = discard,
) -> VerifiedBundle:
    """Verify a bundle file. Raises: BundleError, RequestError. Cost: reads the whole file."""
    reader = BundleReader(trust, now_s, limits or Limits(), open_member)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with open_regular(path) as file:
        while count := file.readinto(buffer):
            reader.feed(buffer[:count])
    return reader.finish()


def read_folder(
    folder: Path,
    trust: Authority,
    now_s: float,
    limits: Limits | None = None,
    open_member: OpenMember = discard,
) -> VerifiedBundle:
    """Verify an unpacked bundle: `model.sig` and exactly what it lists. Raises: BundleError, RequestError."""
    limits = limits or Limits()
    reader = BundleReader(trust, now_s, limits, open_member)
    files = list_folder(folder)
    signature = files.pop(SIGNATURE_NAME, None)
    if signature is None:
        raise BundleFormatError(f"{folder} has no {SIGNATURE_NAME}; it is not an unpacked bundle.")
    with open_regular(signature) as file:
        signature_bytes = file.read(SIGNATURE_BYTES_MAX + 1)
    for chunk in _chunks(signature_bytes, files, limits):
        reader.feed(chunk)
    return reader.finish()


def write_file(path: Path, signature: bytes, parts: Mapping[str, Part]) -> None:
    """Write a bundle file. Raises: BundleFormatError, LimitExceededError. Cost: ends with a sync."""
    with path.open("wb") as file:
        for chunk in _chunks(signature, parts, Limits()):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def extract(path: Path, folder: Path, trust: Authority, now_s: float) -> VerifiedBundle:
    """Verify a bundle file into a new folder, `model.sig` included; OpenSSF's own tool verifies that folder.

    Raises: BundleError, RequestError; then the folder is not there.
    """
    with appearing_folder(folder) as scratch, contextlib.ExitStack() as opened:

        def open_member(name: str, _size_bytes: int) -> BinaryIO:
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            return opened.enter_context(target.open("xb"))

        verified = read_file(path, trust, now_s, open_member=open_member)
        (scratch / SIGNATURE_NAME).write_bytes(verified.signature)
    return verified


def check_model_of(path: Path, verified: VerifiedBundle) -> OnnxFacts:
    """Scan the model in a bundle file that was just verified. Raises: ModelRefusedError, ManifestError."""
    with member(path, len(verified.signature), verified.files, verified.manifest.model) as content:
        return check_model(verified.manifest, content)


def list_folder(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by their names in a bundle. Raises: BundleFormatError for a link."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found[path.relative_to(folder).as_posix()] = path
        elif not stat.S_ISDIR(mode):
            raise BundleFormatError(f"{path} is neither a file nor a folder; a bundle holds only files.")
    return dict(sorted(found.items()))


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[io.FileIO]:
    """Open a regular file; a pipe or a device is refused instead of waited for. Raises: RequestError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.") from error
    with io.FileIO(descriptor) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RequestError(f"{path} is not a regular file.")
        yield file


def _chunks(signature: bytes, parts: Mapping[str, Part], limits: Limits) -> Iterator[bytes]:
    """Lay parts out as the archive."""
    check_names(list(parts), limits)
    names = sorted(parts)
    sizes = [_size(parts[name]) for name in names]
    for name, size in zip(names, sizes, strict=True):
        if size > limits.file_bytes_max:
            raise LimitExceededError(f"{name} is {size} bytes long; at most {limits.file_bytes_max} are accepted.")
    for piece in rebuild_parts(signature, list(zip(names, sizes, strict=True))):
        if isinstance(piece, bytes):
            yield piece
        else:
            yield from contents(parts[names[piece]])


def contents(part: Part) -> Iterator[bytes]:
    """Yield a part's bytes in pieces."""
    if isinstance(part, bytes):
        yield part
        return
    with open_regular(part) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _size(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part.stat().st_size


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Lend a file beside `path` that takes its name at the end; a failure leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    scratch = Path(name)
    try:
        yield scratch
        scratch.chmod(0o644)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def appearing_folder(folder: Path) -> Iterator[Path]:
    """Lend a folder beside `folder` that takes its name at the end. Raises: RequestError when that is taken."""
    if folder.exists():
        raise RequestError(f"{folder} is there already. Nothing was changed.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """Lend a file's bytes without reading them into memory. Raises: RequestError.

    The mapping is not closed but dropped: the traceback of a refusal still holds on to its bytes.
    """
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise RequestError(f"{path} is empty.")
        yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@contextlib.contextmanager
def member(path: Path, signature_bytes: int, files: Sequence[FileFact], name: str) -> Iterator[memoryview]:
    """Lend one member's bytes of a bundle file that was just read to its end."""
    offset = BLOCK_BYTES + _padded(signature_bytes) + BLOCK_BYTES
    for file in files:
        if file.name == name:
            break
        offset += _padded(file.size_bytes) + BLOCK_BYTES
    with mapped(path) as whole:
        yield whole[offset : offset + file.size_bytes]


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
