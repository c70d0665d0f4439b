"""The journal's catalog says of every fault what the fault says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from lenskeep.daemon.journal import message_id
from lenskeep.errors import fault_book

ROOT = Path(__file__).resolve().parents[2]
CATALOG = ROOT / "systemd" / "lenskeep.catalog"


def test_the_catalog_is_what_the_faults_say_today() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make-catalog"], check=True, capture_output=True, text=True
    ).stdout
    assert CATALOG.read_text() == made, "run: scripts/make-catalog > systemd/lenskeep.catalog"


def test_every_fault_is_explained_under_an_id_of_its_own() -> None:
    ids = re.findall(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(), re.MULTILINE)
    assert ids == [message_id(code) for code in fault_book()]
    assert len(set(ids)) == len(ids)


def test_an_id_never_changes_because_devices_in_the_field_have_it_in_their_journals() -> None:
    assert message_id("LK-4001") == "39288eb6101152728e14428c8d860c9c"


def test_no_explanation_holds_what_the_journal_would_take_for_a_field() -> None:
    assert not re.search(r"@[A-Z_]+@", CATALOG.read_text())
