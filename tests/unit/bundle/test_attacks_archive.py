"""Hostile archives: each is refused with a stable code, and nothing of it is ever called proven."""

import gzip
import io
import random
import tarfile
import zipfile

import pytest
from cryptography.hazmat.primitives.asymmetric import utils

from lenskeep.bundle import archive
from lenskeep.bundle.archive import END, BundleReader, Limits
from lenskeep.errors import BundleError, BundleFormatError, DigestMismatchError, LimitExceededError, SignatureError
from tests import tinybundle
from tests.attacks import named

FILES = tinybundle.parts()
GOOD = tinybundle.pack()
FIRST = GOOD.index(archive.header("golden/a.png", len(FILES["golden/a.png"])))  # the first member after model.sig
SMALL = "license.txt"


def refused(data: bytes, kind: type[BundleError] = BundleError) -> BundleError:
    """Push an archive through a reader that must refuse it; what it wrote of the spoiled member stays unproven."""
    kept = tinybundle.Kept()
    with pytest.raises(kind) as caught:
        tinybundle.read(data, kept=kept)
    for name, content in kept.proven.items():
        assert content == FILES[name], "something else than the signed content was called proven"
    return caught.value


def tar_header(name: str, size: int, **fields: object) -> bytes:
    """Make a header as a tar tool would, with something else in it."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    kind = fields.pop("format", tarfile.USTAR_FORMAT)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(kind)


def in_place_of_first(header: bytes) -> bytes:
    """Put another header before the first signed file."""
    return GOOD[:FIRST] + header + GOOD[FIRST + 512 :]


def before_first(member: bytes) -> bytes:
    return GOOD[:FIRST] + member + GOOD[FIRST:]


def patched(offset: int, data: bytes) -> bytes:
    """Change bytes of the first signed file's header and correct its checksum."""
    header = bytearray(GOOD[FIRST : FIRST + 512])
    header[offset : offset + len(data)] = data
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return in_place_of_first(bytes(header))


PNG = len(FILES["golden/a.png"])

ATTACKS: dict[str, bytes] = {
    "1 dot dot": in_place_of_first(tar_header("../golden/a.png", PNG)),
    "2 absolute path": in_place_of_first(tar_header("/golden/a.png", PNG)),
    "3 symbolic link": in_place_of_first(tar_header("golden/a.png", 0, type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "4 hard link": in_place_of_first(tar_header("golden/a.png", 0, type=tarfile.LNKTYPE, linkname="model.json")),
    "5 character device": in_place_of_first(tar_header("golden/a.png", 0, type=tarfile.CHRTYPE, devmajor=1)),
    "6 pipe": in_place_of_first(tar_header("golden/a.png", 0, type=tarfile.FIFOTYPE)),
    "a folder": in_place_of_first(tar_header("golden/a.png", 0, type=tarfile.DIRTYPE)),
    "7 setuid": in_place_of_first(tar_header("golden/a.png", PNG, mode=0o4755)),
    "executable": in_place_of_first(tar_header("golden/a.png", PNG, mode=0o755)),
    "an owner": in_place_of_first(tar_header("golden/a.png", PNG, uid=1000)),
    "an owner's name": in_place_of_first(tar_header("golden/a.png", PNG, uname="root")),
    "a time": in_place_of_first(tar_header("golden/a.png", PNG, mtime=1)),
    "8 duplicate member": before_first(tinybundle.member("golden/a.png", FILES["golden/a.png"])),
    "9 extra member in front": before_first(tinybundle.member("extra", b"x")),
    "9 extra member at the end": GOOD[: -len(END)] + tinybundle.member("zzz", b"x") + END,
    "67 unsigned file under .git": GOOD[: -len(END)] + tinybundle.member(".git/evil.onnx", b"x") + END,
    "10 68 missing member": GOOD.replace(tinybundle.member(SMALL, FILES[SMALL]), b""),
    "11 reordered": tinybundle.pack(order=lambda names: sorted(names, reverse=True)),
    "12 signature last": tinybundle.pack()[FIRST : -len(END)] + GOOD[:FIRST] + END,
    "12 no signature": GOOD[FIRST:],
    "12 two signatures": GOOD[:FIRST] + GOOD,
    "13 trailing byte": GOOD + b"x",
    "13 trailing zero": GOOD + b"\0",
    "14 trailing zero block": GOOD + bytes(512),
    "14 padded to 10240 as tar does": GOOD + bytes(-len(GOOD) % 10240 or 10240),
    "15 truncated by one": GOOD[:-1],
    "15 one zero block short": GOOD[:-512],
    "16 truncated in the middle": GOOD[: len(GOOD) // 2],
    "17 empty file": b"",
    "18 69 flipped data bit": GOOD[: FIRST + 600] + bytes([GOOD[FIRST + 600] ^ 1]) + GOOD[FIRST + 601 :],
    "19 padding not zero": GOOD[: len(END) * -1 - 1] + b"x" + END,
    "20 pax path override": before_first(
        tar_header("x" * 90, 0, format=tarfile.PAX_FORMAT, pax_headers={"path": "evil"})
    ),
    "21 GNU long name": before_first(tar_header("n" * 200, 0, format=tarfile.GNU_FORMAT)),
    "22 sparse": in_place_of_first(tar_header("golden/a.png", PNG, type=tarfile.GNUTYPE_SPARSE)),
    "contiguous file type": in_place_of_first(tar_header("golden/a.png", PNG, type=tarfile.CONTTYPE)),
    "old file type NUL": patched(156, b"\0"),
    "23 base-256 size": patched(124, b"\x80" + PNG.to_bytes(11, "big")),
    "23 size 64 bits wide": in_place_of_first(tar_header("golden/a.png", 1 << 40, format=tarfile.GNU_FORMAT)),
    "25 negative size in base-256": patched(124, b"\xff" * 12),
    "25 minus sign": patched(124, b"-0000000001\0"),
    "size with spaces": patched(124, b"%11o\0" % PNG),
    "size ended by a space": patched(124, b"%011o " % PNG),
    "size in decimal 9": patched(124, b"00000000099\0"),
    "size with a newline": patched(124, b"0000000001\n\0"),
    "size in Unicode digits": patched(124, "٠٠٠٠٠٠".encode()),
    "26 bad checksum": GOOD[: FIRST + 148] + b"000000\0 " + GOOD[FIRST + 156 :],
    "checksum in another form": GOOD[: FIRST + 155] + b"\0" + GOOD[FIRST + 156 :],
    "GNU magic": patched(257, b"ustar  \0"),
    "prefix field": patched(345, b"etc"),
    "27 case collision": in_place_of_first(tar_header("GOLDEN/A.PNG", PNG)),
    "28 gzip": gzip.compress(GOOD),
    "28 plain text": b"hello, I am a model\n" * 100,
    "28 zeros": bytes(10240),
    "29 size one short": patched(124, b"%011o\0" % (PNG - 1)),
    "29 size one long": patched(124, b"%011o\0" % (PNG + 1)),
    "29 size zero": patched(124, b"%011o\0" % 0),
}  # fmt: skip


@pytest.mark.parametrize("attack", named(ATTACKS))
def test_a_hostile_archive_is_refused(attack: str) -> None:
    refused(ATTACKS[attack])


@pytest.mark.attack(24)
def test_24_octal_size_of_8_gib_is_over_the_limit_and_opens_no_sink() -> None:
    kept = tinybundle.Kept()
    with pytest.raises(LimitExceededError):
        tinybundle.read(patched(124, b"77777777777\0"), kept=kept)
    assert kept.written == {}


@pytest.mark.attack(28)
def test_28_a_zip_is_refused() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as writer:
        writer.writestr("model.json", b"{}")
    refused(packed.getvalue(), BundleFormatError)


@pytest.mark.attack(30)
def test_30_what_stands_behind_the_first_bytes_of_a_large_file_is_signed_too() -> None:
    """A bundle format once signed only the first bytes of files over 2 GiB: the last byte counts here."""
    files = {**FILES, "big": bytes(3 << 20)}
    spoiled = {**files, "big": bytes((3 << 20) - 1) + b"x"}
    with pytest.raises(DigestMismatchError, match="big"):
        tinybundle.read(tinybundle.pack(spoiled, sig=tinybundle.signature(files)))


@pytest.mark.attack(31)
def test_31_100_000_members_are_refused_before_they_are_read() -> None:
    many = [archive.SignedFile(f"f{number}", "00" * 32) for number in range(100_000)]
    sig = archive.signing.sign(many, tinybundle.key(), "many")
    assert len(sig) > 1 << 20
    assert isinstance(refused(tinybundle.member("model.sig", sig)), LimitExceededError)
    fewer = archive.signing.sign(many[:65], tinybundle.key(), "many")
    assert isinstance(refused(tinybundle.member("model.sig", fewer)), LimitExceededError)


NAMES = {
    "NUL": "a\0b",
    "newline": "a\nb",
    "not ASCII": "modèle",
    "NFC": "caf\u00e9",
    "NFD": "cafe\u0301",
    "Cyrillic a": "model-\u0430",
    "leading dot": ".hidden",
    "leading dot deeper": "golden/.hidden",
    "dot": ".",
    "dot dot": "..",
    "dot dot inside": "golden/../../x",
    "leading dash": "-rf",
    "leading slash": "/etc/passwd",
    "trailing slash": "golden/",
    "double slash": "golden//a.png",
    "backslash": "golden\\a.png",
    "upper case": "Model.ONNX",
    "space": "a b",
    "colon": "c:x",
    "empty": "",
    "101 bytes": "n" * 101,
    "five levels": "a/b/c/d/e",
    "the signature itself": "model.sig",
    "a file where a folder is": "golden",
    "trailing newline": "a\n",
}


@pytest.mark.attack(36)
@pytest.mark.parametrize("case", NAMES)
def test_36_a_rightly_signed_name_that_is_not_safe_is_refused(case: str) -> None:
    name = NAMES[case]
    listed = [*tinybundle.signed_files(FILES), archive.SignedFile(name, "00" * 32)]
    kept = tinybundle.Kept()
    with pytest.raises((BundleFormatError, LimitExceededError, SignatureError)):
        sig = archive.signing.sign(listed, tinybundle.key(), "x")
        tinybundle.read(tinybundle.member("model.sig", sig) + GOOD[FIRST:], kept=kept)
    assert kept.written == {}


@pytest.mark.attack(36)
def test_36_a_name_listed_twice_is_refused() -> None:
    listed = tinybundle.signed_files(FILES)
    sig = archive.signing.sign([*listed, listed[0]], tinybundle.key(), "x")
    assert "twice" in str(refused(tinybundle.pack(sig=sig), BundleFormatError))


def test_a_refusal_never_shows_the_strangers_bytes_as_they_are() -> None:
    name = "a\x1b[31m\u202e" + "x" * 200
    sig = archive.signing.sign([archive.SignedFile(name, "00" * 32)], tinybundle.key(), "x")
    assert str(refused(tinybundle.member("model.sig", sig))).isprintable()


def small() -> bytes:
    """As short a bundle as there can be."""
    return tinybundle.pack()


@pytest.mark.attack(15, 16)
def test_every_truncation_is_refused() -> None:
    """One reader takes the file byte by byte; at every length the file so far is not a bundle."""
    data = small()
    reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), tinybundle.Kept().open_member)
    for position in range(len(data)):
        with pytest.raises(BundleFormatError):
            reader.finish()
        reader.feed(data[position : position + 1])
    assert reader.finish().size_bytes == len(data)


@pytest.mark.attack(18)
def test_every_byte_matters() -> None:
    """One flipped bit anywhere is refused, but for the spelling of the signature: that leaves the content the same."""
    data, seed = small(), random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    good = tinybundle.read(data)
    signature = range(512, 512 + len(good.signature))
    for position in range(len(data)):
        spoiled = bytearray(data)
        spoiled[position] ^= 1 << chance.randrange(8)
        try:
            verified = tinybundle.read(bytes(spoiled))
        except BundleError:
            continue
        assert position in signature, f"byte {position} may be anything"
        assert verified.digest == good.digest


@pytest.mark.attack(35)
def test_35_a_bundle_that_is_accepted_is_rebuilt_byte_by_byte() -> None:
    """Whatever is accepted has one form only: nothing hides between or behind the files."""
    kept = tinybundle.Kept()
    verified = tinybundle.read(GOOD, kept=kept)
    stored = [(file.name, file.size_bytes) for file in verified.files]
    parts: list[bytes] = []
    for part in archive.rebuild_parts(verified.signature, stored):
        parts.append(part if isinstance(part, bytes) else kept.proven[stored[part][0]])
    assert b"".join(parts) == GOOD


@pytest.mark.parametrize("chunk", [1, 511, 512, 513, 4096])
@pytest.mark.parametrize(
    "attack", ["18 69 flipped data bit", "19 padding not zero", "13 trailing byte", "11 reordered"]
)
def test_a_refusal_does_not_depend_on_the_size_of_the_pieces(attack: str, chunk: int) -> None:
    with pytest.raises(BundleError) as whole:
        tinybundle.read(ATTACKS[attack])
    with pytest.raises(BundleError) as pieces:
        tinybundle.read(ATTACKS[attack], chunk=chunk)
    assert (whole.value.code, str(whole.value)) == (pieces.value.code, str(pieces.value))


@pytest.mark.attack(64)
def test_64_a_malleated_signature_is_no_second_identity() -> None:
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

    def malleated(der: bytes) -> bytes:
        r, s = utils.decode_dss_signature(der)
        return utils.encode_dss_signature(r, order - s)

    again = tinybundle.pack(sig=tinybundle.respelled(tinybundle.signature(FILES), malleated))
    assert again != GOOD
    assert tinybundle.read(again).digest == tinybundle.read(GOOD).digest
