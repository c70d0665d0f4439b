"""The bundle file: one canonical ustar archive, proven while it streams by.

Layout. `model.sig` first, then exactly the files that it lists, in byte order of their names, then two zero
blocks, then nothing. Every member is a regular file of mode 0644 with no owner and no time, so the same
files and the same signature are the same archive, byte for byte, and any tar tool can list it.
Rules. The reader does not interpret headers. A header has one unknown, the member's length, for OpenSSF
Model Signing lists names and digests but no sizes. So the reader takes those twelve bytes (eleven octal
digits and a NUL, bounded), builds the whole header anew from the signed name and that length, and compares
all 512 bytes. A false length gives false content, and the signed sha256 refuses that. No byte reaches a
sink before the signature was verified.
Not here: files and folders on a disk (disk), what the manifest means (manifest), the model itself
(modelcheck).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import InitVar, dataclass
from typing import Protocol

from lenskeep.bundle import signing
from lenskeep.bundle.authority import Authority, TrustedKey
from lenskeep.bundle.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest, parse
from lenskeep.bundle.signing import SIGNATURE_BYTES_MAX, SIGNATURE_NAME, SignedFile
from lenskeep.errors import BundleFormatError, DigestMismatchError, LimitExceededError, ManifestError

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)

_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]*(?:/[a-z0-9_][a-z0-9._-]*)*")
_SIZE = re.compile(rb"[0-7]{11}\0")
_SIZE_FIELD = slice(124, 136)
_CHECKSUM_FIELD = slice(148, 156)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader accepts at most, so that no file can exhaust a device."""

    files_max: int = 64
    file_bytes_max: int = 4 << 30
    total_bytes_max: int = 4 << 30
    name_bytes_max: int = 100  # what a ustar header holds
    levels_max: int = 4


@dataclass(frozen=True, slots=True)
class FileFact:
    """One signed file of a bundle."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A bundle read to its last byte, and what a trusted signer signed. Only a reader makes one."""

    manifest: Manifest
    manifest_json: bytes
    signature: bytes  # model.sig
    files: tuple[FileFact, ...]  # without model.sig, in the order of the archive
    digest: str  # of the content: see `content_digest`
    file_sha256: str  # of the whole archive, as a repository lists it
    key_id: str
    signer: str  # name of the trusted key
    size_bytes: int  # of the whole archive
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _READER:
            raise RuntimeError("only a BundleReader makes a VerifiedBundle")


_READER = object()


class Sink(Protocol):
    """Where one member goes. `close` means that its bytes are proven; discard a sink that is not closed."""

    def write(self, data: memoryview, /) -> object:
        """Take the next bytes; the view is valid during the call only."""

    def close(self) -> None:
        """Keep the member: its content has the signed digest."""


OpenMember = Callable[[str, int], Sink]  # name, size in bytes
_Part = tuple[int, Callable[[memoryview], object]]  # so many bytes to this taker


class BundleReader:
    """Reads one bundle that is pushed in, in pieces of any size.

    After an exception the bundle is refused for good; the caller discards what its sinks hold.

    Args:
        now_s: the time to judge keys by.
        open_member: makes the sink for a member; called only once the signature has proven name and digest.
    Cost: one pass, two sha256 (of each file and of the whole), no copies; memory for model.sig and model.json only.
    """

    def __init__(self, trust: Authority, now_s: float, limits: Limits, open_member: OpenMember) -> None:
        self._trust = trust
        self._now_s = now_s
        self._open_member = open_member
        self._limits = limits
        self._whole = hashlib.sha256()
        self._seen_bytes = 0
        self._offset = 0
        self._size_bytes = 0  # as announced by the headers so far
        self._inside = SIGNATURE_NAME
        self._bundle: VerifiedBundle | None = None
        self._parts = self._layout()
        self._left, self._take = next(self._parts)

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the file. Raises: BundleError; whatever a sink raises."""
        rest = memoryview(chunk).cast("B")
        try:
            while rest:
                rest = self._step(rest)
        except BaseException:
            self._parts.close()
            self._left = 0
            raise

    def finish(self) -> VerifiedBundle:
        """Say that no more bytes follow. Raises: BundleFormatError when some are missing."""
        if self._bundle is None:
            if not self._offset:
                raise BundleFormatError("The file is empty.")
            raise BundleFormatError(f"The file ends after {self._offset} bytes, in {self._inside}; it was cut short.")
        return self._bundle

    def seen(self) -> tuple[int, str]:
        """Return how many bytes were looked at, also of a refused file, and their sha256."""
        return self._seen_bytes, self._whole.hexdigest()

    def _step(self, data: memoryview) -> memoryview:
        if not self._left:
            raise BundleFormatError(f"The file goes on after its end at {self._offset} bytes.")
        piece = data[: self._left]
        self._whole.update(piece)
        self._seen_bytes += len(piece)
        self._take(piece)
        self._left -= len(piece)
        self._offset += len(piece)
        while not self._left and self._bundle is None:
            self._left, self._take = next(self._parts, (0, _zeros))
        return data[len(piece) :]

    def _layout(self) -> Generator[_Part, None, None]:
        """Ask for the parts of a bundle in their order: this is the format."""
        signature = bytearray()
        yield from self._member(SIGNATURE_NAME, SIGNATURE_BYTES_MAX, lambda _: signature.extend)
        key, signed = self._verified(bytes(signature))
        files: list[FileFact] = []
        manifest_json = b""
        for file in signed:
            content = _Content(file, self._open_member)
            size = yield from self._member(file.name, self._size_max(file.name), content.open)
            content.prove()
            files.append(FileFact(file.name, file.sha256, size))
            if file.name == MANIFEST_NAME:
                manifest_json = bytes(content.kept)
                manifest = self._authorised(key, manifest_json, signed)
        self._inside = "its last blocks"
        yield len(END), _zeros
        self._bundle = VerifiedBundle(
            manifest=manifest,
            manifest_json=manifest_json,
            signature=bytes(signature),
            files=tuple(files),
            digest=content_digest(files),
            file_sha256=self._whole.hexdigest(),
            key_id=key.id,
            signer=key.name,
            size_bytes=self._size_bytes + len(END),
            made_by=_READER,
        )

    def _member(
        self, name: str, size_max: int, taker: Callable[[int], Callable[[memoryview], object]]
    ) -> Generator[_Part, None, int]:
        self._inside = name
        got = bytearray()
        yield BLOCK_BYTES, got.extend
        size = proven_size(bytes(got), name, self._offset - BLOCK_BYTES)
        if size > size_max:
            raise LimitExceededError(f"{name} is {size} bytes long; at most {size_max} are accepted here.")
        padding = -size % BLOCK_BYTES
        self._size_bytes += BLOCK_BYTES + size + padding
        if self._size_bytes + len(END) > self._limits.total_bytes_max:
            raise LimitExceededError(
                f"The bundle is larger than the {self._limits.total_bytes_max} bytes that are accepted here."
            )
        yield size, taker(size)
        yield padding, _zeros
        return size

    def _size_max(self, name: str) -> int:
        return MANIFEST_BYTES_MAX if name == MANIFEST_NAME else self._limits.file_bytes_max

    def _verified(self, signature: bytes) -> tuple[TrustedKey, list[SignedFile]]:
        envelope = signing.open_signature(signature)
        key = self._trust.key_for(envelope.key_id)
        statement = signing.verify(envelope, key.public_key())
        self._trust.check_time(key, self._now_s)
        names = [file.name for file in statement.files]
        check_names(names, self._limits)
        if MANIFEST_NAME not in names:
            raise BundleFormatError(f"The signature does not list {MANIFEST_NAME}; this is no Lenskeep bundle.")
        return key, sorted(statement.files, key=lambda file: file.name)

    def _authorised(self, key: TrustedKey, manifest_json: bytes, signed: list[SignedFile]) -> Manifest:
        manifest = parse(manifest_json)
        self._trust.authorise(key, manifest.name, self._now_s)
        check_presence(manifest, [file.name for file in signed])
        return manifest


class _Content:
    """One signed member on its way through the hash into its sink."""

    def __init__(self, file: SignedFile, open_member: OpenMember) -> None:
        self._file = file
        self._open_member = open_member
        self._hash = hashlib.sha256()
        self.kept = bytearray()  # model.json is needed whole

    def open(self, size: int) -> Callable[[memoryview], object]:
        self._sink = self._open_member(self._file.name, size)
        return self._take

    def _take(self, piece: memoryview) -> None:
        self._hash.update(piece)
        self._sink.write(piece)
        if self._file.name == MANIFEST_NAME:
            self.kept += piece

    def prove(self) -> None:
        if self._hash.hexdigest() != self._file.sha256:
            raise DigestMismatchError(f"{self._file.name} differs from what was signed. Nothing was changed.")
        self._sink.close()


def header(name: str, size: int) -> bytes:
    """Build the one ustar header that a member of this name and length can have.

    Asserts: the name is at most 100 ASCII bytes and the size below 8 GiB (the limits have seen to it).
    """
    block = bytearray(BLOCK_BYTES)
    block[0:100] = name.encode("ascii").ljust(100, b"\0")
    block[100:124] = b"0000644\0" + b"0000000\0" * 2  # mode, owner, group
    block[_SIZE_FIELD] = b"%011o\0" % size
    block[136:148] = b"00000000000\0"  # time
    block[_CHECKSUM_FIELD] = b" " * 8
    block[156:157] = b"0"  # a regular file
    block[257:265] = b"ustar\x0000"
    block[_CHECKSUM_FIELD] = b"%06o\0 " % sum(block)
    return bytes(block)


def proven_size(got: bytes, name: str, offset: int) -> int:
    """Take the length from a header, having proven that everything else in it is as it must be.

    Args:
        got: 512 bytes found at `offset`, where the member `name` has to begin.
    Raises: BundleFormatError.
    """
    size_field = got[_SIZE_FIELD]
    if not _SIZE.fullmatch(size_field):
        raise BundleFormatError(f"At byte {offset}, where {name} has to begin, is no header of this format.")
    size = int(size_field[:-1], 8)
    if got != header(name, size):
        raise BundleFormatError(f"At byte {offset}, the header of {name} differs from the one exact form.")
    return size


def rebuild_parts(signature: bytes, files: Sequence[tuple[str, int]]) -> Iterator[bytes | int]:
    """Yield a bundle in order: bytes as they are, and a file's index where its content belongs.

    Whoever writes a bundle walks over this; from stored files it gives back the very bytes that once came in.

    Args:
        files: name and length, in the order of the archive.
    """
    yield header(SIGNATURE_NAME, len(signature)) + signature + bytes(-len(signature) % BLOCK_BYTES)
    for index, (name, size) in enumerate(files):
        yield header(name, size)
        yield index
        yield bytes(-size % BLOCK_BYTES)
    yield END


def content_digest(files: Iterable[FileFact | SignedFile]) -> str:
    """Name a content by one sha256, whoever signed it: over the lines that `sha256sum` prints for it."""
    lines = sorted((file.name, file.sha256) for file in files)
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in lines).encode()).hexdigest()


def check_names(names: list[str], limits: Limits) -> None:
    """Refuse names that a disk, a terminal or another tar tool could take for something else.

    Raises: LimitExceededError, BundleFormatError.
    """
    if len(names) > limits.files_max:
        raise LimitExceededError(f"The bundle has {len(names)} files; at most {limits.files_max} are accepted here.")
    if len(set(names)) != len(names):
        raise BundleFormatError("The signature lists a file twice.")
    folders = {name[:end] for name in names for end in _slashes(name)}
    for name in names:
        shown = ascii(name[:120])
        if not _NAME.fullmatch(name):
            raise BundleFormatError(
                f"The file name {shown} is not made of a-z, 0-9, '.', '_', '-' and '/' as it must be."
            )
        if len(name) > limits.name_bytes_max or name.count("/") >= limits.levels_max:
            raise LimitExceededError(
                f"The file name {shown} is over {limits.name_bytes_max} bytes or {limits.levels_max} levels."
            )
        if name == SIGNATURE_NAME or name in folders:
            raise BundleFormatError(f"The file name {shown} is taken by something else in the bundle.")


def check_presence(manifest: Manifest, names: list[str]) -> None:
    """Refuse a manifest that names files which are not there. Raises: ManifestError."""
    golden = [case.image for case in manifest.golden.cases]
    for name in (manifest.model, manifest.card, manifest.license_file, *golden):
        if name not in names:
            raise ManifestError(f"model.json names the file {name}, which is not in the bundle.")


def _slashes(name: str) -> Iterator[int]:
    return (index for index, char in enumerate(name) if char == "/")


def _zeros(piece: memoryview) -> None:
    if bytes(piece).strip(b"\0"):
        raise BundleFormatError("The space between two files, or after the last one, is not empty.")
