"""aiohttp imported without the web's authorities believes nobody by itself, and https repositories still can be known."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import ssl
from lenskeep.daemon import authorities
authorities.import_without_them()
import aiohttp.connector as connector
own = connector._SSL_CONTEXT_VERIFIED
print(own.verify_mode == ssl.CERT_REQUIRED, own.check_hostname, len(own.get_ca_certs()))
print(len(authorities.of_the_web().get_ca_certs()) == len(ssl.create_default_context().get_ca_certs()))
"""


def test_a_context_that_knows_no_authority_still_asks_for_one() -> None:
    told = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["True", "True", "0", "True"]
