"""What being supervised costs a frame, measured alone: the loop's own work with a model that costs nothing.

`python -m tests.bench.supervision_bench`
In the loop's thread: the clocks, the result, the ring, the checks for a swap and for a watcher. Beside it: packing a
batch of results and the beat. The daemon's share (unpacking and five sketches) is in another process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import msgspec
import numpy as np

from lenskeep.messages.runner import Beat, BundleRef, CameraPlan, CameraState, FromRunner, Results, SlotPlan, frame
from lenskeep.runner.judge import Judgement
from lenskeep.runner.loop import Loop, Staged
from lenskeep.runner.mailbox import Frame, Mailbox, Work
from lenskeep.runner.nudge import Nudge
from lenskeep.runner.preview import PreviewDesk
from lenskeep.runner.ring import ResultRing
from lenskeep.runner.sessions import SessionThread
from lenskeep.runner.swap import Changeover
from lenskeep.runner.tensors import Placement, Prepared
from lenskeep.sketch import Sketch
from tests.bench import rig

FRAMES = 50_000
BATCH = 30
ROUNDS = 9


class FreeModel:
    """Judges without cost."""

    spec_key = b"k"
    digest = "d" * 64
    ref = BundleRef(name="a", version="1.0.0", digest="", manifest_json=b"", model_path="", model_sha256="")
    seen = Judgement("OK", "good", 0.9, 0.3, [])

    def infer(self, prepared: Prepared) -> None:
        """Nothing."""

    def decode(self, outputs: None, placement: Placement) -> Judgement:
        """Always the same."""
        return self.seen


def per_call_us(work: Callable[[], None], calls: int) -> float:
    """Time a block of calls several times; return the median of one call."""
    spent = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        work()
        spent.append((time.perf_counter() - begun) / calls * 1e6)
    return rig.median(spent)


def loop_us() -> float:
    """The loop's work around a frame, less the calls of the model itself."""
    news: deque[FromRunner] = deque()
    ring = ResultRing("bench", FRAMES)
    plan = SlotPlan(slot="s", socket_path="", cameras=[CameraPlan(name="c", source="")], bundle=None)
    loop = Loop(Mailbox(), Changeover(plan, news, SessionThread()), ring, PreviewDesk({}), news, Nudge(), 3)
    model = FreeModel()
    placement = Placement(1.0, 1.0, 0, 0, 1, 1)
    staged = Staged(Prepared(np.zeros(1), placement, FreeModel.spec_key), 500)
    work = Work("cam", Frame(np.zeros((1, 1, 3), np.uint8), 1, time.monotonic_ns(), 1), staged)
    frames = range(FRAMES)

    def judge() -> None:
        for _ in frames:
            loop._judge(model, work)  # type: ignore[arg-type]

    def bare() -> None:
        for _ in frames:
            outputs = model.infer(staged.prepared)
            model.decode(outputs, placement)

    cost_us = per_call_us(judge, FRAMES) - per_call_us(bare, FRAMES)
    assert ring.batch()[0][-1].outcome == "OK"
    return cost_us


def batch_of(ring: ResultRing, count: int) -> Results:
    """Results as the loop makes them."""
    loop_result = msgspec.msgpack.decode(frame(sample())[4:], type=Results).results[0]
    for sequence in range(1, count + 1):
        ring.append(msgspec.structs.replace(loop_result, sequence=sequence))
    results, lost = ring.batch()
    return Results(run="bench", results=results, lost=lost)


def sample() -> Results:
    """One classified frame."""
    from lenskeep.messages.runner import Result

    result = Result(
        1, "camera-1", 123456, 1_790_000_000_000, "OK", "good", 0.987, 0.387, [], "cap-inspect@1.0.0", "d" * 64,
        120, 510, 4321, 33, 5000,
    )  # fmt: skip
    return Results(run="0123456789abcdef", results=[result])


def packing_us() -> float:
    """Packing a result, in batches as they come at 1500 a second and 20 ms."""
    batch = batch_of(ResultRing("bench", 1000), BATCH)
    times = 1000

    def pack() -> None:
        for _ in range(times):
            frame(batch)

    return per_call_us(pack, times * BATCH)


def beat_us() -> float:
    """A beat, shared out over the 15 frames between two of them at 30 frames a second."""
    state = CameraState(
        name="camera-1", state="running", fps=30.0, frames=1000, width_px=1920, height_px=1080, frame_age_s=0.01,
        reconnects=0, drops={"superseded": 1, "stale": 0, "format": 0},
    )  # fmt: skip
    times = 2000

    def beat() -> None:
        from lenskeep.runner.line import _rss_mb

        for _ in range(times):
            frame(
                Beat(
                    run="r", frames=1, active="a@1.0.0", digest="d" * 64, previous="", previous_digest="", provider="CPU",
                    held=False, swapping="", reason="", rss_mb=_rss_mb(), cameras=[state],
                )
            )  # fmt: skip

    return per_call_us(beat, times) / 15


def daemon_us() -> float:
    """The daemon's share: unpack a result, add its five durations."""
    data = frame(batch_of(ResultRing("bench", 1000), BATCH))[4:]
    decode = msgspec.msgpack.Decoder(FromRunner).decode
    sketches = [Sketch() for _ in range(5)]
    times = 300

    def take() -> None:
        for _ in range(times):
            for result in decode(data).results:
                durations = (
                    result.wait_us, result.preprocess_us, result.inference_us, result.decode_us, result.total_us
                )  # fmt: skip
                for sketch, duration_us in zip(sketches, durations, strict=True):
                    sketch.add(duration_us)

    return per_call_us(take, times * BATCH)


def main() -> None:
    """Measure and print."""
    rows = [
        ("in the loop's thread", loop_us()),
        ("packing the result, in the reporter's thread", packing_us()),
        ("a beat, shared out at 30 fps", beat_us()),
    ]
    cells = [[name, f"{cost_us:.2f}"] for name, cost_us in rows]
    cells.append(["together (must 10, aim 4)", f"{sum(cost_us for _, cost_us in rows):.2f}"])
    cells.append(["in the daemon: unpacking and five sketches", f"{daemon_us():.2f}"])
    rig.print_table("Cost of supervision per frame, microseconds", ["part", "us"], cells)


if __name__ == "__main__":
    main()
