"""A device whose fleet is reached by a forward proxy only: every habit of proxies, and nothing lost, doubled or told."""

from __future__ import annotations

import asyncio
import random
import socket
import sqlite3
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from lenskeep.clock import Clock
from lenskeep.daemon import fleetline
from lenskeep.daemon.outbox import KINDS
from lenskeep.daemon.patience import Patience
from lenskeep.daemon.sources import HttpSource, open_session
from lenskeep.daemon.syncline import SyncLine
from lenskeep.daemon.way import Way
from lenskeep.errors import (
    ConfigError,
    FleetNotProvenError,
    FleetUnreachableError,
    ProxyAnswerError,
    ProxyRefusesError,
    ProxyUnreachableError,
)
from lenskeep.fleet.authority import open_authority
from lenskeep.messages.fleet import AuthorityView
from lenskeep.messages.identity import EnrolRequest
from lenskeep.messages.sync import Call
from lenskeep.trust import tls
from tests.device import Device
from tests.fleetrig import FleetServer, Member, running_fleet
from tests.journeys.test_fleet_outbox import with_repository
from tests.ports import free_port
from tests.proxy import PAGE, Proxy

ROOT = Path(__file__).resolve().parents[2]
STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
LOGIN = "cam-7:pa:ss wörd"
MORE = """
[device]
id = "cam-7"
[fleet]
proxy = "{proxy}"
proxy_login = "{login}"
poll_s = 0.5
wait_s = {wait_s}
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    yield from _fleet()


@pytest.fixture
def own_fleet() -> Iterator[FleetServer]:
    """A server of the test's own, with a repository."""
    yield from _fleet()


def _fleet() -> Iterator[FleetServer]:
    with running_fleet(more="[sync]\nheartbeat_s = 30\n") as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as made:
        yield made


def pinned(fleet: FleetServer) -> ssl.SSLContext:
    return tls.fleet_context(fleet.client.authority().certificate, Clock())


async def ask(fleet: FleetServer, way: Way, url: str = "") -> AuthorityView:
    return await fleetline.ask(f"{url or fleet.url}/v1/authority", pinned(fleet), AuthorityView, way=way)


# --- faults -----------------------------------------------------------------------------------------------------------


async def test_a_proxy_that_is_not_there_is_named_as_that(fleet: FleetServer) -> None:
    port = free_port()
    with pytest.raises(ProxyUnreachableError, match=rf"The proxy 127.0.0.1:{port} on the way to https://"):
        await ask(fleet, Way(f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize(("status", "words"), [(403, "forbids it"), (407, "asks for a login")])
async def test_a_proxy_that_refuses_says_why(fleet: FleetServer, proxy: Proxy, status: int, words: str) -> None:
    proxy.refuse = status
    with pytest.raises(ProxyRefusesError, match=words):
        await ask(fleet, Way(proxy.url))


async def test_a_fleet_that_a_proxy_cannot_reach_is_the_fleets_fault(fleet: FleetServer, proxy: Proxy) -> None:
    with pytest.raises(FleetUnreachableError, match="502"):
        await ask(fleet, Way(proxy.url), f"https://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("habit", ["html", "garbage", "captive"])
async def test_a_sign_in_page_or_nonsense_is_no_way_through(fleet: FleetServer, proxy: Proxy, habit: str) -> None:
    proxy.habit = habit  # type: ignore[assignment]
    with pytest.raises(ProxyAnswerError) as caught:
        await ask(fleet, Way(proxy.url))
    assert PAGE.decode() not in str(caught.value)


async def test_a_proxy_that_opens_tls_meets_the_pinned_authority(
    fleet: FleetServer, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.habit, proxy.certificate = "intercept", open_authority(tmp_path, Clock(), 30)[0].server_context()
    with pytest.raises(FleetNotProvenError) as caught:
        await fleetline.ask(f"{fleet.url}/v1/enrolment", pinned(fleet), AuthorityView, b"a secret", Way(proxy.url))
    assert "opens TLS" in caught.value.hint
    assert not any(b"a secret" in said for said in proxy.said)


@pytest.mark.parametrize("habit", ["mute", "drip"])
async def test_a_proxy_that_never_finishes_its_answer_is_left(
    fleet: FleetServer, proxy: Proxy, habit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lenskeep.daemon.syncline.REACH_S", 0.5)
    monkeypatch.setattr("lenskeep.daemon.fleetline.TOTAL_S", 0.5)
    proxy.habit = habit  # type: ignore[assignment]
    line = SyncLine("cam-1", Way(proxy.url))
    began = time.monotonic()
    with pytest.raises(FleetUnreachableError):
        await ask(fleet, Way(proxy.url))
    with pytest.raises(FleetUnreachableError):
        await line.ask(fleet.url, pinned(fleet), Call(wait_s=50.0))
    assert time.monotonic() - began < 5.0
    await line.close()


# --- the login --------------------------------------------------------------------------------------------------------


async def test_the_login_is_read_where_it_lies_each_time_and_goes_to_the_proxy_alone(
    fleet: FleetServer, tmp_path: Path
) -> None:
    place = tmp_path / "login"
    place.write_text("cam-7:old\n")
    with Proxy(login=LOGIN) as proxy:
        way = Way(proxy.url, str(place))
        with pytest.raises(ProxyRefusesError) as caught:
            await ask(fleet, way)
        assert "old" not in f"{caught.value} {caught.value.hint}"
        place.write_text(LOGIN)
        assert (await ask(fleet, way)).certificate == fleet.client.authority().certificate
        await ask(fleet, Way(proxy.url, "credential:proxy", {"CREDENTIALS_DIRECTORY": str(_credential(tmp_path))}))
        await ask(fleet, Way(proxy.url, "env:PROXY_LOGIN", {"PROXY_LOGIN": LOGIN}))
        assert b"Proxy-Authorization" not in proxy.carried
        assert proxy.tunnels == 3


def _credential(folder: Path) -> Path:
    (folder / "credentials").mkdir()
    (folder / "credentials" / "proxy").write_text(LOGIN)
    return folder / "credentials"


@pytest.mark.parametrize("text", ["no colon", ":only a password", "a:b\x07", ""])
async def test_a_login_that_is_none_is_a_fault_of_the_configuration_and_is_not_repeated(
    fleet: FleetServer, proxy: Proxy, tmp_path: Path, text: str
) -> None:
    (tmp_path / "login").write_text(text)
    with pytest.raises(ConfigError, match=r"fleet\.proxy_login") as caught:
        await ask(fleet, Way(proxy.url, str(tmp_path / "login")))
    assert not text or text not in str(caught.value)
    assert not proxy.said


async def test_none_goes_past_the_proxy_that_the_environment_names(
    fleet: FleetServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", proxy.url)
    await ask(fleet, Way("none"))
    assert not proxy.said
    await ask(fleet, Way(""))
    assert proxy.tunnels == 1


# --- downloads --------------------------------------------------------------------------------------------------------


async def test_a_repository_is_read_through_the_proxy_by_plain_http_and_a_407_is_no_missing_file(
    fleet: FleetServer, tmp_path: Path
) -> None:
    (fleet.repository / "metadata").mkdir(exist_ok=True)
    (fleet.repository / "metadata" / "9.root.json").write_text("{}")
    (tmp_path / "login").write_text(LOGIN)
    base = f"http://127.0.0.1:{fleet.plain_port}/v1/repository"
    with Proxy(login=LOGIN) as proxy:
        for way, wanted in ((Way(proxy.url, str(tmp_path / "login")), None), (Way(proxy.url), ProxyRefusesError)):
            async with open_session(way) as session:
                source = HttpSource(session, base, way=way)
                if wanted is None:
                    assert (await source.read("metadata/9.root.json", 100_000) or b"").startswith(b"{")
                else:
                    with pytest.raises(wanted):
                        await source.read("metadata/9.root.json", 100_000)
        assert proxy.said[0].startswith(b"GET http://127.0.0.1:")


# --- the held line ----------------------------------------------------------------------------------------------------


async def test_a_call_on_a_tunnel_that_was_cut_while_it_idled_is_made_again_at_once(
    fleet: FleetServer, proxy: Proxy, tmp_path: Path
) -> None:
    member = await Member(fleet, "proxy-1", tmp_path).join()
    line = SyncLine("proxy-1", Way(proxy.url))
    for _ in range(3):
        await line.ask(fleet.url, member.context(), Call())
        context = member.context()
        proxy.cut()
        await line.ask(fleet.url, context, Call())
    await line.close()
    assert proxy.tunnels == 4


async def test_a_tunnel_that_falls_silent_is_left_when_the_answer_is_due_and_the_next_call_takes_another(
    fleet: FleetServer, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lenskeep.daemon.syncline.ANSWER_S", 0.5)
    member = await Member(fleet, "proxy-2", tmp_path).join()
    context, line = member.context(), SyncLine("proxy-2", Way(proxy.url))
    proxy.idle_s, proxy.habit = 0.3, "silent"
    with pytest.raises(FleetUnreachableError, match="in time"):
        await line.ask(fleet.url, context, Call(wait_s=1.0))
    await line.ask(fleet.url, context, Call())
    assert proxy.tunnels == 2
    await line.close()
    await asyncio.to_thread(proxy.cut)
    await asyncio.sleep(0.1)  # the one that is still being left hears of it


class _Turned(Clock):
    now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s


def test_patience_bears_one_cut_learns_from_two_halves_for_silence_and_tries_again_after_an_hour() -> None:
    clock = _Turned()
    patience = Patience(50.0, clock)
    assert not patience.cut(0.3), "that was not held"
    assert patience.cut(30.0)
    assert patience.wait_s() == 50.0, "a fleet that was started again"
    patience.answered(4.0)
    assert patience.cut(31.0)
    assert patience.wait_s() == 24.0
    assert "24 s" in patience.words()
    patience.answered(24.0)
    clock.now_s += 3601.0
    assert patience.wait_s() == 50.0
    assert not patience.words()
    for wanted in (25.0, 12.5, 0.0):
        assert patience.cut(80.0)
        assert patience.wait_s() == wanted


@pytest.fixture
def make_member(fleet: FleetServer, make_device: Callable[..., Device]) -> Callable[[Proxy, float, str], Device]:
    """Make a running device that has enrolled through a proxy."""

    def make(proxy: Proxy, wait_s: float, device: str) -> Device:
        made = make_device(more="")
        login = made.folder / "login"
        login.write_text(LOGIN)
        text = MORE.format(proxy=proxy.url, login=login, wait_s=wait_s).replace("cam-7", device)
        made.config.write_text(made.config.read_text() + text)
        made.start()
        made.client.enrol(EnrolRequest(url=fleet.url, token=fleet.token(device)))
        return made

    return make


def test_a_device_behind_a_proxy_that_cuts_idle_tunnels_learns_it_and_loses_and_doubles_nothing(
    fleet: FleetServer, make_member: Callable[[Proxy, float, str], Device]
) -> None:
    with Proxy(login=LOGIN) as proxy:
        proxy.idle_s = 2.0
        device = make_member(proxy, 6.0, "cam-7")

        def learned() -> bool:
            return any("cut on the way" in check.text for check in device.client.health() if check.name == "fleet")

        device.until(learned, "the device learns how long tunnels live")
        cuts = proxy.cuts
        time.sleep(4.0)
        assert proxy.cuts == cuts, "what is held is answered before it is cut"
        fleet_view = device.client.status().fleet
        assert fleet_view is not None
        assert fleet_view.level
        assert "LK-70" not in device.log(), "a cut is no fault"
        for _ in range(15):
            device.client.hold("main", True)
            time.sleep(random.random() / 4)
            proxy.cut()
            device.client.hold("main", False)
        assert_told_once(device, fleet, 15)
        said = device.log() + (fleet.folder / "fleet.log").read_text()
        said += msgspec.json.encode([device.client.health(), device.client.status()]).decode()
        assert LOGIN.rpartition(":")[2] not in said
        assert b"Proxy-Authorization" not in proxy.carried


def test_a_device_that_only_a_proxy_can_bring_to_its_fleet_lives_a_whole_life_through_it(
    own_fleet: FleetServer, make_device: Callable[..., Device]
) -> None:
    repository = with_repository(own_fleet, "1.0.0", "2.0.0")
    with Proxy(login=LOGIN) as proxy:
        proxy.hosts["fleet.plant"] = "127.0.0.1"
        device = make_device(more="")
        (device.folder / "root.json").write_bytes(repository.root())
        (device.folder / "login").write_text(LOGIN)
        text = MORE.format(proxy=proxy.url, login=device.folder / "login", wait_s=20)
        device.config.write_text(device.config.read_text() + text + f'[trust]\nroot = "{device.folder}/root.json"\n')
        device.start()
        url = f"https://fleet.plant:{own_fleet.port}"
        device.client.enrol(EnrolRequest(url=url, token=own_fleet.token("cam-7")))
        repository.assign("cam-7", main="cap-inspect@1.0.0")
        device.runs("cap-inspect@1.0.0", "settled")
        asked = own_fleet.client.ask_device("cam-7", "report", "")

        def done() -> bool:
            return {one.id: one.state for one in own_fleet.client.asked_of("cam-7")}[asked.id] == "done"

        device.until(done, "the device does what the fleet asks")

        def fault() -> str:
            view = device.client.status().fleet
            return view.problem if view is not None else ""

        proxy.stop()
        device.until(lambda: fault().startswith("LK-7010"), "the proxy is named as what is missing")
        proxy.start()
        device.until(lambda: not fault(), "the fleet is heard again")
        repository.assign("cam-7", main="cap-inspect@2.0.0")
        device.runs("cap-inspect@2.0.0", "settled")
        assert all(said.startswith(b"CONNECT fleet.plant:") for said in proxy.said)


def assert_told_once(device: Device, fleet: FleetServer, happenings: int) -> None:
    """Wait until everything is told, and compare what happened here with what the fleet has of it."""

    def all_told() -> bool:
        view = device.client.status().fleet
        return view is not None and view.level and not view.waiting

    device.until(all_told, "all is told")
    with closing(sqlite3.connect(device.folder / "state/registry.sqlite")) as database, database:
        rows = database.execute("SELECT action FROM record ORDER BY sequence").fetchall()
    actions = [action for (action,) in rows]
    happened = [action for action in actions[actions.index("enrol certificate") :] if action in KINDS]
    assert len(happened) >= happenings
    name = device.client.identity().device

    def told() -> list[str]:
        with closing(sqlite3.connect(fleet.database)) as database, database:
            rows = database.execute(
                "SELECT text FROM happening WHERE device = ? AND text LIKE '% by %' ORDER BY id", (name,)
            ).fetchall()
        return [text.split(" by ")[0] for (text,) in rows]

    device.until(lambda: len(told()) >= len(happened), "the fleet has merged what it took")
    assert [action for action in told() if action in happened][-len(happened) :] == happened
    assert told().count("hold") == actions.count("hold")


@pytest.mark.skipif(not STREAM.exists(), reason="needs nginx with its stream module (apt: libnginx-mod-stream)")
def test_devices_come_back_through_a_tls_pass_through_that_is_started_again_and_tell_everything_once(
    fleet: FleetServer, make_device: Callable[..., Device], tmp_path: Path
) -> None:
    port = free_port()
    with nginx(tmp_path, fleet.port, port) as again:
        device = make_device(more='[device]\nid = "cam-8"\n[fleet]\npoll_s = 0.5\nwait_s = 20')
        device.start()
        device.client.enrol(EnrolRequest(url=f"https://127.0.0.1:{port}", token=fleet.token("cam-8")))
        for _ in range(4):
            device.client.hold("main", True)
            time.sleep(0.3 + random.random())
            again()
            device.client.hold("main", False)
        assert_told_once(device, fleet, 4)


@contextmanager
def nginx(folder: Path, fleet: int, port: int) -> Iterator[Callable[[], None]]:
    """Run nginx with the `stream` block that the configuration proposes; what is yielded kills it and starts it again."""
    text = (ROOT / "config/nginx-fleet.conf").read_text()
    block = "\n".join(line.lstrip("#") for line in text[text.index("#   stream {") :].splitlines())
    block = block.replace("server 10.0.0.11:8443; server 10.0.0.12:8443;", f"server 127.0.0.1:{fleet};")
    block = block.replace("listen 8443;", f"listen 127.0.0.1:{port};")
    (folder / "nginx.conf").write_text(
        f"load_module {STREAM};\ndaemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\n{block}\n"
    )

    def start() -> subprocess.Popen[bytes]:
        begun = subprocess.Popen(["/usr/sbin/nginx", "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return begun
            except OSError:
                assert begun.poll() is None, (folder / "error.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    process = start()

    def again() -> None:
        nonlocal process
        process.kill()
        process.wait()
        process = start()

    try:
        yield again
    finally:
        process.kill()
        process.wait()
