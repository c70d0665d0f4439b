"""The daemon's end of one slot's process: start it or find it again, listen, ask, and notice when it dies or hangs.

A process that lives when the daemon starts is adopted by dialling its socket: the cameras never stopped. One that
died is news for the supervisor, which asks what to run next before it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from lenskeep.clock import Clock
from lenskeep.daemon import pointers
from lenskeep.errors import ProcessFailedError, SwapRefusedError, TimedOutError, fault_book
from lenskeep.messages.runner import (
    FRAME_BYTES_MAX,
    LENGTH_BYTES,
    Acknowledge,
    Back,
    Beat,
    FromRunner,
    Picture,
    Results,
    SlotPlan,
    Stop,
    Swap,
    SwapFailed,
    Swapped,
    decoder,
    frame,
)

log = logging.getLogger(__name__)

BEAT_MAX_S = 10.0  # twice a second is promised
PROGRESS_MAX_S = 20.0  # a slot with pictures and no reason to pause
START_MAX_S = 20.0
REDIAL_S = 5.0
STOP_MAX_S = 5.0
ENDING_MAX_S = 2.0  # between the end of the connection and the end of the process

State = Literal["starting", "running", "adopted", "restarting", "stopped"]


class RunnerProcess:
    """One slot's process, whoever started it."""

    def __init__(self, slot: str, socket_path: Path, clock: Clock, hear: Callable[[str, Any], None]) -> None:
        self.slot = slot
        self.state: State = "starting"
        self.beat: Beat | None = None
        self._socket_path = socket_path
        self._clock = clock
        self._hear = hear
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[str, asyncio.Future[Swapped]] = {}
        self._beat_at = 0.0
        self._progress_at = 0.0
        self.connected = asyncio.Event()
        self._beaten = asyncio.Event()

    # --- life -----------------------------------------------------------------------------------------------------

    async def adopt(self) -> bool:
        """Dial a process that an earlier daemon left; say whether there was one."""
        try:
            await self._dial()
        except OSError:
            return False
        self.state = "adopted"
        return True

    async def start(self, plan: SlotPlan, plan_path: Path) -> None:
        """Start the process and dial it. Raises: ProcessFailedError."""
        await self.take(await asyncio.to_thread(pointers.spawn_runner, plan, plan_path))

    async def take(self, process: subprocess.Popen[bytes]) -> None:
        """Dial a process that has just been started. Raises: ProcessFailedError."""
        self._process = process
        deadline = self._clock.monotonic_s() + START_MAX_S
        while True:
            try:
                await self._dial()
                break
            except OSError as error:
                if process.poll() is not None:
                    raise ProcessFailedError(f"The process of slot {self.slot} {self._ended()}.") from error
                if self._clock.monotonic_s() > deadline:
                    self.kill()
                    raise ProcessFailedError(f"The process of slot {self.slot} did not answer.") from error
                await asyncio.sleep(0.02)
        self.state = "running"

    async def _dial(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._socket_path), limit=1 << 20)
        peer: socket.socket = writer.get_extra_info("socket")
        self._pid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self._writer = writer
        self._beat_at = self._progress_at = self._clock.monotonic_s()
        self._reader = reader
        self.connected.set()

    async def listen(self) -> str:
        """Hear the process until it is gone; return how it ended."""
        while True:
            began = self._clock.monotonic_s()
            await self._hear_until_broken()
            if not await self._found_again(began):
                return await self._how_it_ended()

    async def _hear_until_broken(self) -> None:
        decode = decoder(FromRunner).decode
        try:
            while True:
                size = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
                if size > FRAME_BYTES_MAX:
                    raise ConnectionError("a message is too large")
                self._take(decode(await self._reader.readexactly(size)))
        except (OSError, asyncio.IncompleteReadError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.debug("slot %s: connection ended: %r", self.slot, error)
        finally:
            self._close()

    async def _found_again(self, began: float) -> bool:
        """Dial once more a process that outlived its connection, unless connections break in a row."""
        if self.state == "stopped" or self._clock.monotonic_s() - began < REDIAL_S:
            return False
        try:
            await self._dial()
        except OSError:
            return False
        log.warning("slot %s: the connection broke and was made again", self.slot)
        return True

    def line(self) -> str:
        """Say in a few words what the slot does, for systemd's status line."""
        if self.beat is None:
            return f"{self.slot}: {self.state}"
        return f"{self.slot}: {self.beat.active or 'no model'} {self.beat.reason}".strip()

    async def _how_it_ended(self) -> str:
        """Say how the process ended; one that lives on without its connection is ended."""
        child = self._process is not None and self._process.pid == self._pid
        if not await self._gone(ENDING_MAX_S if child else 0.0):
            self.kill()
            await self._gone(STOP_MAX_S)
        return self._ended() if child else "ended"  # of an adopted process there is no exit status

    async def _gone(self, seconds: float) -> bool:
        deadline = self._clock.monotonic_s() + seconds
        while _alive(self._pid, self._process):
            if self._clock.monotonic_s() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def _ended(self) -> str:
        code = self._process.poll() if self._process else None
        if code is None:
            return "ended"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def _close(self) -> None:
        self.connected.clear()
        self._beaten.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self.beat = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(SwapRefusedError(f"The process of slot {self.slot} died during the exchange."))
        self._waiting.clear()

    def kill(self) -> None:
        """End the process at once."""
        pid = self._pid or (self._process.pid if self._process is not None else 0)
        if pid and _alive(pid, self._process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End the process orderly, or after a few seconds at once; its socket goes too, which it may not remove."""
        self.state = "stopped"
        self.say(Stop())
        if not self._writer or not await self._gone(STOP_MAX_S):
            self.kill()
        self._socket_path.unlink(missing_ok=True)

    # --- talk -----------------------------------------------------------------------------------------------------

    def say(self, message: msgspec.Struct) -> None:
        """Send a message; a process that does not read is noticed by its beat."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    def acknowledge(self, run: str, sequence: int) -> None:
        """Tell the process that these results are stored."""
        self.say(Acknowledge(run=run, sequence=sequence))

    async def exchange(self, message: Swap | Back, timeout_s: float) -> Swapped:
        """Ask for an exchange and wait until it took place.

        Raises: SwapRefusedError and its kin with the runner's own fault code; TimedOutError.
        """
        if self._writer is None:
            raise SwapRefusedError(f"The process of slot {self.slot} is not running now.")
        waiting: asyncio.Future[Swapped] = asyncio.get_running_loop().create_future()
        self._waiting[message.op] = waiting
        self.say(message)
        left_s = timeout_s
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=1.0)
                left_s -= 0.0 if self.beat is not None and self.beat.held else 1.0  # held: the line decides when
                if left_s <= 0 and not waiting.done():
                    raise TimedOutError(f"Slot {self.slot} did not report the exchange in {timeout_s:.0f} s.")
            return waiting.result()
        finally:
            self._waiting.pop(message.op, None)

    def _take(self, message: Any) -> None:
        match message:
            case Beat():
                self._note_beat(message)
            case Swapped():
                self._note_exchange(message)
                if message.op in self._waiting:
                    self._waiting[message.op].set_result(message)
            case SwapFailed() if message.op in self._waiting:
                fault = fault_book().get(message.code, SwapRefusedError)
                self._waiting[message.op].set_exception(fault(message.message))
            case Results() | Picture():
                pass
        self._hear(self.slot, message)

    def _note_beat(self, beat: Beat) -> None:
        now = self._clock.monotonic_s()
        if self.beat is None or beat.frames != self.beat.frames or beat.reason:
            self._progress_at = now
        self._beat_at, self.beat = now, beat
        self._beaten.set()

    def _note_exchange(self, swapped: Swapped) -> None:
        """Say at once what runs, not only with the next beat."""
        beat = self.beat
        if beat is not None and beat.active != swapped.bundle:
            self.beat = msgspec.structs.replace(
                beat, active=swapped.bundle, digest=swapped.digest, previous=beat.active, previous_digest=beat.digest
            )

    async def first_beat(self) -> Beat | None:
        """Wait until the process has said what it runs; None when it does not."""
        try:
            async with asyncio.timeout(BEAT_MAX_S / 2):
                await self._beaten.wait()
        except TimeoutError:
            return None
        return self.beat

    def trouble(self) -> str:
        """Say why the process must be considered hung, or nothing."""
        if not self.connected.is_set():
            return ""
        now = self._clock.monotonic_s()
        if now - self._beat_at > BEAT_MAX_S:
            return f"no sign of life for {now - self._beat_at:.0f} s"
        if now - self._progress_at > PROGRESS_MAX_S:
            return f"no frame judged for {now - self._progress_at:.0f} s though there are pictures"
        return ""


def _alive(pid: int, child: subprocess.Popen[bytes] | None) -> bool:
    if child is not None and child.pid == pid:
        return child.poll() is None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return bool(pid)
