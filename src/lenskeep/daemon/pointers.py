"""Plans and pointer files: what a slot's process is started with, from the configuration and one small file.

The pointer file names the last version that proved itself in a slot. It is written when a version settles and is a
complete plan, so a slot can be started with no database and before the daemon's heavy parts are even imported.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec
from msgspec import Struct

from lenskeep.config import Camera, Config, Slot
from lenskeep.daemon.places import Places
from lenskeep.errors import UnknownNameError
from lenskeep.messages.runner import BundleRef, CameraPlan, SlotPlan

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
    return f"{_runtime()}-{hashlib.sha256(repr(cpu).encode()).hexdigest()[:12]}"


def _runtime() -> str:
    """Name ONNX Runtime's build by its metadata folder: reading it properly costs more than starting the line."""
    found = find_spec("onnxruntime")
    assert found is not None and found.origin is not None, "the device extra is not installed"
    folders = Path(found.origin).parent.parent.glob("onnxruntime*.dist-info")
    return "+".join(sorted(folder.name.removesuffix(".dist-info") for folder in folders))


def camera_plan(camera: Camera) -> CameraPlan:
    """Say a camera of the configuration in the words of the runner."""
    fields = {name: getattr(camera, name) for name in camera.__struct_fields__ if name != "slot"}
    return CameraPlan(**fields)


def slot_config(config: Config, slot: str) -> Slot:
    """Return the configuration of a slot. Raises: UnknownNameError."""
    for entry in config.slot:
        if entry.name == slot:
            return entry
    raise UnknownNameError(f"No slot is named {slot!r}.")


def slot_plan(config: Config, places: Places, slot: str, bundle: BundleRef | None) -> SlotPlan:
    """Return the plan of a slot that is to run this version."""
    entry = slot_config(config, slot)
    return SlotPlan(
        slot=slot, socket_path=str(places.runner_socket(slot)),
        cameras=[camera_plan(camera) for camera in config.cameras_of(slot)], bundle=bundle,
        threads=entry.threads, memory_max_mb=entry.memory_mb_max, swap_deadline_s=entry.swap_deadline_s,
        result_ring=entry.result_ring, store=[str(places.blobs), str(places.prepared)],
    )  # fmt: skip


def read_pointer(places: Places, slot: str) -> BundleRef | None:
    """Return the version in the pointer file, if there is a sound one."""
    path = places.pointer(slot)
    try:
        bundle = msgspec.json.decode(path.read_bytes(), type=SlotPlan).bundle
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("pointer file %s cannot be used: %s", path, error)
        return None
    if bundle is not None and runtime_key() not in bundle.prepared_path:
        return msgspec.structs.replace(bundle, prepared_path="", prepared_sha256="")
    return bundle


def spawn_runner(plan: SlotPlan, plan_path: Path) -> subprocess.Popen[bytes]:
    """Start a slot's process. Cost: a few milliseconds."""
    plan_path.write_bytes(msgspec.json.encode(plan))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NOTIFY")}
    return subprocess.Popen(
        [sys.executable, "-m", "lenskeep.runner", str(plan_path)], stdin=subprocess.DEVNULL, env=environment,
        start_new_session=True,  # a signal to the daemon's group is not meant for the cameras
    )  # fmt: skip


class HeadStart(Struct, frozen=True):
    """A process that was started from its pointer file before anybody had decided."""

    process: subprocess.Popen[bytes]
    bundle: BundleRef


def start_from_pointers(config: Config, places: Places) -> dict[str, HeadStart]:
    """Start every slot that has a pointer file and no process yet: the line comes up while the daemon is imported.

    The decision stays with the registry: a process that runs another version than it says is ended and started anew.
    """
    started = {}
    for slot in config.slot:
        if places.runner_socket(slot.name).exists():
            continue  # an earlier daemon's process, or what it left; dialling tells
        bundle = read_pointer(places, slot.name)
        if bundle is not None:
            plan = slot_plan(config, places, slot.name, bundle)
            started[slot.name] = HeadStart(spawn_runner(plan, places.plan(slot.name)), bundle)
    return started
