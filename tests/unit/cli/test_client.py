"""The typed client: every fault comes back as itself, and nothing hangs."""

import io
import socket
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from lenskeep.cli.client import Client
from lenskeep.cli.wire import Address, fault_of, find_address
from lenskeep.errors import (
    DaemonUnreachableError,
    LenskeepError,
    LimitExceededError,
    NothingToRollBackToError,
    NotPermittedError,
    NotSignedInError,
    PeerError,
    RequestError,
    TimedOutError,
    UnknownNameError,
    UnknownSignerError,
)
from lenskeep.messages.control import ActivationRequest, Problem
from tests.pocketdevice import bundle


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def test_fault_comes_back_as_itself_with_its_words(desk):
    with pytest.raises(UnknownNameError, match="No slot is named 'left'") as caught:
        desk.client.slot("left")
    assert caught.value.code == "LK-1101"
    desk.device.slot_now = replace(desk.device.slot_now, previous="")
    with pytest.raises(NothingToRollBackToError, match="Nothing was changed") as caught:
        desk.client.rollback(None)
    assert caught.value.hint == NothingToRollBackToError.hint


def test_hint_of_the_device_counts_before_the_client_s_own(desk):
    with pytest.raises(UnknownNameError) as caught:
        desk.client._wire.get("/v1/nothing", dict)
    assert caught.value.hint == "GET /v1 lists what there is."


def test_code_of_a_newer_device_is_kept():
    problem = Problem(type="", title="New", status=400, detail="something new", code="LK-9999", hint="Update.")
    fault = fault_of(problem)
    assert (type(fault), fault.code, str(fault), fault.hint) == (LenskeepError, "LK-9999", "something new", "Update.")


def test_rights_are_told_apart(desk):
    address = Address(host="127.0.0.1", port=desk.config.control.port)
    with pytest.raises(NotSignedInError):
        Client(address).rollback(None)
    with pytest.raises(NotPermittedError, match="role supervisor"):
        Client(address, desk.device.token("operator")).activate(ActivationRequest(bundle="a@1"))


def test_upload_sends_every_byte_and_tells_how_far_it_is(desk, tmp_path):
    file = tmp_path / "a.lkb"
    file.write_bytes(bytes(range(256)) * 3000)
    seen: list[tuple[int, int]] = []
    operation = desk.client.upload(file, lambda done, total: seen.append((done, total)))
    assert operation.kind == "import"
    assert desk.device.files == [file.read_bytes()]
    assert seen[-1] == (768_000, 768_000) and seen == sorted(seen)


def test_refusal_in_the_middle_of_an_upload_is_heard(desk, tmp_path):
    large = tmp_path / "large.lkb"
    large.write_bytes(bytes(30_000_000))
    with pytest.raises(LimitExceededError):
        desk.client.upload(large, quiet)
    stranger = tmp_path / "stranger.lkb"
    stranger.write_bytes(b"stranger")
    with pytest.raises(UnknownSignerError):
        desk.client.verify(stranger, quiet)


def test_export_that_ends_early_is_noticed(desk):
    sink = io.BytesIO()
    desk.client.export("cap-inspect@1.0.0", sink, quiet)
    assert sink.getvalue() == b"hello world"
    desk.device.stored["cap-inspect@1.0.0"] = bundle(size_bytes=12)
    with pytest.raises(PeerError):
        desk.client.export("cap-inspect@1.0.0", io.BytesIO(), quiet)


def test_wait_sees_progress_and_the_end(desk):
    desk.device.operation_delay_s = 0.4
    stages = []
    operation = desk.client.wait(
        desk.client.rollback(None), 5, lambda now: stages.append(now.progress and now.progress.stage)
    )
    assert operation.state == "succeeded" and "golden" in stages


def test_wait_ends_and_the_work_goes_on(desk):
    desk.device.operation_delay_s = 60
    with pytest.raises(TimedOutError) as caught:
        desk.client.wait(desk.client.rollback(None), 0.05, lambda _now: None)
    assert caught.value.hint == "Follow it with: lenskeep op show op1"


def test_events_are_resumed_where_they_stopped(desk):
    for number in range(3):
        desk.soon(desk.device.publish, "fault", {"number": number})
    desk.soon(desk.device.publish, "slot", {})
    kept = list(desk.client.events(since=0, follow=False))
    assert [event.sequence for event in kept] == [1, 2, 3, 4]
    assert [event.data for event in desk.client.events(since=1, types=["fault"], follow=False)] == [
        {"number": 1},
        {"number": 2},
    ]
    stream = desk.client.events(since=4)
    desk.soon(desk.device.publish, "fault", {"number": 9})
    assert next(stream).data == {"number": 9}
    stream.close()


def test_service_that_ends_while_events_are_read_is_a_fault_and_no_hang(desk):
    stream = desk.client.events(since=0)
    desk.soon(desk.device.publish, "fault", {})
    next(stream)
    desk.soon(desk._stop.set)
    with pytest.raises((DaemonUnreachableError, StopIteration)):
        next(stream)


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}",
     b"HTTP/1.1 200 OK\r\n\r\n<html>", b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>",
     b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"],
)  # fmt: skip
def test_whatever_else_answers_there_is_a_peer_fault(tmp_path, answer):
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(PeerError):
            Client(Address(path=path)).status()
        thread.join(5)


def test_silent_service_is_given_up(tmp_path, monkeypatch):
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(DaemonUnreachableError, match="did not answer in time"):
            Client(Address(path=path))._wire.ask("GET", "/v1/status", timeout_s=0.05)


def test_socket_that_may_not_be_opened_says_how_to_be_let_in(desk, monkeypatch):
    def refused(_self, _path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refused)
    with pytest.raises(NotPermittedError) as caught:
        desk.client.status()
    assert "usermod" in caught.value.hint


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ("/run/a.sock", "/run/a.sock"),
        ("http://127.0.0.1:8417", "http://127.0.0.1:8417"),
        ("http://127.0.0.1:8417/", "http://127.0.0.1:8417"),
        ("localhost:8417", "http://localhost:8417"),
        ("http://[::1]:8417", "http://::1:8417"),
        ("press-7", "http://press-7:80"),
    ],
)
def test_addresses(named, shown):
    assert str(find_address(named, {})) == shown
    assert str(find_address(None, {"LENSKEEP_DEVICE": named})) == shown


@pytest.mark.parametrize("named", ["https://a:1", "http://", "http://a:99999", "ftp://a", "http://a:1/path"])
def test_what_is_no_address_is_refused(named):
    with pytest.raises(RequestError):
        find_address(named, {})


def test_own_service_is_found_and_its_absence_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("lenskeep.cli.wire.SYSTEM_SOCKET", tmp_path / "system.sock")
    own = tmp_path / "lenskeep" / "lenskeep.sock"
    with pytest.raises(DaemonUnreachableError, match=r"no socket at .*system\.sock and .*lenskeep\.sock"):
        find_address(None, {"XDG_RUNTIME_DIR": str(tmp_path)})
    own.parent.mkdir()
    own.touch()
    assert find_address(None, {"XDG_RUNTIME_DIR": str(tmp_path)}) == Address(path=own)
    Path(tmp_path / "system.sock").touch()
    assert find_address(None, {"XDG_RUNTIME_DIR": str(tmp_path)}) == Address(path=tmp_path / "system.sock")
