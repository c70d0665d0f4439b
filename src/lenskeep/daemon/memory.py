"""The daemon's own memory: kept small by the C library's settings, and given back once the start is over."""

from __future__ import annotations

import ctypes
import gc
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
TLS_READ_BYTES = 32 << 10


def keep_small() -> None:
    """Give freed memory back: one arena, and large pieces of uploads straight from the system; load no C++ library.

    Source: measured over 14 imports of 5 MB: 57 MiB and flat with this, 64 MiB and growing without. Harmless where the
    C library has no mallopt. One small list of aiohttp's, used as it starts, is all that would load the C++ library:
    1.1 MB.
    """
    os.environ.setdefault("FROZENLIST_NO_EXTENSIONS", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 65536), (M_TRIM_THRESHOLD, 131072)):
            mallopt(option, value)


def keep_lines_small() -> None:
    """Let an encrypted connection read in small pieces: asyncio gives each one 256 KiB to read into."""
    from asyncio import sslproto

    sslproto.SSLProtocol.max_size = TLS_READ_BYTES


def settle() -> None:
    """Give back what only the start needed, and keep the collector from looking through the rest again and again."""
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
