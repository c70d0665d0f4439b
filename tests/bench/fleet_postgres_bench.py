"""What a call costs on PostgreSQL, and what a second replica brings: by the CPU that servers and database spend.

`python -m tests.bench.fleet_postgres_bench [SECONDS]`. Records are durable before the answer, and merging them is in the
figure. With every process on two cores the steady figure is CPU a call: two replicas scale as far as it stays the same.
In the end every window is counted: what was acknowledged is there once.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lenskeep.bundle.keys import generate_key
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.opening import open_engine
from lenskeep.fleet.store.telemetry import TelemetryStore
from lenskeep.sketch import Sketch
from lenskeep.trust import ca, certificates
from tests.bench import rig
from tests.bench.fleet_sync_bench import Load, cpu_s
from tests.bench.fleetload import VITALS_EVERY
from tests.fleetrig import FleetServer
from tests.postgresql import Postgres
from tests.replicas import Replica

CONNECTIONS, RATE_OPEN, ROUNDS = 128, 1667.0, 2


async def let_in(engine: Engine, fleet: FleetServer, folder: Path, count: int) -> list[str]:
    """Let devices in past the doors."""
    authority = fleet.authority()
    (folder / "authority.crt").write_text(authority.pem)
    names, rows = [f"bench-{n:05d}" for n in range(count)], []
    for name in names:
        key = generate_key()
        pem = ca.certify_device(authority, name, key.public, time.time())
        (folder / f"{name}.pem").write_bytes(key.pem() + pem.encode())
        rows.append((key.public.id, name, key.public.pem, pem, int(certificates.read(pem).ends_s)))
    async with engine.write() as tx:
        await tx.many("INSERT INTO device (name, state, enrolled_ms) VALUES (?, 'enrolled', 0)", [(n,) for n in names])
        await tx.many("INSERT INTO device_key VALUES (?, ?, ?, 'current', ?, ?, 0)", rows)
    return names


def database_cpu_s(postgres: Postgres) -> float:
    """What PostgreSQL's processes have used, those of ended connections included."""
    leader = int((postgres.folder / "data" / "postmaster.pid").read_text().split()[0])
    words = Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()
    waited = (int(words[13]) + int(words[14])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
    return waited + cpu_s(leader) + sum(cpu_s(int(pid)) for pid in children)


async def merged(engine: Engine) -> None:
    """Wait until no record waits to be merged."""
    deadline = time.monotonic() + 60
    while await TelemetryStore(engine).waiting(1):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def frames(engine: Engine) -> int:
    """Return how many frames the fleet has counted."""
    return sum(each.frames for each in await TelemetryStore(engine).behaviour())


async def acknowledged(engine: Engine) -> int:
    """Return how many windows the fleet has acknowledged, by how far every outbox was taken."""
    async with engine.read() as tx:
        taken = [row["taken"] for row in await tx.all("SELECT taken FROM intake")]
    return sum(upto - upto // VITALS_EVERY for upto in taken)


async def run(
    servers: list[FleetServer],
    loads: list[Load],
    postgres: Postgres | None,
    settle: Callable[[], Awaitable[None]],
    **words: object,
) -> dict[str, float]:
    """Let loads run, and return what servers and database spent on each call."""
    pids = [server.process.pid for server in servers if server.process is not None]
    before = sum(map(cpu_s, pids)), database_cpu_s(postgres) if postgres else 0.0
    began_s = time.monotonic()
    for load in loads:
        load.tell(**words)
    told: list[dict[str, Any]] = [json.loads(await asyncio.to_thread(load.hear)) for load in loads]
    took_s = time.monotonic() - began_s - 1.0
    await settle()
    after = sum(map(cpu_s, pids)), database_cpu_s(postgres) if postgres else 0.0
    count, late = sum(each["count"] for each in told), Sketch()
    for each in told:
        late.merge(Sketch.from_bytes(bytes.fromhex(each["late"])))
    return {
        "us": (after[0] - before[0]) / count * 1e6, "database_us": (after[1] - before[1]) / count * 1e6,
        "rate": count / took_s, "count": count, "faults": sum(each["faults"] for each in told),
        "p50_ms": late.quantile_us(0.5) / 1000, "p99_ms": late.quantile_us(0.99) / 1000,
    }  # fmt: skip


async def measure(folder: Path, postgres: Postgres, seconds: float) -> None:
    """Measure one replica, then two, saturated and at an open rate."""
    url = postgres.make()
    first = Replica(folder / "a", url)
    with first.config.open("a") as config:
        config.write("[sync]\nconnections_per_second = 2000\n")
    first.start()
    second = Replica(folder / "b", url, first)
    with second.config.open("a") as config:
        config.write("[sync]\nconnections_per_second = 2000\n")
    rows: list[list[object]] = []
    async with open_engine(url, "", folder / "x", {}) as engine:
        names = await let_in(engine, first, folder, 2 * CONNECTIONS)
        settle = lambda: merged(engine)  # noqa: E731
        try:
            for servers in ([first], [first, second]):
                if second in servers:
                    await asyncio.to_thread(second.start)
                share = len(names) // len(servers)
                loads = [
                    Load(server.port, folder, names[number * share : number * share + CONNECTIONS // len(servers)])
                    for number, server in enumerate(servers)
                ]
                for load in loads:
                    await asyncio.to_thread(load.wait)
                closed = {"closed": True, "empty": False, "seconds": seconds}
                await run(servers, loads, postgres, settle, **closed | {"seconds": 1.0})
                turns = [await run(servers, loads, postgres, settle, **closed) for _ in range(ROUNDS)]
                rate = RATE_OPEN / len(servers)
                open_ = await run(
                    servers, loads, postgres, settle, closed=False, empty=False, seconds=seconds, rate=rate
                )
                for load in loads:
                    load.close()
                best = min(turns, key=lambda turn: turn["us"])
                for name, turn in (("saturated", best), (f"open, {RATE_OPEN:.0f} calls/s", open_)):
                    rows.append([
                        len(servers), name, f"{turn['us']:.0f}", f"{turn['database_us']:.0f}", f"{turn['rate']:,.0f}",
                        f"{turn['p50_ms']:.1f}", f"{turn['p99_ms']:.1f}", int(turn["faults"]),
                    ])  # fmt: skip
            counted, taken = await frames(engine) // 1800, await acknowledged(engine)
        finally:
            first.close()
            second.close()
    rig.print_table(
        f"A call with a window over kept mTLS on PostgreSQL, {CONNECTIONS} connections; durable, and merged",
        ["replicas", "", "servers' CPU us a call", "PostgreSQL's", "calls/s", "p50 ms", "p99 ms", "faults"], rows,
    )  # fmt: skip
    print(f"windows acknowledged {taken:,}; counted by the fleet {counted:,}")
    assert counted == taken


def main() -> None:
    """Measure and print."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    postgres = Postgres(durable=True)
    postgres.start()
    try:
        with tempfile.TemporaryDirectory(prefix="lk-bench-") as name:
            asyncio.run(measure(Path(name), postgres, seconds))
    finally:
        postgres.close()


if __name__ == "__main__":
    main()
