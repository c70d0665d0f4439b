"""The trust process at its socket: asked as the daemon asks it, with a repository in a folder."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from lenskeep.errors import MetadataExpiredError, SourceTooSlowError
from lenskeep.messages.runner import LENGTH_BYTES, frame
from lenskeep.messages.trust import Failed, FromTrust, Have, Look, Refusal, ToTrust, Verdict, Want
from lenskeep.trust.source import FolderSource
from tests.forger import Forger

MODEL = "models/cap-inspect/1.0.0.lkb"
Answer = Callable[[Want], ToTrust]


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    forger = Forger(tmp_path / "repository")
    forger.add("cap-team", MODEL, b"the bundle")
    forger.assign("cam-1")
    forger.publish()
    return forger


@contextmanager
def process() -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory() as folder:
        with theirs:
            command = [sys.executable, "-m", "lenskeep.trust", "--fd", str(theirs.fileno()), "--folder", folder]
            child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        with ours, child:
            ours.settimeout(20)
            yield ours, child


def receive(connection: socket.socket) -> FromTrust | None:
    with connection.makefile("rb", buffering=0) as file:
        head = file.read(LENGTH_BYTES) or b""
        if len(head) < LENGTH_BYTES:
            return None
        size, body = int.from_bytes(head, "big"), b""
        while len(body) < size:
            body += file.read(size - len(body)) or b""
    answer: FromTrust = msgspec.msgpack.decode(body, type=FromTrust)
    return answer


def ask(request: Look, answer: Answer) -> tuple[Verdict | Refusal, list[str]]:
    asked = []
    with process() as (connection, child):
        connection.sendall(frame(request))
        while isinstance(said := receive(connection), Want):
            asked.append(said.name)
            connection.sendall(frame(answer(said)))
        assert child.wait(10) == 0
    assert said is not None
    return said, asked


def from_folder(folder: Path) -> Answer:
    source = FolderSource(folder)
    return lambda want: Have(data=source.read(want.name, want.bytes_max))


def test_one_look_is_one_process(forger: Forger) -> None:
    verdict, asked = ask(forger.look(device="cam-1", paths=[MODEL]), from_folder(forger.folder))
    assert isinstance(verdict, Verdict)
    assert verdict.listings[0].role == "cap-team"
    assert asked[:5] == [
        "metadata/2.root.json", "metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json",
        "metadata/1.director.json",
    ]  # fmt: skip
    again, asked = ask(forger.look(verdict.stored, device="cam-1", paths=[MODEL], offline=True), from_folder(Path("/")))
    assert (again, asked) == (verdict, [])


def test_a_file_that_the_daemon_could_not_fetch_ends_the_look_with_its_fault(forger: Forger) -> None:
    folder = from_folder(forger.folder)

    def slow(want: Want) -> ToTrust:
        return Failed(code=SourceTooSlowError.code, message="Too slow.") if "snapshot" in want.name else folder(want)

    answer, _ = ask(forger.look(), slow)
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.role) == (SourceTooSlowError.code, "snapshot")


def test_a_fault_is_told_and_the_process_ends_orderly(forger: Forger) -> None:
    answer, _ = ask(forger.look(now_s=forger.now_s * 2), from_folder(forger.folder))
    assert isinstance(answer, Refusal)
    assert answer.code == MetadataExpiredError.code


@pytest.mark.attack(80)
def test_a_daemon_that_hands_over_more_than_it_was_asked_for_is_not_believed(forger: Forger) -> None:
    answer, _ = ask(forger.look(), lambda want: Have(data=b" " * 20_000_000))
    assert isinstance(answer, Refusal)
    assert answer.code == "LK-4105"


@pytest.mark.parametrize("words", [b"", b"\0\0\0\5hello", frame(Have(data=b"")), b"\xff\xff\xff\xff"])
def test_an_end_that_does_not_speak_as_agreed_is_hung_up_on(words: bytes) -> None:
    with process() as (connection, child):
        connection.sendall(words)
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) is None
        assert child.wait(10) != 0
        assert child.stderr is not None
        assert b"Traceback" not in child.stderr.read()


def test_process_that_judges_reaches_neither_files_nor_network_nor_programs(tmp_path: Path) -> None:
    """What the process has given up when the first byte of a stranger comes, tried from inside of it."""
    secret, own = tmp_path / "secret", tmp_path / "own"
    secret.write_text("not for a document to read")
    own.mkdir()
    attack = f"""
import os, socket, subprocess
from pathlib import Path
from lenskeep.confine.confine import Needs, confine
from lenskeep.confine.landlock import FOLDER
said = confine(Needs({{Path({str(own)!r}): FOLDER}}, "read-only but for its folder", keeps_folder=True))
def tried(name, act):
    try:
        act()
    except (PermissionError, OSError) as error:
        print(name, "refused")
    else:
        print(name, "POSSIBLE")
tried("socket", lambda: socket.socket())
tried("program", lambda: subprocess.run(["/bin/true"]))
tried("fork", os.fork)
if said.landlock_abi:
    tried("secret", lambda: open({str(secret)!r}).read())
    tried("write", lambda: open({str(tmp_path / "planted")!r}, "w"))
Path({str(own)!r}, "kept").write_text("its own")
os.replace(Path({str(own)!r}, "kept"), Path({str(own)!r}, "moved"))
print("done")
"""
    done = subprocess.run([sys.executable, "-c", attack], capture_output=True, text=True, timeout=20)
    assert done.stdout.endswith("done\n"), done.stderr
    assert "POSSIBLE" not in done.stdout
    assert not (tmp_path / "planted").exists()
