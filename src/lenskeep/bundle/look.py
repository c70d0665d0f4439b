"""A look at a bundle, for people: a file or a folder, signed or a draft, vouched for or not.

Rules. Without keys the signature is not checked, and `signer` stays empty so that whoever shows a look has to say so;
the digests are checked all the same. A look is never a `VerifiedBundle`: nothing that runs on a line starts here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lenskeep.bundle import disk, signing
from lenskeep.bundle import manifest as manifests
from lenskeep.bundle.archive import (
    BLOCK_BYTES,
    END,
    FileFact,
    Limits,
    VerifiedBundle,
    check_names,
    check_presence,
    content_digest,
    proven_size,
)
from lenskeep.bundle.authority import Authority
from lenskeep.bundle.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest
from lenskeep.bundle.modelcheck import check_model
from lenskeep.bundle.onnxcheck import OnnxFacts
from lenskeep.bundle.signing import SIGNATURE_BYTES_MAX, SIGNATURE_NAME, Statement
from lenskeep.errors import BundleFormatError, DigestMismatchError, LimitExceededError

CARD_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Look:
    """What a bundle says it is."""

    source: Path
    manifest: Manifest
    manifest_json: bytes
    signature: bytes  # empty for a draft
    files: tuple[FileFact, ...]
    digest: str
    size_bytes: int
    key_id: str  # as the signature claims; empty for a draft
    signer: str  # the trusted key that vouches for it; empty when nobody does

    @contextlib.contextmanager
    def content(self, name: str) -> Iterator[memoryview]:
        """Lend the bytes of one of the files."""
        if self.source.is_dir():
            size = next(file.size_bytes for file in self.files if file.name == name)
            with disk.mapped(self.source / name) if size else contextlib.nullcontext(memoryview(b"")) as data:
                yield data
        else:
            with disk.member(self.source, len(self.signature), self.files, name) as data:
                yield data


def look(source: Path, trust: Authority | None, now_s: float) -> Look:
    """Read a bundle file or folder to its end; with `trust`, verify its signer. Raises: BundleError, RequestError."""
    if source.is_dir():
        signed = (source / SIGNATURE_NAME).is_file()
        if trust and signed:
            return _vouched(source, disk.read_folder(source, trust, now_s))
        return _folder(source)
    if trust:
        return _vouched(source, disk.read_file(source, trust, now_s))
    return _claim(source)


def check_model_of(seen: Look) -> OnnxFacts:
    """Scan the model and compare it with the manifest. Raises: ModelRefusedError, ManifestError."""
    with seen.content(seen.manifest.model) as data:
        return check_model(seen.manifest, data)


def card_of(seen: Look) -> str:
    """Return the model card's text, as far as somebody would read it."""
    with seen.content(seen.manifest.card) as data:
        return bytes(data[:CARD_BYTES_MAX]).decode("utf-8", "replace")


def unpack(seen: Look, folder: Path) -> None:
    """Write all files of a look into a new folder. Raises: RequestError when it is there already."""
    with disk.appearing_folder(folder) as scratch:
        for file in seen.files:
            target = scratch / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with seen.content(file.name) as data:
                target.write_bytes(data)
        if seen.signature:
            (scratch / SIGNATURE_NAME).write_bytes(seen.signature)


def _vouched(source: Path, verified: VerifiedBundle) -> Look:
    return Look(
        source=source,
        manifest=verified.manifest,
        manifest_json=verified.manifest_json,
        signature=verified.signature,
        files=verified.files,
        digest=verified.digest,
        size_bytes=verified.size_bytes,
        key_id=verified.key_id,
        signer=verified.signer,
    )


def _folder(source: Path) -> Look:
    paths = disk.list_folder(source)
    signature = paths.pop(SIGNATURE_NAME).read_bytes() if SIGNATURE_NAME in paths else b""
    check_names(list(paths), Limits())
    if MANIFEST_NAME not in paths:
        raise BundleFormatError(f"{source} has no {MANIFEST_NAME}; it is not the folder of a bundle.")
    files = []
    for name, path in paths.items():
        with disk.open_regular(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            files.append(FileFact(name, sha256, path.stat().st_size))
    return _checked(source, signature, files, paths[MANIFEST_NAME].read_bytes())


def _claim(source: Path) -> Look:
    """Walk through a bundle file by what its signature claims; the digests are proven, the signer is not."""
    with disk.open_regular(source) as file:
        signature, _ = _take(file, SIGNATURE_NAME, SIGNATURE_BYTES_MAX)
        statement = signing.claimed(signing.open_signature(signature))
        check_names([signed.name for signed in statement.files], Limits())
        files, manifest_json = [], b""
        for signed in sorted(statement.files, key=lambda one: one.name):
            kept, fact = _take(file, signed.name, MANIFEST_BYTES_MAX if signed.name == MANIFEST_NAME else None)
            files.append(fact)
            manifest_json = kept or manifest_json
        if file.read(len(END) + 1) != END:
            raise BundleFormatError("The file does not end as a bundle ends.")
    return _checked(source, signature, files, manifest_json)


def _take(file: io.FileIO, name: str, keep_bytes_max: int | None) -> tuple[bytes, FileFact]:
    """Read one member; its bytes are kept when they may be."""
    offset = file.tell()
    size = proven_size(file.read(BLOCK_BYTES).ljust(BLOCK_BYTES), name, offset)
    if size > (Limits().file_bytes_max if keep_bytes_max is None else keep_bytes_max):
        raise LimitExceededError(f"{name} is {size} bytes long, which is more than is accepted.")
    digest, kept, left = hashlib.sha256(), bytearray(), size
    while left:
        chunk = file.read(min(left, disk.CHUNK_BYTES))
        if not chunk:
            raise BundleFormatError(f"The file ends in {name}; it was cut short.")
        digest.update(chunk)
        if keep_bytes_max is not None:
            kept += chunk
        left -= len(chunk)
    padding = -size % BLOCK_BYTES
    if file.read(padding) != bytes(padding):
        raise BundleFormatError(f"The space after {name} is not empty.")
    return bytes(kept), FileFact(name, digest.hexdigest(), size)


def _checked(source: Path, signature: bytes, files: list[FileFact], manifest_json: bytes) -> Look:
    envelope = signing.open_signature(signature) if signature else None
    if envelope:
        _compare(files, signing.claimed(envelope))
    manifest = manifests.parse(manifest_json)
    check_presence(manifest, [file.name for file in files])
    return Look(
        source=source,
        manifest=manifest,
        manifest_json=manifest_json,
        signature=signature,
        files=tuple(files),
        digest=content_digest(files),
        size_bytes=source.stat().st_size if source.is_file() else sum(file.size_bytes for file in files),
        key_id=envelope.key_id if envelope else "",
        signer="",
    )


def _compare(files: list[FileFact], statement: Statement) -> None:
    found = {file.name: file.sha256 for file in files}
    signed = {file.name: file.sha256 for file in statement.files}
    for name in sorted(found.keys() | signed.keys()):
        if found.get(name) != signed.get(name):
            raise DigestMismatchError(f"{name} differs from what was signed.")
