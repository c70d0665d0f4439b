"""The folder survives: kill -9 anywhere, a full disk, a reader at any moment."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lenskeep.errors import RepositoryDamagedError, SourceError, StorageFullError
from lenskeep.messages.trust import Look, Verdict
from lenskeep.trust.client import look
from lenskeep.trust.keeping import changes, online, state, workspace
from lenskeep.trust.keeping.settings import Settings
from lenskeep.trust.keeping.workspace import Workspace, writing
from lenskeep.trust.source import FolderSource
from tests.repositories import Repository, StockClient

SEED = int(os.environ.get("LENSKEEP_SEED", "20261120"))
ROUNDS = 12

_CHILD = """
import sys, time
from pathlib import Path
from lenskeep.bundle.keys import load_private_key
from lenskeep.trust.keeping import director, releases, settling
from lenskeep.trust.keeping.workspace import writing
folder, now_s = Path(sys.argv[1]), float(sys.argv[2])
signers = [load_private_key(Path(name).read_bytes()) for name in sys.argv[3:5]]
bundles = [Path(name) for name in sys.argv[5:]]
print("begun", flush=True)
number = 0
while True:
    with writing(folder) as work:
        if number % 3 == 0:
            releases.publish(work, [bundles[number // 3 % len(bundles)]], signers, now_s)
        elif number % 3 == 1:
            director.assign(work, {f"cam-{number % 7}": {"main": ("cap-inspect", "1.0.0")}}, signers, now_s)
        else:
            releases.withdraw(work, "cap-inspect", "1.1.0", "again", signers, now_s) if number > 3 else None
        settling.settle(work, signers, now_s, force=True)
        work.commit()
    number += 1
"""


def _devices_eyes(repository: Repository, folder: Path) -> Callable[[str], bool]:
    """Return a look of ours as a device that remembers: whether something is assigned to it; a refusal is none."""
    stored: dict[str, dict[str, bytes]] = {}
    numbers = itertools.count()

    def look_at(name: str) -> bool:
        request = Look(bootstrap=repository.root(), stored=stored.get(name, {}), now_s=time.time(), device=name)
        answer = look(request, FolderSource(repository.folder), folder / f"look-{next(numbers)}")
        assert isinstance(answer, Verdict), answer
        stored[name] = answer.stored
        return answer.assignment is not None

    return look_at


@pytest.mark.parametrize(("most", "rounds", "moment_s"), [(1000, ROUNDS, 0.25), (1, ROUNDS // 2, 1.0)])
def test_a_kill_at_any_moment_leaves_what_both_clients_accept(
    tmp_path: Path, most: int, rounds: int, moment_s: float
) -> None:
    """Publishing, assigning and withdrawing in a loop, killed -9 at random moments; seeded.

    Args:
        most: how many devices the director lists in one file: with one, the list is shared out within the loop.
    """
    repository = Repository(tmp_path / "repository", terms=Settings(devices_in_one_list_max=most))
    repository.publisher("acme", "cap-*")
    good = repository.release("cap-inspect", "1.0.0")
    repository.assign("cam-5", main="cap-inspect@1.0.0")
    words = [str(repository.folder), str(repository.now_s)]
    for name in ("acme", "online"):
        (tmp_path / f"{name}.pem").write_bytes(repository.keys[name].pem())
        words.append(str(tmp_path / f"{name}.pem"))
    for version in ("1.1.0", "1.2.0"):
        (tmp_path / f"{version}.lkb").write_bytes(repository.bundle("cap-inspect", version, "acme"))
        words.append(str(tmp_path / f"{version}.lkb"))
    chance = random.Random(SEED)
    print("seed", SEED)
    client = StockClient(repository, tmp_path / "client")
    versions = client.versions()
    look_at = _devices_eyes(repository, tmp_path)
    assigned: set[str] = set()
    for _ in range(rounds):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(chance.uniform(0.0, moment_s))  # the moment of the accident
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        seen = client.versions()  # as it was left, before anybody repairs it
        assert all(seen[role] >= version for role, version in versions.items())
        versions = seen
        assert client.target("models/cap-inspect/1.0.0.lkb") == good
        now = {name for name in (f"cam-{number}" for number in range(7)) if look_at(name)}
        assert assigned <= now
        assigned = now
        repository.refresh()
        assert not list((repository.folder / ".scratch").iterdir())
        versions = client.versions()
    repository.assign("cam-6", main="cap-inspect@1.0.0")
    assert ("director-00" in client.versions()) == (most == 1)
    assert all(look_at(name) for name in {*assigned, "cam-6"})


class _Full:
    """A disk that is full after so many files."""

    def __init__(self, after: int) -> None:
        self._after = after

    def __call__(self, path: Path, flags: int) -> None:
        self._after -= 1
        if self._after < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))


@pytest.mark.parametrize("after", range(14))
def test_a_full_disk_at_any_step_leaves_what_the_standards_client_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    repository = Repository(tmp_path / "repository")
    repository.publisher("acme", "cap-*")
    client = StockClient(repository, tmp_path / "client")
    client.versions()
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "_sync", _Full(after))
        try:
            repository.release("cap-inspect", "1.0.0")
        except StorageFullError:
            pass
    client.versions()
    again = repository.release("cap-inspect", "1.0.0")
    assert client.target("models/cap-inspect/1.0.0.lkb") == again


@pytest.mark.parametrize("after", range(14))
def test_a_crash_between_a_new_root_and_its_timestamp_is_finished_by_the_next_who_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The old online key is lost: root and timestamp must change together, so a journal holds both."""
    repository = Repository(tmp_path / "repository")
    client = StockClient(repository, tmp_path / "client")
    client.versions()
    del repository.keys["online"]

    def lost(work: Workspace) -> None:
        changes.revoke_key(work, "online", [repository.named("server-2")], repository.signers(), repository.now_s)

    with monkeypatch.context() as patch:
        patch.setattr(workspace, "_sync", _Full(after))
        try:
            repository.change(lost)
        except StorageFullError:
            pass
    with writing(repository.folder):
        pass  # repairs; no key is needed
    client.versions()


def test_with_the_old_online_key_at_hand_even_the_moment_between_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(tmp_path / "repository")
    client = StockClient(repository, tmp_path / "client")
    real = Workspace._write

    def watched(self: Workspace, files: Any) -> None:
        real(self, files)
        client.versions()  # a device that looks between any two writes

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "_write", watched)
        new = repository.named("server-2")
        repository.change(
            lambda work: changes.rotate(work, "online", [new], ["online"], repository.signers(), repository.now_s)
        )
    assert repository.document("root").version == 2


@pytest.mark.attack(75)
def test_a_bundle_that_changes_between_check_and_copy_is_not_published(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    Repository(folder)
    file = tmp_path / "swapped"
    file.write_bytes(b"other")
    with writing(folder) as work:
        work.put_copy("targets/models/a/b", file, "0" * 64)
        work.put("metadata/2.targets.json", b"{}")
        with pytest.raises(RepositoryDamagedError):
            work.commit()
    assert not (folder / "metadata" / "2.targets.json").exists()
    assert not (folder / "targets" / "models").exists()


@pytest.mark.attack(99)
def test_links_in_a_repository_are_not_followed(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (repository.folder / "metadata" / "9.targets.json").symlink_to(secret)
    with pytest.raises(SourceError):
        state.load(Workspace(repository.folder))


def test_a_folder_full_of_strangers_files_does_not_stop_the_renewal(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    for number in range(2, 300):
        repository.write(f"{number * 3}.director.json", b"{}" * number)
        repository.write(f"{2**45 + number}.snapshot.json", b"x")
    settled = online.resign(repository.folder, repository.signers("online"), repository.now_s, force=True)
    assert settled.renewed
    StockClient(repository, tmp_path / "client").versions()
