"""The page is files of the package, served as they are and nothing beside them."""

from aiohttp import web

from lenskeep.daemon.control.page import add_page


async def test_files_are_served_and_others_are_not(tmp_path, aiohttp_client):
    (tmp_path / "web" / "img").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "web" / "index.html").write_text("<!doctype html>")
    (tmp_path / "web" / "page.js").write_text("export {}")
    (tmp_path / "web" / "__init__.py").write_text("")
    (tmp_path / "web" / "img" / "mark.svg").write_text("<svg/>")
    app = web.Application()
    add_page(app, tmp_path / "web")
    client = await aiohttp_client(app)
    for path, kind in (
        ("/", "text/html"),
        ("/index.html", "text/html"),
        ("/page.js", "text/javascript"),
        ("/img/mark.svg", "image/svg+xml"),
    ):
        async with client.get(path) as answer:
            assert (answer.status, answer.content_type) == (200, kind)
            assert answer.headers["Cache-Control"] == "no-cache"
    for path in ("/__init__.py", "/../secret.txt", "/%2e%2e/secret.txt", "/img/..%2f..%2fsecret.txt", "/img/"):
        async with client.get(path) as answer:
            assert answer.status == 404
