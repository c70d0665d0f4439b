"""What the daemon and its trust process say to each other: length-prefixed msgpack frames over a socket pair.

Rules. The daemon starts the process for one look and sends `Look`; the process asks for files of the repository by
their names in it (`Want`, answered by `Have`), in the order that the standard's workflow asks for them, and ends with
one `Verdict` or one `Refusal`. The process has no network and no registry: what it is not given it does not know.
"""

from __future__ import annotations

from msgspec import Struct


class _Message(Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    pass


class Look(_Message, frozen=True, kw_only=True):
    """Verify the repository's newest metadata against what is trusted so far, and look some targets up in it.

    `stored` holds the metadata that was verified before, by file name: `root.json` (the newest one), `timestamp.json`,
    `snapshot.json`, `targets.json` and delegated roles as `ROLE.json`, the assignment as `devices/DEVICE.json`, and the
    chain of roots after the provisioned one as `roots/N.root.json`: a root counts only through it.
    `bootstrap` is the root that the device was provisioned with. `offline` asks nothing of the source: only what is
    stored is judged.
    """

    bootstrap: bytes
    stored: dict[str, bytes]
    now_s: float  # max(wall clock, floor): nothing that expired before it is accepted
    device: str = ""  # look `devices/DEVICE.json` up and fetch it
    paths: list[str] = []  # further target paths to look up, e.g. `models/cap-inspect/1.1.0.lkb`
    offline: bool = False
    partly: bool = False  # a publisher's role that is refused costs its own paths only: `Verdict.unproven`


class Want(_Message, frozen=True, kw_only=True):
    """Ask for one file, e.g. `metadata/2.root.json` or `targets/devices/HASH.cam-1.json`."""

    name: str
    bytes_max: int


class Have(_Message, frozen=True, kw_only=True):
    """Answer a `Want`; None: the source says that there is no such file."""

    data: bytes | None


class Failed(_Message, frozen=True, kw_only=True):
    """Answer a `Want` that could not be fetched: the look ends with this fault."""

    code: str
    message: str


class RoleView(_Message, frozen=True, kw_only=True):
    """One role as it is trusted now."""

    name: str  # root, timestamp, snapshot, targets, or a delegated role
    version: int
    expires_s: float
    threshold: int
    keys: list[str]  # ids as in bundle signatures: sha256 of the PEM text
    paths: list[str] = []  # a delegated role's patterns


class Delegation(_Message, frozen=True, kw_only=True):
    """One publisher role as `targets` delegates to it, whether or not its own metadata was needed; in their order."""

    role: str
    paths: list[str]
    keys: list[str]  # PEM texts
    threshold: int
    terminating: bool


class Listing(_Message, frozen=True, kw_only=True):
    """A target that a role lists: what the file must be, and whose signature inside it counts."""

    path: str
    role: str
    length_bytes: int
    sha256: str
    keys: list[str]  # PEM texts of the role's keys
    expires_s: float  # the earliest expiry among root, timestamp, snapshot, targets and the role


class Unproven(_Message, frozen=True, kw_only=True):
    """A path about which nothing can be said now, because a role on the way to it is refused."""

    path: str
    role: str
    code: str
    message: str


class Verdict(_Message, frozen=True, kw_only=True):
    """What is trusted now."""

    roles: list[RoleView]
    issued_s: float  # signed time of the newest timestamp: it has passed; 0 = the timestamp does not say
    stored: dict[str, bytes]  # to be kept for the next look, in the form of `Look.stored`
    delegations: list[Delegation]
    listings: list[Listing]
    unlisted: list[str]  # paths that were asked for and that nobody lists
    unproven: list[Unproven] = []  # neither listed nor unlisted
    assignment: bytes | None = None  # the verified bytes of `devices/DEVICE.json`


class Refusal(_Message, frozen=True, kw_only=True):
    """Nothing new is trusted; what was stored stays as it was, but for `stored` (verified before the refusal)."""

    code: str
    message: str
    role: str = ""
    stored: dict[str, bytes] = {}
    roles: list[RoleView] = []  # what is trusted as far as it was verified


FromTrust = Want | Verdict | Refusal
ToTrust = Look | Have | Failed
