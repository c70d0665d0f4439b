"""The trust process: one look at a repository for the daemon, without network and without rights.

Rules. It is started with one end of a socket and nothing else: it reads one `Look`, asks for files by name, and ends
with one `Verdict` or `Refusal`. Its memory, its processor time and what it may write are bounded before the first byte
of a stranger is read, so that a document that breaks the library breaks this process and nothing more.
"""

from __future__ import annotations

import argparse
import errno
import resource
import socket
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import msgspec

from lenskeep.confine.confine import Needs, confine
from lenskeep.confine.landlock import FOLDER
from lenskeep.errors import StorageError, StorageFullError, TrustError, fault_book
from lenskeep.messages.runner import LENGTH_BYTES, frame
from lenskeep.messages.trust import Failed, FromTrust, Have, Look, Refusal, ToTrust, Want
from lenskeep.trust.client import look

MEMORY_BYTES_MAX = 768 << 20  # address space: the libraries alone map 200 MB
CPU_S_MAX = 60
FILE_BYTES_MAX = 16 << 20  # three times the largest document
FILES_MAX = 64
FRAME_BYTES_MAX = 64 << 20

_decoder: msgspec.msgpack.Decoder[ToTrust] = msgspec.msgpack.Decoder(ToTrust)


class Daemon:
    """The other end of the socket; to the client it is where the repository's files come from."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """Ask the daemon for one file. Raises: the LenskeepError that it met."""
        self.send(Want(name=name, bytes_max=bytes_max))
        answer = self.receive()
        if isinstance(answer, Failed):
            raise fault_book().get(answer.code, TrustError)(answer.message)
        if not isinstance(answer, Have):
            hang_up()
        return answer.data

    def send(self, message: FromTrust) -> None:
        """Send one message."""
        self._socket.sendall(frame(message))

    def receive(self) -> ToTrust:
        """Return the next message."""
        size = int.from_bytes(self._exactly(LENGTH_BYTES), "big")
        if size > FRAME_BYTES_MAX:
            hang_up()
        try:
            return _decoder.decode(self._exactly(size))
        except msgspec.DecodeError:
            hang_up()

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(min(size - len(data), 1 << 20))
            if not part:
                hang_up()
            data += part
        return bytes(data)


def hang_up() -> NoReturn:
    """End without an answer: the other end is not our daemon, or is gone."""
    sys.exit("the daemon's end of the socket is closed or does not speak as agreed")


def give_up_rights() -> None:
    """Bound what this process can use; none of it can be raised again."""
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES_MAX),
        (resource.RLIMIT_CPU, CPU_S_MAX),
        (resource.RLIMIT_FSIZE, FILE_BYTES_MAX),
        (resource.RLIMIT_NOFILE, FILES_MAX),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))


def judge(request: Look, daemon: Daemon, folder: Path) -> FromTrust:
    """Look in the one folder that may be written; whatever goes wrong is a refusal."""
    try:
        return look(request, daemon, folder)
    except OSError as error:
        kind = StorageFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        return Refusal(code=kind.code, message=f"The repository cannot be judged: {error.strerror}.")
    except Exception as error:  # noqa: BLE001 - whatever a stranger's document does to a library is a refusal
        return Refusal(code=TrustError.code, message=f"The repository could not be judged: {type(error).__name__}.")


def main() -> None:
    """Answer one look."""
    parser = argparse.ArgumentParser(prog="lenskeep.trust", description="One look at a repository, for the daemon.")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder, the only one that it may write")
    arguments = parser.parse_args()
    give_up_rights()
    daemon = Daemon(socket.socket(fileno=arguments.fd))
    tempfile.tempdir = str(arguments.folder)  # python-tuf keeps what comes in there
    confine(Needs({arguments.folder: FOLDER}, "read-only but for its folder", keeps_folder=True))
    request = daemon.receive()
    if not isinstance(request, Look):
        hang_up()
    daemon.send(judge(request, daemon, arguments.folder))


if __name__ == "__main__":
    main()
