"""The thread that speaks with the daemon: results about every 20 ms, a beat twice a second, news as it comes.

Rules. It never waits for the daemon and the loop never waits for it. A newer connection replaces an older one and is
told everything that was not acknowledged. Without a daemon it keeps quiet and goes on watching cameras and swaps.
It also hears the signals: a loop that is stuck in native code cannot run a Python signal handler.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from typing import Protocol

from lenskeep.messages.runner import Acknowledge, Beat, FromRunner, Picture, Results, Stop, ToRunner
from lenskeep.runner.nudge import Nudge
from lenskeep.runner.ring import ResultRing
from lenskeep.runner.wire import Channel, HungUpError

log = logging.getLogger(__name__)

BUSY_TICK_S = 0.02
BUSY_S = 1.5  # how long after the last result the next one is expected
IDLE_TICK_S = 0.1
BEAT_S = 0.5
STOP_MAX_S = 1.5  # then the process is ended from here
FLUSH_MAX_S = 0.3
STUCK_EXIT = 71  # see ExitCode in __main__


class Served(Protocol):
    """What the reporter reports about, and whom it passes orders to."""

    news: deque[FromRunner]
    pictures: dict[str, Picture]

    def hear(self, message: ToRunner) -> None:
        """Take an order."""

    def beat(self) -> Beat:
        """Say how the slot does."""

    def tick(self, now_s: float) -> None:
        """Look after cameras and swaps; called at least ten times a second."""

    def stop(self) -> None:
        """Finish the frame, then end."""


class ReporterThread(threading.Thread):
    """Serves the slot's socket until `finish`."""

    def __init__(self, server: socket.socket, ring: ResultRing, served: Served, nudge: Nudge) -> None:
        super().__init__(name="reporter", daemon=True)
        self._server = server
        self._ring = ring
        self._served = served
        self._channel: Channel | None = None
        self._nudge = nudge
        self._finishing = False
        self._stop_by_s = 0.0
        self._beat_due_s = 0.0
        self._busy_until_s = 0.0

    def run(self) -> None:
        """Serve."""
        while not self._finishing:
            self._wait()
            now_s = time.monotonic()
            self._served.tick(now_s)
            self._report(now_s)
            if self._stop_by_s and now_s > self._stop_by_s:
                log.critical("the loop did not end in %.1f s: the process is ended", STOP_MAX_S)
                os._exit(STUCK_EXIT)
        self._finish()

    def finish(self) -> None:
        """Send what is left and end; called when the loop has ended. Cost: waits FLUSH_MAX_S at most."""
        self._finishing = True
        self._nudge.give()
        self.join(2 * FLUSH_MAX_S)

    # --- hearing --------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        poll.register(self._nudge, select.POLLIN)
        if self._channel is not None:
            wanted = select.POLLIN | (select.POLLOUT if self._channel.waiting else 0)
            poll.register(self._channel, wanted)
        for descriptor, _ in poll.poll(1000 * self._tick_s()):
            if descriptor == self._server.fileno():
                self._accept()
            elif descriptor == self._nudge.fileno():
                self._wake()
            else:
                self._listen()

    def _tick_s(self) -> float:
        return BUSY_TICK_S if time.monotonic() < self._busy_until_s else IDLE_TICK_S

    def _wake(self) -> None:
        if {signal.SIGTERM, signal.SIGINT} & set(self._nudge.take()):
            self._stop()

    def _stop(self) -> None:
        self._stop_by_s = self._stop_by_s or time.monotonic() + STOP_MAX_S
        self._served.stop()

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except BlockingIOError:
            return
        self._hang_up("replaced by a newer connection")
        self._channel = Channel(connection)
        self._ring.rewind()
        self._beat_due_s = 0.0
        self._busy_until_s = time.monotonic() + BUSY_S  # a slot that starts has its first result any moment
        log.info("daemon connected, %d results to send", len(self._ring))

    def _listen(self) -> None:
        if self._channel is None:
            return
        try:
            for message in self._channel.receive():
                match message:
                    case Acknowledge():
                        self._ring.acknowledge(message.run, message.sequence)
                    case Stop():
                        self._stop()
                    case _:
                        self._served.hear(message)
        except HungUpError as error:
            self._hang_up(str(error))

    def _hang_up(self, why: str) -> None:
        if self._channel is not None:
            log.info("daemon gone: %s", why)
            self._channel.close()
            self._channel = None

    # --- telling --------------------------------------------------------------------------------------------------

    def _report(self, now_s: float) -> None:
        if self._channel is None:
            return
        try:
            self._channel.flush()
            if self._send_results(self._channel):
                self._busy_until_s = now_s + BUSY_S
            self._send_news(self._channel)
            if now_s >= self._beat_due_s and not self._channel.congested:
                self._beat_due_s = now_s + BEAT_S
                self._channel.send(self._served.beat())
        except HungUpError as error:
            self._hang_up(str(error))

    def _send_results(self, channel: Channel) -> bool:
        """Send what the daemon takes; say whether there was anything."""
        anything = False
        while self._ring.waiting and not channel.congested:
            results, lost = self._ring.batch()
            if not results:
                break
            channel.send(Results(run=self._ring.run, results=results, lost=lost))
            anything = True
        return anything

    def _send_news(self, channel: Channel) -> None:
        news, pictures = self._served.news, self._served.pictures
        while news and not channel.congested:
            channel.send(news[0])
            news.popleft()
        while pictures and not channel.waiting:
            channel.send(pictures.popitem()[1])

    def _finish(self) -> None:
        deadline_s = time.monotonic() + FLUSH_MAX_S
        self._report(time.monotonic())
        while self._channel is not None and self._channel.waiting and time.monotonic() < deadline_s:
            time.sleep(0.005)
            self._report(time.monotonic())
        self._hang_up("the runner ends")
        self._server.close()
