"""The bundle file: what is accepted, how it streams, and that it can be made again byte by byte."""

import hashlib
import io
import itertools
import subprocess
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenskeep.bundle import archive, disk
from lenskeep.bundle.archive import BundleReader, FileFact, Limits, VerifiedBundle
from lenskeep.errors import (
    BundleFormatError,
    DigestMismatchError,
    KeyExpiredError,
    LimitExceededError,
    ManifestError,
    SignerScopeError,
)
from tests import tinybundle

GOOD = tinybundle.pack()


def test_good_bundle_is_read_and_says_what_it_is() -> None:
    kept = tinybundle.Kept()
    verified = tinybundle.read(GOOD, kept=kept)
    files = tinybundle.parts()
    assert kept.proven == files
    assert [file.name for file in verified.files] == sorted(files)
    assert verified.manifest.ref == "cap-inspect@1.0.0"
    assert verified.manifest_json == files["model.json"]
    assert (verified.signer, verified.key_id) == ("plant-release", tinybundle.key().public.id)
    assert verified.size_bytes == len(GOOD)
    assert verified.files[0] == FileFact(
        "golden/a.png", hashlib.sha256(files["golden/a.png"]).hexdigest(), len(files["golden/a.png"])
    )


def test_digest_is_what_sha256sum_says_about_the_files(tmp_path) -> None:
    folder = tinybundle.unpack(tmp_path / "cap", GOOD)
    (folder / "model.sig").unlink()
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] == tinybundle.read(GOOD).digest


def test_digest_does_not_depend_on_the_signer() -> None:
    again = tinybundle.pack(sig=tinybundle.signature(tinybundle.parts(), tinybundle.other_key()))
    store = tinybundle.trust(tinybundle.trusted(tinybundle.other_key(), "other"))
    assert again != GOOD
    assert tinybundle.read(again, store).digest == tinybundle.read(GOOD).digest


@pytest.mark.parametrize("name", ["a", "golden/part-01.png", "n" * 100])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 4 << 30, 8**11 - 1])
def test_header_is_the_one_that_tarfile_writes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    assert archive.header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_any_tar_tool_lists_and_unpacks_a_bundle(tmp_path) -> None:
    (tmp_path / "cap.lkb").write_bytes(GOOD)
    subprocess.run(["tar", "xf", "cap.lkb"], cwd=tmp_path, check=True)
    for name, content in tinybundle.parts().items():
        assert (tmp_path / name).read_bytes() == content
    with tarfile.open(fileobj=io.BytesIO(GOOD)) as listing:
        assert listing.getnames() == ["model.sig", *sorted(tinybundle.parts())]


@pytest.mark.attack(35)
def test_rebuild_from_stored_files_is_byte_identical() -> None:
    kept = tinybundle.Kept()
    verified = tinybundle.read(GOOD, kept=kept)
    stored = [(file.name, file.size_bytes) for file in verified.files]
    again = b"".join(
        part if isinstance(part, bytes) else kept.proven[stored[part][0]]
        for part in archive.rebuild_parts(verified.signature, stored)
    )
    assert again == GOOD


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(GOOD)), max_size=40))
def test_the_size_of_the_pieces_never_matters(cuts: list[int]) -> None:
    kept = tinybundle.Kept()
    reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), kept.open_member)
    edges = [0, *sorted(cuts), len(GOOD)]
    for start, end in itertools.pairwise(edges):
        reader.feed(GOOD[start:end])
    assert reader.finish() == tinybundle.read(GOOD)
    assert kept.proven == tinybundle.parts()


def test_byte_by_byte_gives_the_same_bundle() -> None:
    assert tinybundle.read(GOOD, chunk=1) == tinybundle.read(GOOD)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_taken(kind) -> None:
    reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), tinybundle.Kept().open_member)
    reader.feed(kind(GOOD))
    assert reader.finish().manifest.name == "cap-inspect"


def test_no_sink_is_opened_before_the_signature_was_verified() -> None:
    kept = tinybundle.Kept()
    foreign = tinybundle.pack(sig=tinybundle.signature(tinybundle.parts(), tinybundle.other_key()))
    with pytest.raises(Exception, match="this device trusts"):
        tinybundle.read(foreign, kept=kept)
    assert kept.written == {}


def test_a_sink_that_fails_ends_the_reading_for_good() -> None:
    """A piece lost on a full disk must not be followed by the rest as if nothing had been."""

    class FullDisk(tinybundle.Kept):
        def open_member(self, name, size_bytes):
            raise OSError(28, "No space left on device")

    reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), FullDisk().open_member)
    with pytest.raises(OSError, match="No space"):
        reader.feed(GOOD)
    with pytest.raises(BundleFormatError):
        reader.feed(GOOD)
    with pytest.raises(BundleFormatError):
        reader.finish()


def test_only_a_reader_makes_a_verified_bundle() -> None:
    good = tinybundle.read(GOOD)
    facts = {name: getattr(good, name) for name in VerifiedBundle.__slots__}
    with pytest.raises(TypeError):
        VerifiedBundle(**facts)
    with pytest.raises(RuntimeError):
        VerifiedBundle(**facts, made_by=object())
    with pytest.raises(AttributeError):
        good.digest = "0" * 64  # type: ignore[misc]


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Limits(files_max=4), "5 files"),
        (Limits(file_bytes_max=100), "at most 100"),
        (Limits(total_bytes_max=len(GOOD) - 1), "larger than"),
        (Limits(name_bytes_max=11), "over 11 bytes"),
        (Limits(levels_max=1), "1 levels"),
    ],
)
def test_each_limit_refuses_one_step_beyond_it(limits: Limits, what: str) -> None:
    with pytest.raises(LimitExceededError, match=what):
        tinybundle.read(GOOD, limits=limits)


def test_each_limit_admits_what_just_fits() -> None:
    longest = max(len(data) for data in tinybundle.parts().values())
    limits = Limits(files_max=5, file_bytes_max=longest, total_bytes_max=len(GOOD), name_bytes_max=12, levels_max=2)
    assert tinybundle.read(GOOD, limits=limits).size_bytes == len(GOOD)


@pytest.mark.parametrize("gone", ["model.onnx", "readme.md", "license.txt", "golden/a.png"])
def test_a_manifest_that_names_a_file_which_is_not_there_is_refused(gone: str) -> None:
    files = tinybundle.parts()
    del files[gone]
    with pytest.raises(ManifestError, match=gone):
        tinybundle.read(tinybundle.pack(files))


def test_a_bundle_without_model_json_is_refused() -> None:
    with pytest.raises(BundleFormatError, match=r"model\.json"):
        tinybundle.read(tinybundle.pack({"a": b"1"}))


def test_further_signed_files_are_carried_along() -> None:
    files = {**tinybundle.parts(), "sbom.json": b"{}", "empty": b""}
    verified = tinybundle.read(tinybundle.pack(files))
    assert {file.name: file.size_bytes for file in verified.files}["empty"] == 0


def test_an_expired_key_is_refused_before_any_file_is_written() -> None:
    kept = tinybundle.Kept()
    store = tinybundle.trust(tinybundle.trusted(tinybundle.key(), not_after_s=tinybundle.NOW_S))
    with pytest.raises(KeyExpiredError):
        tinybundle.read(GOOD, store, kept=kept)
    assert kept.written == {}


def test_a_key_of_another_name_is_refused_before_the_model_is_written() -> None:
    kept = tinybundle.Kept()
    store = tinybundle.trust(tinybundle.trusted(tinybundle.key(), patterns=("weld-*",)))
    with pytest.raises(SignerScopeError, match="weld"):
        tinybundle.read(GOOD, store, kept=kept)
    assert "model.onnx" not in kept.written


@pytest.mark.attack(30)
def test_a_member_over_4_gib_is_read_by_its_true_length_and_refused() -> None:
    """Nothing wraps around at 2 or 4 GiB: the announced length is the one that is judged."""
    files = tinybundle.parts()
    front = tinybundle.member("model.sig", tinybundle.signature(files))
    for size in ((4 << 30) + 1, (4 << 30) + 100, 8**11 - 1):
        with pytest.raises(LimitExceededError, match=str(size)):
            tinybundle.read(front + archive.header("golden/a.png", size))


@pytest.mark.attack(30)
def test_a_member_over_2_gib_is_waited_for_to_its_whole_length() -> None:
    size = (2 << 30) + 100
    files = tinybundle.parts()
    reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), disk.discard)
    reader.feed(tinybundle.member("model.sig", tinybundle.signature(files)) + archive.header("golden/a.png", size))
    piece = bytes(1 << 20)
    for _ in range(3):
        reader.feed(piece)
    with pytest.raises(BundleFormatError, match=r"golden/a\.png"):
        reader.finish()


def test_memory_stays_bounded_while_64_mib_stream_by() -> None:
    digest = hashlib.sha256()
    piece = bytes(range(256)) * 1024
    count = (64 << 20) // len(piece)
    for _ in range(count):
        digest.update(piece)
    files = tinybundle.parts()
    listed = [*tinybundle.signed_files(files), archive.SignedFile("big", digest.hexdigest())]
    sig = archive.signing.sign(listed, tinybundle.key(), "big")
    reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), disk.discard)
    tracemalloc.start()
    reader.feed(tinybundle.member("model.sig", sig) + archive.header("big", 64 << 20))
    for _ in range(count):
        reader.feed(piece)
    for name in sorted(files):
        reader.feed(tinybundle.member(name, files[name]))
    reader.feed(archive.END)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reader.finish().files[0].size_bytes == 64 << 20
    assert peak < 8 << 20


@pytest.mark.attack(69)
def test_content_that_differs_is_refused_and_never_proven() -> None:
    files = tinybundle.parts()
    sig = tinybundle.signature(files)
    spoiled = {**files, "model.onnx": files["model.onnx"][:-1] + b"!"}
    kept = tinybundle.Kept()
    with pytest.raises(DigestMismatchError, match=r"model\.onnx"):
        tinybundle.read(tinybundle.pack(spoiled, sig=sig), kept=kept)
    assert "model.onnx" not in kept.proven
