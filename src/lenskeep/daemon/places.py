"""Where things lie on this device: durable state, this boot's sockets, and the names of files in both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from lenskeep.config import Storage
from lenskeep.errors import ConfigError

SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un has 108 with its closing NUL


class Places(Struct, frozen=True):
    """The two folders and what is in them."""

    state_dir: Path
    runtime_dir: Path

    @classmethod
    def find(cls, storage: Storage, environment: Mapping[str, str]) -> Places:
        """Take the configured folders, else systemd's, else the user's own."""
        home = Path(environment.get("HOME") or "/")
        state = storage.state_dir or environment.get("STATE_DIRECTORY", "").split(":")[0]
        runtime = storage.runtime_dir or environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
        base = environment.get("XDG_RUNTIME_DIR") or f"/tmp/lenskeep-{os.getuid()}"  # noqa: S108 - made 0700 below
        return cls(
            Path(state) if state else home / ".local" / "state" / "lenskeep",
            Path(runtime) if runtime else Path(base) / "lenskeep",
        )

    def make(self) -> None:
        """Create the folders that processes need, closed to strangers.

        Raises: ConfigError when sockets cannot live there.
        """
        longest = len(os.fsencode(self.runtime_dir / ("x" * 31 + ".sock")))
        if longest > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(
                f"storage.runtime_dir: {self.runtime_dir} is too long for the sockets in it.",
                hint="Use a shorter path, such as /run/lenskeep.",
            )
        for folder in (self.state_dir, self.runtime_dir, self.blobs, self.prepared):
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)

    @property
    def registry(self) -> Path:
        """The registry's database."""
        return self.state_dir / "registry.sqlite"

    @property
    def metrics(self) -> Path:
        """The metrics database; losing it loses history, never a decision."""
        return self.state_dir / "metrics.sqlite"

    @property
    def blobs(self) -> Path:
        """Stored bytes by their digests."""
        return self.state_dir / "blobs"

    @property
    def record_head(self) -> Path:
        """The newest signed head of the record; it tells a registry that was put back."""
        return self.state_dir / "record.head.json"

    @property
    def prepared(self) -> Path:
        """Models optimised for this device by their trials."""
        return self.state_dir / "prepared"

    @property
    def identity(self) -> Path:
        """This device's key, its name and its certificate."""
        return self.state_dir / "identity"

    @property
    def trust(self) -> Path:
        """The repository's root as it was given, and what was ever seen of the repository."""
        return self.state_dir / "trust"

    @property
    def incoming(self) -> Path:
        """Bundle files on their way here."""
        return self.state_dir / "incoming"

    def pointer(self, slot: str) -> Path:
        """The slot's pointer file: the last version that proved itself, startable without a database."""
        return self.state_dir / "slots" / f"{slot}.json"

    def plan(self, slot: str) -> Path:
        """What the slot's process was started with."""
        return self.runtime_dir / f"{slot}.plan.json"

    def runner_socket(self, slot: str) -> Path:
        """Where the slot's process listens."""
        return self.runtime_dir / f"{slot}.sock"
