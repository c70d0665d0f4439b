"""The addresses of network cameras, taken apart; no OpenCV needed."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}


def without_user(source: str) -> str:
    """Return an address without user name and password.

    A password may hold any character unescaped, so everything up to the last @ goes.
    """
    scheme, separator, rest = source.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else source


def redacted(source: str) -> str:
    """Return a source as it may be shown: without user name, password and query."""
    if "://" not in source:
        return source
    public, query, _ = without_user(source).partition("?")
    return f"{public}{'?…' if query else ''}"


def endpoint(source: str) -> tuple[str, int]:
    """Return host and port of a network camera, as FFmpeg reads its address.

    Raises: ValueError when the source is no such address.
    """
    scheme, _, rest = source.partition("://")
    if scheme not in PORTS:
        raise ValueError(f"{scheme} is not a camera's protocol")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    url = urlsplit(f"//{authority}")
    return url.hostname or "", url.port or PORTS[scheme]
