"""A real S3-compatible server for tests: moto's, as a process of its own on loopback."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.ports import free_port

KEY_ID, SECRET = "lenskeep", "sesame-sesame"


class ObjectStore:
    """One server; what it keeps is gone with it."""

    def __init__(self) -> None:
        if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
            pytest.skip("no S3-compatible server is installed (pip: moto[server])")
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._made = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=1).close()
                return
            except (OSError, urllib.error.URLError):
                assert time.monotonic() < deadline and self._process.poll() is None
                time.sleep(0.05)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def make(self) -> str:
        """Make an empty bucket and return its address."""
        self._made += 1
        name = f"fleet{self._made}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        request.add_header(
            "Authorization",
            f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0",
        )
        urllib.request.urlopen(request, timeout=5).close()
        return f"s3://{name}/some/prefix"
