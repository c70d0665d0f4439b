"""The ring between the loop and a daemon that comes, goes, and acknowledges."""

from lenskeep.messages.runner import Detection, Result
from lenskeep.runner.ring import BATCH_BOXES_MAX, BATCH_RESULTS_MAX, ResultRing


def make(sequence: int, boxes: int = 0) -> Result:
    found = [Detection("cap", 0.9, 0, 0, 1, 1)] * boxes
    return Result(sequence, "cam", sequence, 0, "OK", "good", 0.9, 0.3, found, "a@1.0.0", "d", 0, 0, 0, 0, 0)


def filled(count: int, size: int = 1000) -> ResultRing:
    ring = ResultRing("r", size)
    for sequence in range(1, count + 1):
        ring.append(make(sequence))
    return ring


def drain(ring: ResultRing) -> tuple[list[int], int]:
    sequences: list[int] = []
    lost = 0
    while ring.waiting:
        batch, gone = ring.batch()
        sequences += [result.sequence for result in batch]
        lost += gone
    return sequences, lost


def test_results_are_sent_once_and_in_order() -> None:
    ring = filled(1200, size=5000)
    assert drain(ring) == (list(range(1, 1201)), 0)
    assert not ring.waiting
    assert ring.batch() == ([], 0)


def test_a_new_connection_is_told_everything_unacknowledged() -> None:
    ring = filled(10)
    drain(ring)
    ring.acknowledge("r", 4)
    ring.rewind()
    ring.append(make(11))
    assert drain(ring) == (list(range(5, 12)), 0)


def test_a_second_reconnect_in_the_middle_keeps_the_order() -> None:
    ring = filled(1400, size=5000)
    ring.batch()
    ring.rewind()
    ring.batch()
    ring.rewind()
    assert drain(ring) == (list(range(1, 1401)), 0)


def test_an_acknowledgement_of_another_run_forgets_nothing() -> None:
    ring = filled(3)
    drain(ring)
    ring.acknowledge("another", 3)
    assert len(ring) == 3
    ring.acknowledge("r", 3)
    assert len(ring) == 0


def test_an_acknowledgement_before_anything_is_sent_again_is_heard() -> None:
    ring = filled(10)
    drain(ring)
    ring.rewind()
    ring.acknowledge("r", 7)
    assert drain(ring)[0] == [8, 9, 10]


def test_what_falls_off_while_the_daemon_is_away_is_counted() -> None:
    ring = filled(250, size=100)
    assert drain(ring) == (list(range(151, 251)), 150)


def test_what_is_forgotten_unacknowledged_is_counted_once() -> None:
    ring = filled(100, size=100)
    drain(ring)
    for sequence in range(101, 131):
        ring.append(make(sequence))
    assert drain(ring) == (list(range(101, 131)), 30)
    assert len(ring) == 100
    assert drain(ring) == ([], 0)


def test_a_batch_is_bounded_in_results_and_in_boxes() -> None:
    assert len(filled(2000, size=5000).batch()[0]) == BATCH_RESULTS_MAX
    ring = ResultRing("r", 1000)
    for sequence in range(1, 21):
        ring.append(make(sequence, boxes=10_000))
    assert len(ring.batch()[0]) == BATCH_BOXES_MAX // 10_000
