"""The way to the fleet: straight, past whatever the environment names, or through a plant's forward proxy.

Rules. TLS goes through a proxy from end to end (CONNECT), so a proxy sees an address and no more, and one that opens
TLS meets the pinned authority. A proxy's login is read where it lies for every request, is never part of a text, and
goes to the proxy alone. What a proxy answers is its own fault, not the fleet's.
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp

from lenskeep.config import NO_PROXY, Fleet
from lenskeep.credentials import read_secret
from lenskeep.errors import (
    ConfigError,
    FleetUnreachableError,
    LenskeepError,
    ProxyAnswerError,
    ProxyRefusesError,
    ProxyUnreachableError,
)

REACH_S = 30.0  # for a connection that is ready to be used: name, TCP, the proxy's answer, TLS
_REFUSALS = {401: "does not know us", 403: "forbids it", 407: "asks for a login that it accepts"}


class Way:
    """How sessions are opened, and what their faults mean. Args: `proxy`, `login` as in the configuration's [fleet]."""

    def __init__(self, proxy: str = "", login: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.proxy = "" if proxy == NO_PROXY else proxy.rstrip("/")  # it holds no secret
        self._by_environment = not proxy
        self._login = login
        self._environment = environment or {}

    @classmethod
    def of(cls, settings: Fleet) -> Way:
        """Take the configured way."""
        return cls(settings.proxy, settings.proxy_login, os.environ)

    def session(self, connector: aiohttp.BaseConnector, **words: Any) -> aiohttp.ClientSession:
        """Open a session on this way."""
        return aiohttp.ClientSession(connector=connector, trust_env=self._by_environment, **words)

    def words(self, url: str, headers: dict[str, str]) -> dict[str, Any]:
        """Return what a request of such a session needs, with its headers. Raises: ConfigError, without the login."""
        if not self.proxy:
            return {"headers": headers}
        login = {"Proxy-Authorization": self._authorization()} if self._login else {}
        if url.startswith("http:"):  # no tunnel: the proxy reads the request itself, and takes this off
            return {"headers": headers | login, "proxy": self.proxy}
        return {"headers": headers, "proxy": self.proxy, "proxy_headers": login}

    def _authorization(self) -> str:
        user, colon, password = read_secret(self._login, self._environment, "fleet.proxy_login").partition(":")
        if not colon or not user or not (user + password).isprintable():
            raise ConfigError(
                "fleet.proxy_login: what lies there is not USER:PASSWORD.",
                hint="Write one line USER:PASSWORD into the file that the key names.",
            )
        return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"

    def fault(self, error: BaseException, url: str) -> LenskeepError | None:
        """Return what the proxy did, when that is what a connection met."""
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            cause = error.os_error.strerror or str(error.os_error)
            return ProxyUnreachableError(
                f"The proxy {error.host}:{error.port} on the way to {url} cannot be reached: {cause}."
            )
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return self._refusal(error.status, url)
        if not self.proxy:
            return None
        if isinstance(error, aiohttp.ClientResponseError) and error.request_info.method == "CONNECT":  # no HTTP at all
            return ProxyAnswerError(f"The proxy {self.proxy} does not answer as a proxy does; nothing went to {url}.")
        if isinstance(error, aiohttp.ClientConnectorSSLError) and not _is_alert(error):
            return ProxyAnswerError(
                f"Through the proxy {self.proxy} somebody answers for {url} who does not speak TLS as a fleet does."
            )
        return None

    def _refusal(self, status: int, url: str) -> LenskeepError:
        proxy = f"The proxy {self.proxy}" if self.proxy else "The proxy"
        if status in _REFUSALS:
            return ProxyRefusesError(f"{proxy} refuses the way to {url} ({status}): it {_REFUSALS[status]}.")
        if status >= 500:
            return FleetUnreachableError(
                f"{proxy} cannot reach {url} ({status}).",
                hint="Look at the fleet, and at what the proxy may reach; a proxy looks up names by itself.",
            )
        return ProxyAnswerError(f"{proxy} answers {status} instead of opening a way to {url}.")


def _is_alert(error: BaseException) -> bool:
    return isinstance(error, ssl.SSLError | aiohttp.ClientConnectorSSLError) and "alert" in str(error).lower()
