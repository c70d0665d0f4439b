"""The words of a repository: role names, target paths, and where files lie in it.

Layout, the same on a server, in a folder and on a stick: `metadata/N.root.json`, `metadata/timestamp.json`,
`metadata/N.snapshot.json`, `metadata/N.ROLE.json`, `targets/DIR/SHA256.NAME` (TUF 1.0 with consistent snapshots).
"""

from __future__ import annotations

import re

METADATA, TARGETS = "metadata", "targets"
ROOT, TOP_TARGETS, SNAPSHOT, TIMESTAMP, DIRECTOR = "root", "targets", "snapshot", "timestamp", "director"
TOP_ROLES = (ROOT, TOP_TARGETS, SNAPSHOT, TIMESTAMP)
ONLINE_ROLES = (DIRECTOR, SNAPSHOT, TIMESTAMP)
DIRECTOR_PATHS = ["devices/*"]
# A field of our own in the signed part of `timestamp`: when it was signed, as seconds since 1970.
ISSUED_FIELD = "x-lenskeep-issued"
# How long each role's signature is good for, in days.
EXPIRY_DAYS = {ROOT: 730, TOP_TARGETS: 365, "publisher": 365, DIRECTOR: 30, SNAPSHOT: 30, TIMESTAMP: 3}
USB_TIMESTAMP_DAYS = 14  # for sites that are served by stick

DEVICE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
ROLE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MODEL_PATH = re.compile(r"models/([a-z0-9][a-z0-9-]{0,62})/([0-9][0-9a-z.\-]{0,59})\.lkb")


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


def target_file(path: str, sha256: str) -> str:
    """Return where a target's bytes lie in a repository, `targets/DIR/SHA256.NAME`."""
    folder, separator, name = path.rpartition("/")
    return f"{TARGETS}/{folder}{separator}{sha256}.{name}"
