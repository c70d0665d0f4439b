"""What systemd is told: READY, STATUS, WATCHDOG, STOPPING. Without systemd it all does nothing."""

from __future__ import annotations

import contextlib
import os
import socket


class Notifier:
    """The datagram socket named by NOTIFY_SOCKET.

    Source: sd_notify(3). Cost: one datagram, never blocks.
    """

    def __init__(self, address: str | None, watchdog_us: str | None) -> None:
        self._socket: socket.socket | None = None
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us and address else 0.0
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            self._socket.connect("\0" + address[1:] if address.startswith("@") else address)

    @classmethod
    def from_environment(cls) -> Notifier:
        """Take what systemd put into the environment and remove it, so that children do not speak for us."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None), os.environ.pop("WATCHDOG_USEC", None))

    def ready(self, status: str) -> None:
        """Say that the doors are open and everything is being served."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        """Say that there was progress."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that an orderly stop has begun."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # systemd restarting itself must not take us down
                self._socket.send(text.encode())
