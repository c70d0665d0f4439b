"""The fleet as a service of a real systemd: installed, closed, enrolled at, killed, upgraded, taken back, removed.

One host, in this order: each test finds the host as the one before left it, and the last one leaves it bare. The device
is the checkout's own daemon in the container's network.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lenskeep.messages.identity import EnrolRequest
from tests.device import Device
from tests.lab.container import until
from tests.lab.host import Host
from tests.lab.wheels import ROOT
from tests.repositories import Repository

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

UNIT = "lenskeep-fleet.service"
STATE = "/var/lib/lenskeep-fleet"
CONFIG = "/etc/lenskeep-fleet/fleet.toml"
QUICK = '[sync]\nheartbeat_s = 1\n[online]\nkeys = ["credential:online.key"]\n'
DROP_IN = "[Service]\nLoadCredential=online.key:/etc/lenskeep-fleet/online.key\n"


@pytest.fixture(scope="module")
def device(host: Host) -> Iterator[Device]:
    """A device that reaches the fleet over the container's network."""
    made = Device(Path(tempfile.mkdtemp(prefix="lk-")), more='[device]\nid = "cam-7"\n[fleet]\npoll_s = 0.5\n')
    made.through = host.container.network()
    made.start()
    yield made
    made.close()
    shutil.rmtree(made.folder, ignore_errors=True)


def asked(host: Host, *words: str) -> Any:
    return json.loads(host.run("lenskeep", "--json", "fleet", *words))["data"]


def authority(host: Host) -> str:
    return str(asked(host, "ca", "show")["fingerprint"])


def is_heard(host: Host, device: Device) -> None:
    """Wait until the two have spoken with each other from now on."""
    began = time.monotonic()

    def heard() -> bool:
        fleet = device.client.status().fleet
        return bool(
            fleet and not fleet.problem and fleet.heard_s is not None and fleet.heard_s < time.monotonic() - began
        )

    until(heard, "the device speaks with the fleet")
    assert asked(host, "show", "cam-7")["device"]["state"] == "enrolled"


# --- installed --------------------------------------------------------------------------------------------------------


def test_installer_brings_a_bare_host_to_a_serving_fleet_and_says_what_to_do_next(host: Host) -> None:
    said = host.install("0.1.1", "--fleet")
    assert host.show("ActiveState", UNIT) == "active"
    assert host.show("StatusText", UNIT) == "serving"
    assert host.run("systemctl", "is-enabled", UNIT) == "enabled"
    assert host.path(CONFIG).read_text() == (ROOT / "config/fleet.toml").read_text()
    for words in ("a first configuration", "lenskeep fleet token", "cp -rT plant", "LoadCredential=online.key"):
        assert words in said
    assert authority(host)


def test_an_image_is_installed_into_and_cleaned_again_without_touching_the_host(host: Host) -> None:
    server = host.daemon(UNIT)
    with host.image() as image:
        host.install("0.1.2", "--fleet", "--root", image)
        assert (
            "ExecStart=/opt/lenskeep-fleet/0.1.2-"
            in host.path(f"{image}/usr/local/lib/systemd/system/{UNIT}").read_text()
        )
        assert host.run("systemctl", f"--root={image}", "is-enabled", UNIT) == "enabled"
        host.run("/checkout/scripts/uninstall", "--fleet", "--root", image, "--purge")
        left = host.run("sh", "-c", f"cd {image} && ls opt etc usr/local/bin var/lib")
        assert "lenskeep" not in left
    assert host.daemon(UNIT) == server


def test_unit_file_is_without_fault_and_closed(host: Host) -> None:
    assert host.run("systemd-analyze", "verify", UNIT) == ""
    host.run("systemd-analyze", "security", "--threshold=15", "--no-pager", UNIT)


def test_the_group_may_use_the_fleet_and_strangers_may_not(host: Host) -> None:
    host.run("useradd", "--no-create-home", "--groups", "lenskeep-fleet", "nadja")
    host.run("runuser", "-u", "nadja", "--", "lenskeep", "fleet", "overview")
    host.run("runuser", "-u", "nobody", "--", "lenskeep", "fleet", "overview", fails=True)
    host.run("runuser", "-u", "nobody", "--", "cat", CONFIG, fails=True)
    host.run("runuser", "-u", "nobody", "--", "ls", STATE, fails=True)


# --- at work ----------------------------------------------------------------------------------------------------------


def test_a_device_enrols_over_the_network_with_what_the_installer_said(host: Host, device: Device) -> None:
    token = asked(host, "token", "cam-7")["token"]
    device.client.enrol(EnrolRequest(url="https://127.0.0.1:8443", token=token))
    assert device.client.identity().authority_fingerprint == authority(host)
    is_heard(host, device)


def test_the_online_key_is_a_credential_that_only_the_service_sees_and_signs_in_time(
    host: Host, tmp_path: Path
) -> None:
    made = Repository(tmp_path / "plant", now_s=time.time() - 2.5 * 86400)
    shutil.copytree(made.folder, host.path(f"{STATE}/repository"), dirs_exist_ok=True)
    host.run("chown", "-R", "lenskeep-fleet:", f"{STATE}/repository")
    host.path("/etc/lenskeep-fleet/online.key").write_bytes(made.keys["online"].pem())
    host.run("chmod", "600", "/etc/lenskeep-fleet/online.key")
    drop_in = host.path(f"/etc/systemd/system/{UNIT}.d/keys.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(DROP_IN)
    host.path(CONFIG).write_text(QUICK)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", UNIT)
    timestamp = host.path(f"{STATE}/repository/metadata/timestamp.json")
    until(lambda: json.loads(timestamp.read_text())["signed"]["version"] > 1, "the fleet renews the timestamp")
    host.run("runuser", "-u", "lenskeep-fleet", "--", "cat", "/etc/lenskeep-fleet/online.key", fails=True)


def test_server_killed_with_9_is_started_again_and_its_devices_come_back(host: Host, device: Device) -> None:
    server, known = host.daemon(UNIT), authority(host)
    host.run("kill", "-KILL", server)
    host.another_daemon(than=server, unit=UNIT)
    is_heard(host, device)
    assert authority(host) == known


def test_a_wrong_configuration_is_named_and_not_tried_again(host: Host) -> None:
    host.path(CONFIG).write_text(QUICK.replace("heartbeat_s = 1", "heartbeat_s = -1"))
    host.run("systemctl", "restart", UNIT, fails=True)
    assert host.show("ActiveState", UNIT) == "failed"
    assert host.show("ExecMainStatus", UNIT) == "78"
    assert "sync.heartbeat_s" in host.run("journalctl", "-u", UNIT, "-n", "20")
    said = host.install("0.1.2", "--fleet", fails=True)
    assert "sync.heartbeat_s" in said
    assert "was not touched" in said
    host.path(CONFIG).write_text(QUICK)
    host.run("systemctl", "start", UNIT)


# --- upgraded and removed ---------------------------------------------------------------------------------------------


def test_upgrade_keeps_authority_devices_and_configuration(host: Host, device: Device) -> None:
    server, known = host.daemon(UNIT), authority(host)
    said = host.install("0.1.2", "--fleet", "--replicas")
    assert host.daemon(UNIT) not in (0, server)
    assert "/0.1.2-" in host.show("ExecStart", UNIT)
    assert authority(host) == known
    assert host.path(CONFIG).read_text() == QUICK
    assert host.path(f"{CONFIG}.new").is_file()
    assert "is kept" in said
    is_heard(host, device)


def test_the_same_release_again_keeps_what_replicas_need_and_leaves_the_server_alone(host: Host) -> None:
    server = host.daemon(UNIT)
    assert "runs this release already" in host.install("0.1.2", "--fleet")
    assert host.daemon(UNIT) == server


def test_a_release_that_does_not_run_here_is_not_switched_to(host: Host) -> None:
    server = host.daemon(UNIT)
    assert "what was in use is untouched" in host.install("0.1.3", "--fleet", fails=True)
    assert host.daemon(UNIT) == server


def test_a_release_that_changed_the_database_and_does_not_come_up_gives_way_and_the_database_is_put_back(
    host: Host, device: Device
) -> None:
    known = authority(host)
    said = host.install("0.1.4", "--fleet", fails=True)
    assert "going back to 0.1.2" in said
    assert "putting the database back" in said
    assert "/0.1.2-" in host.show("ExecStart", UNIT)
    assert authority(host) == known
    is_heard(host, device)
    assert not host.path(f"{STATE}/before-upgrade").exists()


def test_uninstaller_leaves_nothing_but_state_and_with_purge_nothing(host: Host) -> None:
    host.run("/opt/lenskeep-fleet/uninstall")
    left = {path for path in host.container.changed("/etc", "/opt", "/usr", "/var/lib") if "lenskeep" in path}
    kept = {path for path in left if path.startswith(("/etc/lenskeep-fleet/", f"{STATE}/"))}
    assert kept >= {CONFIG, f"{STATE}/fleet.sqlite", f"{STATE}/authority/authority.key"}
    assert left - kept == {f"/etc/systemd/system/{UNIT}.d/keys.conf"}, "the administrator's own file stays"
    host.run("/checkout/scripts/uninstall", "--fleet", "--purge")
    assert not {path for path in host.container.changed("/etc", "/opt", "/usr", "/var/lib") if "lenskeep" in path}
    host.run("getent", "passwd", "lenskeep-fleet", fails=True)
    host.run("userdel", "nadja")
