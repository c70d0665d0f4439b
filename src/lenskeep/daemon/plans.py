"""What a slot's process is started with, from the registry, or from the slot's pointer file when there is no registry.

The pointer file names the last version that proved itself. It is written when a version settles, and it is a complete
plan: a runner can be started from it with no database and no daemon.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from importlib.metadata import version
from pathlib import Path

import msgspec

from lenskeep.config import Camera, Config, Slot
from lenskeep.daemon.places import Places
from lenskeep.database import Database
from lenskeep.errors import UnknownNameError
from lenskeep.messages.runner import BundleRef, CameraPlan, SlotPlan
from lenskeep.registry import bundles
from lenskeep.registry.blobs import Blobs, write_durably
from lenskeep.registry.bundles import StoredBundle

log = logging.getLogger(__name__)


def runtime_key() -> str:
    """Name what a prepared model depends on: ONNX Runtime's version and this machine's processor.

    An optimised model may be wrong or slow on another processor or runtime, so it is used only under the same key.
    """
    cpu = sorted(
        {
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            if line.startswith(("model name", "flags", "CPU part", "Features"))
        }
    )
    return f"ort-{version('onnxruntime')}-{hashlib.sha256(repr(cpu).encode()).hexdigest()[:12]}"


def camera_plan(camera: Camera) -> CameraPlan:
    """Say a camera of the configuration in the words of the runner."""
    fields = {name: getattr(camera, name) for name in camera.__struct_fields__ if name != "slot"}
    return CameraPlan(**fields)


class Plans:
    """Makes plans and bundle references."""

    def __init__(self, config: Config, places: Places, database: Database | None, blobs: Blobs) -> None:
        self._config = config
        self._places = places
        self._database = database
        self._blobs = blobs
        self.runtime_key = runtime_key()

    def slot_config(self, slot: str) -> Slot:
        """Return the configuration of a slot. Raises: UnknownNameError."""
        for entry in self._config.slot:
            if entry.name == slot:
                return entry
        raise UnknownNameError(f"No slot is named {slot!r}.")

    async def bundle_ref(self, bundle_id: str) -> BundleRef:
        """Return the files that a session of this version is built from."""
        assert self._database is not None
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

    def plan(self, slot: str, bundle: BundleRef | None) -> SlotPlan:
        """Return the plan of a slot that is to run this version."""
        entry = self.slot_config(slot)
        return SlotPlan(
            slot=slot, socket_path=str(self._places.runner_socket(slot)),
            cameras=[camera_plan(camera) for camera in self._config.cameras_of(slot)], bundle=bundle,
            threads=entry.threads, memory_max_mb=entry.memory_mb_max, swap_deadline_s=entry.swap_deadline_s,
            result_ring=entry.result_ring,
        )  # fmt: skip

    async def write_pointer(self, slot: str, bundle: BundleRef) -> None:
        """Remember durably that this version proved itself in this slot."""
        data = msgspec.json.format(msgspec.json.encode(self.plan(slot, bundle)), indent=1)
        await asyncio.to_thread(write_durably, self._places.pointer(slot), data)

    def pointed_files(self) -> set[str]:
        """Return the names of the files that the pointer files need, known to the registry or not."""
        pointed = [ref for entry in self._config.slot if (ref := self.read_pointer(entry.name))]
        return {Path(path).name for ref in pointed for path in (ref.model_path, ref.prepared_path) if path}

    def read_pointer(self, slot: str) -> BundleRef | None:
        """Return the version in the pointer file, if there is a sound one."""
        path = self._places.pointer(slot)
        try:
            return msgspec.json.decode(path.read_bytes(), type=SlotPlan).bundle
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("pointer file %s cannot be used: %s", path, error)
            return None
