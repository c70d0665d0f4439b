"""What devices told of trials: the newest of each version on each device, and all of them added up.

Rules. What counts now (for gates and pages) is the newest trial of a version on a device; the record that was taken
later is the newer one. Of a device the newest `KEPT` versions are kept, so 10,000 devices are 40 MB at most; the sums
know neither devices nor order and may be added to each other. Sums to which nothing was added for `SUMS_KEPT_MS` go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from lenskeep.fleet.store.engine import Engine, Row, Transaction, steps
from lenskeep.messages.sync import Trial
from lenskeep.messages.telemetry import TrialSum, TrialView

KEPT = 16  # versions, of one device
SUMS_KEPT_MS = 400 * 86_400_000
MILLION = 1_000_000

_NEWEST = (
    "INSERT INTO trial (device, bundle, n, at_ms, received_ms, digest, provider, hardware, code, golden_passed,"
    " golden_total, score_ppm, p50_us, p99_us, memory_mb) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (device, bundle) DO UPDATE SET n = excluded.n, at_ms = excluded.at_ms,"
    " received_ms = excluded.received_ms, digest = excluded.digest, provider = excluded.provider,"
    " hardware = excluded.hardware, code = excluded.code, golden_passed = excluded.golden_passed,"
    " golden_total = excluded.golden_total, score_ppm = excluded.score_ppm, p50_us = excluded.p50_us,"
    " p99_us = excluded.p99_us, memory_mb = excluded.memory_mb"
)
_SUM = (
    "INSERT INTO trial_sum (bundle, digest, hardware, provider, last_ms, trials, failed, scored, score_sum_ppm,"
    " score_worst_ppm, timed, p99_sum_us, p99_worst_us, memory_worst_mb)"
    " VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (bundle, digest, hardware, provider) DO UPDATE SET"
    " last_ms = excluded.last_ms, trials = trial_sum.trials + 1, failed = trial_sum.failed + excluded.failed,"
    " scored = trial_sum.scored + excluded.scored, score_sum_ppm = trial_sum.score_sum_ppm + excluded.score_sum_ppm,"
    " score_worst_ppm = CASE WHEN excluded.score_worst_ppm < trial_sum.score_worst_ppm"
    " THEN excluded.score_worst_ppm ELSE trial_sum.score_worst_ppm END,"
    " timed = trial_sum.timed + excluded.timed, p99_sum_us = trial_sum.p99_sum_us + excluded.p99_sum_us,"
    " p99_worst_us = CASE WHEN excluded.p99_worst_us > trial_sum.p99_worst_us"
    " THEN excluded.p99_worst_us ELSE trial_sum.p99_worst_us END,"
    " memory_worst_mb = CASE WHEN excluded.memory_worst_mb > trial_sum.memory_worst_mb"
    " THEN excluded.memory_worst_mb ELSE trial_sum.memory_worst_mb END"
)
_COUNTS = (
    "count(*) AS devices, sum(CASE WHEN trial.code <> '' THEN 1 ELSE 0 END) AS failed,"
    " sum(CASE WHEN golden_total > 0 THEN 1 ELSE 0 END) AS scored,"
    " sum(CASE WHEN golden_total > 0 THEN score_ppm ELSE 0 END) AS score_sum_ppm,"
    " min(CASE WHEN golden_total > 0 THEN score_ppm ELSE 1000000 END) AS score_worst_ppm,"
    " sum(CASE WHEN p99_us > 0 THEN 1 ELSE 0 END) AS timed, sum(p99_us) AS p99_sum_us, max(p99_us) AS p99_worst_us,"
    " max(memory_mb) AS memory_worst_mb"
)
_LET_IN = "JOIN device ON device.name = trial.device AND device.state = 'enrolled'"


class Told(Struct, frozen=True):
    """A trial as it came."""

    device: str
    received_ms: int
    trial: Trial


async def add(tx: Transaction, told: Sequence[Told]) -> None:
    """Keep trials, in the order in which they were taken, in the transaction that takes them out of the inbox."""
    if not told:
        return
    await tx.many(_NEWEST, [_newest(one) for one in told])
    await tx.many(_SUM, [_summand(one) for one in told])
    await tx.many(
        "DELETE FROM trial WHERE device = ? AND bundle NOT IN"
        " (SELECT bundle FROM trial WHERE device = ? ORDER BY received_ms DESC, n DESC LIMIT ?)",
        [(device, device, KEPT) for device in sorted({one.device for one in told})],
    )


async def thin(tx: Transaction, now_ms: int) -> None:
    """Forget sums that are too old."""
    await tx.run("DELETE FROM trial_sum WHERE last_ms < ?", now_ms - SUMS_KEPT_MS)


@steps
class TrialStore:
    """Trials in the fleet's database."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    async def of_device(self, device: str) -> list[TrialView]:
        """Return the newest trial of each version on a device, the latest first."""
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT * FROM trial WHERE device = ? ORDER BY received_ms DESC, n DESC, bundle", device
            )
        return [_view(row) for row in found]

    async def now(self, bundle: str = "") -> list[TrialSum]:
        """Return how versions did in the newest trials of the devices that are let in, by hardware class."""
        async with self._database.read() as tx:
            found = await tx.all(
                f"SELECT bundle, hardware, {_COUNTS} FROM trial {_LET_IN} WHERE ? = '' OR bundle = ?"  # noqa: S608
                " GROUP BY bundle, hardware ORDER BY bundle, hardware",
                bundle, bundle,
            )  # fmt: skip
        return [_sum(row, row["devices"]) for row in found]

    async def of_rollout(self, bundle: str, rollout: int) -> list[TrialSum]:
        """Return how a version did in the newest trials of the devices that a rollout has asked, by hardware class."""
        async with self._database.read() as tx:
            found = await tx.all(
                f"SELECT trial.bundle, trial.hardware, {_COUNTS} FROM trial JOIN rollout_member AS m"  # noqa: S608
                " ON m.device = trial.device WHERE m.rollout = ? AND m.attempts > 0 AND m.state <> 'canceled'"
                " AND trial.bundle = ? GROUP BY trial.bundle, trial.hardware ORDER BY trial.hardware",
                rollout, bundle,
            )  # fmt: skip
        return [_sum(row, row["devices"]) for row in found]

    async def untold(self, bundle: str, rollout: int) -> frozenset[str]:
        """Return the devices of a rollout that tell of trials, and of this version have told none."""
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT m.device FROM rollout_member AS m WHERE m.rollout = ?"
                " AND EXISTS (SELECT 1 FROM trial WHERE trial.device = m.device)"
                " AND NOT EXISTS (SELECT 1 FROM trial WHERE trial.device = m.device AND trial.bundle = ?)",
                rollout, bundle,
            )  # fmt: skip
        return frozenset(row["device"] for row in found)

    async def ever(self, bundle: str = "") -> list[TrialSum]:
        """Return all trials that were ever told, added up by version, digest, hardware class and provider."""
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT * FROM trial_sum WHERE ? = '' OR bundle = ? ORDER BY bundle, digest, hardware, provider",
                bundle, bundle,
            )  # fmt: skip
        return [_sum(row, row["trials"], digest=row["digest"], provider=row["provider"]) for row in found]


def merged(sums: Iterable[TrialSum]) -> dict[str, TrialSum]:
    """Add sums up by hardware class; what they do not share is left empty."""
    found: dict[str, TrialSum] = {}
    for one in sums:
        known = found.get(one.hardware)
        found[one.hardware] = one if known is None else known.plus(one)
    return found


def _newest(one: Told) -> tuple[str | int, ...]:
    it = one.trial
    return (
        one.device, it.bundle, it.n, it.at_ms, one.received_ms, it.digest, it.provider, it.hardware, it.code,
        it.golden_passed, it.golden_total, round(it.golden_score * MILLION), round(it.p50_ms * 1000),
        round(it.p99_ms * 1000), it.memory_mb,
    )  # fmt: skip


def _summand(one: Told) -> tuple[str | int, ...]:
    it = one.trial
    scored, p99_us = int(it.golden_total > 0), round(it.p99_ms * 1000)
    score_ppm = round(it.golden_score * MILLION)
    return (
        it.bundle, it.digest, it.hardware, it.provider, one.received_ms, int(it.code != ""), scored,
        score_ppm * scored, score_ppm if scored else MILLION, int(p99_us > 0), p99_us, p99_us, it.memory_mb,
    )  # fmt: skip


def _view(row: Row) -> TrialView:
    return TrialView(
        device=row["device"], bundle=row["bundle"], at_ms=row["at_ms"], received_ms=row["received_ms"],
        digest=row["digest"], provider=row["provider"], hardware=row["hardware"], code=row["code"],
        golden_passed=row["golden_passed"], golden_total=row["golden_total"], golden_score=row["score_ppm"] / MILLION,
        p50_ms=row["p50_us"] / 1000, p99_ms=row["p99_us"] / 1000, memory_mb=row["memory_mb"],
    )  # fmt: skip


def _sum(row: Row, count: int, *, digest: str = "", provider: str = "") -> TrialSum:
    return TrialSum(
        bundle=row["bundle"], digest=digest, hardware=row["hardware"], provider=provider, trials=count,
        failed=int(row["failed"]), scored=int(row["scored"]), score_sum_ppm=int(row["score_sum_ppm"]),
        score_worst_ppm=int(row["score_worst_ppm"]), timed=int(row["timed"]), p99_sum_us=int(row["p99_sum_us"]),
        p99_worst_us=int(row["p99_worst_us"]), memory_worst_mb=int(row["memory_worst_mb"]),
    )  # fmt: skip
