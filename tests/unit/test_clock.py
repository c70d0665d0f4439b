"""The clock that may lie: what is believed, what is judged by meanwhile, and what raises the floor."""

from __future__ import annotations

import pytest

from lenskeep.clock import BUILT_AT, DOUBT_S, TRUSTED_SPAN_S, Clock

DAY_S, YEAR_S = 86400.0, 365 * 86400.0
YEAR_2099_S = 4_083_955_200.0


class SetClock(Clock):
    """A clock whose wall and boot times a test sets."""

    def __init__(self, wall_s: float, floor_s: float = BUILT_AT) -> None:
        self.wall, self.boot = wall_s, 1000.0
        super().__init__(floor_s)

    def wall_s(self) -> float:
        return self.wall

    def boot_s(self) -> float:
        return self.boot

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.boot += seconds


NOW = BUILT_AT + 30 * DAY_S


def test_a_sound_clock_is_followed() -> None:
    clock = SetClock(NOW)
    clock.passes(10 * DAY_S)
    clock.wall += 20.0  # a time server's correction
    assert clock.trusted() and clock.doubt() == "" and clock.now_s() == clock.wall


@pytest.mark.attack(91)
@pytest.mark.parametrize("wall", [0.0, 86400.0, YEAR_2099_S, BUILT_AT - 1000, BUILT_AT + TRUSTED_SPAN_S + 1])
def test_a_clock_that_cannot_be_right_is_not_followed_and_time_goes_on_from_the_floor(wall: float) -> None:
    clock = SetClock(wall)
    assert not clock.trusted() and clock.doubt()
    assert clock.now_s() == BUILT_AT
    clock.passes(100.0)
    assert clock.now_s() == BUILT_AT + 100.0


def test_a_clock_that_is_set_right_after_the_start_is_believed_at_once() -> None:
    clock = SetClock(86400.0)
    clock.passes(50.0)
    clock.wall = NOW
    assert clock.trusted() and clock.now_s() == NOW


@pytest.mark.attack(91)
@pytest.mark.parametrize("by_s", [-3 * YEAR_S, -DAY_S, 3600.0, 3 * YEAR_S, YEAR_2099_S - NOW])
def test_a_clock_that_leaps_while_running_is_not_followed(by_s: float) -> None:
    clock = SetClock(NOW, floor_s=NOW - 10 * YEAR_S)
    clock.passes(10.0)
    clock.wall += by_s
    assert not clock.trusted() and clock.doubt()
    assert clock.now_s() == NOW + 10.0
    clock.passes(20.0)
    assert clock.now_s() == NOW + 30.0
    clock.wall -= by_s
    assert clock.trusted() and clock.now_s() == NOW + 30.0


def test_a_possible_leap_is_believed_after_an_hour_without_another_one() -> None:
    clock = SetClock(NOW)
    clock.wall += 40 * DAY_S
    assert not clock.trusted()
    clock.passes(DOUBT_S - 10)
    clock.wall += 2 * DAY_S  # another one: the hour begins again
    assert not clock.trusted()
    clock.passes(DOUBT_S - 10)
    assert not clock.trusted()
    clock.passes(20.0)
    assert clock.trusted() and clock.now_s() == clock.wall


def test_a_leap_out_of_what_is_possible_is_never_believed() -> None:
    clock = SetClock(NOW)
    clock.wall = YEAR_2099_S
    clock.passes(2 * DOUBT_S)
    assert not clock.trusted() and clock.now_s() == NOW + 2 * DOUBT_S


def test_only_a_signed_time_raises_the_floor_and_it_never_sinks() -> None:
    clock = SetClock(NOW)
    clock.now_s()
    assert clock.floor_s == BUILT_AT
    clock.raise_floor(NOW - DAY_S)
    clock.raise_floor(NOW - 20 * DAY_S)
    assert clock.floor_s == NOW - DAY_S and clock.trusted()


def test_a_signed_time_ahead_of_the_clock_shows_that_the_clock_is_late() -> None:
    clock = SetClock(NOW)
    clock.raise_floor(NOW + DAY_S)
    assert not clock.trusted() and clock.now_s() == NOW + DAY_S
    clock.wall = NOW + DAY_S + 5
    assert clock.trusted()


@pytest.mark.attack(91)
def test_a_signed_time_beyond_the_life_of_this_software_is_passed_over() -> None:
    clock = SetClock(NOW)
    clock.raise_floor(YEAR_2099_S)
    assert clock.floor_s == BUILT_AT
