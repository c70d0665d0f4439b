"""A device that follows a repository: over the network and by stick, as the person at the device meets it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lenskeep.trust.keeping import releases
from lenskeep.trust.keeping.workspace import SETTINGS
from lenskeep.trust.names import bin_of, device_path
from tests import tinybundle
from tests.device import Device, bundle_bytes
from tests.repositories import Repository

ID = "cam-7"
FOLLOW = """
[trust]
repository = "{address}"
on_withdrawn = "{on_withdrawn}"
[fleet]
poll_s = {poll_s}
"""


def following(address: str, on_withdrawn: str = "alarm", poll_s: int = 3600) -> str:
    """The configuration of a device that follows a repository."""
    return FOLLOW.format(address=address, on_withdrawn=on_withdrawn, poll_s=poll_s)


class Server:
    """A repository on a plain web server, which can be told to lie: `lie` answers in its place, or does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.lie: Callable[[SimpleHTTPRequestHandler], bool] = lambda _request: False
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if not outer.lie(self):
                    super().do_GET()

            def log_message(self, *_words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def release(repository: Repository, version: str) -> bytes:
    """Publish a version that a device can really run."""
    data = bundle_bytes(version)
    file = repository.folder.parent / f"cap-inspect-{version}.lkb"
    file.write_bytes(data)
    repository.change(lambda work: releases.publish(work, [file], repository.signers(), repository.now_s))
    return data


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.keys["acme"] = tinybundle.key()
    made.publisher("acme", "cap-*")
    release(made, "1.0.0")
    made.assign(ID, main="cap-inspect@1.0.0")
    return made


@pytest.fixture
def server(repository: Repository) -> Iterator[Server]:
    running = Server(repository.folder)
    yield running
    running.close()


def make(repository: Repository, address: str = "", on_withdrawn: str = "alarm") -> Device:
    folder = Path(tempfile.mkdtemp(prefix="lk-"))
    (folder / "root.json").write_bytes(repository.root())
    device = Device(folder, more=f'[device]\nid = "{ID}"\n' + following(address, on_withdrawn))
    device.start()
    return device


@pytest.fixture
def device(repository: Repository) -> Iterator[Device]:
    made = make(repository)
    yield made
    made.close()


def cli(device: Device, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lenskeep.cli.main", *words, "--device", str(device.socket)],
        capture_output=True, text=True, timeout=60, env=os.environ | {"NO_COLOR": "1"}, check=False,
    )  # fmt: skip


def stick(device: Device, repository: Repository, tmp_path: Path) -> Path:
    target = tmp_path / "stick"
    done = cli(device, "sync", "--export", str(target), "--from", str(repository.folder), "--for", ID)
    assert done.returncode == 0, done.stderr
    return target


def test_device_runs_what_it_is_assigned_over_the_network(
    tmp_path: Path, repository: Repository, server: Server
) -> None:
    device = make(repository, server.address)
    try:
        done = cli(device, "sync")
        assert done.returncode == 0, done.stderr
        device.runs("cap-inspect@1.0.0")
        server.asked.clear()
        assert cli(device, "sync").returncode == 0
        assert server.asked == ["/metadata/timestamp.json", "/metadata/2.root.json"], "nothing new costs two questions"
        release(repository, "1.1.0")
        repository.assign(ID, main="cap-inspect@1.1.0")
        device.runs("cap-inspect@1.0.0", "settled")
        assert cli(device, "sync").returncode == 0
        device.runs("cap-inspect@1.1.0", "settled")
        assert [one.state for one in device.client.repository().assignments] in (["asked"], ["followed"])
    finally:
        device.close()


def test_device_runs_what_a_stick_brings_under_the_same_checks(
    device: Device, repository: Repository, tmp_path: Path
) -> None:
    (repository.folder / SETTINGS).write_text("devices_in_one_list_max = 2\n")
    for other in ("cam-x", "cam-y"):  # one device more than the director lists in one file
        repository.assign(other, main="cap-inspect@1.0.0")
    place = stick(device, repository, tmp_path)
    lists = [path.name for path in (place / "metadata").iterdir() if "director" in path.name]
    assert sorted(lists) == [
        f"1.{bin_of(device_path(ID))}.json",
        f"{repository.document('director').version}.director.json",
    ]
    done = cli(device, "sync", "--import", str(place))
    assert done.returncode == 0, done.stderr + device.log()[-2000:]
    assert f"{ID} is level with its repository" in done.stdout
    device.runs("cap-inspect@1.0.0", "settled")
    assert list((place / "reports" / ID).iterdir()), "a signed report goes back on the stick"


def test_bundle_that_the_repository_does_not_list_is_refused_at_the_door(
    device: Device, repository: Repository, tmp_path: Path
) -> None:
    cli(device, "sync", "--import", str(stick(device, repository, tmp_path)))
    device.runs("cap-inspect@1.0.0")
    file = tmp_path / "cap-inspect-9.0.0.lkb"
    file.write_bytes(bundle_bytes("9.0.0"))
    done = cli(device, "import", str(file))
    assert done.returncode != 0
    assert "LK-4107" in done.stderr
    assert [bundle.version for bundle in device.client.bundles()] == ["1.0.0"]


def test_withdrawn_version_goes_on_with_an_alarm_and_is_not_gone_back_to(
    device: Device, repository: Repository, tmp_path: Path
) -> None:
    cli(device, "sync", "--import", str(stick(device, repository, tmp_path)))
    device.runs("cap-inspect@1.0.0", "settled")
    release(repository, "1.1.0")
    repository.assign(ID, main="cap-inspect@1.1.0")
    cli(device, "sync", "--import", str(stick(device, repository, tmp_path)))
    device.runs("cap-inspect@1.1.0", "settled")
    repository.withdraw("cap-inspect", "1.0.0")
    done = cli(device, "sync", "--import", str(stick(device, repository, tmp_path)))
    assert "cap-inspect@1.0.0 was withdrawn" in done.stdout
    assert device.slot().previous == ""
    refused = cli(device, "activate", "cap-inspect@1.0.0")
    assert "LK-4107" in refused.stderr
    repository.change(
        lambda work: releases.withdraw(work, "cap-inspect", "1.1.0", "bad", repository.signers(), repository.now_s)
    )
    place = tmp_path / "stick"
    for file in (repository.folder / "metadata").iterdir():
        (place / "metadata" / file.name).write_bytes(file.read_bytes())
    cli(device, "sync", "--import", str(place))
    device.until(lambda: any(check.code == "LK-4107" for check in device.client.status().faults), "the alarm is shown")
    assert device.slot().active == "cap-inspect@1.1.0"


def test_stick_pulled_out_in_the_middle_harms_nothing(device: Device, repository: Repository, tmp_path: Path) -> None:
    place = stick(device, repository, tmp_path)
    bundle = next((place / "targets" / "models" / "cap-inspect").iterdir())
    whole = bundle.read_bytes()
    bundle.write_bytes(whole[: len(whole) // 2])
    cli(device, "sync", "--import", str(place))
    assert device.client.bundles() == []
    bundle.write_bytes(whole)
    assert cli(device, "sync", "--import", str(place)).returncode == 0
    device.runs("cap-inspect@1.0.0")


def portal(request: SimpleHTTPRequestHandler) -> bool:
    page = b"<html><body>Please accept the terms of the hotel</body></html>"
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.send_header("Content-Length", str(len(page)))
    request.end_headers()
    request.wfile.write(page)
    return True


def missing(part: str) -> Callable[[SimpleHTTPRequestHandler], bool]:
    def lie(request: SimpleHTTPRequestHandler) -> bool:
        if part in request.path:
            request.send_error(404)
        return part in request.path

    return lie


def elsewhere(target: str) -> Callable[[SimpleHTTPRequestHandler], bool]:
    def lie(request: SimpleHTTPRequestHandler) -> bool:
        request.send_response(302)
        request.send_header("Location", target)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    return lie


def endless(request: SimpleHTTPRequestHandler) -> bool:
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(b" " * 65536)
    except OSError:
        return True


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        pytest.param(portal, "LK-4106", marks=pytest.mark.attack(96), id="captive portal answers 200 with html"),
        pytest.param(missing("snapshot"), "LK-4104", marks=pytest.mark.attack(97), id="404 for snapshot"),
        pytest.param(elsewhere("file:///etc/passwd"), "LK-7002", marks=pytest.mark.attack(98), id="redirect to file"),
        pytest.param(elsewhere("http://127.0.0.1:9/x"), "LK-7002", marks=pytest.mark.attack(98), id="redirect to a host"),
        pytest.param(endless, "LK-4105", marks=pytest.mark.attack(80), id="endless data"),
    ],
)  # fmt: skip
def test_lying_network_is_refused_with_its_code_and_the_line_goes_on(
    repository: Repository, server: Server, lie: Callable[[SimpleHTTPRequestHandler], bool], code: str
) -> None:
    device = make(repository, server.address)
    try:
        assert cli(device, "sync").returncode == 0
        device.runs("cap-inspect@1.0.0", "settled")
        repository.refresh()
        server.lie = lie
        done = cli(device, "sync")
        assert code in done.stderr
        device.runs("cap-inspect@1.0.0", "settled")
        server.lie = lambda _request: False
        assert cli(device, "sync").returncode == 0
        versions = {role.name: role.version for role in device.client.repository().roles}
        assert versions["snapshot"] == repository.document("snapshot").version, "and then it is level again"
    finally:
        device.close()


@pytest.mark.attack(76)
def test_old_repository_played_again_is_refused_even_after_the_registry_was_lost(
    repository: Repository, server: Server, tmp_path: Path
) -> None:
    device = make(repository, server.address)
    try:
        assert cli(device, "sync").returncode == 0
        device.runs("cap-inspect@1.0.0", "settled")
        old = repository.saved(tmp_path / "old")
        repository.refresh()
        assert cli(device, "sync").returncode == 0
        repository.restore(old)
        assert "LK-4103" in cli(device, "sync").stderr
        device.kill()
        for file in (device.folder / "state").glob("registry.sqlite*"):
            file.unlink()
        device.start()
        assert "LK-4111" in cli(device, "doctor").stdout
        assert "LK-4103" in cli(device, "sync").stderr, "what was seen is known outside the registry as well"
        device.runs("cap-inspect@1.0.0")
    finally:
        device.close()


@pytest.mark.attack(99)
def test_stick_with_links_is_refused_and_nothing_behind_them_is_read(
    device: Device, repository: Repository, tmp_path: Path
) -> None:
    place = stick(device, repository, tmp_path)
    secret = tmp_path / "secret.json"
    (place / "metadata" / "timestamp.json").rename(secret)
    (place / "metadata" / "timestamp.json").symlink_to(secret)
    done = cli(device, "sync", "--import", str(place))
    assert "LK-4110" in done.stderr
    assert device.client.repository().roles == []


@pytest.mark.attack(99)
def test_stick_that_is_older_than_its_expiry_is_refused(device: Device, repository: Repository, tmp_path: Path) -> None:
    place = stick(device, repository, tmp_path)
    repository.refresh(repository.now_s - 40 * 86400)
    for name in ("timestamp.json", repository.document("snapshot").file):
        (place / "metadata" / name).write_bytes((repository.folder / "metadata" / name).read_bytes())
    done = cli(device, "sync", "--import", str(place))
    assert "LK-4102" in done.stderr
    assert device.client.bundles() == []


def test_device_that_is_given_a_root_follows_it_and_its_own_keys_no_longer_count(
    repository: Repository, tmp_path: Path
) -> None:
    device = Device(Path(tempfile.mkdtemp(prefix="lk-")), more=f'[device]\nid = "{ID}"\n')
    device.start()
    try:
        device.trust()
        assert device.bring("0.9.0").state == "succeeded"
        device.activate("0.9.0")
        device.runs("cap-inspect@0.9.0", "settled")
        root = tmp_path / "1.root.json"
        root.write_bytes(repository.root())
        done = cli(device, "trust", "follow", str(root), "--yes")
        assert done.returncode == 0, done.stderr
        file = tmp_path / "cap-inspect-0.9.1.lkb"
        file.write_bytes(bundle_bytes("0.9.1"))
        assert "LK-41" in cli(device, "import", str(file)).stderr
        assert cli(device, "sync", "--import", str(stick(device, repository, tmp_path))).returncode == 0
        device.runs("cap-inspect@1.0.0", "settled")
        assert "LK-4112" in cli(device, "sync").stderr, "there is no address to ask"
    finally:
        device.close()


def test_text_that_is_no_root_is_refused_and_changes_nothing(device: Device, tmp_path: Path) -> None:
    wrong = tmp_path / "root.json"
    wrong.write_text('{"signed": {}, "signatures": []}')
    before = device.client.repository()
    assert "LK-41" in cli(device, "trust", "follow", str(wrong), "--yes").stderr
    assert device.client.repository() == before
