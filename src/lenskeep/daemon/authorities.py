"""Whom this system believes on the web: needed only for a repository at an https address without authority of its own.

aiohttp reads all of them as it is imported, for contexts that a device may never use: 2 MB and 30 ms. So it is
imported without them, which makes its own contexts believe nobody, and they are read when somebody asks.
"""

from __future__ import annotations

import functools
import ssl


def import_without_them() -> None:
    """Import aiohttp with default contexts that know no authority. Call it before anything else imports aiohttp."""
    ssl.SSLContext.set_default_verify_paths = _nothing  # type: ignore[assignment, method-assign]
    try:
        import aiohttp.connector  # noqa: F401 - for what it does as it is imported
    finally:
        del ssl.SSLContext.set_default_verify_paths  # the one of the class below it is seen again


def _nothing(_context: ssl.SSLContext) -> None:
    """Load nobody."""


@functools.cache
def of_the_web() -> ssl.SSLContext:
    """Return the context that believes whom the system believes. Cost: blocks for some 15 ms, once."""
    return ssl.create_default_context()
