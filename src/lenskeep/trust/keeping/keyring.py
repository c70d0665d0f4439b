"""Where private keys come from: a PEM file, a systemd credential, or a program that holds the key.

`PATH` a PEM file, with a passphrase if it is encrypted. `credential:NAME` a file in $CREDENTIALS_DIRECTORY.
`cmd:PROGRAM ARG…` a program that is started with one more word: `public` writes the public key as PEM, `sign` reads the
bytes on standard input and writes the DER signature (ECDSA P-256, SHA-256) on standard output: the door for PKCS#11
tokens and TPMs.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lenskeep.bundle import disk
from lenskeep.bundle.keys import PrivateKey, PublicKey, Signer, admit, load_private_key
from lenskeep.errors import ExternalSignerError, RequestError, SignatureError

CREDENTIAL, COMMAND = "credential:", "cmd:"
_KEY_BYTES_MAX = 16_000
_PROGRAM_TIMEOUT_S = 120.0  # somebody may have to touch a token

Ask = Callable[[str], str | None]  # what for -> the passphrase, or None when there is nobody to ask


class ProgramSigner:
    """A key that only a program can use."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        try:
            self._public = admit(self._run("public", b""))
        except RequestError as error:
            raise ExternalSignerError(f"{self._command[0]} public: {error}") from error

    @property
    def public(self) -> PublicKey:
        """The public half, as the program says it."""
        return self._public

    def sign(self, data: bytes) -> bytes:
        """Let the program sign. Raises: ExternalSignerError when what it gives does not fit its key."""
        signature = self._run("sign", data)
        try:
            self._public.verify(signature, data)
        except SignatureError as error:
            raise ExternalSignerError(f"{self._command[0]} gave a signature that does not fit its key.") from error
        return signature

    def _run(self, word: str, data: bytes) -> bytes:
        try:
            done = subprocess.run(
                [*self._command, word], input=data, stdout=subprocess.PIPE, timeout=_PROGRAM_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ExternalSignerError(f"{self._command[0]} took longer than {_PROGRAM_TIMEOUT_S:.0f} s.") from error
        except OSError as error:
            raise ExternalSignerError(f"{self._command[0]} cannot be started: {error.strerror}.") from error
        if done.returncode:
            raise ExternalSignerError(f"{self._command[0]} {word} ended with code {done.returncode}.")
        return done.stdout[: 2 * _KEY_BYTES_MAX]


def open_signer(word: str, environment: Mapping[str, str], ask: Ask) -> Signer:
    """Return the signer that a word names. Raises: RequestError, ExternalSignerError."""
    if word.startswith(COMMAND):
        command = shlex.split(word.removeprefix(COMMAND))
        if not command:
            raise RequestError("cmd: needs a program: --key 'cmd:PROGRAM ARG…'.")
        return ProgramSigner(command)
    return _load(_place(word, environment), ask)


def _place(word: str, environment: Mapping[str, str]) -> Path:
    if not word.startswith(CREDENTIAL):
        return Path(word)
    name = word.removeprefix(CREDENTIAL)
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise RequestError("There are no systemd credentials here ($CREDENTIALS_DIRECTORY is not set).")
    if not name or "/" in name or name in (".", ".."):
        raise RequestError(f"{name!r} is no credential's name.")
    return Path(folder) / name


def _load(path: Path, ask: Ask) -> PrivateKey:
    with disk.open_regular(path) as file:
        pem = file.read(_KEY_BYTES_MAX)
    return load_private_key(pem, ask(str(path)) if b"ENCRYPTED" in pem else None)
