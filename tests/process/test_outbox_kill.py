"""kill -9 of what fills the outbox, at any moment, in front of a line that loses and doubles: each record once."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

LIVES = 12


def one(path: Path, sql: str) -> int:
    with closing(sqlite3.connect(path)) as database, database:
        return int(database.execute(sql).fetchone()[0] or 0)


def live(folder: Path, seed: int, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.outboxchild", folder, str(seed), *(words or ("work",))])


def test_nothing_is_lost_or_told_twice_whenever_the_process_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("LENSKEEP_SEED") or time.time())
    print(f"seed {seed}")
    chance = random.Random(seed)
    for number in range(LIVES):
        process = live(tmp_path, seed + number)
        time.sleep(0.6 + chance.random() * 1.2)
        process.kill()
        process.wait()
    assert live(tmp_path, seed, "last").wait(60) == 0

    metrics, registry, fleet = (tmp_path / f"{name}.sqlite" for name in ("metrics", "registry", "fleet"))
    counted = one(metrics, "SELECT SUM(frames) FROM span")
    recorded = one(registry, "SELECT COUNT(*) FROM record WHERE action = 'hold'")
    print(f"{counted} frames in {one(fleet, 'SELECT COUNT(*) FROM record WHERE frames')} windows, {recorded} events")
    assert counted > 0
    assert recorded > 0
    assert one(metrics, "SELECT COUNT(*) FROM outbox_record") == 0
    assert one(metrics, "SELECT COUNT(*) FROM outbox_window") == 0
    assert one(metrics, "SELECT COUNT(DISTINCT name) FROM outbox") == 1
    assert one(fleet, "SELECT COUNT(DISTINCT box) FROM record") == 1
    assert one(fleet, "SELECT SUM(frames) FROM record") == counted
    assert one(fleet, "SELECT COUNT(*) FROM record WHERE what LIKE 'hold by%'") == recorded
    assert one(fleet, "SELECT COUNT(DISTINCT what) FROM record WHERE what LIKE 'hold by%'") == recorded
    with closing(sqlite3.connect(registry)) as database, database:
        rows = database.execute("SELECT json_extract(report, '$.memory_mb') FROM trial ORDER BY sequence").fetchall()
    with closing(sqlite3.connect(fleet)) as database, database:
        told = database.execute("SELECT what FROM record WHERE what LIKE 'Trial %' ORDER BY n").fetchall()
    tried = [f"Trial {number}" for (number,) in rows]
    assert told and [what for (what,) in told] == tried[tried.index(told[0][0]) :], "those that count now, then each"
