"""What the daemon and a runner say to each other: length-prefixed msgpack frames over the slot's Unix socket.

Rules. The runner listens, the daemon dials; a daemon that died finds its runner again by dialling. Every frame is one
tagged struct, four bytes big-endian length before it. Results carry a sequence number that grows by one within a run
of the runner; the daemon acknowledges what it has stored durably, the runner sends the rest again after a reconnect.
The plan is both the runner's one argument (as a JSON file) and the slot's pointer file: a slot can start from it with
no database at all.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

FRAME_BYTES_MAX = 16 << 20
LENGTH_BYTES = 4

Outcome = Literal["OK", "NG", "UNCERTAIN", "ERROR"]
STAGES = ("wait", "preprocess", "inference", "decode", "total")


class _Message(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class BundleRef(_Message, frozen=True, kw_only=True):
    """One stored version, as the files that a session is built from.

    `model_path` holds the signed ONNX file with `model_sha256`; `prepared_path` the same model optimised for this
    device by its trial, with a digest of its own; both are checked against their digests when they are read.
    """

    name: str
    version: str
    digest: str
    manifest_json: bytes
    model_path: str
    model_sha256: str
    prepared_path: str = ""
    prepared_sha256: str = ""
    memory_mb: int = 0  # what the trial measured; 0 = unknown

    @property
    def ref(self) -> str:
        """How people name this version."""
        return f"{self.name}@{self.version}"


class CameraPlan(_Message, frozen=True, kw_only=True):
    """One source of frames, in the words of the configuration file."""

    name: str
    source: str  # v4l2:PATH | rtsp://… | http://… | file:PATH | folder:PATH | synthetic:SCENE
    loop: bool = True  # file, folder: begin again at the end
    pace: Literal["realtime", "fast"] = "realtime"  # file, folder, synthetic
    fps: float = 0.0  # 0 = as the source says
    width_px: int = 0  # 0 = whatever comes
    height_px: int = 0
    open_timeout_s: float = 5.0
    read_timeout_s: float = 3.0
    frame_age_max_s: float = 2.0


class Confinement(_Message, frozen=True, kw_only=True):
    """What a process gave up before it read a model: what the kernel took, not what was asked of it."""

    no_new_privs: bool
    landlock_abi: int  # 0 = this kernel has none
    filesystem: str  # "open" | "read-only" | "read-only but for …"
    network: str  # "open" | "none" | "TCP to port 554"
    seccomp: int  # system calls that are refused whole; 0 = no filter
    limits: list[str]
    gaps: list[str]  # what is left open that should not be, and why


class SlotPlan(_Message, frozen=True, kw_only=True):
    """All that a runner needs to serve a slot; also the slot's pointer file."""

    slot: str
    socket_path: str
    cameras: list[CameraPlan]
    bundle: BundleRef | None
    threads: int = 1  # intra-op threads of a session
    memory_max_mb: int = 0  # for active plus previous; 0 = no limit
    swap_deadline_s: float = 10.0
    result_ring: int = 20000
    store: list[str] = []  # the folders that versions are read from; empty = those of `bundle`
    uncertain_errors_max: int = 3  # consecutive failing frames after a swap that send it back at once


# --- daemon to runner -----------------------------------------------------------------------------------------------


class Swap(_Message, tag="swap", frozen=True, kw_only=True):
    """Build, warm and exchange to this bundle between two frames."""

    op: str
    bundle: BundleRef


class Cancel(_Message, tag="cancel", frozen=True, kw_only=True):
    """Give up a swap that has not been exchanged yet; it ends in SwapFailed."""

    op: str


class Back(_Message, tag="back", frozen=True, kw_only=True):
    """Exchange to the warm previous version before the next frame."""

    op: str


class Hold(_Message, tag="hold", frozen=True, kw_only=True):
    """Finish preparing a swap but do not exchange while held (a part is under the camera)."""

    held: bool


class Release(_Message, tag="release", frozen=True, kw_only=True):
    """Let the warm previous version go."""


class Acknowledge(_Message, tag="ack", frozen=True, kw_only=True):
    """All results up to and including `sequence` are stored; `run` must match."""

    run: str
    sequence: int


class Preview(_Message, tag="preview", frozen=True, kw_only=True):
    """Send JPEG pictures of a camera for the next `seconds` (0 stops), at most `fps` a second."""

    camera: str
    fps: float
    seconds: float
    width_px: int = 960
    overlay: bool = True


class Stop(_Message, tag="stop", frozen=True, kw_only=True):
    """Stop orderly: finish the frame, send what is left, exit."""


ToRunner = Swap | Cancel | Back | Hold | Release | Acknowledge | Preview | Stop


# --- runner to daemon -----------------------------------------------------------------------------------------------


class Detection(Struct, frozen=True, array_like=True):
    """One thing found: box in pixels of the frame."""

    label: str
    score: float
    x1: float
    y1: float
    x2: float
    y2: float


class Result(Struct, frozen=True, array_like=True):
    """The judgement of one frame. Times in microseconds; `captured_ms` is wall clock, `age_us` frame age at the end.

    `digest` is the sha256 of the signed model bytes that the session was made from; `bundle` is its name@version.
    """

    sequence: int
    camera: str
    frame: int  # the camera's own count since it was opened; gaps are drops
    captured_ms: int
    outcome: Outcome
    label: str
    score: float
    margin: float  # distance of the score from the threshold that decided
    detections: list[Detection]
    bundle: str
    digest: str
    wait_us: int
    preprocess_us: int
    inference_us: int
    decode_us: int
    total_us: int  # from the frame's arrival to the result
    error: str = ""


class Results(_Message, tag="results", frozen=True, kw_only=True):
    """A batch of results, in order. `lost` counts results that the ring had to forget before they were acknowledged."""

    run: str
    results: list[Result]
    lost: int = 0


class CameraState(_Message, frozen=True, kw_only=True):
    """How a camera does; `drops` counts frames not judged, by reason."""

    name: str
    state: Literal["opening", "running", "lost", "frozen", "format", "ended"]
    fps: float
    frames: int
    width_px: int
    height_px: int
    frame_age_s: float  # since the newest frame; -1.0 = none yet
    reconnects: int
    drops: dict[str, int]
    code: str = ""
    message: str = ""


class Beat(_Message, tag="beat", frozen=True, kw_only=True):
    """Twice a second: proof of progress. `frames` grows while pictures are judged; `reason` says why it may not."""

    run: str
    frames: int
    active: str  # name@version of the session in the loop, empty before the first
    digest: str
    previous: str
    previous_digest: str
    provider: str
    held: bool
    swapping: str  # op id while a swap is prepared
    reason: str  # "" | "camera" | "waiting" | "no_bundle" | "ended"
    rss_mb: float
    cameras: list[CameraState]
    confinement: Confinement | None = None


class Swapped(_Message, tag="swapped", frozen=True, kw_only=True):
    """The exchange took place. `interval_ms` is between the last result before it and the first after it."""

    op: str
    bundle: str
    digest: str
    prepare_ms: float
    interval_ms: float
    sequence: int  # of the first result made by the new session
    back: bool = False  # it was an exchange to the previous version
    reflex: str = ""  # the runner went back by itself, and this is why (a fault code)


class SwapFailed(_Message, tag="swap_failed", frozen=True, kw_only=True):
    """The exchange did not take place; the running session is unchanged."""

    op: str
    code: str
    message: str


class Picture(_Message, tag="picture", frozen=True, kw_only=True):
    """A preview picture; `age_ms` since it was captured."""

    camera: str
    jpeg: bytes
    age_ms: int
    captured_ms: int
    bundle: str
    outcome: str


FromRunner = Results | Beat | Swapped | SwapFailed | Picture


# --- the trial ------------------------------------------------------------------------------------------------------


class TrialPlan(_Message, frozen=True, kw_only=True):
    """What the qualification child is asked: its one argument, as a JSON file."""

    bundle: BundleRef
    golden: dict[str, str]  # golden picture's member name -> path of its stored bytes
    prepared_path: str  # where to put the prepared model
    threads: int
    memory_max_mb: int  # a hard limit on what the trial may take
    cpu_max_s: int
    frames: int = 100  # measured frames of the latency trial


class TrialProgress(_Message, tag="progress", frozen=True, kw_only=True):
    """Where the trial is."""

    stage: Literal["load", "prepare", "golden", "latency"]
    done: int
    total: int


class TrialCheck(_Message, frozen=True, kw_only=True):
    """One line of a trial's report."""

    name: Literal["signature", "runtime", "provider", "memory", "disk", "golden", "latency", "labels"]
    passed: bool
    text: str
    code: str = ""


class TrialReport(_Message, tag="report", frozen=True, kw_only=True):
    """What the trial found; `code` is empty when the bundle passed."""

    passed: bool
    code: str
    message: str
    checks: list[TrialCheck]
    provider: str = ""
    runtime: str = ""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    load_ms: float = 0.0
    memory_mb: int = 0
    prepared_sha256: str = ""
    golden_passed: int = 0
    golden_total: int = 0
    golden_score: float = 0.0  # mean agreement, 1.0 = equal
    confinement: Confinement | None = None


FromTrial = TrialProgress | TrialReport

_encoder = msgspec.msgpack.Encoder()


def frame(message: Struct) -> bytes:
    """Encode a message with its length before it."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def decoder(union: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return a strict decoder for one direction: `decoder(ToRunner)`."""
    return msgspec.msgpack.Decoder(union)
