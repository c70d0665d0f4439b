"""Looking at bundles and drafts, taking them apart, and what changed between two."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from lenskeep.bundle import archive, diff, disk, look, manifest
from lenskeep.bundle.diff import Change
from lenskeep.errors import (
    BundleError,
    BundleFormatError,
    DigestMismatchError,
    ModelRefusedError,
    RequestError,
    SignatureError,
    UnknownSignerError,
)
from tests import tinybundle

GOOD = tinybundle.pack()
TRUST = tinybundle.trust()


def put(path: Path, data: bytes = GOOD) -> Path:
    path.write_bytes(data)
    return path


def test_a_file_and_its_folder_look_the_same(tmp_path: Path) -> None:
    file = put(tmp_path / "cap.lkb")
    folder = tinybundle.unpack(tmp_path / "cap", GOOD)
    seen = look.look(file, TRUST, tinybundle.NOW_S)
    for other in (
        look.look(folder, TRUST, tinybundle.NOW_S),
        look.look(file, None, tinybundle.NOW_S),
        look.look(folder, None, tinybundle.NOW_S),
    ):
        assert (other.digest, other.key_id, other.files) == (seen.digest, seen.key_id, seen.files)
        for name, content in tinybundle.parts().items():
            with other.content(name) as data:
                assert bytes(data) == content


def test_without_a_key_nobody_vouches(tmp_path: Path) -> None:
    seen = look.look(put(tmp_path / "cap.lkb"), None, tinybundle.NOW_S)
    assert seen.signer == ""
    assert seen.key_id == tinybundle.key().public.id
    assert look.look(tmp_path / "cap.lkb", TRUST, tinybundle.NOW_S).signer == "plant-release"


def test_with_a_key_that_did_not_sign_there_is_no_look(tmp_path: Path) -> None:
    store = tinybundle.trust(tinybundle.trusted(tinybundle.other_key(), "other"))
    with pytest.raises(UnknownSignerError):
        look.look(put(tmp_path / "cap.lkb"), store, tinybundle.NOW_S)


def test_a_draft_has_no_key(tmp_path: Path) -> None:
    folder = tinybundle.unpack(tmp_path / "cap", GOOD)
    (folder / "model.sig").unlink()
    seen = look.look(folder, TRUST, tinybundle.NOW_S)
    assert (seen.key_id, seen.signer, seen.signature) == ("", "", b"")


SPOILED = {
    "flipped bit": GOOD.replace(b"# A card", b"# A cart"),
    "trailing byte": GOOD + b"\0",
    "cut short": GOOD[:-700],
    "one byte short": GOOD[:-1],
    "extra member": GOOD[: -len(archive.END)] + tinybundle.member("zzz", b"1") + archive.END,
    "no bundle": b"hello" * 1000,
    "empty": b"",
    "signed by nobody": tinybundle.member("model.sig", b"{}") + GOOD[2000:],
    "8 GiB": tinybundle.member("model.sig", tinybundle.signature(tinybundle.parts()))
    + archive.header("golden/a.png", 8**11 - 1),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_file_is_refused_with_and_without_a_key(tmp_path: Path, case: str) -> None:
    file = put(tmp_path / "cap.lkb", SPOILED[case])
    for trust in (TRUST, None):
        with pytest.raises(BundleError):
            look.look(file, trust, tinybundle.NOW_S)


def test_a_changed_folder_is_refused_with_and_without_a_key(tmp_path: Path) -> None:
    for change in ("readme.md", "new.txt", ".git/evil.onnx"):
        folder = tinybundle.unpack(tmp_path / change.replace("/", "_"), GOOD)
        (folder / change).parent.mkdir(exist_ok=True)
        (folder / change).write_text("changed")
        for trust in (TRUST, None):
            with pytest.raises(BundleError):
                look.look(folder, trust, tinybundle.NOW_S)


@pytest.mark.attack(3, 6)
def test_links_and_pipes_in_a_folder_are_refused(tmp_path: Path) -> None:
    for number, make in enumerate((lambda path: path.symlink_to("/etc/passwd"), lambda path: os.mkfifo(path))):
        folder = tinybundle.unpack(tmp_path / str(number), GOOD)
        (folder / "readme.md").unlink()
        make(folder / "readme.md")
        with pytest.raises(BundleFormatError, match="neither a file nor a folder"):
            look.look(folder, TRUST, tinybundle.NOW_S)


def test_a_folder_without_a_signature_is_not_verified(tmp_path: Path) -> None:
    folder = tinybundle.unpack(tmp_path / "cap", GOOD)
    (folder / "model.sig").unlink()
    with pytest.raises(BundleFormatError, match=r"model\.sig"):
        disk.read_folder(folder, TRUST, tinybundle.NOW_S)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "nothing", Path("/dev/zero")):
        with pytest.raises(RequestError):
            disk.read_file(path, TRUST, tinybundle.NOW_S)


def test_extract_leaves_nothing_when_it_refuses(tmp_path: Path) -> None:
    file = put(tmp_path / "cap.lkb", SPOILED["flipped bit"])
    with pytest.raises(DigestMismatchError):
        disk.extract(file, tmp_path / "cap", TRUST, tinybundle.NOW_S)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cap.lkb"]


def test_extract_takes_no_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "cap").mkdir()
    with pytest.raises(RequestError, match="there already"):
        disk.extract(put(tmp_path / "cap.lkb"), tmp_path / "cap", TRUST, tinybundle.NOW_S)


def test_the_model_inside_a_file_is_scanned(tmp_path: Path) -> None:
    file = put(tmp_path / "cap.lkb")
    assert look.check_model_of(look.look(file, TRUST, tinybundle.NOW_S)).opset == 17
    files = {**tinybundle.parts(), "model.onnx": b"no model"}
    hostile = put(tmp_path / "hostile.lkb", tinybundle.pack(files))
    with pytest.raises(ModelRefusedError):
        look.check_model_of(look.look(hostile, TRUST, tinybundle.NOW_S))


def test_what_a_signature_claims_is_checked_for_its_form(tmp_path: Path) -> None:
    folder = tinybundle.unpack(tmp_path / "cap", GOOD)
    (folder / "model.sig").write_text("{}")
    with pytest.raises(SignatureError):
        look.look(folder, None, tinybundle.NOW_S)


# --- differences ----------------------------------------------------------------------------------------------------


def changes(tmp_path: Path, change: dict[str, Any], files: dict[str, bytes] | None = None) -> list[Change]:
    """Compare the good bundle with one that has other words in its manifest."""
    facts = copy.deepcopy(tinybundle.facts())
    for name, value in change.items():
        facts[name] = {**facts.get(name, {}), **value} if isinstance(value, dict) else value
    old = put(tmp_path / "old.lkb")
    new = put(tmp_path / "new.lkb", tinybundle.pack({**tinybundle.parts(facts), **(files or {})}))
    return diff.compare(*(look.look(path, None, tinybundle.NOW_S) for path in (old, new)))


def labels(names: list[str]) -> dict[str, Any]:
    return {"labels": {"names": names, "sha256": manifest.labels_digest(names)}}


def test_the_same_content_has_no_difference(tmp_path: Path) -> None:
    assert changes(tmp_path, {}) == []


def test_reordered_labels_are_named_first_and_loudly(tmp_path: Path) -> None:
    first = changes(tmp_path, {**labels(["scratched", "good", "missing"]), "version": "1.1.0"})[0]
    assert first.kind == "labels"
    assert first.breaking
    assert first.text == "labels RE-ORDERED: scratched 1 -> 0, good 0 -> 1"


def test_added_and_removed_labels_are_named(tmp_path: Path) -> None:
    outputs = [{"name": "scores", "shape": [1, 3]}]
    found = changes(
        tmp_path, {**labels(["good", "scratched", "dented"]), "outputs": outputs, "verdict": {"ng": ["scratched"]},
                   "golden": {"cases": [{"image": "golden/a.png", "scores": {"good": 0.3}}]}},
    )  # fmt: skip
    texts = [change.text for change in found if change.kind == "labels"]
    assert texts == ["labels removed: missing", "labels added: dented"]


@pytest.mark.parametrize(
    ("change", "text", "breaking"),
    [
        ({"input": {"color": "BGR"}}, 'input.color: "RGB" -> "BGR"', False),
        ({"input": {"resize": {"mode": "letterbox"}}}, 'input.resize.mode: "stretch" -> "letterbox"', False),
        ({"input": {"scale": 0.5}}, "input.scale: 1.0 -> 0.5", False),
        ({"input": {"shape": [1, 3, 8, 8]}}, "input.shape: [1,3,4,4] -> [1,3,8,8]", False),
        ({"outputs": [{"name": "p", "shape": [1, 3]}]}, "outputs.p.shape: nothing -> [1,3]", False),
        ({"decode": {"softmax": True}}, "decode.softmax: false -> true", False),
        ({"verdict": {"certain_from": 0.9}}, "verdict.certain_from: 0.6 -> 0.9", False),
        ({"verdict": {"ng": ["scratched"]}}, 'verdict.ng: ["scratched","missing"] -> ["scratched"]', True),
        ({"budget": {"latency_p99_ms": 10}}, "budget.latency_p99_ms: 50.0 -> 10.0", False),
        ({"requires": {"opset": 18}}, "requires.opset: 17 -> 18", False),
        ({"requires": {"providers": ["CUDA"]}}, 'requires.providers: ["CPU"] -> ["CUDA"]', True),
        ({"golden": {"tolerance": {"score_abs": 0.2}}}, "golden.tolerance.score_abs: 0.01 -> 0.2", False),
        ({"provenance": {"metrics": {"accuracy": 0.9}}}, "metrics.accuracy: nothing -> 0.9", False),
        ({"name": "weld"}, "another model: cap-inspect@1.0.0 and weld@1.0.0", True),
    ],
)
def test_each_part_of_the_contract_is_compared(
    tmp_path: Path, change: dict[str, Any], text: str, breaking: bool
) -> None:
    found = changes(tmp_path, change)
    assert Change(kind=kind_of(text), text=text, breaking=breaking) in found


def kind_of(text: str) -> Any:
    word = text.split(".", maxsplit=1)[0]
    return "files" if word.startswith("another model") else word


def test_golden_answers_that_moved_are_named(tmp_path: Path) -> None:
    moved = [{"image": "golden/a.png", "scores": {"good": 0.1, "scratched": 0.8, "missing": 0.1}}]
    found = changes(tmp_path, {"golden": {"cases": moved}})
    assert found[0].text == "golden/a.png: best label good -> scratched"
    assert found[0].breaking


def test_changed_files_and_signers_are_named(tmp_path: Path) -> None:
    found = changes(tmp_path, {}, {"readme.md": b"another", "sbom.json": b"{}"})
    assert [change.text for change in found] == ["readme.md changed, 9 -> 7 bytes", "sbom.json added"]
    old = put(tmp_path / "old.lkb")
    new = put(
        tmp_path / "new.lkb", tinybundle.pack(sig=tinybundle.signature(tinybundle.parts(), tinybundle.other_key()))
    )
    found = diff.compare(*(look.look(path, None, tinybundle.NOW_S) for path in (old, new)))
    assert [change.kind for change in found] == ["signer"]
