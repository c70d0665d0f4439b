"""How OpenCV, numpy and the C library are set up in a process that makes the same large pictures thirty times a second.

* One thread each: the cores belong to inference and to the capture threads, and a pool of helpers for a resize of half
  a millisecond costs more than it gives.
* glibc gives every large buffer back to the system when it is freed and fetches it anew for the next frame, page by
  page. Preparing a 1280x720 frame then takes 0.9 ms instead of 0.4, an antialiased resize 6.5 ms instead of 2.2. Told
  to keep what was freed, it does so, several times a model's size after some swaps, until it is told to trim.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 32 << 20  # the most that glibc takes; larger buffers are weights and come and go with a session
_KEPT_BYTES = 256 << 20
_KEPT_BYTES_WHILE_TRIMMING = 128 << 10


def settle_libraries() -> None:
    """Set the libraries up for the line; to be called once, before numpy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        tune(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    import cv2

    cv2.setNumThreads(1)


def trim_memory() -> None:
    """Give memory that the C library holds back to the system, where the library can.

    It does not reach the end of a thread's own pool: that shrinks when the thread frees something large while little
    is to be kept. So the thread that built and freed the sessions must be the one that calls this.
    Cost: 20-80 ms of CPU under the allocator's locks, so it is done by a thread of low priority, seconds after a swap.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        return
    library.malloc.restype = ctypes.c_void_p
    library.malloc_trim(ctypes.c_size_t(0))
    library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES_WHILE_TRIMMING)
    library.free(ctypes.c_void_p(library.malloc(ctypes.c_size_t(_KEPT_BYTES_WHILE_TRIMMING))))
    library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
