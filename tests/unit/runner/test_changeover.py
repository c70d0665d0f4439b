"""Which session judges and which stays warm: the changeover with real sessions, the test standing in for the loop."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lenskeep.messages.runner import BundleRef, FromRunner, SwapFailed
from lenskeep.runner import priority
from lenskeep.runner.engine import Engine
from lenskeep.runner.sessions import Load, SessionThread
from lenskeep.runner.swap import Change, Changeover
from tests.runnerchild import plan, stored


class Watched(SessionThread):
    """Notes what is let go, and can wait until everything asked so far is done."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []

    def release(self, engine: Engine | None) -> None:
        if engine is not None:
            self.taken.append(engine.ref.version)
        super().release(engine)

    def settle(self) -> None:
        done = threading.Event()
        last = Load("", BundleRef(name="", version="", digest="", manifest_json=b"", model_path="", model_sha256=""),
                    1, lambda *_: done.set(), lowered=False, warm=False)  # fmt: skip
        self.load(last)
        assert done.wait(10)


class Desk:
    """A changeover and what is around it."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.news: deque[FromRunner] = deque()
        self.sessions = Watched()
        self.sessions.start()
        self.over = Changeover(plan(folder, None, **changes), self.news, self.sessions)

    def first(self, bundle: BundleRef) -> None:
        self.over.start(bundle)
        self.exchanged()

    def exchanged(self) -> Change:
        assert self.over.came.wait(10)
        change = self.over.exchange()
        assert change is not None
        return change

    def versions(self) -> tuple[str | None, str | None]:
        active, previous = self.over.active, self.over.previous
        return active.ref.version if active else None, previous.ref.version if previous else None

    def refusals(self) -> list[tuple[str, str]]:
        return [(news.op, news.code) for news in self.news if isinstance(news, SwapFailed)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.over.close()
    desk.sessions.retire()
    desk.sessions.join(10)


def test_a_swap_keeps_the_old_session_warm_and_the_next_lets_the_oldest_go(desk: Desk, tmp_path: Path) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    desk.over.swap("op1", stored(tmp_path, "1.1.0"))
    change = desk.exchanged()
    assert (change.op, change.back) == ("op1", False)
    assert change.prepare_ms > 0
    assert desk.versions() == ("1.1.0", "1.0.0")
    desk.over.swap("op2", stored(tmp_path, "1.2.0"))
    desk.exchanged()
    assert desk.versions() == ("1.2.0", "1.1.0")
    assert desk.sessions.taken == ["1.0.0"]


def test_going_back_is_due_at_once_and_lets_the_newer_version_go(desk: Desk, tmp_path: Path) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    desk.over.swap("op1", stored(tmp_path, "1.1.0"))
    desk.exchanged()
    desk.over.back("op2")
    assert desk.over.due is not None
    assert desk.exchanged().back
    assert desk.versions() == ("1.0.0", None)
    assert desk.sessions.taken == ["1.1.0"]
    desk.over.back("op3")
    assert desk.refusals() == [("op3", "LK-8102")]
    assert desk.versions() == ("1.0.0", None)


def test_a_swap_to_the_warm_previous_loads_nothing(desk: Desk, tmp_path: Path) -> None:
    old = stored(tmp_path, "1.0.0")
    desk.first(old)
    desk.over.swap("op1", stored(tmp_path, "1.1.0"))
    desk.exchanged()
    Path(old.model_path).unlink()
    desk.over.swap("op2", old)
    assert desk.exchanged().op == "op2"
    assert desk.versions() == ("1.0.0", "1.1.0")
    assert desk.sessions.taken == []


def test_a_swap_to_what_runs_already_is_answered_and_changes_nothing(desk: Desk, tmp_path: Path) -> None:
    bundle = stored(tmp_path, "1.0.0")
    desk.first(bundle)
    desk.over.swap("op1", bundle)
    assert desk.exchanged().op == "op1"
    assert desk.versions() == ("1.0.0", None)
    assert desk.sessions.taken == []


def test_an_order_given_again_by_the_next_daemon_goes_on(desk: Desk, tmp_path: Path) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    desk.over.hold(True)
    bundle = stored(tmp_path, "1.1.0")
    desk.over.swap("op1", bundle)
    desk.over.swap("op1", bundle)
    desk.sessions.settle()
    desk.over.swap("op1", bundle)
    desk.over.hold(False)
    assert desk.exchanged().op == "op1"
    assert desk.refusals() == []


def test_held_a_prepared_swap_waits_and_goes_when_let_go(desk: Desk, tmp_path: Path) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    desk.over.hold(True)
    desk.over.swap("op1", stored(tmp_path, "1.1.0"))
    desk.sessions.settle()
    assert desk.over.due is None
    assert desk.over.pending_op() == "op1"
    desk.over.hold(False)
    desk.exchanged()
    assert desk.versions() == ("1.1.0", "1.0.0")


def test_going_back_does_not_wait_for_a_hold(desk: Desk, tmp_path: Path) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    desk.over.swap("op1", stored(tmp_path, "1.1.0"))
    desk.exchanged()
    desk.over.hold(True)
    desk.over.back("op2")
    desk.exchanged()
    assert desk.versions() == ("1.0.0", None)


def test_a_newer_swap_takes_the_place_of_one_that_is_held(desk: Desk, tmp_path: Path) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    desk.over.hold(True)
    desk.over.swap("op1", stored(tmp_path, "1.1.0"))
    desk.over.swap("op2", stored(tmp_path, "1.2.0"))
    desk.over.hold(False)
    assert desk.exchanged().op == "op2"
    assert desk.refusals() == [("op1", "LK-8101")]
    assert desk.versions() == ("1.2.0", "1.0.0")


def test_a_cancelled_swap_is_answered_and_never_comes(desk: Desk, tmp_path: Path) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    desk.over.swap("op1", stored(tmp_path, "1.1.0"))
    desk.over.cancel("another")
    desk.over.cancel("op1")
    assert desk.refusals() == [("op1", "LK-8101")]
    assert desk.over.pending_op() == ""
    assert desk.over.exchange() is None


@pytest.mark.parametrize(("spoil", "code"), [("damage", "LK-5003"), ("remove", "LK-5003"), ("no model", "LK-8004")])
def test_a_version_that_cannot_be_loaded_is_refused_with_its_code(
    desk: Desk, tmp_path: Path, spoil: str, code: str
) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    bad = stored(tmp_path, "1.1.0", data=b"no model" if spoil == "no model" else None)
    if spoil == "damage":
        path = Path(bad.model_path)
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    elif spoil == "remove":
        Path(bad.model_path).unlink()
    desk.over.swap("op1", bad)
    desk.sessions.settle()
    assert desk.refusals() == [("op1", code)]
    assert desk.versions() == ("1.0.0", None)


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[BundleRef]:
    """A version whose file gives no bytes, as on a storage that hangs, until the test is over."""
    bundle = stored(tmp_path, "9.9.9")
    path = Path(bundle.model_path)
    path.unlink()
    os.mkfifo(path)
    yield bundle
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))  # a writer that comes and goes ends the reader's wait


def test_a_swap_that_misses_three_deadlines_is_given_up(desk: Desk, tmp_path: Path, stuck: BundleRef) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    begun_s = time.monotonic()
    desk.over.swap("op1", stuck)
    while not (load := desk.over._load) or not load.hurry():
        time.sleep(0.001)
    desk.over.tick(begun_s + 11)
    assert desk.over.pending_op() == "op1"
    desk.over.tick(begun_s + 31)
    assert desk.refusals() == [("op1", "LK-8101")]
    assert desk.versions() == ("1.0.0", None)


def test_a_swap_behind_one_that_hangs_is_prepared_in_another_thread(
    desk: Desk, tmp_path: Path, stuck: BundleRef
) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    desk.over.swap("op1", stuck)
    desk.over.swap("op2", stored(tmp_path, "1.1.0"))
    desk.over.tick(time.monotonic() + 5)
    assert desk.over.due is None
    desk.over.tick(time.monotonic() + 11)
    assert desk.exchanged().op == "op2"
    assert desk.refusals() == [("op1", "LK-8101")]
    assert desk.versions() == ("1.1.0", "1.0.0")


def test_a_swap_does_not_take_the_place_of_the_version_that_a_slot_starts_with(desk: Desk, tmp_path: Path) -> None:
    desk.over.start(stored(tmp_path, "1.0.0"))
    desk.over.swap("op1", stored(tmp_path, "1.1.0", data=b"no model"))
    desk.sessions.settle()
    desk.exchanged()
    assert desk.versions() == ("1.0.0", None)
    assert desk.refusals() == [("op1", "LK-8004")]


def test_a_held_swap_to_the_warm_previous_keeps_it_from_being_released(desk: Desk, tmp_path: Path) -> None:
    old = stored(tmp_path, "1.0.0")
    desk.first(old)
    desk.over.swap("op1", stored(tmp_path, "1.1.0"))
    desk.exchanged()
    desk.over.hold(True)
    desk.over.swap("op2", old)
    desk.over.release()
    desk.over.hold(False)
    assert desk.exchanged().op == "op2"
    assert desk.sessions.taken == []


def test_after_one_deadline_the_loader_gets_its_priority_back(desk: Desk, tmp_path: Path) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    large = stored(tmp_path, "1.1.0", data=b"no model")
    os.truncate(large.model_path, 300 << 20)  # some tenths of a second of copying and hashing
    desk.over.swap("op1", large)
    while nice(desk.sessions) != priority.lowered():
        assert desk.over.pending_op() == "op1"
    load = desk.over._load
    assert load is not None
    desk.over.tick(time.monotonic() + 5)
    assert load.lowered
    desk.over.tick(time.monotonic() + 11)
    assert desk.over._load is not None
    assert not desk.over._load.lowered
    assert (desk.over._load is load) == priority.may_restore()
    desk.sessions.settle()
    assert desk.refusals() == [("op1", "LK-5003")]


def nice(thread: threading.Thread) -> int:
    assert thread.native_id is not None
    return os.getpriority(os.PRIO_PROCESS, thread.native_id)


def test_the_warm_previous_goes_when_both_are_over_the_memory_limit(tmp_path: Path) -> None:
    desk = Desk(tmp_path, memory_max_mb=25)
    desk.first(stored(tmp_path, "1.0.0"))
    desk.over.swap("op1", stored(tmp_path, "1.1.0"))
    desk.exchanged()
    assert desk.versions() == ("1.1.0", "1.0.0")
    desk.over.swap("op2", stored(tmp_path, "1.2.0"))  # three would be 30 MB: the oldest goes before the third is loaded
    assert desk.sessions.taken == ["1.0.0"]
    desk.exchanged()
    assert desk.versions() == ("1.2.0", "1.1.0")
    desk.over.swap("op3", stored(tmp_path, "1.3.0", memory_mb=20))
    desk.exchanged()
    assert desk.versions() == ("1.3.0", None)


def test_a_release_lets_the_previous_go_but_not_one_that_is_about_to_take_over(desk: Desk, tmp_path: Path) -> None:
    desk.first(stored(tmp_path, "1.0.0"))
    desk.over.swap("op1", stored(tmp_path, "1.1.0"))
    desk.exchanged()
    desk.over.back("op2")
    desk.over.release()
    desk.exchanged()
    assert desk.versions() == ("1.0.0", None)
    desk.over.swap("op3", stored(tmp_path, "1.2.0"))
    desk.exchanged()
    desk.over.release()
    assert desk.versions() == ("1.2.0", None)
