"""The demonstration of a fleet, as a person starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "demo-fleet"


@pytest.mark.timeout(400)
def test_a_bad_version_is_stopped_and_taken_back_and_nothing_is_left_over() -> None:
    folder = Path(tempfile.mkdtemp(prefix="lk-"))
    environment = os.environ | {"LENSKEEP_PYTHON_READY": sys.executable, "TMPDIR": str(folder)}
    done = subprocess.run(
        [SCRIPT, "--once", "--port", "0"], env=environment, capture_output=True, text=True, check=False, timeout=380
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "finished: 5 committed" in done.stdout
    assert "reverting" in done.stdout
    assert "took itself back" in done.stdout
    assert "Every device runs what it should." in done.stdout
    folder.rmdir()  # fails when something was left
