"""Ports for the servers of tests: each is given once, and nobody takes it before the server does."""

from __future__ import annotations

import itertools
import os
import random
import socket

# Below those that the kernel gives to connections: a port from there could be taken while its server still starts.
LOWEST, HIGHEST, WORKERS = 10_000, 32_000, 16

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_rows = (HIGHEST - LOWEST) // WORKERS
_turns = itertools.count(random.SystemRandom().randrange(_rows))  # other test runs on this machine begin elsewhere


def free_port() -> int:
    """Return a port on loopback that no other test of this run is given."""
    for _ in range(_rows):
        port = LOWEST + next(_turns) % _rows * WORKERS + _worker
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
