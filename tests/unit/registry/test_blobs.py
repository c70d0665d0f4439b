"""Stored bytes: complete or absent, whatever happens on the way."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lenskeep.errors import StorageError, StorageFullError
from lenskeep.registry.blobs import Blobs, write_durably


def blobs_in(folder: Path, free_bytes_min: int = 0) -> Blobs:
    blobs = Blobs(folder, free_bytes_min=free_bytes_min)
    blobs.prepare_in_thread()
    return blobs


def test_staged_bytes_appear_under_their_digest_only_when_committed(tmp_path: Path) -> None:
    blobs, data = blobs_in(tmp_path), b"weights" * 1000
    digest = hashlib.sha256(data).hexdigest()
    staging = blobs.stage()
    sink = staging.open_member("model.onnx", len(data))
    sink.write(data)
    sink.close()
    assert not blobs.path(digest).exists()
    blobs.commit_in_thread([(staging.path_of("model.onnx"), digest)])
    staging.close()
    assert blobs.path(digest).read_bytes() == data
    assert not staging.folder.exists()


def test_a_member_name_never_becomes_a_path(tmp_path: Path) -> None:
    staging = blobs_in(tmp_path).stage()
    sink = staging.open_member("../../etc/passwd", 3)
    sink.close()
    assert staging.path_of("../../etc/passwd").parent == staging.folder
    staging.close()


def test_what_a_crash_left_in_staging_is_gone_after_the_next_start(tmp_path: Path) -> None:
    staging = blobs_in(tmp_path).stage()
    staging.open_member("model.onnx", 10).write(b"half")
    blobs_in(tmp_path)
    assert not staging.folder.exists()


def test_an_import_that_would_not_fit_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    blobs = blobs_in(tmp_path, free_bytes_min=1 << 62)
    with pytest.raises(StorageFullError, match="Nothing was changed"):
        blobs.require_space(1)


def test_sweeping_removes_what_nobody_wants_and_keeps_the_rest(tmp_path: Path) -> None:
    blobs = blobs_in(tmp_path)
    digests = []
    for data in (b"one", b"two"):
        staging = blobs.stage()
        sink = staging.open_member("x", len(data))
        sink.write(data)
        sink.close()
        digests.append(hashlib.sha256(data).hexdigest())
        blobs.commit_in_thread([(staging.path_of("x"), digests[-1])])
        staging.close()
    assert blobs.sweep_in_thread({digests[0]}) == 3
    assert blobs.path(digests[0]).exists() and not blobs.path(digests[1]).exists()


def test_replacing_a_small_file_leaves_no_part_behind(tmp_path: Path) -> None:
    target = tmp_path / "slots" / "main.json"
    write_durably(target, b"one")
    write_durably(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in target.parent.iterdir()] == ["main.json"]


def test_a_folder_that_cannot_be_written_is_a_storage_fault(tmp_path: Path) -> None:
    (tmp_path / "slots").write_text("a file where a folder should be")
    with pytest.raises(StorageError):
        write_durably(tmp_path / "slots" / "main.json", b"x")
