"""The TUF conformance suite against our client, where a checkout of it is at hand (TUF_CONFORMANCE=FOLDER)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run")


@pytest.mark.timeout(1200)
def test_our_client_conforms_to_the_standard() -> None:
    suite = os.environ.get("TUF_CONFORMANCE", "")
    if not suite or not shutil.which("faketime"):
        pytest.skip("TUF_CONFORMANCE names no checkout of the suite, or faketime is missing")
    environment = os.environ | {"LENSKEEP_PYTHON": sys.executable}
    done = subprocess.run([RUN, suite], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
