"""What lies on a stick between a fleet and its devices, where, and how large it may be.

Layout, beside the repository's own `metadata/` and `targets/`:
`csr/DEVICE.csr` a request for a certificate · `certificates/DEVICE.crt` the answer, the authority behind it ·
`reports/DEVICE/COUNTER.json` signed reports · `record/DEVICE.jsonl` an export of the device's record ·
`outbox/DEVICE/OUTBOX-FIRST-LAST.json` signed records of its outbox · `receipts/DEVICE/OUTBOX.json` how far they were
taken, signed by the fleet.
Rules. A stick is somebody else's file system: plain files with the expected names alone, none larger than its kind may
be, no more of them than a stick may bring; everything on it proves itself by its signature.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lenskeep.errors import SourceError, StorageError, StorageFullError
from lenskeep.trust.identity import write_durably
from lenskeep.trust.names import DEVICE_ID
from lenskeep.trust.source import FolderSource

CSR_BYTES_MAX = 4096
CERTIFICATE_BYTES_MAX = 16384
REPORT_BYTES_MAX = 256 << 10
RECORD_BYTES_MAX = 1 << 30
OUTBOX_BYTES_MAX = 1 << 20  # of one file
CARRIED_BYTES_MAX = 64 << 20  # that a device writes at once; the rest goes onto the next stick
RECEIPT_BYTES_MAX = 4096
FILES_MAX = 10_000
_COUNTER = re.compile(r"[1-9][0-9]{0,15}")
_BATCH = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})\.json", re.ASCII)
_RECEIPT = re.compile(r"[0-9a-f]{32}\.json")


def csr_file(device: str) -> str:
    """Return where a device's request for a certificate lies."""
    return f"csr/{device}.csr"


def certificate_file(device: str) -> str:
    """Return where a device's certificate lies, with the authority's behind it."""
    return f"certificates/{device}.crt"


def report_file(device: str, counter: int) -> str:
    """Return where a signed report lies."""
    return f"reports/{device}/{counter}.json"


def record_file(device: str) -> str:
    """Return where an export of a device's record lies."""
    return f"record/{device}.jsonl"


class Batch(NamedTuple):
    """Signed records on a stick, by what their file's name says."""

    device: str
    outbox: str
    first: int
    last: int

    @property
    def file(self) -> str:
        """Where they lie."""
        return f"outbox/{self.device}/{self.outbox}-{self.first}-{self.last}.json"


def receipt_file(device: str, outbox: str) -> str:
    """Return where the fleet's receipt for an outbox lies."""
    return f"receipts/{device}/{outbox}.json"


def csrs(stick: Path) -> Iterator[tuple[str, str]]:
    """Yield (device, file) for every request on a stick."""
    for name in _names(stick, "csr"):
        device, dot, suffix = name.rpartition(".")
        if dot and suffix == "csr" and DEVICE_ID.fullmatch(device):
            yield device, csr_file(device)


def reports(stick: Path) -> Iterator[tuple[str, int, str]]:
    """Yield (device, counter, file) for every report on a stick, each device's in their order."""
    left = FILES_MAX
    for device in _names(stick, "reports"):
        if not DEVICE_ID.fullmatch(device):
            continue
        numbered = [name.removesuffix(".json") for name in _names(stick, f"reports/{device}") if name.endswith(".json")]
        for counter in sorted(int(text) for text in numbered if _COUNTER.fullmatch(text)):
            left -= 1
            if left < 0:
                raise SourceError(f"The stick holds more than {FILES_MAX} reports.")
            yield device, counter, report_file(device, counter)


def batches(stick: Path, device: str = "") -> Iterator[Batch]:
    """Yield the batches of records on a stick, or of one device, each outbox's in their order."""
    left = FILES_MAX
    for name in [device] if device else _names(stick, "outbox"):
        if not DEVICE_ID.fullmatch(name):
            continue
        found = [_BATCH.fullmatch(file) for file in _names(stick, f"outbox/{name}")]
        for batch in sorted(Batch(name, part[1], int(part[2]), int(part[3])) for part in found if part):
            left -= 1
            if left < 0:
                raise SourceError(f"The stick holds more than {FILES_MAX} batches of records.")
            yield batch


def records(stick: Path) -> Iterator[str]:
    """Yield the devices whose record lies on a stick."""
    for name in _names(stick, "record"):
        device, dot, suffix = name.rpartition(".")
        if dot and suffix == "jsonl" and DEVICE_ID.fullmatch(device):
            yield device


def receipts(stick: Path, device: str) -> Iterator[str]:
    """Yield the files of a device's receipts on a stick."""
    for name in _names(stick, f"receipts/{device}"):
        if _RECEIPT.fullmatch(name):
            yield f"receipts/{device}/{name}"


def read(stick: Path, name: str, bytes_max: int) -> bytes:
    """Read a file of a stick. Raises: SourceError, MetadataTooLargeError."""
    data = FolderSource(stick).read(name, bytes_max)
    if data is None:
        raise SourceError(f"{name} is not on the stick.")
    return data


def write(stick: Path, name: str, data: bytes) -> Path:
    """Write a file to a stick, whole or not at all, there when the stick is pulled. Raises: StorageError."""
    with written(name):
        path = place(stick, name)
        write_durably(path, data, 0o644)
    return path


@contextlib.contextmanager
def written(name: str) -> Iterator[None]:
    """Say what kept a file from being written. Raises: StorageFullError, StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"The stick is full; {name} was not written.") from error
        raise StorageError(f"{name} cannot be written to the stick: {error.strerror}.") from error


def place(stick: Path, name: str) -> Path:
    """Return where a file is to be written, its folders made; a link on the way leads elsewhere. Raises: OSError."""
    folder = stick
    for part in name.split("/")[:-1]:
        folder /= part
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "a link is in its place")
        folder.mkdir(parents=True, exist_ok=True)
    return stick / name


def remove(stick: Path, name: str) -> None:
    """Remove a file that has become useless; where that cannot be done it stays, and does no harm."""
    with contextlib.suppress(OSError):
        place(stick, name).unlink()


def _names(stick: Path, folder: str) -> list[str]:
    """Return the names in a folder of a stick, in order; no link is followed on the way. Raises: SourceError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = -1
    try:
        at = os.open(stick, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in folder.split("/"):
            inner = os.open(part, flags, dir_fd=at)
            os.close(at)
            at = inner
        found = []
        with os.scandir(at) as entries:
            for entry in entries:
                found.append(entry.name)
                if len(found) > FILES_MAX:
                    raise SourceError(f"{folder} on the stick holds more than {FILES_MAX} files.")
        return sorted(found)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(f"{folder} on the stick cannot be read: {error.strerror}.") from error
    finally:
        if at >= 0:
            os.close(at)
