"""Starts the trust process for one look at the repository, and carries the files that it asks for.

What a repository says is judged away from the daemon: by `python -m lenskeep.trust`, which has no network and may crash
or eat memory without harm. Here its questions are answered from a source, and its silence is given a meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import tempfile

import msgspec

from lenskeep.daemon.sources import RepositorySource
from lenskeep.errors import LenskeepError, MetadataMissingError, TrustError
from lenskeep.messages.runner import LENGTH_BYTES
from lenskeep.messages.trust import Failed, FromTrust, Have, Look, Refusal, ToTrust, Verdict, Want

ANSWER_BYTES_MAX = 64 << 20
LOOK_S_MAX = 300.0  # a slow source ends a look earlier, by its own limits

_decoder: msgspec.msgpack.Decoder[FromTrust] = msgspec.msgpack.Decoder(FromTrust)


async def look(request: Look, source: RepositorySource | None) -> Verdict | Refusal:
    """Have the repository's metadata judged; without a source only what is stored is.

    Cost: about 0.3 s of another process, most of it its start.
    """
    with tempfile.TemporaryDirectory(prefix="lenskeep-trust-") as folder:
        return await _look_in(folder, request, source)


async def _look_in(folder: str, request: Look, source: RepositorySource | None) -> Verdict | Refusal:
    ours, theirs = socket.socketpair()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lenskeep.trust", "--fd", str(theirs.fileno()), "--folder", folder,
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )  # fmt: skip
    theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
    try:
        async with asyncio.timeout(LOOK_S_MAX):
            _send(writer, request)
            while True:
                said = await _receive(reader)
                if not isinstance(said, Want):
                    return said
                _send(writer, await _fetch(source, said))
                await writer.drain()
    except TimeoutError:
        return _broken(f"it took longer than {LOOK_S_MAX:.0f} s")
    except (asyncio.IncompleteReadError, msgspec.DecodeError, UnicodeDecodeError, OSError):
        return _broken("the process that checks it ended without an answer")
    finally:
        writer.close()
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def _fetch(source: RepositorySource | None, want: Want) -> Have | Failed:
    if source is None:
        fault: LenskeepError = MetadataMissingError(f"{want.name} is not known here and there is nobody to ask for it.")
        return Failed(code=fault.code, message=str(fault))
    try:
        return Have(data=await source.read(want.name, want.bytes_max))
    except LenskeepError as error:
        return Failed(code=error.code, message=str(error))


def _send(writer: asyncio.StreamWriter, message: ToTrust) -> None:
    data = msgspec.msgpack.encode(message)
    writer.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)


async def _receive(reader: asyncio.StreamReader) -> FromTrust:
    size = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
    if size > ANSWER_BYTES_MAX:
        raise msgspec.DecodeError("the answer is too large")
    return _decoder.decode(await reader.readexactly(size))


def _broken(how: str) -> Refusal:
    return Refusal(code=TrustError.code, message=f"The repository could not be judged: {how}. Nothing was changed.")
