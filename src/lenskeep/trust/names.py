"""The words of a repository: role names, target paths, and where files lie in it.

Layout, the same on a server, in a folder and on a stick: `metadata/N.root.json`, `metadata/timestamp.json`,
`metadata/N.snapshot.json`, `metadata/N.ROLE.json`, `targets/DIR/SHA256.NAME` (TUF 1.0 with consistent snapshots).
"""

from __future__ import annotations

import hashlib
import re

METADATA, TARGETS = "metadata", "targets"
ROOT, TOP_TARGETS, SNAPSHOT, TIMESTAMP, DIRECTOR = "root", "targets", "snapshot", "timestamp", "director"
TOP_ROLES = (ROOT, TOP_TARGETS, SNAPSHOT, TIMESTAMP)
ONLINE_ROLES = (DIRECTOR, SNAPSHOT, TIMESTAMP)
DIRECTOR_PATHS = ["devices/*"]
# A director of many devices hands its list on to bins of its own, by the first bits of a path's SHA-256 (TUF's succinct
# hash bin delegations, TAP 15). At 100,000 devices a bin lists some 390: what a device fetches after a change is its
# bin and the snapshot, which lists all bins, and 2**8 is where their sum is smallest.
BIN_BITS = 8
# A field of our own in the signed part of `timestamp`: when it was signed, as seconds since 1970.
ISSUED_FIELD = "x-lenskeep-issued"
# How long each role's signature is good for, in days.
EXPIRY_DAYS = {ROOT: 730, TOP_TARGETS: 365, "publisher": 365, DIRECTOR: 30, SNAPSHOT: 30, TIMESTAMP: 3}
USB_TIMESTAMP_DAYS = 14  # for sites that are served by stick

DEVICE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
ROLE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
BIN_NAME = re.compile(r"director-[0-9a-f]{2}")
_MODEL_PATH = re.compile(r"models/([a-z0-9][a-z0-9-]{0,62})/([0-9][0-9a-z.\-]{0,59})\.lkb")


def may_be_delegated(role: str) -> bool:
    """Say whether a role that `targets` speaks for may have this name."""
    return bool(ROLE_NAME.fullmatch(role)) and role not in TOP_ROLES and not BIN_NAME.fullmatch(role)


def model_path(name: str, version: str) -> str:
    """Return the target path of a version, `models/NAME/VERSION.lkb`."""
    return f"models/{name}/{version}.lkb"


def model_of(path: str) -> tuple[str, str] | None:
    """Return name and version of a model's target path, or None when it is none."""
    found = _MODEL_PATH.fullmatch(path)
    return None if found is None else (found[1], found[2])


def device_path(device: str) -> str:
    """Return the target path of a device's assignment, `devices/ID.json`."""
    return f"devices/{device}.json"


def device_of(path: str) -> str | None:
    """Return the device whose assignment has this target path, or None when it is none's."""
    device = path.removeprefix("devices/").removesuffix(".json")
    return device if path == device_path(device) and DEVICE_ID.fullmatch(device) else None


def bin_of(path: str, bits: int = BIN_BITS, prefix: str = DIRECTOR) -> str:
    """Return the role that lists a target path where a role hands its paths on to 2**bits bins."""
    number = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") >> (32 - bits)
    return bin_name(number, bits, prefix)


def bin_name(number: int, bits: int = BIN_BITS, prefix: str = DIRECTOR) -> str:
    """Return the role of one bin, `director-3f`."""
    return f"{prefix}-{number:0{(bits + 3) // 4}x}"


def target_file(path: str, sha256: str) -> str:
    """Return where a target's bytes lie in a repository, `targets/DIR/SHA256.NAME`."""
    folder, separator, name = path.rpartition("/")
    return f"{TARGETS}/{folder}{separator}{sha256}.{name}"
