"""The fleet's pages: static files of the package under the operators' door, behind a policy that lets nothing else in.

Rules. The files are public; everything that they show is asked for with the reader's own token. No cookie exists, so no
other site can ask in the reader's name. Text and hands are the device page's files, served here under the same names.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path

from aiohttp import web

import lenskeep
from lenskeep.fleet.answers import Handler

WEB = Path(lenskeep.__file__).parent / "web"
SHARED = ("app.css", "icon.svg", "js/api.js", "js/dom.js", "js/session.js", "js/text.js")
SUFFIXES = frozenset({".html", ".css", ".js", ".json", ".svg"})
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def pages(web_folder: Path = WEB) -> dict[str, Path]:
    """Return the file behind each address."""
    own = web_folder / "fleet"
    files = {f"/{name}": web_folder / name for name in SHARED}
    for path in sorted(own.rglob("*")):
        if path.is_file() and path.suffix in SUFFIXES:
            files[f"/{path.relative_to(own).as_posix()}"] = path
    return files | {"/": own / "index.html"}


def add_pages(app: web.Application) -> web.Application:
    """Serve the pages."""
    for address, path in pages().items():
        app.router.add_get(address, _sender(path))
    return app


def _sender(path: Path) -> Handler:
    content_type = mimetypes.types_map.get(path.suffix, "application/octet-stream")

    async def send(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path, headers={**HEADERS, "Content-Type": content_type})

    return send
