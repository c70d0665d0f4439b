"""The fleet server's configuration: one TOML file into frozen structs, refused by name when a word in it is wrong.

Rules. A key is written twice in all: in `config/fleet.toml` with its comment, and here with its type.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from lenskeep.config import read_toml
from lenskeep.errors import ConfigError
from lenskeep.fleet.store.proving import Proofs

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
NAME = "lenskeep-fleet"


class _Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Storage(_Section, frozen=True, kw_only=True):
    """[storage]"""

    state_dir: str = ""
    runtime_dir: str = ""
    repository: str = ""
    database: str = "sqlite"
    database_password: str = ""
    database_ca: str = ""
    database_certificate: str = ""
    database_key: str = ""
    blobs: str = "folder"
    blobs_endpoint: str = ""
    blobs_region: str = "us-east-1"
    blobs_key_id: str = ""
    blobs_secret: str = ""

    def proofs(self) -> Proofs:
        """Return how the database and the fleet prove themselves to each other."""
        return Proofs(self.database_ca, self.database_certificate, self.database_key)


class Devices(_Section, frozen=True, kw_only=True):
    """[devices]"""

    address: str = "0.0.0.0"  # noqa: S104 - devices are anywhere; the door asks for certificates
    port: Port = 8443
    plain_port: Port = 0


class Operators(_Section, frozen=True, kw_only=True):
    """[operators]"""

    port: Port = 0
    group_role: Literal["viewer", "auditor", "operator", "admin"] = "operator"


class Online(_Section, frozen=True, kw_only=True):
    """[online]"""

    keys: list[str] = []


class Certificates(_Section, frozen=True, kw_only=True):
    """[certificates]"""

    days: Annotated[int, Meta(ge=1, le=825)] = 365


class SyncSettings(_Section, frozen=True, kw_only=True):
    """[sync]"""

    heartbeat_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    connections_per_second: Count = 300


class Limits(_Section, frozen=True, kw_only=True):
    """[limits]"""

    enrolments_per_minute: Count = 10
    request_s_max: Annotated[float, Meta(gt=0)] = 20.0
    idle_s_max: Annotated[float, Meta(gt=0)] = 75.0
    reports_kept: Count = 200
    record_mb_per_device: Annotated[int, Meta(ge=1, le=4096)] = 256
    silent_s: Annotated[float, Meta(gt=0)] = 900.0


class FleetConfig(_Section, frozen=True, kw_only=True):
    """The whole file."""

    storage: Storage = Storage()
    devices: Devices = Devices()
    operators: Operators = Operators()
    online: Online = Online()
    certificates: Certificates = Certificates()
    sync: SyncSettings = SyncSettings()
    limits: Limits = Limits()


class FleetPlaces(Struct, frozen=True):
    """Where things lie on the fleet's machine."""

    state_dir: Path
    runtime_dir: Path
    repository: Path

    @classmethod
    def find(cls, storage: Storage, environment: Mapping[str, str]) -> FleetPlaces:
        """Take the configured folders, else systemd's, else the user's own."""
        home = Path(environment.get("HOME") or "/")
        state = storage.state_dir or environment.get("STATE_DIRECTORY", "").split(":")[0]
        runtime = storage.runtime_dir or environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
        base = environment.get("XDG_RUNTIME_DIR") or f"/tmp/lenskeep-{os.getuid()}"  # noqa: S108 - made 0750 below
        state_dir = Path(state) if state else home / ".local" / "state" / NAME
        repository = Path(storage.repository) if storage.repository else state_dir / "repository"
        return cls(state_dir, Path(runtime) if runtime else Path(base) / NAME, repository)

    def make(self) -> None:
        """Create the folders, closed to strangers. Raises: ConfigError."""
        try:
            for folder in (self.state_dir, self.runtime_dir, self.repository):
                folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        except OSError as error:
            raise ConfigError(f"storage: {error.filename} cannot be made: {error.strerror}.") from error

    @property
    def database(self) -> Path:
        """The fleet's database."""
        return self.state_dir / "fleet.sqlite"

    @property
    def authority(self) -> Path:
        """The keys and certificates of the authority and of the server."""
        return self.state_dir / "authority"

    @property
    def socket(self) -> Path:
        """The operators' door."""
        return self.runtime_dir / "fleet.sock"


def parse(text: str) -> FleetConfig:
    """Read a configuration. Raises: ConfigError naming the key."""
    raw = read_toml(text)
    try:
        return msgspec.convert(raw, FleetConfig, strict=True)
    except msgspec.ValidationError as error:
        sentence, _, path = str(error).partition(" - at `$")
        raise ConfigError(f"{path.strip('`').lstrip('.')}: {sentence}." if path else f"{sentence}.") from error


def load(path: Path) -> FleetConfig:
    """Read a configuration file. Raises: ConfigError, also when the file cannot be read."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
