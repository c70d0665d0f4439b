"""The runner's end of its socket: frames to and from the daemon, without ever waiting for it.

Rules. The socket file is private to this user. What cannot be sent now waits in a bounded buffer; whoever produces
asks `congested` first. A peer that breaks the framing is hung up on: it is not our daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path

import msgspec

from lenskeep.messages.runner import FRAME_BYTES_MAX, LENGTH_BYTES, ToRunner, decoder, frame

BACKLOG_BYTES_MAX = 4 << 20
RECEIVE_BYTES = 1 << 16

_decode = decoder(ToRunner).decode


class HungUpError(ConnectionError):
    """The daemon's end is closed, or does not speak as agreed."""


class SocketTakenError(OSError):
    """Another live process listens on the slot's socket."""


def listen(path: Path) -> socket.socket:
    """Open the slot's socket for this user alone; a file that a dead process left is replaced.

    A lock beside it, held until this process ends however it ends, tells the living from the dead: to dial and see
    would push the daemon's own connection aside.
    Raises: SocketTakenError when a live process serves the slot; OSError.
    """
    _take_slot(path.with_name(path.name + ".lock"))
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.setblocking(False)
    try:
        path.unlink(missing_ok=True)
        umask = os.umask(0o177)
        try:
            server.bind(str(path))
        finally:
            os.umask(umask)
        server.listen(4)
    except BaseException:
        server.close()
        raise
    return server


def _take_slot(path: Path) -> None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise SocketTakenError(f"another process holds {path}") from error


class Channel:
    """One daemon's connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._incoming = bytearray()
        self._outgoing = bytearray()

    def fileno(self) -> int:
        """Return the descriptor, for poll."""
        return self._socket.fileno()

    @property
    def waiting(self) -> bool:
        """Say whether something could not be sent yet."""
        return bool(self._outgoing)

    @property
    def congested(self) -> bool:
        """Say whether the daemon reads too slowly to be given more."""
        return len(self._outgoing) > BACKLOG_BYTES_MAX

    def send(self, message: msgspec.Struct) -> None:
        """Send a message as far as it goes; the rest waits for `flush`. Raises: HungUpError."""
        self._outgoing += frame(message)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as it goes. Raises: HungUpError."""
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError as error:
            raise HungUpError(str(error)) from error

    def receive(self) -> list[ToRunner]:
        """Return the messages that have come. Raises: HungUpError."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise HungUpError(str(error)) from error
        if not data:
            raise HungUpError("closed by the daemon")
        self._incoming += data
        return self._complete()

    def _complete(self) -> list[ToRunner]:
        messages: list[ToRunner] = []
        buffer, start = self._incoming, 0
        while len(buffer) - start >= LENGTH_BYTES:
            (size,) = struct.unpack_from(">I", buffer, start)
            if size > FRAME_BYTES_MAX:
                raise HungUpError(f"a frame of {size} bytes")
            end = start + LENGTH_BYTES + size
            if len(buffer) < end:
                break
            try:
                messages.append(_decode(bytes(buffer[start + LENGTH_BYTES : end])))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise HungUpError(f"not one of our messages: {error}") from error
            start = end
        del buffer[:start]
        return messages

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.close()
