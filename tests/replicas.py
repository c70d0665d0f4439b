"""Replicas of one fleet: real server processes over one PostgreSQL, with one authority."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.fleetrig import FleetServer


class Replica(FleetServer):
    """One of them, in a folder of its own."""

    def __init__(self, folder: Path, database: str, first: FleetServer | None = None, storage: str = "") -> None:
        folder.mkdir()
        super().__init__(folder)
        text = self.config.read_text()
        self.config.write_text(text.replace("[devices]", f'database = "{database}"\n{storage}\n[devices]', 1))
        if first is not None:  # what an administrator does: every replica is given the authority
            target = folder / "state" / "authority"
            target.mkdir(parents=True, mode=0o700)
            for name in ("authority.key", "authority.crt"):
                shutil.copy(first.folder / "state" / "authority" / name, target / name)
