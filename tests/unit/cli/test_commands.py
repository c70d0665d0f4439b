"""Every verb at the door the technician uses: words, envelopes, exit codes."""

import json
import tarfile
import time
from pathlib import Path

import click
import pytest
from msgspec.structs import replace

from lenskeep.cli.main import COMMANDS, PLACES, root
from lenskeep.cli.words import moment
from lenskeep.errors import (
    LatencyBudgetError,
    NotConfirmedError,
    StorageFullError,
    UnknownSignerError,
    WrongOutputError,
)
from lenskeep.messages.control import Check
from tests.pocketdevice import AT, bundle, camera, problem_of, report, slot, status

STATUS = """\
cam-07                                              RUNNING   up since 20 Nov 2001
  Model    cap-inspect 1.0.0  sha256:9f3c9f3c…  signed by plant-release  \
[previous 0.9.0 ready for rollback]  since 20 Nov 2001
  Camera   cam-1 30.0 fps  1280×720  frame age 20 ms
  Timing   p50 18 ms  p99 27 ms  budget 40 ms  misses 0  on CPU
  Results  OK 12 404  NG 61 (0.49 %)  uncertain 7  in the last minute
  Device   disk 20.5 GB free · memory 1.0 GB free · load 0.4
"""
MODELS = """\
VERSION            USED            TRIAL ON THIS DEVICE             SIGNED BY      SIZE  IMPORTED
cap-inspect@1.0.0  active, pinned  passed, golden 12/12, p99 29 ms  plant-release  11 B  20 Nov 2001
weld@2             -               refused LK-8001                  plant-release  11 B  20 Nov 2001
2 versions, 22 B.
"""
LONG_AGO = "2001-11-20T12:00:00Z"


@pytest.fixture(autouse=True)
def _utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def test_status_reads_as_agreed(desk, lenskeep):
    desk.device.status_now = status(since=LONG_AGO, slots=[slot(since=LONG_AGO)])
    said = lenskeep("status")
    assert (said.code, said.out, said.err) == (0, STATUS, "")


def test_status_names_what_is_wrong_and_what_to_do(desk, lenskeep):
    lost = Check(
        name="camera cam-1", passed=False, code="LK-2002", text="no picture for 5 s", hint="Check the cable.",
        severity="stop",
    )  # fmt: skip
    broken = slot(cameras=[camera(state="lost", code="LK-2002")], faults=[lost])
    desk.device.status_now = status(verdict="STOPPED", slots=[broken])
    said = lenskeep("status")
    assert "STOPPED" in said.out.splitlines()[0]
    assert "Faults   LK-2002 camera cam-1: no picture for 5 s" in said.out
    assert "lenskeep explain LK-2002" in said.out


def test_status_of_an_empty_device_says_what_to_do_next(desk, lenskeep):
    empty = slot(active="", wanted="", previous="", state="empty", latency=[], outcomes={})
    desk.device.status_now = status(verdict="EMPTY", slots=[empty])
    said = lenskeep("status")
    assert "Model    none yet" in said.out
    assert said.out.splitlines()[-1].startswith("Next: plug in a stick")


def test_status_of_a_version_on_trial_says_how_to_keep_it(desk, lenskeep):
    trial = slot(state="probation", trial_ends_s=23.0, confirm_needed=True)
    desk.device.status_now = status(slots=[trial])
    said = lenskeep("status")
    assert "on trial, goes back by itself in 23 s" in said.out
    assert "Next: lenskeep confirm keeps it" in said.out


@pytest.mark.parametrize(
    ("verdict", "code", "word"),
    [("RUNNING", 0, "OK"), ("DEGRADED", 1, "WARNING"), ("STOPPED", 2, "CRITICAL"), ("EMPTY", 1, "WARNING")],
)
def test_status_check_speaks_the_monitoring_convention(desk, lenskeep, verdict, code, word):
    desk.device.status_now = status(verdict=verdict)
    said = lenskeep("status", "--check")
    assert (said.code, said.out.count("\n")) == (code, 1)
    assert said.out.startswith(f"{word} - {verdict} cap-inspect@1.0.0")
    assert "| main_p99=27.4ms;40 main_misses=0c" in said.out


def test_status_check_of_a_dead_service_is_critical(lenskeep):
    said = lenskeep("status", "--check")
    assert (said.code, said.out.startswith("CRITICAL - LK-1001")) == (2, True)


def test_dead_service_is_named_with_the_way_to_start_it(lenskeep):
    said = lenskeep("status")
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith("LK-1001 Nothing answers at ")
    assert "Fix: Start it: systemctl start lenskeep" in said.err
    assert said.err.rstrip().endswith("More: lenskeep explain LK-1001")


def test_doctor_of_a_dead_service_still_examines(lenskeep):
    said = lenskeep("doctor")
    assert said.code == 1
    assert "LK-1001" in said.out and "systemctl start lenskeep" in said.out


def test_doctor_passes(desk, lenskeep):
    said = lenskeep("doctor")
    assert (said.code, said.out.splitlines()[-1]) == (0, "All 2 checks passed.")


def test_models_lists_versions_aligned(desk, lenskeep):
    desk.device.stored = {
        "cap-inspect@1.0.0": bundle(roles=["active:main", "pinned"], trial=report(), imported=LONG_AGO),
        "weld@2": bundle("weld", "2", state="rejected", trial=report(passed=False, code="LK-8001"), imported=LONG_AGO),
    }
    assert lenskeep("models").out == MODELS


def test_check_shows_the_report_and_what_comes_next(desk, lenskeep):
    desk.device.stored["cap-inspect@1.0.0"] = bundle(trial=report())
    said = lenskeep("check", "cap-inspect@1.0.0")
    assert said.code == 0
    assert "✓ golden    12 of 12" in said.out
    assert "p50 21 ms, p99 29 ms, loads in 310 ms, 180 MB, on CPU" in said.out
    assert said.out.splitlines()[-1] == "Next: lenskeep activate cap-inspect@1.0.0 --trial 30s"


def test_check_that_fails_is_a_gate_with_the_likely_cause(desk, lenskeep):
    bad = WrongOutputError("11 of 12 golden pictures differ; they match when colour order is BGR.")
    desk.device.operation_error = problem_of(bad, 422)
    desk.device.stored["cap-inspect@1.0.0"] = bundle(
        state="rejected", trial=report(passed=False, code=bad.code, message=str(bad))
    )
    said = lenskeep("check", "cap-inspect@1.0.0")
    assert said.code == 8
    assert "LK-8001 Refused, nothing changed. 11 of 12 golden pictures differ" in said.out
    assert "More: lenskeep explain LK-8001" in said.out


def test_bench_asks_for_more_frames(desk, lenskeep):
    desk.device.stored["cap-inspect@1.0.0"] = bundle(trial=report())
    assert lenskeep("bench", "cap-inspect@1.0.0", "--frames", "5000").code == 0
    assert desk.device.calls[0][1].frames == 5000


def test_import_of_a_file_says_what_was_found_and_what_comes_next(desk, lenskeep, tmp_path):
    file = tmp_path / "cap-inspect-1.1.0.lkb"
    file.write_bytes(b"bundle" * 1000)
    said = lenskeep("import", str(file))
    assert said.code == 0
    assert "✓ Imported cap-inspect 1.1.0, signed by plant-release." in said.out
    assert "passed, golden 12/12, p99 29 ms" in said.out
    assert said.out.splitlines()[-1] == "Next: lenskeep activate cap-inspect@1.1.0 --trial 30s"
    assert desk.device.files == [b"bundle" * 1000]


def test_import_of_a_strangers_file_is_refused_with_exit_code_4(desk, lenskeep, tmp_path):
    file = tmp_path / "stranger.lkb"
    file.write_bytes(b"stranger")
    said = lenskeep("import", str(file))
    assert (said.code, said.out) == (4, "")
    assert said.err.startswith("LK-4001 Signed by a key that nobody here trusts. Nothing was stored.")


def test_import_of_a_folder_takes_what_is_new_and_names_the_rest(desk, lenskeep, tmp_path):
    folder = tmp_path / "stick" / "deep"
    folder.mkdir(parents=True)
    (folder / "good.lkb").write_bytes(b"bundle")
    (folder / "bad.lkb").write_bytes(b"stranger")
    (folder / "notes.txt").write_text("no bundle")
    (folder / "link.lkb").symlink_to(folder / "good.lkb")
    said = lenskeep("import", str(tmp_path / "stick"))
    assert said.code == 0
    assert "bad.lkb  LK-4001" in said.err
    assert said.out.count("Imported") == 1
    assert desk.device.files == [b"bundle"]


def test_usb_judges_and_changes_nothing(desk, lenskeep, tmp_path):
    (tmp_path / "good.lkb").write_bytes(b"bundle")
    (tmp_path / "bad.lkb").write_bytes(b"stranger")
    said = lenskeep("usb", str(tmp_path))
    assert said.code == 0
    assert "✗ bad.lkb  LK-4001" in said.out
    assert "✓ good.lkb  cap-inspect 1.1.0  6 B  signed by plant-release  new here" in said.out
    assert desk.device.files == []


def test_mounted_sticks_are_found_and_system_disks_are_not():
    from lenskeep.cli.commands.bring import mounted_sticks

    mounts = (
        "/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 /media/anna/PLANT\\040STICK vfat rw 0 0\n"
        "/dev/sdc1 /run/media/anna/B exfat ro 0 0\n/dev/sdd1 /mnt/usb vfat rw 0 0\ntmpfs /run/lock tmpfs rw 0 0\n"
        "/dev/sde1 /mnt2/x ext4 rw 0 0\n"
    )
    assert [str(place) for place in mounted_sticks(mounts)] == [
        "/media/anna/PLANT STICK",
        "/mnt/usb",
        "/run/media/anna/B",
    ]


def test_doctor_of_a_dead_service_names_a_wrong_configuration(lenskeep, tmp_path, monkeypatch):
    place = tmp_path / "device.toml"
    monkeypatch.setattr("lenskeep.cli.commands.config.PLACE", place)
    place.write_text("[control]\nprot = 1\n")
    said = lenskeep("doctor")
    assert said.code == 1 and "LK-1010" in said.out and "prot" in said.out
    place.write_text("")
    assert "is valid" in lenskeep("doctor").out


def test_import_with_activate_swaps_it_in(desk, lenskeep, tmp_path):
    (tmp_path / "one.lkb").write_bytes(b"bundle")
    said = lenskeep("import", str(tmp_path / "one.lkb"), "--activate", "--trial", "2m", "--reason", "new lot")
    assert said.code == 0
    request = desk.device.calls[-1][1]
    assert (request.bundle, request.trial_s, request.reason) == ("cap-inspect@1.1.0", 120.0, "new lot")


def test_activate_says_what_runs_and_how_to_keep_it(desk, lenskeep):
    desk.device.slot_now = slot(state="probation", trial_ends_s=29.6, confirm_needed=True)
    said = lenskeep("activate", "cap-inspect@1.0.0", "--trial", "30s")
    assert said.code == 0
    assert said.out.splitlines() == [
        "✓ cap-inspect@1.0.0 runs in slot main; 12 ms between two results.",
        "  cap-inspect@0.9.0 is kept for rollback.",
        "  It goes back by itself in 30 s unless it is confirmed.",
        "Next: lenskeep confirm keeps it, lenskeep rollback takes it back now",
    ]


def test_activate_with_wait_ends_with_9_when_it_took_itself_back(desk, lenskeep):
    desk.device.slot_now = slot(
        state="rolled_back",
        reason="LK-8107 cap-inspect@1.1.0 was not confirmed within 1 s.",
        active="cap-inspect@1.0.0",
    )
    said = lenskeep("activate", "cap-inspect@1.0.0", "--wait")
    assert said.code == 9
    assert "LK-8107 cap-inspect@1.1.0 was not confirmed within 1 s. cap-inspect@1.0.0 is active again." in said.err


@pytest.mark.parametrize(
    ("fault", "code"), [(LatencyBudgetError("slow"), 8), (NotConfirmedError("late"), 9), (StorageFullError("full"), 8)]
)
def test_work_that_fails_ends_with_the_exit_code_of_its_fault(desk, lenskeep, fault, code):
    desk.device.operation_error = problem_of(fault, 422)
    said = lenskeep("activate", "cap-inspect@1.0.0")
    assert (said.code, said.out) == (code, "")
    assert said.err.splitlines()[-3].startswith(f"{fault.code} ")


def test_rollback_needs_no_arguments(desk, lenskeep):
    said = lenskeep("rollback")
    assert said.code == 0
    assert said.out.splitlines()[0] == "✓ Back to cap-inspect@0.9.0 in slot main; 12 ms between two results."


def test_rollback_with_nothing_to_go_back_to_is_a_conflict(desk, lenskeep):
    desk.device.slot_now = slot(previous="")
    said = lenskeep("rollback")
    assert said.code == 6
    assert "LK-8102" in said.err and "Nothing was changed" in said.err


def test_hold_and_resume(desk, lenskeep):
    assert "Swaps are held in slot main" in lenskeep("hold").out
    assert desk.device.slot_now.held
    assert "Swaps go on in slot main" in lenskeep("resume").out
    assert not desk.device.slot_now.held


def test_remove_asks_nobody_where_nobody_can_answer(desk, lenskeep):
    said = lenskeep("remove", "cap-inspect@0.9.0")
    assert said.code == 2 and "--yes" in said.err
    assert lenskeep("remove", "cap-inspect@0.9.0", "--yes").code == 0
    assert "cap-inspect@0.9.0" not in desk.device.stored


def test_export_leaves_no_half_file(desk, lenskeep, tmp_path):
    assert lenskeep("export", "cap-inspect@1.0.0", str(tmp_path / "a.lkb")).code == 0
    assert (tmp_path / "a.lkb").read_bytes() == b"hello world"
    desk.device.stored["cap-inspect@1.0.0"] = bundle(size_bytes=99)
    assert lenskeep("export", "cap-inspect@1.0.0", str(tmp_path / "b.lkb")).code == 1
    assert sorted(path.name for path in tmp_path.iterdir() if "lkb" in path.name) == ["a.lkb"]


def test_logs_show_what_happened_and_leave_out_progress(desk, lenskeep):
    operation = desk.client.rollback(None)
    desk.soon(desk.device.publish, "operation", operation)
    desk.soon(desk.device.publish, "operation", replace(operation, state="succeeded", progress=None))
    desk.soon(desk.device.publish, "fault", {"slot": "main", "code": "LK-3002", "message": "a frame failed"})
    desk.soon(desk.device.publish, "result", {"slot": "main"})
    said = lenskeep("logs")
    assert [line.partition("unix:")[0].rstrip() for line in said.out.splitlines()] == [
        f"{moment(AT, seconds=True):15} · rollback cap-inspect@0.9.0 succeeded by",
        f"{moment(AT, seconds=True):15} ✗ slot main: LK-3002 a frame failed",
    ]
    assert "LK-3002" in lenskeep("logs", "--faults").out
    assert "rollback" not in lenskeep("logs", "--faults").out


def test_explain_needs_no_device(lenskeep):
    said = lenskeep("explain", "8001", LENSKEEP_DEVICE="/nowhere")
    assert said.code == 0
    assert said.out.startswith("LK-8001  The model does not reproduce its golden outputs here\n")
    assert lenskeep("explain", "lk-8001").out == said.out
    assert lenskeep("explain", "LK-0000").code == 5


def test_keys_are_made_once_and_closed_to_others(lenskeep, tmp_path):
    assert lenskeep("keys", "gen", "plant", "--out", str(tmp_path)).code == 0
    assert (tmp_path / "plant.pem").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "plant.pem").read_bytes()
    assert lenskeep("keys", "gen", "plant", "--out", str(tmp_path)).code == 6
    assert (tmp_path / "plant.pem").read_bytes() == before
    assert lenskeep("keys", "gen", "../x", "--out", str(tmp_path)).code == 2


def test_key_with_a_passphrase_opens_with_it_alone(lenskeep, tmp_path):
    from lenskeep.bundle.keys import load_private_key
    from lenskeep.errors import RequestError

    (tmp_path / "secret").write_text("open sesame\n")
    lenskeep("keys", "gen", "plant", "--out", str(tmp_path), "--passphrase-file", str(tmp_path / "secret"))
    pem = (tmp_path / "plant.pem").read_bytes()
    load_private_key(pem, "open sesame")
    with pytest.raises(RequestError):
        load_private_key(pem)


def test_trusted_key_is_listed_and_revoked(desk, lenskeep, tmp_path):
    lenskeep("keys", "gen", "plant", "--out", str(tmp_path))
    said = lenskeep("keys", "trust", str(tmp_path / "plant.pub"), "--for", "cap-*", "--until", "2030-01-31")
    assert said.code == 0
    assert desk.device.trusted["plant"].patterns == ["cap-*"]
    assert "cap-*" in lenskeep("keys", "list").out
    assert lenskeep("keys", "revoke", "plant", "--reason", "lost").code == 0
    assert "revoked" in lenskeep("keys", "list").out
    assert lenskeep("keys", "trust", str(tmp_path / "plant.pub"), "--for", "x", "--until", "tomorrow").code == 2


def test_token_is_printed_alone_so_that_a_script_can_take_it(desk, lenskeep):
    said = lenskeep("token", "add", "panel", "--role", "operator")
    assert said.out == "secret-panel\n"
    assert "not shown again" in said.err
    assert "secret" not in lenskeep("token", "list").out
    assert lenskeep("token", "remove", "panel").code == 0
    assert lenskeep("token", "remove", "panel").code == 5


def test_token_opens_the_port(desk, lenskeep):
    secret = desk.device.token("operator")
    assert lenskeep("rollback", "--device", desk.url).code == 7
    assert lenskeep("rollback", "--device", desk.url, LENSKEEP_TOKEN=secret).code == 0
    assert lenskeep("activate", "cap-inspect@1.0.0", "--device", desk.url, LENSKEEP_TOKEN=secret).code == 7


def test_ui_prints_an_address_with_a_token(desk, lenskeep):
    said = lenskeep("ui")
    assert said.out.startswith(f"{desk.url}/#token=secret-ui-")
    said = lenskeep("ui", "--device", desk.url, LENSKEEP_TOKEN=desk.device.token("operator"))
    assert (said.code, said.out) == (0, f"{desk.url}/\n")
    assert "changes nothing" in said.err


def test_camera_verbs(desk, lenskeep, tmp_path):
    assert "cam-1   running  30.0  1280×720" in lenskeep("camera", "list").out
    assert lenskeep("camera", "test", "cam-1", "--seconds", "1s").code == 0
    assert lenskeep("camera", "snapshot", "cam-1", "--out", str(tmp_path / "a.jpg")).code == 0
    assert (tmp_path / "a.jpg").read_bytes().startswith(b"\xff\xd8")
    assert lenskeep("camera", "snapshot", "cam-9").code == 5


def test_watch_prints_a_line_per_camera(desk, lenskeep):
    said = lenskeep("watch", "--times", "2", "--every", "0.01s")
    assert said.out.count("cam-1   30.0 fps  p50   18 ms  p99   27 ms  cap-inspect@1.0.0") == 2
    assert lenskeep("watch", "--camera", "cam-9", "--times", "1").code == 5


def test_history_audit_and_operations(desk, lenskeep):
    desk.client.rollback(None)
    assert len(lenskeep("history", "--limit", "3").out.splitlines()) == 4
    assert "activate" in lenskeep("audit").out
    assert "rollback" in lenskeep("op", "list").out
    assert lenskeep("op", "show", "op1", "--follow").code == 0
    assert lenskeep("op", "show", "nothing").code == 5


def test_bugreport_holds_answers_and_no_secret(desk, lenskeep, tmp_path):
    desk.device.token("admin", "very")
    said = lenskeep("bugreport", "--to", str(tmp_path), "--json")
    written = Path(json.loads(said.out)["data"]["file"])
    with tarfile.open(written) as archive:
        names = {Path(name).name for name in archive.getnames()}
        texts = b"".join(archive.extractfile(member).read() for member in archive)
    assert {"status.json", "health.json", "audit.json", "events.json", "config.json"} <= names
    assert not [name for name in names if "failed" in name]
    assert b"secret-" not in texts


def test_bugreport_is_written_without_a_device_too(lenskeep, tmp_path):
    said = lenskeep("bugreport", "--to", str(tmp_path))
    assert said.code == 0 and "did not answer" in said.err


def test_work_that_takes_long_goes_on_and_its_id_is_told(desk, lenskeep, monkeypatch):
    monkeypatch.setattr("lenskeep.cli.run.WAIT_S", 0.01)
    monkeypatch.setattr("lenskeep.cli.run.Run.follow.__defaults__", (0.01,))
    desk.device.operation_delay_s = 60
    said = lenskeep("rollback")
    assert said.code == 10
    assert "Follow it with: lenskeep op show op1" in said.err


def test_ctrl_c_leaves_the_work_running_and_says_how_to_follow_it(desk, lenskeep, monkeypatch):
    from lenskeep.cli.client import Client

    def interrupted(*_words, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "wait", interrupted)
    said = lenskeep("rollback")
    assert said.code == 130
    assert "goes on by itself on the device. Follow it with: lenskeep op show op1" in said.err


# --- what holds for all verbs ---------------------------------------------------------------------------------------

VERBS = [
    ("status",), ("doctor",), ("models",), ("models", "--all"), ("usb", "."), ("check", "cap-inspect@1.1.0"),
    ("bench", "cap-inspect@1.1.0"), ("activate", "cap-inspect@1.1.0"), ("confirm",), ("rollback",), ("hold",),
    ("resume",), ("camera", "list"), ("camera", "test", "cam-1", "--seconds", "1"), ("watch", "--times", "1"),
    ("logs",), ("explain",), ("explain", "LK-8001"), ("ui",), ("pin", "cap-inspect@1.0.0"),
    ("unpin", "cap-inspect@1.0.0"), ("remove", "cap-inspect@0.9.0", "--yes"), ("history",), ("audit",),
    ("op", "list"), ("keys", "list"), ("token", "list"), ("token", "add", "x", "--role", "viewer"), ("version",),
    ("help", "exit-codes"), ("help", "status"), ("completion", "bash"),
]  # fmt: skip


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_json_is_one_envelope_and_nothing_else(desk, lenskeep, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    desk.device.stored["cap-inspect@1.1.0"] = bundle(version="1.1.0", trial=report())
    said = lenskeep(*words, "--json")
    assert said.code == 0, said.err
    assert said.out.count("\n") == 1
    envelope = json.loads(said.out)
    assert set(envelope) == {"schema", "data", "warnings"}
    name, _, number = envelope["schema"].partition("/")
    assert name.startswith("lenskeep.") and number.isdecimal()
    assert said.err == ""


def test_json_before_the_verb_counts_too(desk, lenskeep):
    assert json.loads(lenskeep("--json", "status").out)["schema"] == "lenskeep.status/1"


def test_json_failure_is_an_envelope_with_the_exit_code(desk, lenskeep):
    said = lenskeep("camera", "snapshot", "cam-9", "--json")
    envelope = json.loads(said.out)
    assert (said.code, said.err, envelope["schema"]) == (5, "", "lenskeep.problem/1")
    assert (envelope["data"]["code"], envelope["data"]["exit"]) == ("LK-1101", 5)


def leaves(command, words=()):
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from leaves(command.get_command(click.Context(command), name), (*words, name))
    else:
        yield words, command


def test_every_command_takes_json_and_opens_its_help_with_three_examples():
    seen = []
    for words, command in leaves(root):
        seen.append(words)
        assert {"--json", "--device", "--no-color"} <= {option for each in command.params for option in each.opts}, (
            words
        )
        text = command.help or ""
        examples = [line for line in text.partition("\b")[2].splitlines() if line.strip()]
        assert len(examples) >= (1 if words[0] == "bundle" else 3), f"{words} has {len(examples)} examples"
    assert len(seen) > 40


def test_table_of_commands_says_what_the_commands_say():
    for name, (module, what) in PLACES.items():
        if module != "bundle":
            assert root.get_command(click.Context(root), name).help.splitlines()[0] == what
    assert sum(len(section) for section in COMMANDS.values()) == len(PLACES)


def test_help_opens_with_three_examples(lenskeep):
    said = lenskeep("--help")
    assert said.code == 0
    assert [line.split()[1] for line in said.out.splitlines()[2:5]] == ["status", "import", "activate"]


def test_mistyped_command_and_option_are_answered_with_the_near_one(lenskeep):
    said = lenskeep("stats")
    assert said.code == 2 and "Did you mean status?" in said.err
    assert lenskeep("status", "--jsn").code == 2


@pytest.mark.parametrize("wrong", ["A B", "x@", "x@1@2", "../x", "x" * 64, "-"])
def test_what_is_no_version_is_refused_before_anything_is_asked(desk, lenskeep, wrong):
    said = lenskeep("activate", "--", wrong)
    assert said.code == 2 and "NAME@VERSION" in said.err
    assert desk.device.calls == []


@pytest.mark.parametrize("wrong", ["soon", "10 parsecs", "-5s", ""])
def test_what_is_no_time_span_is_refused(desk, lenskeep, wrong):
    assert lenskeep("activate", "cap-inspect@1.0.0", f"--trial={wrong}").code == 2


def test_hostile_names_reach_the_terminal_as_escapes(desk, lenskeep, tmp_path):
    evil = "a\x1b[2J\x1b]0;owned\x07\u202egnp.exe\u2028\x9b31m\ud7ff"
    desk.device.status_now = status(device=evil, slots=[slot(signer=evil, reason=evil, state="rolled_back")])
    desk.device.stored = {"cap-inspect@1.0.0": bundle(signer=evil, title=evil, trial=report())}
    desk.device.operation_error = problem_of(UnknownSignerError(f"Signed by {evil}."), 422)
    for words in (("status",), ("models",), ("check", "cap-inspect@1.0.0"), ("activate", "cap-inspect@1.0.0")):
        said = lenskeep(*words)
        for text in (said.out, said.err):
            assert not any(letter in text for letter in "\x1b\x07\u202e\u2028\x9b"), words
        assert not any(letter in lenskeep(*words, "--json").out for letter in "\x1b\x07\u202e\u2028\x9b"), words
    assert "a\\x1b[2J" in lenskeep("models").out


def test_no_colour_without_a_terminal(desk, lenskeep):
    assert "\x1b" not in lenskeep("status").out
