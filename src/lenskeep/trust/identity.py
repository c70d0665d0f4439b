"""Who this device is: a P-256 key that is made here and never leaves, and the name that belongs to it.

Rules. The key is made at the first start, durable before it is used, and readable by its owner alone; a key that the
service manager hands over (`$CREDENTIALS_DIRECTORY/device.key`) goes before it. The name is chosen once and stays,
whatever the host is called later. A key is known by its id, the sha256 of its public PEM text, here as everywhere; its
fingerprint is the part of the id that people read to each other.
Not here: certificates (certificates, authority), because their library is large and rarely needed.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
from pathlib import Path

from lenskeep.bundle.keys import PrivateKey, generate_key, load_private_key
from lenskeep.errors import DeviceKeyLostError, RequestError, StorageError
from lenskeep.trust.names import DEVICE_ID

KEY_FILE, ID_FILE = "device.key", "id"
KEY_BYTES_MAX = 8192
FINGERPRINT_BYTES = 20  # 160 bits: nobody finds a second key for it
_CROCKFORD = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789ABCDEFGHJKMNPQRSTVWXYZ")
_LIKENESS = str.maketrans("OIL", "011")


def load_or_make_key(folder: Path, credentials: Path | None = None) -> PrivateKey:
    """Return this device's key, made now when there is none.

    Args:
        folder: where the key is kept, made when it is missing.
        credentials: the folder of the service manager's credentials, whose `device.key` goes before ours.
    Raises: StorageError when it cannot be read or written; a key that is there and unreadable is never replaced.
    Cost: reads a file; blocks on the disk when it is made.
    """
    path = key_path(folder, credentials)
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(path, generate_key().pem(), 0o600)
        with path.open("rb") as file:
            data = file.read(KEY_BYTES_MAX)
    except OSError as error:
        raise StorageError(f"The device's key {path} cannot be had: {error.strerror}. It was not replaced.") from error
    try:
        return load_private_key(data)
    except RequestError as error:
        raise StorageError(
            f"The device's key {path} cannot be used: {error} It was not replaced.",
            hint="Restore it, or set the file aside and start again; the device must then be enrolled again.",
        ) from error


def load_or_replace_key(folder: Path, credentials: Path | None = None) -> tuple[PrivateKey, DeviceKeyLostError | None]:
    """Return this device's key, whatever happened to it: a line must come up, enrolled or not.

    A damaged key of ours is set aside and a new one made; where that cannot be done, the new one is for this run alone.
    Returns: the key, and what was lost.
    """
    try:
        return load_or_make_key(folder, credentials), None
    except StorageError as error:
        said = str(error)
    path = folder / KEY_FILE
    try:
        if key_path(folder, credentials) == path and path.is_file():
            aside = path.with_name(f"{KEY_FILE}.damaged-{secrets.token_hex(4)}")
            path.rename(aside)
            said = f"{said} It was set aside as {aside.name}."
        return load_or_make_key(folder), DeviceKeyLostError(said)
    except (OSError, StorageError):
        return generate_key(), DeviceKeyLostError(f"{said} The new one is for this run alone.")


def key_path(folder: Path, credentials: Path | None = None) -> Path:
    """Return where this device's key lies."""
    given = credentials / KEY_FILE if credentials is not None else None
    return given if given is not None and given.exists() else folder / KEY_FILE


def device_id(folder: Path, configured: str, hostname: str) -> str:
    """Return this device's name: the configured one, else the one chosen before, else one made of the host's.

    A disk that cannot keep the choice does not stop the device: the same host gives the same name again.
    """
    if configured:
        return configured
    path = folder / ID_FILE
    with contextlib.suppress(OSError, UnicodeDecodeError):
        stored = path.read_text(encoding="ascii").strip()
        if DEVICE_ID.fullmatch(stored):
            return stored
    made = id_of_host(hostname)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(path, f"{made}\n".encode("ascii"), 0o644)
    return made


def id_of_host(hostname: str) -> str:
    """Make a device's name of a host's; a random one when nothing of that can be used."""
    made = re.sub(r"[^a-z0-9]+", "-", hostname.partition(".")[0].lower()).strip("-")[:63]
    return made if DEVICE_ID.fullmatch(made) else f"device-{secrets.token_hex(4)}"


def fingerprint(key_id: str) -> str:
    """Write a key's id for people: eight groups of four, without letters that look or sound like digits."""
    raw = bytes.fromhex(key_id)[:FINGERPRINT_BYTES]
    text = base64.b32encode(raw).decode("ascii").translate(_CROCKFORD)
    return "-".join(text[at : at + 4] for at in range(0, len(text), 4))


def plain_fingerprint(text: str) -> str:
    """Return a fingerprint as it is compared, however somebody typed it: without groups, in capitals, O as 0."""
    return re.sub(r"[\s-]", "", text).upper().translate(_LIKENESS)


def same_fingerprint(said: str, key_id: str) -> bool:
    """Say whether somebody's spelling is the fingerprint of this key; the whole of it must be there."""
    return plain_fingerprint(said) == plain_fingerprint(fingerprint(key_id))


def write_durably(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all, there after a power cut. Asserts: its folder exists."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
