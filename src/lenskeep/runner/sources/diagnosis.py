"""Finds words for a network camera that cannot be opened, by asking its port once, in its own protocol."""

from __future__ import annotations

import socket
from urllib.parse import SplitResult, urlsplit, urlunsplit

from lenskeep.runner.sources.address import PORTS, without_user

TIMEOUT_S_MAX = 2.0
_ANSWERS = {
    "301": "sends its callers elsewhere; configure the address where the stream really is",
    "302": "sends its callers elsewhere; configure the address where the stream really is",
    "401": "asks for another user name and password",
    "403": "refuses this user",
    "404": "has no stream at this path",
    "503": "is too busy to send a stream",
}


def why_no_stream(source: str, timeout_s: float) -> str:
    """Say why a stream does not open, as the rest of a sentence that begins with its address.

    Cost: a connection and one answer, TIMEOUT_S_MAX each at most.
    """
    url = urlsplit(without_user(source))
    try:
        host, port = url.hostname or "", url.port or PORTS[url.scheme]
    except (ValueError, KeyError):
        return "is not an address"
    try:
        with socket.create_connection((host, port), min(timeout_s, TIMEOUT_S_MAX)) as connection:
            if url.scheme in ("rtsps", "https"):
                return "answers, but not with a video that can be read"
            return _asked(connection, url)
    except socket.gaierror:
        return "cannot be found: its name is not known here"
    except ConnectionRefusedError:
        return f"does not answer: nothing listens on port {port}"
    except OSError:
        return "does not answer: is it on, and on this network"


def _asked(connection: socket.socket, url: SplitResult) -> str:
    if url.scheme == "rtsp":
        words = f"DESCRIBE {url.geturl()} RTSP/1.0\r\nCSeq: 1\r\n\r\n"
    else:
        path = urlunsplit(("", "", url.path or "/", url.query, ""))
        words = f"GET {path} HTTP/1.0\r\nHost: {url.netloc}\r\n\r\n"
    try:
        connection.sendall(words.encode("ascii", "replace"))
        status = connection.recv(64).decode("latin-1").split(" ")
    except OSError:
        return "takes the connection but says nothing"
    known = _ANSWERS.get(status[1]) if len(status) > 1 else None
    return known or "answers, but not with a video that can be read"
