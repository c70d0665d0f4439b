"""The device's key and name: made once, kept, never replaced by accident."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lenskeep.bundle.keys import generate_key
from lenskeep.errors import StorageError
from lenskeep.trust import identity


def test_a_key_made_at_the_first_start_is_the_same_at_the_next_and_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    first = identity.load_or_make_key(folder)
    again = identity.load_or_make_key(folder)
    assert first.public.id == again.public.id
    assert (folder / identity.KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    again.public.verify(first.sign(b"x"), b"x")
    assert [entry.name for entry in folder.iterdir()] == [identity.KEY_FILE]


def test_a_key_handed_over_by_the_service_manager_goes_before_the_one_on_disk(tmp_path: Path) -> None:
    own = identity.load_or_make_key(tmp_path / "identity")
    given = generate_key()
    (tmp_path / identity.KEY_FILE).write_bytes(given.pem())
    assert identity.load_or_make_key(tmp_path / "identity", tmp_path).public.id == given.public.id != own.public.id


@pytest.mark.parametrize(
    "spoiled", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_named_and_never_replaced(tmp_path: Path, spoiled: bytes) -> None:
    (tmp_path / identity.KEY_FILE).write_bytes(spoiled)
    with pytest.raises(StorageError, match="not replaced"):
        identity.load_or_make_key(tmp_path)
    assert (tmp_path / identity.KEY_FILE).read_bytes() == spoiled


def test_a_half_written_key_of_a_power_cut_is_no_key(tmp_path: Path) -> None:
    (tmp_path / f".{identity.KEY_FILE}.{os.getpid()}").write_bytes(b"-----BEGIN")
    identity.load_or_make_key(tmp_path)


def test_a_name_is_chosen_once_and_stays_when_the_host_is_renamed(tmp_path: Path) -> None:
    assert identity.device_id(tmp_path, "", "Cam_7.plant.example") == "cam-7"
    assert identity.device_id(tmp_path, "", "other") == "cam-7"
    assert identity.device_id(tmp_path, "configured", "other") == "configured"
    (tmp_path / identity.ID_FILE).write_text("../etc/passwd")
    assert identity.device_id(tmp_path, "", "other") == "other"


def test_a_host_name_that_gives_no_name_gets_one_that_stays(tmp_path: Path) -> None:
    made = identity.device_id(tmp_path, "", "…")
    assert made.startswith("device-")
    assert identity.device_id(tmp_path, "", "…") == made


def test_a_name_that_cannot_be_kept_does_not_stop_the_device(tmp_path: Path) -> None:
    (tmp_path / "identity").write_text("a file where a folder should be")
    assert identity.device_id(tmp_path / "identity", "", "cam-7") == "cam-7"


def test_a_device_with_a_damaged_key_comes_up_with_a_new_one_and_says_so(tmp_path: Path) -> None:
    (tmp_path / identity.KEY_FILE).write_bytes(b"bit rot")
    key, fault = identity.load_or_replace_key(tmp_path)
    assert fault is not None
    assert "set aside" in str(fault)
    again, nothing = identity.load_or_replace_key(tmp_path)
    assert (again.public.id, nothing) == (key.public.id, None)
    assert [path.read_bytes() for path in tmp_path.glob("*.damaged-*")] == [b"bit rot"]


def test_a_device_whose_key_cannot_even_be_read_comes_up_for_this_run(tmp_path: Path) -> None:
    (tmp_path / identity.KEY_FILE).mkdir()
    key, fault = identity.load_or_replace_key(tmp_path)
    assert fault is not None
    key.public.verify(key.sign(b"x"), b"x")
    given = tmp_path / "credentials"
    given.mkdir()
    (given / identity.KEY_FILE).write_bytes(b"spoiled by somebody else")
    _, fault = identity.load_or_replace_key(tmp_path / "own", given)
    assert fault is not None
    assert (given / identity.KEY_FILE).read_bytes() == b"spoiled by somebody else"


def test_a_fingerprint_is_compared_as_people_type_it() -> None:
    key = generate_key().public
    said = identity.fingerprint(key.id)
    assert len(said.split("-")) == 8
    assert not set("ILOU") & set(said)
    assert identity.same_fingerprint(said.lower().replace("-", " ").replace("0", "o").replace("1", "l"), key.id)
    assert not identity.same_fingerprint(said[:-1], key.id)
    assert not identity.same_fingerprint("", key.id)
    assert not identity.same_fingerprint(identity.fingerprint(generate_key().public.id), key.id)


def test_signing_with_the_devices_key_does_not_load_the_library_of_certificates() -> None:
    words = (
        "import sys; from lenskeep.trust import identity; from pathlib import Path; import tempfile;"
        "identity.load_or_make_key(Path(tempfile.mkdtemp())).sign(b'x');"
        "sys.exit('cryptography.x509' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0
