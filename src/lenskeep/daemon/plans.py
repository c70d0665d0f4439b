"""The files that a session of a stored version is built from, and the pointer files that outlive the registry."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from lenskeep.config import Config, Slot
from lenskeep.daemon import pointers
from lenskeep.daemon.places import Places
from lenskeep.database import Database
from lenskeep.messages.runner import BundleRef, SlotPlan
from lenskeep.registry import bundles
from lenskeep.registry.blobs import Blobs, sync_folder, write_durably
from lenskeep.registry.bundles import StoredBundle


class Plans:
    """Makes plans and bundle references."""

    def __init__(self, config: Config, places: Places, database: Database, blobs: Blobs) -> None:
        self._config = config
        self._places = places
        self._database = database
        self._blobs = blobs
        self.runtime_key = pointers.runtime_key()

    def slot_config(self, slot: str) -> Slot:
        """Return the configuration of a slot. Raises: UnknownNameError."""
        return pointers.slot_config(self._config, slot)

    def plan(self, slot: str, bundle: BundleRef | None) -> SlotPlan:
        """Return the plan of a slot that is to run this version."""
        return pointers.slot_plan(self._config, self._places, slot, bundle)

    async def bundle_ref(self, bundle_id: str) -> BundleRef:
        """Return the files that a session of this version is built from."""
        async with self._database.read() as tx:
            bundle = await bundles.get(tx, bundle_id)
            trial = await bundles.newest_trial(tx, bundle_id)
        fits = trial is not None and trial.passed and trial.runtime_key == self.runtime_key and trial.prepared_sha256
        return self._ref(
            bundle,
            prepared=str(self._places.prepared / trial.prepared_file) if trial and fits else "",
            prepared_sha256=trial.prepared_sha256 if trial and fits else "",
            memory_mb=trial.report.memory_mb if trial else 0,
        )

    def _ref(self, bundle: StoredBundle, *, prepared: str, prepared_sha256: str, memory_mb: int) -> BundleRef:
        return BundleRef(
            name=bundle.name, version=bundle.version, digest=bundle.digest, manifest_json=bundle.manifest,
            model_path=str(self._blobs.path(bundle.model_sha256)), model_sha256=bundle.model_sha256,
            prepared_path=prepared, prepared_sha256=prepared_sha256, memory_mb=memory_mb,
        )  # fmt: skip

    async def write_pointer(self, slot: str, bundle: BundleRef) -> None:
        """Remember durably that this version proved itself in this slot."""
        data = msgspec.json.format(msgspec.json.encode(self.plan(slot, bundle)), indent=1)
        await asyncio.to_thread(write_durably, self._places.pointer(slot), data)

    async def remove_pointer(self, slot: str) -> None:
        """Forget durably what a slot starts with."""
        path = self._places.pointer(slot)
        await asyncio.to_thread(path.unlink, missing_ok=True)
        await asyncio.to_thread(sync_folder, path.parent)

    def read_pointer(self, slot: str) -> BundleRef | None:
        """Return the version in the pointer file, if there is a sound one."""
        return pointers.read_pointer(self._places, slot)

    def pointed_files(self) -> set[str]:
        """Return the names of the files that the pointer files need, known to the registry or not."""
        pointed = [ref for entry in self._config.slot if (ref := self.read_pointer(entry.name))]
        return {Path(path).name for ref in pointed for path in (ref.model_path, ref.prepared_path) if path}
