"""A process that reads models, taken over by its model: what it tries, and that the kernel refuses.

A custom ONNX file cannot call the system by itself, so the attacker's code runs in `tests.confined`, behind the very
functions that the trial and the runner call before they read a model.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from lenskeep.confine import callfilter, calls, landlock
from lenskeep.confine.confine import Network
from lenskeep.messages.runner import CameraPlan, Confinement, TrialPlan
from lenskeep.runner.confine.cameras import network_of
from tests import models, runnerchild
from tests.mjpeg_server import MjpegServer
from tests.process.test_cameras import RtspServer
from tests.runnerchild import RunnerChild

KINDS = ("trial", "runner")


def landlock_here() -> int:
    try:
        return landlock.version()
    except OSError:
        return 0


needs_landlock = pytest.mark.skipif(not landlock_here(), reason="this kernel has no Landlock")
needs_ports = pytest.mark.skipif(landlock_here() < landlock.PORTS_SINCE, reason="this Landlock knows no ports")


@dataclass
class Told:
    """What a process said that was taken over."""

    confinement: Confinement
    said: list[str]
    code: int


class Prey:
    """A folder with what a trial and a runner are given, and what they are not."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.store.mkdir()
        self.bundle = models.store(self.store, models.classifier())
        self.secret = folder / "secret"
        self.secret.write_text("the device's key")
        self.folder = folder
        self.prepared = folder / "prepared.onnx"
        self.cameras = [CameraPlan(name="cam", source="synthetic:ticks")]

    def plan(self, kind: str) -> msgspec.Struct:
        if kind == "trial":
            return TrialPlan(
                bundle=self.bundle,
                golden={},
                prepared_path=str(self.prepared),
                threads=1,
                memory_max_mb=200,
                cpu_max_s=3,
            )
        return runnerchild.plan(self.folder, self.bundle, store=[str(self.store)], cameras=self.cameras)

    def attack(self, kind: str, code: str, *, before: tuple[str, ...] = (), **words: Any) -> Told:
        """Run code in a process of this kind; each line that it prints is what came of an attempt."""
        path = self.folder / "plan.json"
        path.write_bytes(msgspec.json.encode(self.plan(kind)))
        done = subprocess.run(
            [*before, sys.executable, "-m", "tests.confined", kind, str(path), PRELUDE + code],
            capture_output=True, text=True, timeout=60, check=False, **words,
        )  # fmt: skip
        print(done.stdout, done.stderr)
        lines = done.stdout.splitlines()
        return Told(msgspec.json.decode(lines[0], type=Confinement), lines[1:], done.returncode)


# the attacker's own tools; `attempt` prints the name of what the kernel answers, or "done"
PRELUDE = """
import ctypes, errno, os, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(deed, *words):
    try:
        answer = deed(*words)
    except OSError as error:
        print(errno.errorcode.get(error.errno, error.errno), flush=True)
    else:
        print("done", flush=True)
        return answer
def call(number, *words):
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(w) if isinstance(w, int) else w for w in words)) < 0:
        raise OSError(ctypes.get_errno(), "")
"""


@pytest.fixture
def prey(tmp_path: Path) -> Prey:
    return Prey(tmp_path)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def assert_nobody_came(server: socket.socket) -> None:
    with pytest.raises(TimeoutError):
        server.accept()


# --- network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_dials_a_server_is_refused_its_socket(prey: Prey, kind: str, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    told = prey.attack(kind, f"attempt(socket.create_connection, ('127.0.0.1', {port}))")
    assert told.said == ["EPERM"] and told.confinement.network == "none"
    assert_nobody_came(listener)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_ALG", "AF_VSOCK"])
def test_a_model_that_tries_another_family_of_sockets_is_refused(prey: Prey, kind: str, family: str) -> None:
    assert prey.attack(kind, f"attempt(socket.socket, socket.{family}, socket.SOCK_DGRAM)").said == ["EPERM"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_speaks_to_the_daemons_own_socket_is_refused(prey: Prey, kind: str) -> None:
    """Also by the pair of datagram sockets that could be pointed at any path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as control:
        control.bind(str(prey.folder / "lenskeep.sock"))
        told = prey.attack(
            kind,
            f"attempt(lambda: socket.socket(socket.AF_UNIX).connect({str(prey.folder / 'lenskeep.sock')!r}))\n"
            "attempt(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)",
        )
        assert told.said == ["EPERM", "EPERM"]
        control.setblocking(False)
        with pytest.raises(BlockingIOError):
            control.recv(10)


def test_a_model_in_a_trial_that_dials_by_a_socket_it_was_left_is_refused(prey: Prey, listener: socket.socket) -> None:
    with socket.socket() as left:
        code = (
            f"left = socket.socket(fileno={left.fileno()})\n"
            f"attempt(left.connect, {listener.getsockname()!r})\n"
            f"attempt(left.sendto, b'x', 0x20000000, {listener.getsockname()!r})\n"
            "attempt(left.listen)\nattempt(left.accept)"
        )
        assert prey.attack("trial", code, pass_fds=[left.fileno()]).said == ["EPERM"] * 4
    assert_nobody_came(listener)


@needs_ports
def test_a_model_behind_a_network_camera_reaches_the_cameras_port_and_no_other(
    prey: Prey, listener: socket.socket
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as camera:
        port = camera.getsockname()[1]
        prey.cameras = [CameraPlan(name="cam", source=f"rtsp://127.0.0.1:{port}/cam")]
        told = prey.attack(
            "runner",
            f"attempt(socket.create_connection, ('127.0.0.1', {port}))\n"
            f"attempt(socket.create_connection, {listener.getsockname()!r})\n"
            "attempt(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)\n"
            "attempt(socket.socket, socket.AF_UNIX)\n"
            "attempt(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262)\n"  # multipath TCP
            "attempt(lambda: socket.socket().bind(('127.0.0.1', 0)))\n"
            f"attempt(lambda: socket.socket().sendto(b'x', 0x20000000, {listener.getsockname()!r}))",  # TCP fast open
        )
        assert told.said == ["done", "EACCES", "EPERM", "EPERM", "EPERM", "EPERM", "EPERM"]
        assert told.confinement.network == f"TCP to port {port}"
    assert_nobody_came(listener)


# --- files ------------------------------------------------------------------------------------------------------------


@needs_landlock
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_reads_the_devices_secrets_is_refused(prey: Prey, kind: str) -> None:
    told = prey.attack(
        kind,
        f"attempt(open, {str(prey.secret)!r})\nattempt(open, '/etc/passwd')\nattempt(os.listdir, '/')\n"
        f"attempt(open, '/proc/{os.getpid()}/environ')\nattempt(open, '/proc/self/cwd/README.md')\n"
        f"attempt(open, {prey.bundle.model_path!r})",
    )
    assert told.said == ["EACCES", "EACCES", "EACCES", "EACCES", "EACCES", "done"]
    assert told.confinement.filesystem.startswith("read-only")


@needs_landlock
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_writes_is_refused_everywhere(prey: Prey, kind: str) -> None:
    other = prey.store / "other.onnx"
    other.write_bytes(b"another version")
    told = prey.attack(
        kind,
        f"attempt(open, {str(prey.folder / 'new')!r}, 'w')\nattempt(open, {str(other)!r}, 'r+b')\n"
        f"attempt(open, {str(prey.secret)!r}, 'a')\nattempt(open, '/tmp/lenskeep-hostile', 'w')\n"
        f"attempt(open, {sys.prefix!r} + '/hostile.pth', 'w')\nattempt(open, '/proc/self/oom_score_adj', 'w')",
    )
    assert told.said == ["EACCES"] * 6
    assert other.read_bytes() == b"another version"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_removes_renames_or_opens_files_to_others_is_refused(prey: Prey, kind: str) -> None:
    """By the call filter: on a kernel without Landlock as well."""
    model = prey.bundle.model_path
    told = prey.attack(
        kind,
        f"attempt(os.unlink, {model!r})\nattempt(os.rename, {model!r}, {model!r} + '2')\nattempt(os.chmod, {model!r}, 0o777)\n"
        f"attempt(os.truncate, {model!r}, 0)\nattempt(os.link, {model!r}, {model!r} + '2')\n"
        f"attempt(os.symlink, '/etc', {model!r} + '2')\nattempt(os.mkdir, {model!r} + '2')\n"
        f"attempt(os.chown, {model!r}, 1, 1)\nattempt(os.utime, {model!r})\nattempt(os.chroot, '/tmp')",
    )
    assert told.said == ["EPERM"] * 10
    assert Path(model).read_bytes() == models.classifier()


@needs_landlock
def test_a_trial_writes_its_prepared_model_and_a_disk_full_of_it_is_not_possible(prey: Prey) -> None:
    told = prey.attack(
        "trial",
        f"file = attempt(open, {str(prey.prepared)!r}, 'wb', 0)\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "attempt(lambda: [file.write(bytes(1 << 20)) for _ in range(3)])",
    )
    assert told.said == ["done", "EFBIG"]
    assert prey.prepared.stat().st_size == 1 << 20


@needs_landlock
def test_a_model_on_a_file_camera_reads_the_folder_of_the_file_and_no_other(prey: Prey) -> None:
    films, others = prey.folder / "films", prey.folder / "others"
    for folder in (films, others):
        folder.mkdir()
        (folder / "a.mp4").write_bytes(b"film")
    prey.cameras = [CameraPlan(name="cam", source=f"file:{films}/a.mp4")]
    told = prey.attack("runner", f"attempt(open, '{films}/a.mp4')\nattempt(open, '{others}/a.mp4')")
    assert told.said == ["done", "EACCES"]


# --- programs and processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_starts_a_program_is_refused(prey: Prey, kind: str) -> None:
    told = prey.attack(
        kind,
        "attempt(os.execv, '/bin/sh', ['sh', '-c', 'echo taken'])\nattempt(os.fork)\n"
        "attempt(os.posix_spawn, '/bin/sh', ['sh'], {})\n"
        "memory = os.memfd_create('x')\nos.sendfile(memory, os.open('/usr/bin/true', os.O_RDONLY), 0, 1 << 20)\n"
        f"attempt(call, {calls.always_refused(calls.machine())['execveat']}, memory, b'', 0, 0, 0x1000)",
    )
    assert told.said == ["EPERM", "EPERM", "EPERM", "EPERM"]
    assert told.confinement.no_new_privs


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_bomb_does_not_get_its_first_child(prey: Prey, kind: str) -> None:
    """By each of the calls that make processes; threads are what is left."""
    number = calls.by_argument(calls.machine())
    told = prey.attack(
        kind,
        f"attempt(os.fork)\nattempt(call, {number['clone']}, 17, 0, 0, 0, 0)\n"
        f"attempt(call, {number['clone3']}, bytes(88), 88)\n"
        "thread = threading.Thread(target=print, args=['a thread']); thread.start(); thread.join()",
    )
    assert told.said == ["EPERM", "EPERM", "ENOSYS", "a thread"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_kills_stops_or_slows_its_parent_is_refused(prey: Prey, kind: str) -> None:
    number = calls.always_refused(calls.machine()) | calls.by_argument(calls.machine())
    me = os.getpid()
    told = prey.attack(
        kind,
        f"attempt(os.kill, {me}, 0)\nattempt(os.kill, -1, 0)\nattempt(os.kill, 0, 0)\n"
        f"attempt(call, {number['tgkill']}, {me}, {me}, 0)\nattempt(call, {number['tkill']}, {me}, 0)\n"
        f"attempt(os.pidfd_open, {me})\n"
        "import resource, fcntl\n"
        f"attempt(resource.prlimit, {me}, resource.RLIMIT_CPU, (-1, -1))\n"
        f"attempt(os.sched_setaffinity, {me}, [0])\n"
        f"attempt(fcntl.fcntl, 1, fcntl.F_SETOWN, {me})\n"
        "attempt(os.kill, os.getpid(), 0)",
    )
    assert told.said == ["EPERM"] * 9 + ["done"]


def test_a_model_in_a_trial_that_lowers_the_priority_of_the_line_is_refused(prey: Prey) -> None:
    code = (
        f"attempt(os.setpriority, os.PRIO_PROCESS, {os.getpid()}, 19)\nattempt(os.setpriority, os.PRIO_PROCESS, 0, 19)"
    )
    assert prey.attack("trial", code).said == ["EPERM", "done"]
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_reads_or_traces_its_parent_is_refused(prey: Prey, kind: str) -> None:
    number = calls.always_refused(calls.machine())
    told = prey.attack(
        kind,
        f"attempt(call, {number['ptrace']}, 16, {os.getpid()}, 0, 0)\n"
        f"attempt(call, {number['process_vm_readv']}, {os.getpid()}, 0, 0, 0, 0, 0)\n"
        f"attempt(open, '/proc/{os.getpid()}/mem', 'rb')",
    )
    assert told.said[:2] == ["EPERM", "EPERM"] and told.said[2] in ("EACCES", "EPERM")


def test_a_model_that_wants_to_outlive_its_trial_is_refused(prey: Prey) -> None:
    told = prey.attack(
        "trial",
        f"attempt(call, {calls.by_argument(calls.machine())['prctl']}, 1, 0)\n"
        "signal = ctypes.c_int(); libc.prctl(2, ctypes.byref(signal)); print(signal.value)",
    )
    assert told.said == ["EPERM", "9"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_types_into_the_operators_terminal_is_refused(prey: Prey, kind: str) -> None:
    master, terminal = os.openpty()
    try:
        told = prey.attack(kind, f"import fcntl\nattempt(fcntl.ioctl, {terminal}, 0x5412, b'r')", pass_fds=[terminal])
    finally:
        os.close(master)
        os.close(terminal)
    assert told.said == ["EPERM"]


# --- memory, time, kernel ---------------------------------------------------------------------------------------------


def test_a_memory_bomb_in_a_trial_is_an_error_in_the_trial(prey: Prey) -> None:
    told = prey.attack(
        "trial", "try:\n    bytes(8 << 30)\nexcept MemoryError:\n    print('refused')\n"
        "import resource\ntry:\n    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nexcept ValueError:\n    print('fixed')"
    )  # fmt: skip
    assert told.said == ["refused", "fixed"]


def test_a_busy_loop_in_a_trial_is_ended_by_the_kernel(prey: Prey) -> None:
    assert prey.attack("trial", "while True: pass").code in (-signal.SIGXCPU, -signal.SIGKILL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_knocks_at_the_kernels_wide_doors_is_refused(prey: Prey, kind: str) -> None:
    number = calls.always_refused(calls.machine())
    doors = [
        "io_uring_setup",
        "bpf",
        "perf_event_open",
        "userfaultfd",
        "keyctl",
        "unshare",
        "mount",
        "setuid",
        "splice",
    ]
    code = "\n".join(f"attempt(call, {number[door]}, 0, 0, 0, 0, 0)" for door in doors)
    told = prey.attack(kind, code + f"\nattempt(call, {calls.NEWEST + 1}, 0)\nattempt(call, 0x40000000 + 39)")
    assert told.said == ["EPERM"] * len(doors) + ["ENOSYS", "ENOSYS"]
    assert told.confinement.seccomp > 100


@pytest.mark.parametrize("kind", KINDS)
def test_code_that_is_made_while_the_process_runs_is_refused(prey: Prey, kind: str) -> None:
    """As by the service's unit, where it is started without it."""
    told = prey.attack(kind, "import mmap\nattempt(mmap.mmap, -1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)")
    if "no code made while it runs" in told.confinement.limits:
        assert told.said == ["EACCES"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_of_root_keeps_none_of_its_powers_over_others(prey: Prey, kind: str) -> None:
    told = prey.attack(
        kind, "print(next(line.split()[1] for line in open('/proc/self/status') if line[:7] == 'CapEff:'))"
    )
    assert int(told.said[0], 16) & ~(1 << 1 | 1 << 2 | 1 << 23) == 0


# --- the layers -------------------------------------------------------------------------------------------------------


NO_LANDLOCK = """
import errno, os, sys
from lenskeep.confine import callfilter, calls, kernel
kernel.control(kernel.PR_SET_NO_NEW_PRIVS, 1)
number, machine = 444, calls.machine()
import struct
code = b"".join(struct.pack("=HBBI", *one) for one in
    [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | errno.ENOSYS), (0x06, 0, 0, 0x7fff0000)])
callfilter.enforce(machine, code)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_kernel_without_landlock_the_rest_holds_and_the_gap_is_named(
    prey: Prey, kind: str, listener: socket.socket
) -> None:
    """Such a kernel is played by a filter that refuses its first call."""
    told = prey.attack(
        kind,
        f"attempt(open, {str(prey.secret)!r})\nattempt(os.fork)\nattempt(os.unlink, {str(prey.secret)!r})\n"
        f"attempt(socket.create_connection, {listener.getsockname()!r})",
        before=(sys.executable, "-c", NO_LANDLOCK),
    )
    assert told.said == ["done", "EPERM", "EPERM", "EPERM"]
    assert (told.confinement.landlock_abi, told.confinement.filesystem, told.confinement.network) == (0, "open", "none")
    assert any("Landlock" in gap for gap in told.confinement.gaps)


def test_a_thread_that_began_too_early_is_named_as_a_gap(prey: Prey) -> None:
    code = (
        "import sys, threading; threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "from tests import confined; confined.main(*sys.argv[1:])"
    )
    path = prey.folder / "plan.json"
    path.write_bytes(msgspec.json.encode(prey.plan("runner")))
    done = subprocess.run(
        [sys.executable, "-c", code, "runner", str(path), "pass"], capture_output=True, text=True, check=True
    )
    assert "threads that began earlier keep their rights" in json.loads(done.stdout)["gaps"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_numbers_of_system_calls_agree_with_another_source(machine: str) -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("no libseccomp here")
    resolve = library.seccomp_syscall_resolve_name_arch
    resolve.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    for name, number in (calls.always_refused(machine) | calls.by_argument(machine)).items():
        other = resolve(callfilter._MACHINES[machine], name.encode())
        assert other in (number, -1), name  # -1: newer than the library


def test_a_filter_for_every_machine_fits_and_each_jump_lands() -> None:
    rules = [callfilter.Only("socket", 0, frozenset({2, 10})), callfilter.Never("ioctl", 1, frozenset({1, 2, 3}))]
    for machine in ("x86_64", "aarch64"):
        code = callfilter.program(machine, ["connect"], rules)
        count = len(code) // 8
        assert count < 4096
        for place in range(count):
            kind, yes, no = code[8 * place], code[8 * place + 2], code[8 * place + 3]
            assert kind & 7 != 5 or place + 1 + max(yes, no) < count


@pytest.mark.skipif(os.geteuid() != 0 or not landlock_here(), reason="emptying the kernel's caches needs root")
def test_a_process_finds_its_own_files_when_memory_was_short(tmp_path: Path) -> None:
    """The kernel then forgets its files under /proc, and a rule for one would not know the new one."""
    with RunnerChild(runnerchild.plan(tmp_path, runnerchild.stored(tmp_path, "1.0.0")), tmp_path) as child:
        child.more(5)
        try:
            Path("/proc/sys/vm/drop_caches").write_text("2")
        except OSError:
            pytest.skip("this container may not empty the caches")
        child.beat()
        assert child.beat().rss_mb > 0


# --- whom a slot may dial ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "network"),
    [
        ("rtsp://192.0.2.7/stream", Network(frozenset({554}))),
        ("rtsp://user:p@ss:w@192.0.2.7:8554/a@b", Network(frozenset({8554}))),
        ("https://[2001:db8::7]/video", Network(frozenset({443}))),
        ("http://cam-3.plant.example:8080/?mail=a@b.c", Network(frozenset({8080, 53}), names=True)),
        ("http://Cam.local/", Network(frozenset({80, 53}), names=True, neighbours=True)),
        ("http://cam:port/", Network()),
        ("v4l2:/dev/video0", Network()),
        ("file:/films/a.mp4", Network()),
        ("folder:/pictures", Network()),
        ("synthetic:caps", Network()),
    ],
)
def test_only_the_ports_of_a_slots_cameras_are_left(source: str, network: Network) -> None:
    assert network_of([CameraPlan(name="cam", source=source)]) == network


# --- what must still work ---------------------------------------------------------------------------------------------


def assert_confined(beat_confinement: Confinement | None) -> Confinement:
    assert beat_confinement is not None
    assert beat_confinement.no_new_privs and beat_confinement.seccomp > 100
    assert beat_confinement.gaps == [] or not landlock_here()
    return beat_confinement


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_confined_runner_judges_an_mjpeg_camera_by_number_and_by_name(tmp_path: Path, host: str) -> None:
    with MjpegServer() as server:
        camera = CameraPlan(name="cam", source=server.url.replace("127.0.0.1", host))
        slot = runnerchild.plan(tmp_path, runnerchild.stored(tmp_path, "1.0.0"), cameras=[camera])
        with RunnerChild(slot, tmp_path) as child:
            child.more(5)
            assert "TCP to port" in assert_confined(child.beat().confinement).network


def test_a_confined_runner_judges_an_rtsp_camera_and_finds_it_again(tmp_path: Path) -> None:
    with RtspServer() as server:
        camera = CameraPlan(name="cam", source=server.url, read_timeout_s=0.5, frame_age_max_s=0.5)
        slot = runnerchild.plan(tmp_path, runnerchild.stored(tmp_path, "1.0.0"), cameras=[camera])
        with RunnerChild(slot, tmp_path) as child:
            child.more(5)
            assert assert_confined(child.beat().confinement).network == f"TCP to port {server.port}"
            server.send(signal.SIGKILL)
            child.beat(lambda beat: beat.cameras[0].state == "lost")
            with RtspServer(server.port):
                child.more(5)


def test_a_confined_runner_judges_a_film_and_reads_the_next_one_of_that_name(tmp_path: Path) -> None:
    films, work = tmp_path / "films", tmp_path / "work"
    films.mkdir()
    work.mkdir()

    def film(name: str) -> Path:
        writer = cv2.VideoWriter(str(films / name), cv2.VideoWriter.fourcc(*"MJPG"), 50, (64, 48))
        for number in range(10):
            writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
        writer.release()
        return films / name

    camera = CameraPlan(name="cam", source=f"file:{film('a.avi')}", pace="fast")
    with RunnerChild(runnerchild.plan(work, runnerchild.stored(work, "1.0.0"), cameras=[camera]), work) as child:
        child.more(15)
        film("b.avi").replace(films / "a.avi")
        child.more(40)
        assert assert_confined(child.beat().confinement).network == "none"


def test_a_folder_that_is_made_anew_is_read_again(tmp_path: Path) -> None:
    pictures, work = tmp_path / "line" / "pictures", tmp_path / "work"
    pictures.mkdir(parents=True)
    work.mkdir()

    def put(name: str) -> None:
        assert cv2.imwrite(str(pictures / name), np.full((32, 32, 3), 90, np.uint8))

    put("a.png")
    camera = CameraPlan(name="cam", source=f"folder:{pictures}", loop=False, pace="fast")
    with RunnerChild(runnerchild.plan(work, runnerchild.stored(work, "1.0.0"), cameras=[camera]), work) as child:
        child.more(1)
        (pictures / "a.png").unlink()
        pictures.rmdir()
        child.beat(lambda beat: beat.cameras[0].state == "lost")
        pictures.mkdir()
        put("b.png")
        child.more(1)


def test_a_folder_beside_private_things_that_is_made_anew_asks_for_a_new_start(tmp_path: Path) -> None:
    """The folder around it holds what a model must not read, so it is not granted."""
    pictures = tmp_path / "pictures"
    camera = CameraPlan(name="cam", source=f"folder:{pictures}", loop=False, pace="fast")
    slot = runnerchild.plan(tmp_path, runnerchild.stored(tmp_path, "1.0.0"), cameras=[camera])
    child = RunnerChild(slot, tmp_path)
    with child:
        child.beat(lambda beat: beat.cameras[0].state == "lost")
        pictures.mkdir()
        assert child.end() == 75
    assert "starts anew" in child.log()


@needs_landlock
def test_the_device_says_what_its_processes_gave_up(device: Any) -> None:
    device.settle("1.0.0")
    told = {check.name: check for check in device.client.health()}
    for name in ("sandbox main", "sandbox trial"):
        assert told[name].passed and told[name].severity == "info", told[name]
        assert told[name].text.startswith("no network, files read-only")


def test_an_orderly_stop_of_the_device_leaves_no_socket_of_a_slot(device: Any) -> None:
    device.until(lambda: device.slot().runner == "running", "the slot runs")
    device.kill(signal.SIGTERM)
    assert not (device.folder / "run" / "main.sock").exists()


def test_a_thread_of_the_runner_may_be_raised_again_where_the_service_allows_it(prey: Prey) -> None:
    """What a swap lowered goes back to normal, in every thread of the process."""
    code = (
        "os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 1)\n"
        "thread = threading.Thread(target=lambda: time.sleep(1), daemon=True); thread.start()\n"
        "attempt(os.setpriority, os.PRIO_PROCESS, thread.native_id, 5)"
    )
    assert prey.attack("runner", code).said == ["done"]
