"""When the repository's roles run out, read from the metadata in the folder: for people and alarms, never for trust."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

from lenskeep.trust.names import METADATA

_VERSIONED = re.compile(r"([1-9][0-9]{0,9})\.([a-z0-9][a-z0-9-]{0,62})\.json")
BYTES_MAX = 64 << 20


def repository_ends(folder: Path) -> dict[str, float]:
    """Return when the newest metadata of each role ends, in seconds of the wall clock; what cannot be read is left out.

    Runs in a thread.
    """
    newest: dict[str, tuple[int, Path]] = {}
    metadata = folder / METADATA
    if not metadata.is_dir():
        return {}
    for path in metadata.iterdir():
        found = _VERSIONED.fullmatch(path.name)
        if found and int(found[1]) > newest.get(found[2], (0, path))[0]:
            newest[found[2]] = (int(found[1]), path)
    ends = {role: _ends(path) for role, (_, path) in sorted(newest.items())}
    ends["timestamp"] = _ends(metadata / "timestamp.json")
    return {role: end for role, end in ends.items() if end}


def _ends(path: Path) -> float:
    try:
        if path.stat().st_size > BYTES_MAX:
            return 0.0
        expires = json.loads(path.read_bytes())["signed"]["expires"]
        return datetime.fromisoformat(str(expires).replace("Z", "+00:00")).timestamp()
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
