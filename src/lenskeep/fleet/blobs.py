"""The repository's files in an object store, for any number of replicas: S3-compatible, or a shared folder.

Rules. What carries its digest or its version in its name is put once and never changed; a target is put only when its
bytes have the digest that its name says, and is checked for its length afterwards. Nothing here is trusted by devices:
they check what they get. The library's exceptions are translated here and nowhere else.
Source: obstore (Rust's object_store; wheels for x86-64 and arm64, no dependencies; 5 MB against botocore's 30).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, S3Store

from lenskeep.errors import BlobStoreError, ConfigError, UnknownNameError

CHUNK_BYTES = 1 << 20
SMALL_BYTES_MAX = 8 << 20


class ObjectBlobs:
    """Files by name; made by `open_blobs`."""

    def __init__(self, store: S3Store | LocalStore, where: str) -> None:
        self.where = where
        self._store = store

    async def names(self, prefix: str) -> set[str]:
        """Return the names under a folder."""
        found: set[str] = set()
        with self._translated(prefix):
            async for page in obstore.list(self._store, prefix=prefix):
                found |= {each["path"] for each in page}
        return found

    async def size(self, name: str) -> int:
        """Return a file's length in bytes. Raises: UnknownNameError, BlobStoreError."""
        with self._translated(name):
            return int((await obstore.head_async(self._store, name))["size"])

    async def read(self, name: str) -> bytes:
        """Return a small file. Raises: UnknownNameError, BlobStoreError."""
        with self._translated(name):
            got = await obstore.get_async(self._store, name)
            if got.meta["size"] > SMALL_BYTES_MAX:
                raise BlobStoreError(f"{self.where}: {name} has {got.meta['size']} bytes; that cannot be.")
            return bytes(await got.bytes_async())

    async def stream(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Give a part of a file, chunk by chunk. Raises: UnknownNameError, BlobStoreError when it is not whole."""
        left = end - start
        with self._translated(name):
            got = await obstore.get_async(self._store, name, options={"range": (start, end)})
            async for chunk in got.stream(min_chunk_size=CHUNK_BYTES):
                left -= len(chunk)
                yield bytes(chunk)
        if left:
            raise BlobStoreError(f"{self.where}: {name} ended {left} bytes early.")

    async def put_target(self, name: str, file: Path) -> None:
        """Put a file whose name begins with its SHA-256. Raises: BlobStoreError when its bytes are others."""
        claimed = PurePosixPath(name).name.partition(".")[0]
        digest, size = await asyncio.to_thread(_digest_in_thread, file)
        if digest != claimed:
            raise BlobStoreError(f"{file} is not what its name says; it was not put.", hint="Restore the file.")
        with self._translated(name):
            await obstore.put_async(self._store, name, file)
        if await self.size(name) != size:
            raise BlobStoreError(f"{self.where}: {name} is not as long as it was sent.")

    async def put_once(self, name: str, data: bytes) -> None:
        """Put a small file that never changes. Raises: BlobStoreError when another one has the name already."""
        try:
            with self._translated(name):
                await obstore.put_async(self._store, name, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            if await self.read(name) != data:
                raise BlobStoreError(
                    f"{self.where}: another {name} is there already; two replicas signed at once.",
                    hint="Let one replica alone have the repository's folder and the online keys.",
                ) from None

    async def replace(self, name: str, data: bytes) -> None:
        """Put a small file in the place of an older one."""
        with self._translated(name):
            await obstore.put_async(self._store, name, data, use_multipart=False)

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise UnknownNameError(f"The repository has no {name}.") from error
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BlobStoreError(f"{self.where}: {name}: {first[:300]}") from error


def _digest_in_thread(file: Path) -> tuple[str, int]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
        return digest.hexdigest(), opened.tell()


def open_blobs(url: str, *, endpoint: str, region: str, key_id: str, secret: str) -> ObjectBlobs:
    """Open what `[storage] blobs` names: s3://BUCKET/PREFIX, or file:///FOLDER. Raises: ConfigError."""
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    if parts.scheme == "file" and prefix:
        return ObjectBlobs(LocalStore(prefix=Path(parts.path), mkdir=True), parts.path)
    if parts.scheme != "s3" or not parts.netloc:
        raise ConfigError('storage.blobs: "folder", s3://BUCKET/PREFIX or file:///FOLDER is needed.')
    if bool(key_id) != bool(secret):
        raise ConfigError("storage.blobs_key_id and storage.blobs_secret belong together.")
    try:
        store = S3Store(
            parts.netloc, prefix=prefix or None, region=region, endpoint=endpoint or None,
            virtual_hosted_style_request=False, checksum_algorithm="SHA256",
            client_options={"allow_http": endpoint.startswith("http://"), "connect_timeout": "3s", "timeout": "60s"},
            retry_config={"max_retries": 3}, **_signed(key_id, secret),
        )  # fmt: skip
    except (BaseError, ValueError) as error:
        raise ConfigError(f"storage.blobs: {error}") from error
    return ObjectBlobs(store, f"{parts.netloc}/{prefix}".rstrip("/"))


def _signed(key_id: str, secret: str) -> Any:
    """Return the key as the library takes it; nothing = what the machine is given."""
    return {"access_key_id": key_id, "secret_access_key": secret} if key_id else {}
