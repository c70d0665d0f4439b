"""A stick is somebody else's file system: links that lie on it lead nothing of a repository elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tinybundle
from tests.repositories import Repository

ID = "cam-7"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.keys["acme"] = tinybundle.key()
    made.publisher("acme", "cap-*")
    made.release("cap-inspect", "1.0.0")
    made.assign(ID, main="cap-inspect@1.0.0")
    return made


def export(repository: Repository, stick: Path) -> subprocess.CompletedProcess[str]:
    words = ["sync", "--export", str(stick), "--from", str(repository.folder), "--for", ID]
    return subprocess.run(
        [sys.executable, "-m", "lenskeep.cli.main", *words], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("folder", ["targets", "targets/models", "metadata"])
def test_a_linked_folder_on_a_stick_is_refused_and_nothing_is_written_behind_it(
    repository: Repository, tmp_path: Path, folder: str
) -> None:
    elsewhere, stick = tmp_path / "elsewhere", tmp_path / "stick"
    elsewhere.mkdir()
    (stick / folder).parent.mkdir(parents=True)
    (stick / folder).symlink_to(elsewhere)
    done = export(repository, stick)
    assert done.returncode != 0 and "a link is in its place" in done.stderr, done.stderr
    assert not list(elsewhere.iterdir())


def test_a_link_in_the_place_of_a_bundle_is_not_written_through(repository: Repository, tmp_path: Path) -> None:
    stick, precious = tmp_path / "stick", tmp_path / "precious"
    assert export(repository, stick).returncode == 0
    precious.write_text("untouched")
    [bundle] = (stick / "targets").rglob("*.lkb")
    bundle.unlink()
    bundle.with_name(f".{bundle.name}.part").symlink_to(precious)
    assert export(repository, stick).returncode == 0, "what was left half written is done again"
    bundle.unlink()
    bundle.symlink_to(precious)
    assert export(repository, stick).returncode != 0
    assert precious.read_text() == "untouched"
