"""The command as a process: its start, its pipes, its terminal."""

import os
import pty
import signal
import subprocess
import sys
import time

COMMAND = [sys.executable, "-m", "lenskeep.cli.main"]


def test_start_loads_nothing_heavy_and_its_time_is_shown(desk):
    environment = os.environ | {"LENSKEEP_DEVICE": str(desk.socket)}
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([*COMMAND, "status"], env=environment, check=True, capture_output=True)
        times.append((time.perf_counter() - began) * 1000)
    print(f"lenskeep status takes {min(times):.0f} ms from start to end")
    script = "import sys, lenskeep.cli.main, lenskeep.cli.commands.status as s; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"aiohttp", "asyncio", "numpy", "cv2", "onnxruntime", "cryptography", "sqlite3"} & set(loaded)


def test_reader_that_has_seen_enough_is_no_failure(desk):
    line = f"{sys.executable} -m lenskeep.cli.main explain | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_terminal_gets_colour_and_no_color_takes_it_away(desk):
    for extra, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"} | extra
        leader, follower = pty.openpty()
        environment["LENSKEEP_DEVICE"] = str(desk.socket)
        with subprocess.Popen([*COMMAND, "status"], env=environment, stdout=follower, stderr=follower) as child:
            os.close(follower)
            text = b""
            try:
                while piece := os.read(leader, 4096):
                    text += piece
            except OSError:  # how a pseudo-terminal says that the other side has gone
                pass
            assert child.wait(10) == 0
        os.close(leader)
        assert (b"\x1b[32mRUNNING\x1b[0m" in text) == coloured, text
        assert b"RUNNING" in text


def test_terminal_that_lacks_a_letter_gets_the_line_all_the_same(desk):
    environment = os.environ | {"LENSKEEP_DEVICE": str(desk.socket), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*COMMAND, "status"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1280\\xd7720" in done.stdout


def test_ctrl_c_while_waiting_leaves_the_work_running(desk):
    desk.device.operation_delay_s = 60
    environment = os.environ | {"LENSKEEP_DEVICE": str(desk.socket)}
    with subprocess.Popen(
        [*COMMAND, "rollback"], env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a runner in the background ignores it
    ) as child:  # fmt: skip
        assert child.stderr is not None
        assert "..." in child.stderr.readline()  # it says what it waits for
        child.send_signal(signal.SIGINT)
        said = child.stderr.read()
    assert child.returncode == 130
    assert "goes on by itself on the device. Follow it with: lenskeep op show op1" in said
    assert desk.client.operation("op1").state == "running"


def test_shell_completion_offers_commands(desk):
    environment = os.environ | {
        "_LENSKEEP_COMPLETE": "bash_complete",
        "COMP_WORDS": "lenskeep ro",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True)
    assert "plain,rollback" in done.stdout
