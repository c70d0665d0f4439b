"""A device whose wall clock lies, leaps and comes back while it works: nothing is lost, locked out or stopped by it.

The clock is the interpreter's own, moved by a file that the test writes; the clock of this boot stays right, as on a
real device.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lenskeep.messages.control import ActivationRequest, TokenRequest
from tests.device import Device

MakeDevice = Callable[..., Device]
YEAR_S = 365 * 86400.0
YEARS_2099_S = 73 * YEAR_S

# Read by every interpreter of the device at its start: the daemon's and its children's.
MOVED_CLOCK = """
import pathlib, time
real, real_ns, moved = time.time, time.time_ns, pathlib.Path({path!r})

def by():
    try:
        return float(moved.read_text() or 0)
    except (OSError, ValueError):
        return 0.0

time.time = lambda: real() + by()
time.time_ns = lambda: real_ns() + int(by() * 1e9)
"""


class Timed(Device):
    """A device whose wall clock a test moves."""

    def set_clock(self, by_s: float) -> None:
        new = self.folder / "clock.new"
        new.write_text(str(by_s))
        new.rename(self.folder / "clock")


@pytest.fixture
def timed(make_device: MakeDevice) -> Timed:
    device = make_device()
    device.__class__ = Timed
    assert isinstance(device, Timed)
    (device.folder / "sitecustomize.py").write_text(MOVED_CLOCK.format(path=str(device.folder / "clock")))
    device.environment = {"PYTHONPATH": str(device.folder)}
    return device


def counted(device: Device) -> int:
    return sum(window.frames for window in device.client.windows(since_s=7 * 86400, seconds=60))


def on_record(device: Device) -> set[str]:
    return {entry.after for entry in device.client.audit(limit=100) if entry.action == "clock"}


def newest(device: Device) -> int:
    return device.results()[-1].sequence


@pytest.mark.attack(91)
def test_a_clock_that_leaps_by_years_while_the_line_runs_loses_no_result_and_changes_nothing(timed: Timed) -> None:
    timed.start()
    timed.trust()
    timed.settle("1.0.0")
    since = timed.slot().since
    for by_s, code in ((YEARS_2099_S, "LK-6001"), (-56 * YEAR_S, "LK-6001"), (3 * YEAR_S, "LK-6002")):
        timed.set_clock(by_s)
        timed.until(lambda: not timed.client.status().clock_trusted, "it is noticed")
        assert code in {fault.code for fault in timed.client.status().faults}
        seen = newest(timed)
        timed.until(lambda seen=seen: newest(timed) > seen + 20, "the line goes on")
        timed.until(lambda: counted(timed) >= newest(timed) - 200, "results are counted, and where they can be found")
    assert timed.slot().since == since
    timed.until(lambda: on_record(timed) == {"untrusted"}, "it is on record")
    timed.set_clock(0.0)
    timed.until(lambda: timed.client.status().clock_trusted, "it is believed again")
    last = newest(timed)
    timed.until(lambda: counted(timed) >= last, "every result of all those times is counted")
    timed.until(lambda: on_record(timed) == {"trusted", "untrusted"}, "the end is on record too")


@pytest.mark.attack(91)
@pytest.mark.parametrize("by_s", [-56 * YEAR_S, YEARS_2099_S], ids=["1970", "2099"])
def test_a_device_that_starts_with_a_lost_clock_works_and_keeps_its_history_its_tokens_and_its_versions(
    timed: Timed, by_s: float
) -> None:
    timed.start()
    timed.trust()
    for version in ("1.0.0", "1.1.0"):
        timed.settle(version)
    timed.client.add_token(TokenRequest(name="line", role="viewer", days=30))
    timed.until(lambda: counted(timed) > 20, "something is counted")
    before = counted(timed)
    pid = timed.runner_pid()
    timed.kill()
    timed.set_clock(by_s)
    timed.start()
    assert timed.runner_pid() == pid
    timed.until(lambda: counted(timed) > before, "history is there and grows")
    assert [token.name for token in timed.client.tokens()] == ["line"]
    for number in range(2, 9):  # more than are kept: the newest ones stay, whatever their times say
        assert timed.bring(f"1.{number}.0").state == "succeeded"
    kept = {bundle.version for bundle in timed.client.bundles()}
    assert {"1.8.0", "1.7.0", "1.1.0", "1.0.0"} <= kept and "1.2.0" not in kept
    assert timed.activate("1.8.0").state == "succeeded"
    timed.runs("cap-inspect@1.8.0", "settled")
    assert "LK-6001" in {fault.code for fault in timed.client.status().faults}


@pytest.mark.attack(91)
def test_a_clock_that_leaps_during_a_trial_period_neither_shortens_nor_stretches_it(timed: Timed) -> None:
    timed.start()
    timed.trust()
    timed.settle("1.0.0")
    timed.bring("1.1.0")
    timed.finished(timed.client.activate(ActivationRequest(bundle="cap-inspect@1.1.0", trial_s=600)))
    timed.set_clock(YEARS_2099_S)
    timed.until(lambda: not timed.client.status().clock_trusted, "it is noticed")
    slot = timed.slot()
    assert slot.state == "probation" and slot.trial_ends_s is not None and 500 < slot.trial_ends_s <= 600
    timed.set_clock(-YEAR_S)
    timed.until(lambda: (ends := timed.slot().trial_ends_s) is not None and 500 < ends <= 600, "it goes on as it was")
