"""What watches a fleet from outside: the numbers it offers, and the dashboard, rules and cache that are shipped for it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lenskeep.fleet.expiries import repository_ends
from lenskeep.messages.fleet import OperatorTokenAsk, SlotReport
from lenskeep.messages.sync import MEDIA_MSGPACK, Call, Trial, Vitals, Window
from lenskeep.sketch import Sketch
from tests.fleetrig import FleetServer, Member
from tests.ports import free_port
from tests.repositories import Repository

CONFIG = Path(__file__).resolve().parents[2] / "config"
RULES, DASHBOARD, NGINX = (
    CONFIG / name for name in ("prometheus-fleet.rules.yml", "grafana-fleet.json", "nginx-fleet.conf")
)
NAME = re.compile(r"\b(?:lenskeep_fleet|process)_\w+")
GOOD = "cap-inspect@1.0.0"


@pytest.fixture
def fleet() -> Iterator[FleetServer]:
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder)
    try:
        Repository(server.repository)
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


async def told(fleet: FleetServer) -> None:
    """One device that runs what it should and measured something."""
    device = await Member(fleet, "cam-1", fleet.folder).join()
    slot = SlotReport(slot="main", running=GOOD, digest="a" * 64, assigned=GOOD, state="settled", since_ms=1)
    await device.send(device.report(slots=[slot]))
    sketch, now_s = Sketch(), int(time.time())
    for number in range(100):
        sketch.add(9000 + number)
    window = Window(
        n=2, slot="main", bundle=GOOD, digest="a" * 64, provider="cpu", start_s=now_s, seconds=60, frames=100,
        outcomes={"OK": 90, "NG": 10}, sketches={"total": sketch.to_bytes()},
    )  # fmt: skip
    trial = Trial(
        n=3, at_ms=now_s * 1000, bundle=GOOD, digest="a" * 64, provider="cpu", hardware="rk3588", golden_passed=8,
        golden_total=8, golden_score=0.9875, p50_ms=8.0, p99_ms=9.5, memory_mb=60,
    )  # fmt: skip
    call = Call(outbox="one", records=[Vitals(n=1, at_ms=now_s * 1000, hardware="rk3588"), window, trial])
    status, _ = await device.ask(
        "POST", "/v1/devices/cam-1/sync", msgspec.msgpack.encode(call), headers={"Content-Type": MEDIA_MSGPACK}
    )
    assert status == 200
    until = time.monotonic() + 20  # records are merged within seconds
    while not any(one.behaviour for one in fleet.client.versions()):
        assert time.monotonic() < until, fleet.log()
        await asyncio.sleep(0.1)


def metrics(fleet: FleetServer) -> str:
    """Scrape as Prometheus does: over the port, with a viewer's token."""
    secret = fleet.client.add_operator(OperatorTokenAsk(name="prometheus", role="viewer")).secret
    address = f"http://127.0.0.1:{fleet.operator_port}/metrics"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {secret}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())


def promtool(*words: str, said: str = "") -> None:
    tool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed: apt-get install --no-install-recommends prometheus")
    done = subprocess.run([tool, *words], input=said, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_metrics_say_who_is_well_what_runs_how_fast_and_what_ends(fleet: FleetServer) -> None:
    await told(fleet)
    text = await asyncio.to_thread(metrics, fleet)
    assert 'lenskeep_fleet_devices{health="healthy"} 1.0' in text
    assert f'lenskeep_fleet_version_devices{{bundle="{GOOD}"}} 1.0' in text
    assert f'lenskeep_fleet_outcome_ratio{{bundle="{GOOD}",hardware="rk3588",outcome="ng"}} 0.1' in text
    found = re.search(r'latency_seconds\{bundle="\S+",hardware="rk3588",percentile="99"\} (\S+)', text)
    assert found is not None
    assert float(found[1]) == pytest.approx(0.0091, rel=0.01)
    assert float(re.findall(r"^lenskeep_fleet_records_total (\S+)", text, re.MULTILINE)[0]) == 3
    assert f'lenskeep_fleet_golden_score{{bundle="{GOOD}",hardware="rk3588",of="worst"}} 0.9875' in text
    assert f'lenskeep_fleet_tried_devices{{bundle="{GOOD}",hardware="rk3588",result="passed"}} 1.0' in text
    for role in ("root", "targets", "snapshot", "timestamp", "director"):
        assert f'expiry_timestamp_seconds{{role="{role}"}}' in text
    promtool("check", "metrics", said=text)


async def test_rules_and_dashboard_name_only_numbers_that_the_fleet_offers(fleet: FleetServer) -> None:
    await told(fleet)
    offered = set(re.findall(r"^# TYPE (\S+)", await asyncio.to_thread(metrics, fleet), re.MULTILINE))
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {name for text in (RULES.read_text(), *asked) for name in NAME.findall(text)}
    assert len(named) > 12
    assert named - offered == set()


def test_rules_are_what_prometheus_accepts() -> None:
    promtool("check", "rules", str(RULES))


def test_dashboard_has_no_panel_on_top_of_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at: dict[str, Any] = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.fixture
def cache(fleet: FleetServer) -> Iterator[str]:
    """The shipped configuration in a real nginx, its ports and folders moved; without the pages' certificate."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: apt-get install --no-install-recommends nginx-light")
    folder, port = fleet.folder / "nginx", free_port()
    folder.mkdir()
    folder.chmod(0o755)
    fleet.folder.chmod(0o755)
    here = {
        "127.0.0.1:8442": f"127.0.0.1:{fleet.plain_port}", "127.0.0.1:8444": f"127.0.0.1:{fleet.operator_port}",
        "listen 8080": f"listen 127.0.0.1:{port}", "listen 443 ssl": f"listen 127.0.0.1:{free_port()}",
        "/var/cache/nginx/lenskeep": f"{folder}/cache",
    }  # fmt: skip
    # all at once: a port that was put in may look like one that is replaced
    text = re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], NGINX.read_text())
    text = re.sub(r"^ *ssl_.*$", "", text, flags=re.MULTILINE)
    paths = "".join(
        f"{word}_temp_path {folder}/{word};" for word in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid; error_log {folder}/error.log; daemon off; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {paths}\n{text}\n}}"
    )
    server = subprocess.Popen(["nginx", "-c", folder / "nginx.conf", "-p", folder], stderr=subprocess.PIPE)
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + 10
        while True:
            try:
                get(f"{address}/v1/repository/metadata/timestamp.json")
                break
            except OSError:
                assert server.poll() is None, server.stderr and server.stderr.read()
                assert time.monotonic() < until, (folder / "error.log").read_text()
                time.sleep(0.05)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=10)


def get(address: str, **headers: str) -> tuple[bytes, str]:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
        return answer.read(), str(answer.headers.get("X-Cache"))


def test_cache_answers_for_immutable_files_and_asks_for_what_is_newest(fleet: FleetServer, cache: str) -> None:
    target = fleet.repository / "targets" / "models" / f"{'c' * 64}.thing.lkb"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(os.urandom(9 << 20))
    address = f"{cache}/v1/repository/targets/models/{target.name}"
    data, _ = get(address)
    assert data == target.read_bytes()
    again, state = get(address)
    assert (again, state) == (data, "HIT")
    part, state = get(address, Range="bytes=5000000-5000099")
    assert (part, state) == (data[5000000:5000100], "HIT")
    newest = f"{cache}/v1/repository/metadata/timestamp.json"
    assert get(newest)[0] == (fleet.repository / "metadata" / "timestamp.json").read_bytes()
    (fleet.repository / "metadata" / "timestamp.json").write_bytes(b'{"newer": true}')
    assert get(newest)[0] == b'{"newer": true}', "an old timestamp from the cache would hold every device back"


def test_cache_lets_nothing_else_through(cache: str) -> None:
    for path in ("/", "/v1/devices", "/v1/enrolment", "/metrics"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(cache + path)
        with refused.value:
            assert refused.value.code == 404


def test_ends_of_a_damaged_or_missing_repository_are_left_out(tmp_path: Path) -> None:
    assert repository_ends(tmp_path) == {}
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "3.root.json").write_text("{")
    (tmp_path / "metadata" / "timestamp.json").write_text('{"signed": {"expires": "2031-01-01T00:00:00Z"}}')
    assert repository_ends(tmp_path) == {"timestamp": 1924992000.0}
