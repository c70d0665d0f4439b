"""The device's page: static files of the package, served as they are."""

from __future__ import annotations

import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

import lenskeep

WEB = Path(lenskeep.__file__).parent / "web"
SUFFIXES = frozenset({".html", ".css", ".js", ".mjs", ".svg", ".png", ".ico", ".json", ".webmanifest", ".woff2"})


def add_page(app: web.Application, folder: Path = WEB) -> None:
    """Serve every file of the folder under its name, and `index.html` at the root; the fleet's pages are not here."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix in SUFFIXES and not name.startswith("fleet/"):
            handler = _sender(path)
            app.router.add_get(f"/{name}", handler)
            if name == "index.html":
                app.router.add_get("/", handler)


def _sender(path: Path) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    content_type = mimetypes.types_map.get(path.suffix, "application/octet-stream")

    async def send(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path, headers={"Content-Type": content_type, "Cache-Control": "no-cache"})

    return send
