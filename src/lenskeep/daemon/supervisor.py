"""Keeps one process alive per slot: starts it, adopts it after a crash of the daemon, restarts it with growing pauses.

What to run is not decided here: before a restart the activator hears of the crash and answers with the version.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import msgspec

from lenskeep.clock import Clock
from lenskeep.config import Config
from lenskeep.daemon.events import Events
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.places import Places
from lenskeep.daemon.plans import Plans
from lenskeep.daemon.pointers import HeadStart, camera_plan
from lenskeep.daemon.runner_process import RunnerProcess
from lenskeep.errors import CameraError, ProcessFailedError, TimedOutError, UnknownNameError
from lenskeep.messages.runner import (
    Acknowledge,
    Beat,
    BundleRef,
    Hold,
    Picture,
    Preview,
    Results,
    Swap,
    SwapFailed,
    Swapped,
)

log = logging.getLogger(__name__)

BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
CRASH_SPAN_S = 60.0
PREVIEW_S = 5.0
INSTEAD = "instead"
AT_START = ("", INSTEAD)  # orders that nobody waits for: the first version of a process, and one instead of it
PROBE_MARGIN_S = 10.0


class Decider(Protocol):
    """Who decides what a slot runs."""

    async def on_start(self, slot: str, beat: Beat | None) -> BundleRef | None:
        """Say what to start with; `beat` is what an adopted process says it runs."""

    async def on_crash(self, slot: str, how: str, recent: int) -> BundleRef | None:
        """Say what to run after a crash, the `recent`-th within a minute."""

    async def on_reflex(self, slot: str, swapped: Swapped) -> None:
        """Hear that a process went back to its previous version by itself."""

    async def on_unloadable(self, slot: str, failed: SwapFailed) -> BundleRef | None:
        """Hear that a process could not load what it was started with; say what it shall load instead."""


class Supervisor:
    """All slots' processes."""

    def __init__(
        self, config: Config, places: Places, plans: Plans, metrics: Metrics, events: Events, clock: Clock,
        head_starts: dict[str, HeadStart],
    ) -> None:  # fmt: skip
        self._config = config
        self._places = places
        self._plans = plans
        self._metrics = metrics
        self._events = events
        self._clock = clock
        self._head_starts = head_starts
        self._viewers: dict[str, set[asyncio.Queue[Picture]]] = {}
        self._camera_codes: dict[tuple[str, str], str] = {}
        self._news: asyncio.Queue[tuple[str, Swapped | SwapFailed]] = asyncio.Queue()
        self.processes = {
            slot.name: RunnerProcess(slot.name, places.runner_socket(slot.name), clock, self._hear)
            for slot in config.slot
        }

    # --- life -----------------------------------------------------------------------------------------------------

    async def run(self, decider: Decider) -> None:
        """Serve every slot until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for process in self.processes.values():
                tasks.create_task(self._serve(process, decider), name=f"slot {process.slot}")
            tasks.create_task(self._acknowledge())
            tasks.create_task(self._watch())
            tasks.create_task(self._tell(decider))

    async def _serve(self, process: RunnerProcess, decider: Decider) -> None:
        crashes: deque[float] = deque()
        found = None if process.slot in self._head_starts else await self._adopt(process)
        bundle = await decider.on_start(process.slot, await process.first_beat() if found else None)
        found = found or await self._take_head_start(process, bundle)
        while True:
            how = await (found or self._one_life(process, bundle))
            found = None
            if process.state == "stopped":
                return
            now = self._clock.monotonic_s()
            crashes.append(now)
            while crashes[0] < now - CRASH_SPAN_S:
                crashes.popleft()
            process.state = "restarting"
            error = ProcessFailedError(f"The process of slot {process.slot} {how}; it is started again.")
            log.error("%s %s", error.code, error)
            self._events.publish("fault", {"slot": process.slot, "code": error.code, "message": str(error)})
            bundle = await decider.on_crash(process.slot, how, len(crashes))
            await asyncio.sleep(BACKOFF_S[min(len(crashes), len(BACKOFF_S)) - 1])

    async def _adopt(self, process: RunnerProcess) -> asyncio.Task[str] | None:
        if not await process.adopt():
            return None
        log.info("slot %s: its process was found running and is adopted", process.slot)
        return asyncio.create_task(self._listen(process))

    async def _take_head_start(self, process: RunnerProcess, bundle: BundleRef | None) -> asyncio.Task[str] | None:
        """Take over the process that was started from the pointer file, when it runs what was decided."""
        head = self._head_starts.pop(process.slot, None)
        if head is None:
            return None
        if bundle is None or (head.bundle.ref, head.bundle.digest) != (bundle.ref, bundle.digest):
            log.info("slot %s: its pointer file named another version than the registry", process.slot)
            head.process.kill()
            await asyncio.to_thread(head.process.wait)
            return None
        try:
            await process.take(head.process)
        except ProcessFailedError as error:
            log.warning("%s %s", error.code, error)
            return None
        return asyncio.create_task(self._listen(process))

    async def _one_life(self, process: RunnerProcess, bundle: BundleRef | None) -> str:
        process.state = "starting"
        try:
            await process.start(self._plans.plan(process.slot, bundle), self._places.plan(process.slot))
        except ProcessFailedError as error:
            return f"did not start: {error}"
        return await self._listen(process)

    async def _listen(self, process: RunnerProcess) -> str:
        process.acknowledge(*self._metrics.position(process.slot))
        return await process.listen()

    async def stop(self) -> None:
        """End all processes orderly."""
        await asyncio.gather(*(process.stop() for process in self.processes.values()))

    # --- what processes say ---------------------------------------------------------------------------------------

    def _hear(self, slot: str, message: Any) -> None:
        match message:
            case Results():
                self._metrics.take(slot, message)
            case Beat():
                self._note_cameras(slot, message)
            case Picture():
                for queue in self._viewers.get(message.camera, ()):
                    if queue.full():
                        queue.get_nowait()
                    queue.put_nowait(message)
            case Swapped() if message.reflex:
                self._news.put_nowait((slot, message))
            case SwapFailed() if message.op in AT_START:
                self._news.put_nowait((slot, message))

    def _note_cameras(self, slot: str, beat: Beat) -> None:
        for camera in beat.cameras:
            if self._camera_codes.get((slot, camera.name), "") != camera.code:
                self._camera_codes[slot, camera.name] = camera.code
                self._events.publish("camera", camera)
                log.log(
                    logging.WARNING if camera.code else logging.INFO,
                    "%s camera %s is %s %s", camera.code or "ok", camera.name, camera.state, camera.message,
                )  # fmt: skip

    async def _tell(self, decider: Decider) -> None:
        while True:
            slot, message = await self._news.get()
            if isinstance(message, Swapped):
                await decider.on_reflex(slot, message)
            elif (instead := await decider.on_unloadable(slot, message)) is not None:
                self.processes[slot].say(Swap(op=INSTEAD, bundle=instead))

    async def _acknowledge(self) -> None:
        """Tell runners what is durable, so that their rings stay short."""
        told: dict[str, tuple[str, int]] = {}
        while True:
            await asyncio.sleep(0.5)
            for slot, position in self._metrics.durable.items():
                if told.get(slot) != position and slot in self.processes:
                    self.processes[slot].say(Acknowledge(run=position[0], sequence=position[1]))
                    told[slot] = position

    async def _watch(self) -> None:
        """End a process that hangs; its death is then handled like any other."""
        while True:
            await asyncio.sleep(1)
            for process in self.processes.values():
                if trouble := process.trouble():
                    log.error("LK-3001 slot %s: %s; the process is ended", process.slot, trouble)
                    process.kill()

    # --- what others ask ------------------------------------------------------------------------------------------

    def process(self, slot: str) -> RunnerProcess:
        """Return a slot's process. Raises: UnknownNameError."""
        if slot not in self.processes:
            raise UnknownNameError(f"No slot is named {slot!r}.")
        return self.processes[slot]

    def hold(self, slot: str, held: bool) -> None:
        """Tell a process to hold swaps, or to let them go on."""
        self.process(slot).say(Hold(held=held))

    def healthy(self) -> bool:
        """Say whether every slot makes progress or is being brought back: what the watchdog is fed with."""
        return not any(process.trouble() for process in self.processes.values())

    def _camera_slot(self, camera: str) -> str:
        for entry in self._config.camera:
            if entry.name == camera:
                return entry.slot
        raise UnknownNameError(f"No camera is named {camera!r}.")

    async def pictures(self, camera: str, fps: float) -> AsyncGenerator[Picture, None]:
        """Yield preview pictures while the caller listens; the runner makes none when nobody does."""
        process = self.process(self._camera_slot(camera))
        queue: asyncio.Queue[Picture] = asyncio.Queue(2)
        viewers = self._viewers.setdefault(camera, set())
        viewers.add(queue)
        try:
            asked_at = float("-inf")
            while True:
                now = self._clock.monotonic_s()
                if now - asked_at > PREVIEW_S / 2:
                    process.say(Preview(camera=camera, fps=fps, seconds=PREVIEW_S))
                    asked_at = now
                try:
                    async with asyncio.timeout(PREVIEW_S / 2):
                        picture = await queue.get()
                except TimeoutError:
                    continue
                yield picture
        finally:
            viewers.discard(queue)

    async def snapshot(self, camera: str, timeout_s: float = 5.0) -> Picture:
        """Return the next judged picture of a camera. Raises: CameraError when none comes in time."""
        pictures = self.pictures(camera, 5.0)
        try:
            async with asyncio.timeout(timeout_s):
                return await anext(pictures)
        except TimeoutError:
            raise CameraError(f"Camera {camera} gave no picture in {timeout_s:.0f} s.") from None
        finally:
            await pictures.aclose()

    async def probe(self, camera: str, seconds: float) -> dict[str, Any]:
        """Open a camera in a process of its own and measure it."""
        slot = self._camera_slot(camera)
        entry = next(one for one in self._config.cameras_of(slot) if one.name == camera)
        if entry.source.startswith("v4l2:") and (seen := self._running(slot, camera)):
            return seen  # such a camera can be opened once; the line has it
        plan = msgspec.json.encode(camera_plan(entry)).decode()
        timeout_s = seconds + entry.open_timeout_s + entry.read_timeout_s + PROBE_MARGIN_S
        return await self._probe_child(timeout_s, "probe", plan, "--seconds", str(seconds))

    def _running(self, slot: str, camera: str) -> dict[str, Any] | None:
        """Say what the line measures of a camera, when it delivers."""
        beat = self.processes[slot].beat
        for state in beat.cameras if beat else ():
            if state.name == camera and state.state == "running":
                return {
                    "camera": camera, "source": "in use by the line", "live": True, "ok": True, "code": "",
                    "message": "", "hint": "", "fps": state.fps, "width_px": state.width_px,
                    "height_px": state.height_px, "frames": state.frames,
                }  # fmt: skip
        return None

    async def list_devices(self) -> list[dict[str, Any]]:
        """Return the cameras that the operating system knows."""
        return list((await self._probe_child(PROBE_MARGIN_S, "list")).get("devices", []))

    async def _probe_child(self, timeout_s: float, *words: str) -> dict[str, Any]:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "lenskeep.runner.probe", *words, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                output, _ = await child.communicate()
        except TimeoutError:
            child.kill()
            raise TimedOutError("The camera did not answer the test.", hint=CameraError.hint) from None
        try:
            answer: dict[str, Any] = json.loads(output)
        except ValueError:
            raise CameraError(f"The camera test ended without an answer (code {child.returncode}).") from None
        return answer
