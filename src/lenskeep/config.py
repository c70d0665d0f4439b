"""The device's configuration: one TOML file into frozen structs, refused by name when a word in it is wrong.

Rules. A key is written twice in all: in `config/device.toml` with its comment, and here with its type. No environment
is read here; the roots pass what systemd gave them. A limit carries its unit in its name.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from lenskeep.errors import ConfigError
from lenskeep.permissions import Role, may
from lenskeep.policy import Demand

Positive = Annotated[float, Meta(gt=0)]
Ratio = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=1)]
NatNumber = Annotated[int, Meta(ge=0)]
TEXT_MAX, LINE_MAX = 256 << 10, 4096  # letters
_PLACE = r"^[a-z0-9][a-z0-9-]{0,30}$"
_DEVICE_ID = r"^([a-z0-9][a-z0-9-]{0,62})?$"
_SOURCE = r"^(v4l2:|rtsp://|rtsps://|http://|https://|file:|folder:|synthetic:).+"
_ADDRESS = r"^(https?://[^\s?#]+)?$"
NEIGHBOUR = r"^http://[A-Za-z0-9.\-]{1,253}(:[0-9]{1,5})?$"
NO_PROXY = "none"
_PROXY = r"^(none|http://([A-Za-z0-9.\-]{1,253}|\[[0-9a-fA-F:.]{2,45}\])(:[0-9]{1,5})?/?)?$"
_TIMES = r"^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$"
_LISTED = r"^[a-z0-9][a-z0-9-]{0,62}@([0-9a-z.\-]{1,60}|sha256:[0-9a-f]{64})$"
# What a person is told instead of the pattern.
_IN_WORDS = {
    _PLACE: "up to 31 lower-case letters, digits and hyphens",
    _DEVICE_ID: "up to 63 lower-case letters, digits and hyphens",
    NEIGHBOUR: "an address like http://cam-2:8418",
    _PROXY: 'an address like http://proxy.example:3128 without a login, or "none"',
    _TIMES: "a time of day like 22:00-05:00",
    _LISTED: "NAME@VERSION or NAME@sha256:DIGEST",
    _ADDRESS: "an address like https://fleet.example:8443",
    _SOURCE: "v4l2:PATH, rtsp://…, http://…, file:PATH, folder:PATH or synthetic:SCENE",
}
PlaceName = Annotated[str, Meta(pattern=_PLACE)]


class _Section(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Device(_Section, frozen=True, kw_only=True):
    """[device]"""

    name: Annotated[str, Meta(max_length=64)] = ""
    id: Annotated[str, Meta(pattern=_DEVICE_ID)] = ""


class Storage(_Section, frozen=True, kw_only=True):
    """[storage]"""

    state_dir: str = ""
    runtime_dir: str = ""
    free_mb_min: NatNumber = 200
    keep_versions: NatNumber = 5
    scrub_mb_s: Positive = 4.0
    scrub_days: Positive = 7.0


class Limits(_Section, frozen=True, kw_only=True):
    """[limits]"""

    bundle_mb_max: Count = 4096


class Member(_Section, frozen=True, kw_only=True):
    """[[control.member]]: an account or a group with a role of its own."""

    account: str = ""
    group: str = ""
    role: Role


class Control(_Section, frozen=True, kw_only=True):
    """[control]"""

    port: Annotated[int, Meta(ge=0, le=65535)] = 8417
    anonymous_role: Literal["viewer", "none"] = "viewer"
    group_role: Role = "engineer"
    hosts: list[str] = []
    member: list[Member] = []


class Trust(_Section, frozen=True, kw_only=True):
    """[trust]"""

    root: str = ""
    repository: Annotated[str, Meta(pattern=_ADDRESS)] = ""
    follow: Literal["activate", "stage", "off"] = "activate"
    on_withdrawn: Literal["alarm", "fallback", "stop"] = "alarm"


class Fleet(_Section, frozen=True, kw_only=True):
    """[fleet]"""

    url: Annotated[str, Meta(pattern=_ADDRESS)] = ""
    proxy: Annotated[str, Meta(pattern=_PROXY)] = ""
    proxy_login: Annotated[str, Meta(max_length=512)] = ""
    poll_s: Positive = 60.0
    wait_s: Annotated[float, Meta(ge=0.0, le=120.0)] = 50.0
    outbox_mb: Annotated[int, Meta(ge=1, le=4096)] = 32
    activate_when: list[Annotated[str, Meta(pattern=_TIMES)]] = []
    only_when_idle: bool = False
    download_kb_s: NatNumber = 0
    metered_mb_per_day: NatNumber = 0


class Neighbours(_Section, frozen=True, kw_only=True):
    """[neighbours]"""

    serve: bool = False
    address: str = "0.0.0.0"  # noqa: S104 - neighbours are other machines; it is shut by default
    port: Annotated[int, Meta(ge=0, le=65535)] = 8418
    mb_s: Positive = 8.0
    transfers_max: Count = 4
    ask: Annotated[list[Annotated[str, Meta(pattern=NEIGHBOUR)]], Meta(max_length=16)] = []


class Trial(_Section, frozen=True, kw_only=True):
    """[trial]"""

    memory_mb_max: Count = 2048
    cpu_s_max: Count = 120
    wall_s_max: Count = 180
    frames: Annotated[int, Meta(ge=10, le=10000)] = 100


class Probation(_Section, frozen=True, kw_only=True):
    """[probation]"""

    seconds: Positive = 60.0
    frames_min: Count = 30
    error_ratio_max: Ratio = 0.02
    p99_ratio_max: Annotated[float, Meta(ge=1.0)] = 2.0
    outcome_shift_max: Ratio = 0.30


class MetricsRetention(_Section, frozen=True, kw_only=True):
    """[metrics]"""

    minutes_days: Count = 1
    quarters_days: Count = 7
    hours_days: Count = 90


class Slot(_Section, frozen=True, kw_only=True):
    """[[slot]]"""

    name: PlaceName
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    memory_mb_max: NatNumber = 0
    swap_deadline_s: Positive = 10.0
    result_ring: Annotated[int, Meta(ge=100, le=10_000_000)] = 20000
    crashes_max: Count = 3
    approvals: Annotated[int, Meta(ge=0, le=20)] = 0
    approval_roles: list[Role] = []
    meanings: Annotated[list[Literal["review", "approval", "responsibility"]], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["review", "approval"]
    )
    approve_own: bool = False
    approval_hours: Positive = 72.0
    locked: list[Annotated[str, Meta(pattern=_LISTED)]] = []

    def demand(self) -> Demand:
        """Return what must be so before a version is activated here."""
        return Demand(
            approvals=self.approvals, roles=tuple(self.approval_roles), meanings=tuple(self.meanings),
            own=self.approve_own, hours=self.approval_hours, locked=tuple(self.locked),
        )  # fmt: skip


class Camera(_Section, frozen=True, kw_only=True):
    """[[camera]]"""

    name: PlaceName
    slot: PlaceName = "main"
    source: Annotated[str, Meta(pattern=_SOURCE)]
    loop: bool = True
    pace: Literal["realtime", "fast"] = "realtime"
    fps: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    width_px: NatNumber = 0
    height_px: NatNumber = 0
    open_timeout_s: Positive = 5.0
    read_timeout_s: Positive = 3.0
    frame_age_max_s: Positive = 2.0


class Config(_Section, frozen=True, kw_only=True):
    """The whole file."""

    device: Device = Device()
    storage: Storage = Storage()
    limits: Limits = Limits()
    control: Control = Control()
    trust: Trust = Trust()
    fleet: Fleet = Fleet()
    neighbours: Neighbours = Neighbours()
    trial: Trial = Trial()
    probation: Probation = Probation()
    metrics: MetricsRetention = MetricsRetention()
    slot: list[Slot] = []
    camera: list[Camera] = []

    def cameras_of(self, slot: str) -> list[Camera]:
        """Return the cameras that look for one slot."""
        return [camera for camera in self.camera if camera.slot == slot]


def parse(text: str) -> Config:
    """Read a configuration. Raises: ConfigError naming the key."""
    raw = read_toml(text)
    try:
        config = msgspec.convert(raw, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(_named(str(error))) from error
    _check_places(config)
    return config


def read_toml(text: str) -> dict[str, object]:
    """Read a configuration's words; a text that would keep the reader busy is none. Raises: ConfigError."""
    if len(text) > TEXT_MAX or any(len(line) > LINE_MAX for line in text.splitlines()):
        raise ConfigError(f"The file has over {TEXT_MAX} letters, or over {LINE_MAX} in a line.")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for an integer of 5,000 digits
        raise ConfigError(f"The file is not TOML: {error}.") from error


def load(path: Path) -> Config:
    """Read a configuration file. Raises: ConfigError, also when the file cannot be read."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error


def _named(sentence: str) -> str:
    """Turn msgspec's `$.a.b` path into the words of the file: `a.b: …`."""
    text, separator, path = sentence.partition(" - at `$")
    for pattern, words in _IN_WORDS.items():
        text = text.replace(f"`str` matching regex {pattern!r}", words)
    if not separator:
        return f"{sentence}."
    return f"{path.strip('`').lstrip('.').replace('[...]', '')}: {text}."


def _check_places(config: Config) -> None:
    for kind, names in (
        ("slot", [slot.name for slot in config.slot]),
        ("camera", [camera.name for camera in config.camera]),
    ):
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{kind}.name: {name!r} is used twice.")
    for slot in config.slot:
        for role in slot.approval_roles:
            if not may(role, "approve"):
                raise ConfigError(f"slot.approval_roles: {slot.name!r} names the role {role}, which approves nothing.")
    for member in config.control.member:
        if bool(member.account) == bool(member.group):
            raise ConfigError("control.member: each line names an account or a group, not both.")
    known = {slot.name for slot in config.slot}
    for camera in config.camera:
        if camera.slot not in known:
            raise ConfigError(
                f"camera.slot: camera {camera.name!r} names the slot {camera.slot!r}, which is not there."
            )
