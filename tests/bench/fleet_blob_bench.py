"""What it costs the fleet to hand out a bundle: processor seconds per GiB, over nginx's own with sendfile.

`python -m tests.bench.fleet_blob_bench [--rounds N] [--mebibytes N]`
The real fleet server with a real device's certificate, and nginx with the same keys over the same folder; curl reads
from another core. Servers take turns, so that neighbours on the machine trouble all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from lenskeep.trust.names import target_file
from tests.bench import rig
from tests.fleetrig import FleetServer, Member
from tests.ports import free_port

FETCHES = 3  # a round of one server
SHA256 = "cd" * 32
NAME = target_file("models/cap-inspect/1.0.0.lkb", SHA256)
NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{}}
http {{
    access_log off; sendfile on; tcp_nopush on;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{plain}; location /v1/repository/ {{ alias {repository}/; }} }}
    server {{
        listen 127.0.0.1:{tls} ssl; ssl_protocols TLSv1.3;
        ssl_certificate {keys}/server.crt; ssl_certificate_key {keys}/server.key;
        ssl_client_certificate {keys}/authority.crt; ssl_verify_client on;
        location /v1/repository/ {{ alias {repository}/; }}
    }}
}}
"""


def spent_s(pid: int) -> float:
    """Return the processor time of a process in seconds, by the scheduler's nanoseconds: clock ticks are too coarse."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def fetch(url: str, chain: Path, key: Path) -> float:
    """Read a file to nowhere; return how long that took."""
    began = time.monotonic()
    words = ["curl", "-sfk", "-o", "/dev/null", "--cert", str(chain), "--key", str(key), url]
    subprocess.run(["taskset", "-c", str(sorted(os.sched_getaffinity(0))[-1]), *words], check=True)
    return time.monotonic() - began


@contextmanager
def nginx_over(fleet: FleetServer, folder: Path) -> Iterator[tuple[int, int, int]]:
    """Run nginx over the fleet's own repository; yields its pid and ports."""
    plain, tls = free_port(), free_port()
    keys = fleet.folder / "state" / "authority"
    conf = folder / "nginx.conf"
    conf.write_text(NGINX.format(folder=folder, plain=plain, tls=tls, repository=fleet.repository, keys=keys))
    binary = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    assert binary, "nginx is needed: apt-get install nginx-light"
    with subprocess.Popen([binary, "-c", str(conf)], stderr=subprocess.DEVNULL) as child:
        time.sleep(0.5)
        assert child.poll() is None, (folder / "nginx.log").read_text()
        yield child.pid, plain, tls
        child.terminate()


async def joined(fleet: FleetServer, folder: Path) -> tuple[Path, Path]:
    """Enrol a device; return its certificate and key."""
    member = await Member(fleet, "cam-1", folder).join()
    stem = folder / f"cam-1-{member.key.public.id[:8]}"
    return stem.with_suffix(".crt"), stem.with_suffix(".key")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mebibytes", type=int, default=256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lk-") as name:
        folder = Path(name)
        fleet = FleetServer(folder)
        fleet.start()
        assert fleet.process is not None
        try:
            chain, key = asyncio.run(joined(fleet, folder))
            file = fleet.repository / NAME
            file.parent.mkdir(parents=True)
            with file.open("wb") as sink:
                for _ in range(arguments.mebibytes):
                    sink.write(os.urandom(1 << 20))
            with nginx_over(fleet, folder) as (pid, plain, tls):
                sides = {
                    ("plain", "nginx"): (pid, f"http://127.0.0.1:{plain}"),
                    ("plain", "fleet"): (fleet.process.pid, f"http://127.0.0.1:{fleet.plain_port}"),
                    ("mTLS", "nginx"): (pid, f"https://127.0.0.1:{tls}"),
                    ("mTLS", "fleet"): (fleet.process.pid, fleet.url),
                }
                rows = measured(sides, chain, key, arguments.rounds, arguments.mebibytes)
        finally:
            fleet.close()
    rig.print_table(
        f"Handing out a bundle of {arguments.mebibytes} MiB, median of {arguments.rounds} rounds",
        ["line", "server", "CPU s/GiB", "over nginx", "GiB/s", "RSS MiB"],
        rows,
    )


def measured(
    sides: dict[tuple[str, str], tuple[int, str]], chain: Path, key: Path, rounds: int, mebibytes: int
) -> list[list[object]]:
    """Take turns; return one row per side."""
    share = mebibytes / 1024
    cpu: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    took: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side, (pid, base) in sides.items():
            before = spent_s(pid)
            seconds = sum(fetch(f"{base}/v1/repository/{NAME}", chain, key) for _ in range(FETCHES)) / FETCHES
            if turn:  # the first one warms
                cpu[side].append((spent_s(pid) - before) / share / FETCHES)
                took[side].append(seconds / share)
    rows: list[list[object]] = []
    for side, (pid, _) in sides.items():
        own, nginx = statistics.median(cpu[side]), statistics.median(cpu[side[0], "nginx"])
        rss = psutil.Process(pid).memory_info().rss >> 20
        rows.append([*side, f"{own:.2f}", f"{own / nginx:.2f}", f"{1 / statistics.median(took[side]):.2f}", rss])
    return rows


if __name__ == "__main__":
    main()
