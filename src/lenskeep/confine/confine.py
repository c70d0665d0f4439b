"""Takes from this process what it does not need, layer over layer, and says what the kernel took.

Rules. It comes before any other thread and before the first byte of a model. What a kernel lacks is left out and named
as a gap; the process goes on, because a line that stands still is the worse harm. Four layers: no program that is
started gains rights; Landlock judges files, TCP ports, signals and tracing; the call filter refuses the rest, among it
programs, processes and sockets; a root process gives up what makes it more than an account.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from msgspec import Struct

from lenskeep.confine import callfilter, calls, kernel, landlock
from lenskeep.confine.callfilter import Never, Only, Rule
from lenskeep.messages.runner import Confinement

# the account's own files stay reachable for root, and its threads may be raised again; see `priority`
_CAPABILITIES_KEPT = frozenset({kernel.CAP_DAC_OVERRIDE, kernel.CAP_DAC_READ_SEARCH, kernel.CAP_SYS_NICE})
_LIBRARIES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf")
_HARDWARE = ("/sys/devices", "/sys/bus/pci", "/sys/fs/cgroup", "/proc/cpuinfo", "/proc/meminfo")
_OWN = ("/proc/self", "/dev/urandom", "/dev/null")
_ACCELERATORS = ("/dev", "/sys", "/proc")  # their drivers look everywhere, and write code that they then run

_LOCAL, _INTERNET = 1, frozenset({2, 10})  # address families
_STREAM, _DATAGRAM, _KIND = 1, 2, 0xF
_PLAIN, _TCP, _UDP = 0, 6, 17  # others, such as multipath TCP, Landlock does not know
_FAST_OPEN = 0x20000000  # dials while it sends, unseen by Landlock
_THREAD = 0x10000
_TYPE_FOR_OTHERS = frozenset({0x5412, 0x541C})  # put words into the keyboard of the terminal behind this process
_SIGNAL_BY_FILE = frozenset({0x8901, 0x8902})
_FCNTL_SIGNAL_BY_FILE = frozenset({8, 10, 15})
_EXEC_GAIN = 1


class Network(Struct, frozen=True):
    """Whom a process may dial."""

    ports: frozenset[int] = frozenset()
    names: bool = False  # looks up names, by datagrams
    neighbours: bool = False  # names ending in .local: a local service is asked for those
    datagrams: bool = False  # pictures come as datagrams


class Needs(Struct, frozen=True):
    """What a process needs from outside, beyond Python and its libraries."""

    paths: Mapping[Path, int]
    files: str  # these rights in words
    network: Network = Network()
    serves: bool = False  # a socket that listens already
    renices: bool = False  # raises its own threads again
    keeps_folder: bool = False  # makes, moves and removes files in a folder of its own

    def refused(self) -> list[str]:
        """Name the calls that it does not need, of those that others do."""
        refused = [] if self.network.ports else ["socket", "connect"]
        refused += [] if self.network.datagrams else ["bind"]
        return refused + ([] if self.serves else ["accept", "accept4"])


class _Found(Struct):
    """What came of the steps so far."""

    landlock: int = 0
    calls: int = 0
    limits: list[str] = []
    gaps: list[str] = []


def confine(needs: Needs) -> Confinement:
    """Give up everything but the needs, for good. Cost: 2 ms, once."""
    found = _Found()
    accelerated = bool(_accelerators())
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        found.gaps.append("threads that began earlier keep their rights")
    if not kernel.control(kernel.PR_SET_NO_NEW_PRIVS, 1):
        found.gaps.append("programs may gain rights: this kernel cannot forbid it")
    _restrict_files(needs, accelerated, found)
    try:
        kernel.drop_capabilities(_CAPABILITIES_KEPT)
    except OSError as error:
        found.gaps.append(f"it keeps the rights of root: {error.strerror}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found.limits.append("no core file")
    if not accelerated and kernel.control(kernel.PR_SET_MDWE, _EXEC_GAIN):
        found.limits.append("no code made while it runs")
    _restrict_calls(needs, found)
    return Confinement(
        no_new_privs=kernel.status("NoNewPrivs") == "1", landlock_abi=found.landlock,
        filesystem=_files(needs, accelerated) if found.landlock else "open", network=_network(needs.network, found),
        seccomp=found.calls, limits=found.limits, gaps=found.gaps,
    )  # fmt: skip


def _files(needs: Needs, accelerated: bool) -> str:
    return "read-only but for devices" if accelerated else needs.files


def _restrict_files(needs: Needs, accelerated: bool, found: _Found) -> None:
    try:
        abi = landlock.version()
    except OSError as error:
        found.gaps.append(f"files are open: {landlock.why_not(error)}")
        return
    paths = dict.fromkeys(_readable(), landlock.READ)
    paths[Path("/dev/null")] |= landlock.WRITE
    if accelerated:
        paths |= dict.fromkeys(map(Path, _ACCELERATORS), landlock.READ)
        paths[Path("/dev")] |= landlock.WRITE | landlock.DEVICE_CONTROL
    for path, rights in needs.paths.items():
        paths[path] = paths.get(path, 0) | rights
    try:
        landlock.restrict(abi, paths, needs.network.ports)
    except OSError as error:
        found.gaps.append(f"files are open: Landlock does not work here ({error.strerror})")
        return
    found.landlock = abi
    if needs.network.ports and abi < landlock.PORTS_SINCE:
        found.gaps.append(f"any TCP port may be dialled: Landlock {abi} does not know ports")


def _readable() -> list[Path]:
    """Return where Python, its packages and their libraries are read from, and what they look at."""
    # the first entry is the folder that the process was started in, unless Python was told to leave it out
    packages = [Path(entry) for entry in (sys.path if sys.flags.safe_path else sys.path[1:]) if entry]
    own = Path(__file__).parents[1]
    linked = [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    fixed = [Path(entry) for entry in (*_LIBRARIES, *_HARDWARE, *_OWN, sys.prefix, sys.base_prefix)]
    return [place for place in (*fixed, *packages, *linked, own) if place.resolve() != Path("/")]


def _accelerators() -> list[Path]:
    """Return the libraries of providers other than the processor, without importing the runtime."""
    runtime = find_spec("onnxruntime")
    if runtime is None or runtime.origin is None:
        return []
    libraries = (Path(runtime.origin).parent / "capi").glob("libonnxruntime_providers_*.so")
    return [library for library in libraries if not library.stem.endswith("_shared")]


def _restrict_calls(needs: Needs, found: _Found) -> None:
    machine = calls.machine()
    if not machine:
        found.gaps.append(f"system calls are open: no list of them for {os.uname().machine}")
        return
    try:
        callfilter.enforce(machine, _program(machine, needs))
    except OSError as error:
        found.gaps.append(f"system calls are open: this kernel filters none ({error.strerror})")
        return
    found.calls = len(calls.always_refused(machine, keeps_folder=needs.keeps_folder)) + len(needs.refused())


def _program(machine: str, needs: Needs) -> bytes:
    return callfilter.program(machine, needs.refused(), _rules(needs), keeps_folder=needs.keeps_folder)


def _rules(needs: Needs) -> list[Rule]:
    """Say which uses of the calls that are needed are not."""
    own = frozenset({os.getpid()})
    mine = own | {0}
    rules: list[Rule] = [
        Only("clone", 0, frozenset({_THREAD}), mask=_THREAD),
        Only("kill", 0, own),
        Only("tgkill", 0, own),
        Only("prlimit64", 0, mine),
        Only("sched_setaffinity", 0, mine),
        Never(
            "prctl",
            0,
            frozenset({kernel.PR_SET_PDEATHSIG, kernel.PR_SET_DUMPABLE, kernel.PR_SET_PTRACER, kernel.PR_SET_MM}),
        ),
        Never("ioctl", 1, _TYPE_FOR_OTHERS | _SIGNAL_BY_FILE),
        Never("fcntl", 1, _FCNTL_SIGNAL_BY_FILE),
        Only("sendto", 3, frozenset({0}), mask=_FAST_OPEN),
        Only("sendmsg", 2, frozenset({0}), mask=_FAST_OPEN),
        Only("sendmmsg", 3, frozenset({0}), mask=_FAST_OPEN),
    ]
    if not needs.renices:
        rules.append(Only("setpriority", 1, frozenset({0})))
    if needs.network.ports:
        rules += _socket_rules(needs.network)
    return rules


def _socket_rules(network: Network) -> list[Rule]:
    datagrams = network.names or network.datagrams
    families = _INTERNET | ({_LOCAL} if network.neighbours else set())
    return [
        Only("socket", 0, families),
        Only("socket", 1, frozenset({_STREAM, _DATAGRAM} if datagrams else {_STREAM}), mask=_KIND),
        Only("socket", 2, frozenset({_PLAIN, _TCP, _UDP} if datagrams else {_PLAIN, _TCP})),
    ]


def _network(network: Network, found: _Found) -> str:
    """Say in words whom the process may dial."""
    if not found.calls:
        if found.landlock < landlock.PORTS_SINCE:
            return "open"
        return "local sockets and datagrams" + (f", {_tcp(network, found)}" if network.ports else "")
    if not network.ports:
        return "none"
    parts = [_tcp(network, found)]
    if network.names or network.datagrams:
        parts.append("datagrams")
    if network.neighbours:
        parts.append("local sockets")
    return ", ".join(parts)


def _tcp(network: Network, found: _Found) -> str:
    if found.landlock < landlock.PORTS_SINCE:
        return "TCP to any port"
    ports = sorted(network.ports)
    return f"TCP to port{'s' if len(ports) > 1 else ''} {', '.join(map(str, ports))}"
