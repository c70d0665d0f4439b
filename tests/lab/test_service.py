"""Lenskeep as a service of a real systemd: installed, hardened, killed, hung, misconfigured, upgraded, removed.

One host, in this order: each test finds the host as the one before left it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.lab.container import until
from tests.lab.host import Host, Ledger
from tests.lab.wheels import ROOT

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

CONFIG = """
[device]
name = "cam-07"
[probation]
seconds = 1
frames_min = 5
[[slot]]
name = "main"
[[camera]]
name = "cam-1"
source = "synthetic:ticks"
fps = 50.0
"""
QUICK = "[Service]\nWatchdogSec=3s\n"  # the tests need not wait fifteen


def assert_nothing_lost_or_doubled(host: Host, before: Ledger) -> None:
    until(host.judges, "results come again")
    newest = host.newest()
    after = host.fresh_ledger()
    while after.sequence < newest:
        after = host.fresh_ledger()
    assert after.run == before.run
    assert after.frames - before.frames == after.sequence - before.sequence > 50


# --- installed --------------------------------------------------------------------------------------------------------


def test_installer_brings_a_bare_host_to_a_serving_daemon(host: Host) -> None:
    said = host.install("0.1.1")
    assert host.show("ActiveState") == "active"
    assert host.path("/etc/lenskeep/device.toml").read_text() == (ROOT / "config/device.toml").read_text()
    assert "a first configuration" in said
    until(lambda: host.show("StatusText").startswith("main: "), "the status line tells of the slot")


def test_an_image_is_installed_into_and_cleaned_again_without_touching_the_host(host: Host) -> None:
    daemon = host.daemon()
    with host.image() as image:
        host.install("0.1.2", "--root", image)
        unit = host.path(f"{image}/usr/local/lib/systemd/system/lenskeep.service")
        assert "ExecStart=/opt/lenskeep/0.1.2-" in unit.read_text()
        assert host.run("systemctl", f"--root={image}", "is-enabled", "lenskeep.service") == "enabled"
        host.run("/checkout/scripts/uninstall", "--root", image, "--purge")
        assert "lenskeep" not in host.run("sh", "-c", f"cd {image} && ls opt etc usr/local/bin var/lib")
    assert host.daemon() == daemon
    assert "/0.1.1-" in host.show("ExecStart")


def test_unit_files_are_without_fault_and_closed(host: Host) -> None:
    assert (
        host.run("systemd-analyze", "verify", "lenskeep.service", "lenskeep-leftovers.service", "lenskeep.slice") == ""
    )
    for unit in ("lenskeep.service", "lenskeep-leftovers.service"):
        host.run("systemd-analyze", "security", "--threshold=20", "--no-pager", unit)


def test_the_group_may_use_the_service_and_strangers_may_not(host: Host) -> None:
    host.run("useradd", "--no-create-home", "--groups", "lenskeep", "technician")
    assert "cam-1" in host.run("runuser", "-u", "technician", "--", "lenskeep", "status")
    host.run("runuser", "-u", "nobody", "--", "lenskeep", "status", fails=True)
    assert host.run(
        "runuser", "-u", "nobody", "--", "sh", "-c", "cat /etc/lenskeep/device.toml /var/lib/lenskeep/*", fails=True
    )


def test_a_model_is_proven_swapped_in_and_judges_under_the_hardening(host: Host, tmp_path: Path) -> None:
    host.configure(CONFIG)
    drop_in = host.path("/etc/systemd/system/lenskeep.service.d/quick.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(QUICK)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "lenskeep")
    host.settle("1.0.0", tmp_path)
    assert host.client.results(limit=1).results[-1].bundle == "cap-inspect@1.0.0"
    status = host.path(f"/proc/{host.runner()}/status").read_text()
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    said = {check.name: check for check in host.client.health()}
    for name in ("sandbox main", "sandbox trial"):  # the unit lets its processes confine themselves further
        assert said[name].passed, said[name]


def test_nothing_reports_to_the_maker_of_a_library(host: Host) -> None:
    assert host.run("find", "/var/lib/lenskeep", "-name", "*deviceid*", "-o", "-path", "*Microsoft*") == ""


# --- accidents --------------------------------------------------------------------------------------------------------


def test_daemon_killed_with_9_is_started_again_and_adopts_its_runner_without_a_hole(host: Host) -> None:
    daemon, runner, before = host.daemon(), host.runner(), host.fresh_ledger()
    host.run("kill", "-KILL", daemon)
    host.another_daemon(than=daemon)
    assert host.runner() == runner
    assert_nothing_lost_or_doubled(host, before)
    assert host.client.slot("main").runner == "adopted"


def test_daemon_that_hangs_is_ended_by_the_watchdog_and_says_where_it_hung(host: Host) -> None:
    daemon, runner, before = host.daemon(), host.runner(), host.fresh_ledger()
    host.run("kill", "-STOP", daemon)
    host.another_daemon(than=daemon)
    assert host.runner() == runner
    assert_nothing_lost_or_doubled(host, before)
    assert host.says("Watchdog timeout")
    assert host.says("Fatal Python error: Aborted")


def test_runner_killed_with_9_is_started_again_by_the_daemon_and_the_journal_explains_it(host: Host) -> None:
    daemon, runner = host.daemon(), host.runner()
    host.run("kill", "-KILL", runner)
    until(lambda: host.runner() not in (0, runner), "another runner serves", timeout_s=5.0)
    assert host.daemon() == daemon
    [entry] = host.journal("LENSKEEP_CODE=LK-3001")
    assert entry["PRIORITY"] == "3"
    assert "started again" in entry["MESSAGE"]
    explained = host.run("journalctl", "--catalog", "-u", "lenskeep", "LENSKEEP_CODE=LK-3001")
    assert "The process that serves the slot does not start (LK-3001)" in explained
    assert "What to do:" in explained
    until(lambda: host.client.slot("main").active == "cap-inspect@1.0.0", "it runs the same version")


# --- orders -----------------------------------------------------------------------------------------------------------


def test_stop_ends_every_process_and_start_brings_the_version_back(host: Host) -> None:
    host.run("systemctl", "stop", "lenskeep")
    assert host.processes() == []
    assert not host.path("/run/lenskeep").exists()
    assert host.show("Result") == "success"
    host.run("systemctl", "start", "lenskeep")
    until(lambda: host.judges() and host.client.slot("main").active == "cap-inspect@1.0.0", "the version is back")


def test_stop_while_the_daemon_is_dead_ends_the_runner_that_it_left(host: Host) -> None:
    runner = host.runner()
    slow = host.path("/run/systemd/system/lenskeep.service.d/slow.conf")
    slow.parent.mkdir(parents=True)
    slow.write_text("[Service]\nRestartSec=60s\n")
    host.run("systemctl", "daemon-reload")
    host.run("kill", "-KILL", host.daemon())
    until(lambda: host.show("SubState") == "auto-restart", "systemd waits before the restart")
    assert host.processes() == [runner]
    host.run("systemctl", "stop", "lenskeep")
    until(lambda: host.processes() == [], "the runner is ended")
    slow.unlink()
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "lenskeep")


def test_a_wrong_configuration_is_named_and_not_tried_again_and_cameras_go_on_until_somebody_says_stop(
    host: Host,
) -> None:
    until(host.runner, "the slot is served")
    runner, restarts = host.runner(), int(host.show("NRestarts"))
    host.configure(CONFIG.replace("frames_min = 5", "frames_min = -5"))
    host.run("kill", "-KILL", host.daemon())
    until(lambda: host.show("ActiveState") == "failed", "the service gives up")
    assert (host.show("ExecMainStatus"), host.show("NRestarts")) == ("78", str(restarts + 1))
    assert host.processes() == [runner]
    entry = host.journal("LENSKEEP_CODE=LK-1010")[-1]
    assert "probation.frames_min" in entry["MESSAGE"]
    host.run("systemctl", "stop", "lenskeep")
    until(lambda: host.processes() == [], "the runner is ended")
    host.configure(CONFIG)
    host.run("systemctl", "start", "lenskeep")
    until(lambda: host.judges() and host.client.slot("main").active == "cap-inspect@1.0.0", "the version is back")


# --- upgraded and removed ---------------------------------------------------------------------------------------------


def test_upgrade_replaces_the_daemon_keeps_state_and_configuration_and_loses_no_frame(host: Host) -> None:
    daemon, runner, before = host.daemon(), host.runner(), host.fresh_ledger()
    said = host.install("0.1.2")
    assert host.daemon() not in (0, daemon)
    assert host.runner() == runner
    assert host.client.status().version == "0.1.2"
    assert_nothing_lost_or_doubled(host, before)
    assert host.path("/etc/lenskeep/device.toml").read_text() == CONFIG
    assert host.path("/etc/lenskeep/device.toml.new").is_file()
    assert "systemctl restart lenskeep" in said
    assert host.client.slot("main").active == "cap-inspect@1.0.0"


def test_installing_the_same_release_again_leaves_the_daemon_alone(host: Host) -> None:
    daemon = host.daemon()
    assert "runs this release already" in host.install("0.1.2")
    assert host.daemon() == daemon


def test_a_release_that_does_not_run_here_is_not_switched_to(host: Host) -> None:
    daemon = host.daemon()
    said = host.install("0.1.3", fails=True)
    assert "what was in use is untouched" in said
    assert host.daemon() == daemon
    assert "/0.1.2-" in host.show("ExecStart")


def test_a_daemon_that_does_not_come_up_after_an_upgrade_gives_way_to_the_one_before(host: Host) -> None:
    runner = host.runner()
    said = host.install("0.1.4", fails=True)
    assert "going back to 0.1.2" in said
    until(host.judges, "the daemon before serves again")
    assert host.client.status().version == "0.1.2"
    assert host.runner() == runner


def test_a_fleet_comes_and_goes_beside_the_device_and_neither_touches_the_other(host: Host) -> None:
    daemon, runner = host.daemon(), host.runner()
    host.install("0.1.2", "--fleet")
    assert host.show("ActiveState", "lenskeep-fleet") == "active"
    assert host.run("readlink", "/usr/local/bin/lenskeep").startswith("/opt/lenskeep/")
    assert host.run("readlink", "/usr/local/bin/lenskeep-fleet").startswith("/opt/lenskeep-fleet/")
    said = host.run("lenskeep", "--json", "fleet", "token", host.client.identity().device)
    token = json.loads(said)["data"]["token"]
    assert "belongs to the fleet" in host.run("lenskeep", "enrol", "https://127.0.0.1:8443", "--token", token)
    until(lambda: (fleet := host.client.status().fleet) and fleet.level, "the two speak with each other")
    host.run("/opt/lenskeep-fleet/uninstall", "--purge")
    assert (host.daemon(), host.runner()) == (daemon, runner)
    assert not {path for path in host.container.changed("/etc", "/opt", "/usr", "/var/lib") if "lenskeep-fleet" in path}
    assert "cam-1" in host.run("lenskeep", "status")


def test_uninstaller_leaves_nothing_but_state_and_with_purge_nothing(host: Host) -> None:
    host.install("0.1.2", "--fleet")
    host.run("/opt/lenskeep/uninstall")
    assert host.processes() == []
    host.run("lenskeep", "fleet", "overview")  # the plain name is the fleet's now
    host.run("/opt/lenskeep-fleet/uninstall", "--purge")
    left = {path for path in host.container.changed("/etc", "/opt", "/usr", "/var/lib") if "lenskeep" in path}
    kept = {path for path in left if path.startswith(("/etc/lenskeep/", "/var/lib/lenskeep/"))}
    assert kept >= {"/etc/lenskeep/device.toml", "/var/lib/lenskeep/registry.sqlite"}
    assert left - kept == {"/etc/systemd/system/lenskeep.service.d/quick.conf"}, "the administrator's own file stays"
    assert host.run("systemctl", "list-units", "--state=active,failed", "--plain", "--no-legend", "lenskeep*") == ""
    host.run("/checkout/scripts/uninstall", "--purge")
    assert not {path for path in host.container.changed("/etc", "/opt", "/usr", "/var/lib") if "lenskeep" in path}
    host.run("getent", "passwd", "lenskeep", fails=True)
