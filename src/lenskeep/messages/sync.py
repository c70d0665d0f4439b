"""One call of a device to its fleet and the answer: heartbeat, reported state, telemetry, acknowledgements; and news.

`POST /v1/devices/{id}/sync`, a `Call` as msgpack (`application/msgpack`) or JSON; the answer comes in the same form.

Rules. The device dials out and the connection is held. What must not be lost are `records`: each has a number that
grows by one on that device (`outbox`), the fleet takes each number once and durably before it answers, and `taken` says
up to which; the device forgets those and sends the rest again, in any later call. So calls may be repeated, doubled or
lost without harm. Numbers and not clocks order things. Records stand in a call in order, oldest first; numbers may be
missing among them, because a full outbox drops some. `after` says that nothing up to it is held any more, so that the
fleet can tell what was dropped from what only travels slower: records that begin above `after + 1`, while the fleet has
not come so far, wait (`taken` stays), and the device sends what it holds from the oldest on. `outbox` names the
numbering: an outbox that was made anew has a new name, and counts from its beginning. A device that hears a `taken`
above its own newest number was put back from a copy, and goes on under a new name. A `taken` below `after` says that
the fleet was put back: what is gone is gone, the fleet notes how many, and both go on from there. A record that is too
large is cut by the device, with a mark; nothing is refused for its size. A record of a kind that the fleet does not
know, because the device is newer, is taken under its number as a happening of the kind `other` that says so, and the
records beside it count. So that nothing is lost that way, `kinds` says which ones it knows beside the first three, and
a device keeps back what an older fleet would not understand. A call without news and without records costs
the fleet no statement of SQL. With `wait_s` the fleet holds the answer until there is news (a newer repository, a
command) or the time is over.

By stick the same records travel as `Carried`, msgpack in an envelope that the device signed, and are taken by the same
rule; `taken` comes back as a `Receipt` that the fleet's authority signed. A receipt is good for ever and for one outbox
of one device, and an old one says less than is known, so whoever carries it can only keep it back.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from lenskeep.messages.fleet import Line, Number, Text

MEDIA_MSGPACK = "application/msgpack"
KINDS = ["trial"]  # of records, beside the first three
RECORDS_MAX = 500  # in one call; the rest comes in the next one
WAIT_S_MAX = 120.0
MS_MAX = 1e7  # of a time in a trial

Ref = Annotated[str, Meta(max_length=130)]  # NAME@VERSION
Whole = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]  # what can be packed at all; sums take less
After = Annotated[int, Meta(ge=-1, le=9_999_999_999_999_999)]
Share = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[float, Meta(ge=0, le=MS_MAX)]


class Window(Struct, frozen=True, kw_only=True, tag="window", omit_defaults=True):
    """What one version did in one slot over a time span. Sketches are `sketch.Sketch.to_bytes`, by stage."""

    n: Number  # number in the outbox
    slot: Line
    bundle: Ref
    digest: Line  # of the bytes that the loaded session was made from
    provider: Line
    start_s: Number  # by the device's clock: a label
    seconds: Number
    frames: Number
    misses: Number = 0
    outcomes: Annotated[dict[str, Whole], Meta(max_length=16)] = {}
    sketches: Annotated[dict[str, bytes], Meta(max_length=16)] = {}


class Happening(Struct, frozen=True, kw_only=True, tag="event", omit_defaults=True):
    """Something that happened on a device: a swap, a rollback, a refusal, a fault, a step of an assignment."""

    n: Number
    kind: Literal["swap", "rollback", "refusal", "fault", "assignment", "trial", "clock", "lost", "other"]
    at_ms: Number
    slot: Line = ""
    bundle: Ref = ""
    code: Annotated[str, Meta(max_length=12)] = ""
    text: Text = ""
    count: Number = 0  # of `lost`: how many records were dropped because the outbox was full


class Vitals(Struct, frozen=True, kw_only=True, tag="vitals", omit_defaults=True):
    """The device's own state, now and then."""

    n: Number
    at_ms: Number
    clock_trusted: bool = True
    disk_free_mb: Number = 0
    memory_free_mb: Number = 0
    load: float = 0.0
    temperature_c: float | None = None
    metadata_ends_s: Number = 0  # when the first role of the repository expires
    certificate_ends_s: Number = 0
    version: Line = ""  # of Lenskeep
    hardware: Line = ""  # class of this machine: processor and runtime, as prepared models are keyed


class Trial(Struct, frozen=True, kw_only=True, tag="trial", omit_defaults=True):
    """How a version did when this very device tried it: how well it reproduced its golden outputs, and what it cost.

    Of two trials of a version the later record counts: a runtime that was exchanged makes another one.
    """

    n: Number
    at_ms: Number
    bundle: Ref
    digest: Line  # of the model's signed bytes, as windows name it
    provider: Line = ""
    hardware: Line = ""  # class of this machine when it was tried, as in vitals
    code: Annotated[str, Meta(max_length=12)] = ""  # why it was refused; empty = it passed
    golden_passed: Number = 0
    golden_total: Number = 0  # 0 = it did not come to the golden pictures
    golden_score: Share = 0.0  # mean agreement, 1.0 = equal
    p50_ms: Milliseconds = 0.0
    p99_ms: Milliseconds = 0.0  # 0 = it was not timed
    memory_mb: Number = 0  # at most, beside what the empty process needs


Record = Window | Happening | Vitals | Trial


class SlotNow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a slot stands with what it was assigned; what it *runs* is in the signed report."""

    slot: Line
    generation: Number = 0  # of the assignment that this is about
    state: Line = ""  # new | downloading | staged | asked | probation | followed | refused | rolled_back
    code: Annotated[str, Meta(max_length=12)] = ""
    reason: Text = ""
    bundle: Ref = ""  # what really runs
    digest: Line = ""
    busy: bool = False  # held, or a person asked that nothing changes now


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a command."""

    id: Annotated[str, Meta(max_length=40)]
    state: Literal["done", "failed", "refused"]
    code: Annotated[str, Meta(max_length=12)] = ""
    text: Text = ""


class Call(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device says."""

    seen: Number = 0  # version of the repository's timestamp that it has verified
    known: Line = ""  # digest of its last report that the fleet acknowledged; another one comes along when it differs
    report: Annotated[str, Meta(max_length=262144)] = ""  # signed envelope, when something changed
    slots: Annotated[list[SlotNow], Meta(max_length=64)] = []
    records: Annotated[list[Record], Meta(max_length=RECORDS_MAX)] = []
    outbox: Annotated[str, Meta(max_length=40)] = ""  # name of the outbox that numbers the records
    after: After | None = None  # every record up to this number is gone from the outbox; None = the call has the oldest
    done: Annotated[list[Outcome], Meta(max_length=64)] = []
    wait_s: float = 0.0


class Command(Struct, frozen=True, kw_only=True):
    """Something that the fleet asks of a device; nothing that a signature of the repository must allow."""

    id: str
    kind: Literal["sync", "report", "record", "pause", "resume"]  # pause, resume: follow no assignments for a while
    text: str = ""


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the fleet says."""

    taken: int  # every record up to this number is durable at the fleet; -1 = none yet
    newest: int = 0  # version of the repository's timestamp; above `seen` = there is news
    known: str = ""  # digest of the newest report that it has of this device
    counter: int = 0  # of that report; a device whose own is not above it goes on above it
    head_sequence: int = 0  # the newest head of this device's record that was witnessed
    next_s: float = 60.0  # when to call again, jitter included
    commands: list[Command] = []
    problem: str = ""  # code of why the report that came along was not taken; the rest of the call was
    kinds: list[str] = []  # of records that this fleet takes, beside windows, events and vitals
    neighbours: list[str] = []  # addresses of devices on the same site that serve verified files


# --- by stick ---------------------------------------------------------------------------------------------------------

OutboxName = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


class Carried(Struct, frozen=True, kw_only=True):
    """Records of an outbox as they are signed for a stick."""

    device: Line
    outbox: OutboxName
    after: After  # as in a call
    records: Annotated[list[Record], Meta(min_length=1, max_length=RECORDS_MAX)]


class Receipt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every record of this outbox up to `taken` is durable at the fleet."""

    device: Line
    outbox: OutboxName
    taken: Number
