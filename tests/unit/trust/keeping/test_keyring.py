"""Keys from files, credentials and programs."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from lenskeep.bundle.keys import PrivateKey, generate_key
from lenskeep.errors import ExternalSignerError, RequestError
from lenskeep.trust.keeping import keyring

HELPER = """#!{python}
import sys
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key = serialization.load_pem_private_key(open({pem!r}, "rb").read(), None)
if sys.argv[-1] == "public":
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    sys.stdout.buffer.write(key.public_key().public_bytes(serialization.Encoding.PEM, form))
else:
    sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read() + {spoil!r}, ec.ECDSA(hashes.SHA256())))
"""


def helper(folder: Path, key: PrivateKey, spoil: bytes = b"") -> Path:
    """A real program that holds a key."""
    (folder / "token.pem").write_bytes(key.pem())
    program = folder / "token"
    program.write_text(HELPER.format(python=sys.executable, pem=str(folder / "token.pem"), spoil=spoil))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def nobody(_what: str) -> str | None:
    return None


def test_a_program_signs_with_a_key_that_stays_in_it(tmp_path: Path) -> None:
    key = generate_key()
    signer = keyring.open_signer(f"cmd:{helper(tmp_path, key)} --slot 9c", {}, nobody)
    assert signer.public.id == key.public.id
    signer.public.verify(signer.sign(b"some bytes"), b"some bytes")


def test_a_program_whose_signature_does_not_fit_is_refused(tmp_path: Path) -> None:
    signer = keyring.open_signer(f"cmd:{helper(tmp_path, generate_key(), spoil=b'x')}", {}, nobody)
    with pytest.raises(ExternalSignerError, match="does not fit"):
        signer.sign(b"some bytes")


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/at-all", "/bin/true", "/bin/echo"])
def test_a_program_that_fails_or_says_something_else_is_refused(program: str) -> None:
    with pytest.raises(ExternalSignerError):
        keyring.open_signer(f"cmd:{program}", {}, nobody)


def test_a_key_comes_from_a_credential_and_from_nowhere_else(tmp_path: Path) -> None:
    key = generate_key()
    (tmp_path / "online").write_bytes(key.pem())
    there = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert keyring.open_signer("credential:online", there, nobody).public.id == key.public.id
    for name in ("../online", "", "..", "a/b", "missing"):
        with pytest.raises(RequestError):
            keyring.open_signer(f"credential:{name}", there, nobody)
    with pytest.raises(RequestError, match="CREDENTIALS_DIRECTORY"):
        keyring.open_signer("credential:online", {}, nobody)


def test_an_encrypted_key_asks_for_its_passphrase_once_and_a_plain_one_does_not(tmp_path: Path) -> None:
    key = generate_key()
    (tmp_path / "plain.pem").write_bytes(key.pem())
    (tmp_path / "locked.pem").write_bytes(key.pem("hunter2"))
    asked: list[str] = []

    def ask(what: str) -> str:
        asked.append(what)
        return "hunter2"

    assert keyring.open_signer(str(tmp_path / "plain.pem"), {}, ask).public.id == key.public.id
    assert asked == []
    assert keyring.open_signer(str(tmp_path / "locked.pem"), {}, ask).public.id == key.public.id
    assert len(asked) == 1
    with pytest.raises(RequestError, match="passphrase"):
        keyring.open_signer(str(tmp_path / "locked.pem"), {}, nobody)
