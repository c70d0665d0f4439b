"""A real browser in front of a real device."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, TimeoutError, sync_playwright

from lenskeep.messages.control import TokenRequest
from lenskeep.permissions import Role
from tests.device import Device
from tests.ports import free_port

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 15000.0  # a bound against hanging, not a time that is measured


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser; module-wide, because the driver's own event loop must be gone before other tests use asyncio."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("Chromium is not installed: apt-get install --no-install-recommends chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def on_port(device: Device) -> Device:
    """Let a device that is not started yet serve its page."""
    text = device.config.read_text()
    device.config.write_text(text.replace("port = 0", f"port = {free_port()}"))
    return device


def address_of(device: Device) -> str:
    port = next(line for line in device.config.read_text().splitlines() if line.startswith("port = "))
    return f"http://127.0.0.1:{port.removeprefix('port = ')}/"


def token_of(device: Device, role: Role) -> str:
    names = {token.name for token in device.client.tokens()}
    return device.client.add_token(TokenRequest(name=f"{role}-{len(names)}", role=role)).secret


@pytest.fixture(scope="module")
def line() -> Iterator[Device]:
    """A device on which 1.1.0 runs and 1.0.0 is the way back; tests that use it leave it as it is."""
    device = on_port(Device(Path(tempfile.mkdtemp(prefix="lk-"))))
    try:
        device.start()
        device.trust()
        device.settle("1.0.0")
        device.settle("1.1.0")
        yield device
    finally:
        device.close()
        shutil.rmtree(device.folder, ignore_errors=True)


@pytest.fixture
def fresh(make_device: Callable[..., Device]) -> Callable[..., Device]:
    """Make devices with a page, for tests that change what runs."""

    def make(*versions: str, **words: Any) -> Device:
        device = on_port(make_device(**words))
        device.start()
        device.trust()
        for version in versions:
            device.settle(version)
        return device

    return make


class Visit:
    """One tab on a device's page, and everything that went wrong or out of it."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.address = address
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.event_requests: list[dict[str, str]] = []  # the headers of each
        self.page.on("request", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if "Content" in said.text else None)

    def _note(self, request: Request) -> None:
        self.requests.append(request.url)
        if request.url.endswith("/v1/events"):
            self.event_requests.append(request.headers)

    def open(self, fragment: str = "") -> Visit:
        """Load the page and wait until the device has answered."""
        self.page.goto(self.address + (f"#{fragment}" if fragment else ""))
        self.page.wait_for_selector("#footer:not(:empty)")
        return self

    def models(self) -> Visit:
        """Go to the models."""
        self.page.click("#tab-models")
        return self

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def shows(self, selector: str, text: str) -> None:
        """Wait until an element that can be seen holds a text."""
        try:
            self.page.locator(selector, has_text=text).first.wait_for(state="visible")
        except TimeoutError as error:
            raise AssertionError(f"{selector} does not say {text!r}; the page says:\n{self.text('body')}") from error

    def strangers(self) -> list[str]:
        """Requests that went to somebody else than the device."""
        own = urlsplit(self.address).netloc
        return [url for url in self.requests if urlsplit(url).scheme != "blob" and urlsplit(url).netloc != own]


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visit]]:
    """Open tabs; each test must leave no error behind, and no request to anybody but the device."""
    with tabs(chromium) as (make, made):
        yield make
        for one in made:
            assert one.complaints == []
            assert one.strangers() == []


@contextmanager
def tabs(chromium: Browser) -> Iterator[tuple[Callable[..., Visit], list[Visit]]]:
    made: list[Visit] = []
    contexts: list[BrowserContext] = []

    def make(device: Device, role: Role | None = None, *, size: tuple[int, int] = (1024, 600), **words: Any) -> Visit:
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, locale="en", **words)
        contexts.append(context)
        made.append(Visit(context, address_of(device)))
        return made[-1].open(f"token={token_of(device, role)}" if role else "")

    try:
        yield make, made
    finally:
        for context in contexts:
            context.close()
